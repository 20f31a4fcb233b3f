use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use strum::{Display, EnumIter, EnumString, IntoStaticStr};
use utoipa::{IntoParams, ToSchema};

use crate::{
    Base64Bytes, DeviceName, KeyPackageRef, MAX_REVOCATIONS, PoolStatus, ReservationId, State, UserName, present,
    some_bounded,
};

/// A device, named in full.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
pub struct DeviceOf {
    /// Its user.
    #[schema(example = "bob")]
    pub user: UserName,
    /// Its name.
    #[schema(example = "phone")]
    pub device: DeviceName,
}

/// Which KeyPackages of the caller's own pool to withdraw: `refs` or `all`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RevokeRequest {
    /// These, up to 1000.
    #[serde(
        default,
        deserialize_with = "some_bounded::<_, _, MAX_REVOCATIONS>",
        skip_serializing_if = "Option::is_none"
    )]
    #[schema(nullable = false, min_items = 1, max_items = 1000)]
    pub refs: Option<Vec<KeyPackageRef>>,
    /// As true: all that are available or reserved, the last resort included.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, example = true)]
    pub all: Option<bool>,
}

/// What became of a revocation.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct RevokeResponse {
    /// Those that are withdrawn by this call.
    pub revoked: Vec<KeyPackageRef>,
    /// Those whose life had ended before, and how.
    pub ended: Vec<EndedKeyPackage>,
    /// Those that are not in the caller's pool.
    pub unknown: Vec<KeyPackageRef>,
    /// The pool after the revocation.
    pub pool: PoolStatus,
}

/// A KeyPackage that can never be handed out again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EndedKeyPackage {
    /// Which.
    pub keypackage_ref: KeyPackageRef,
    /// How its life ended.
    pub state: State,
}

/// A page of a list: where it begins, and how long it is.
#[derive(Clone, Debug, Default, Serialize, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct InventoryQuery {
    /// Only what comes after this ref: `next` of the page before.
    #[param(nullable = false)]
    pub after: Option<KeyPackageRef>,
    /// How many at most.
    #[param(nullable = false, minimum = 1, maximum = 1000, default = 500)]
    pub limit: Option<u32>,
}

/// A page of the caller's own pool.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct InventoryPage {
    /// KeyPackages in the order of their refs.
    pub keypackages: Vec<InventoryItem>,
    /// Where the next page begins; `null` on the last one.
    pub next: Option<KeyPackageRef>,
}

/// A KeyPackage that the server knows of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct InventoryItem {
    /// Its ref.
    pub keypackage_ref: KeyPackageRef,
    /// Where it is in its life.
    pub state: State,
    /// Its ciphersuite (RFC 9420, section 17.1).
    #[schema(example = 1)]
    pub ciphersuite: u16,
    /// When it expires.
    #[schema(value_type = String, format = DateTime)]
    pub not_after: Timestamp,
    /// Whether it is a last resort.
    pub last_resort: bool,
    /// Its last reservation.
    #[schema(value_type = Option<String>)]
    pub reservation_id: Option<ReservationId>,
    /// Who reserved it last.
    pub reserved_by: Option<DeviceOf>,
    /// When that reservation ends or ended.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub reserved_until: Option<Timestamp>,
    /// When it was spent.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub spent_at: Option<Timestamp>,
    /// The group that it was spent for.
    pub group_id: Option<Base64Bytes>,
}

/// Which part of the audit trail to read.
#[derive(Clone, Debug, Default, Serialize, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct AuditQuery {
    /// Whose KeyPackages: only with the admin token, and then needed. Without it, the caller's own.
    #[param(nullable = false)]
    pub user: Option<UserName>,
    /// Only what came before this event: `next` of the page before.
    #[param(nullable = false, minimum = 1)]
    pub before: Option<i64>,
    /// How many at most.
    #[param(nullable = false, minimum = 1, maximum = 1000, default = 100)]
    pub limit: Option<u32>,
}

/// A page of the audit trail.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct AuditPage {
    /// What happened, the newest first.
    pub events: Vec<AuditEvent>,
    /// Where the next page begins; `null` on the last one.
    pub next: Option<i64>,
}

/// What can happen to a KeyPackage.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Hash,
    Serialize,
    Deserialize,
    Display,
    EnumIter,
    EnumString,
    IntoStaticStr,
    ToSchema,
)]
#[serde(rename_all = "kebab-case")]
#[strum(serialize_all = "kebab-case")]
pub enum Action {
    /// It entered the pool.
    Upload,
    /// It was handed out, and held.
    Reserve,
    /// It was used in a Commit.
    Spend,
    /// Its holder gave it back.
    Release,
    /// Its owner, or the operator, withdrew it.
    Revoke,
    /// Its reservation ran out, and nobody has reserved it again before the server noted it.
    Lapse,
    /// Its `not_after` passed.
    Expire,
    /// It was the first KeyPackage under a new signature key of its owner, which took the place of the one before.
    SignatureKeyChanged,
}

/// One step in the life of a KeyPackage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AuditEvent {
    /// The event's number: later events have higher ones.
    #[schema(example = 4711)]
    pub id: i64,
    /// When it happened.
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
    /// What happened.
    pub action: Action,
    /// To which KeyPackage.
    pub keypackage_ref: KeyPackageRef,
    /// Whose KeyPackage it is.
    pub owner: DeviceOf,
    /// Who did it, or whose reservation lapsed; `null` for the operator, and for expiry.
    pub actor: Option<DeviceOf>,
    /// The reservation that it was about.
    #[schema(value_type = Option<String>)]
    pub reservation_id: Option<ReservationId>,
    /// With `spend`: the group that it was for. With `reserve`: 32 bytes that are the same for the same group and owner, and say
    /// nothing of its id (HMAC-SHA-256 with a key that the server keeps): who is about to be added does not know the id yet.
    pub group_id: Option<Base64Bytes>,
    /// Whether it was the last resort.
    pub last_resort: bool,
    /// Until when what began holds: an upload's `not_after`, a reservation's end.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub until: Option<Timestamp>,
    /// With `signature-key-changed`: the new signature key.
    #[serde(default)]
    pub signature_key: Option<Base64Bytes>,
}

/// How many pools to list.
#[derive(Clone, Debug, Default, Serialize, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct LowPoolsQuery {
    /// How many at most.
    #[param(nullable = false, minimum = 1, maximum = 1000, default = 100)]
    pub limit: Option<u32>,
}

/// The pools that are low or empty.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct LowPools {
    /// One for each device and ciphersuite, the worst first.
    pub pools: Vec<LowPool>,
}

/// A pool that is low or empty.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LowPool {
    /// The user.
    #[schema(example = "alice")]
    pub user: UserName,
    /// The device.
    #[schema(example = "laptop")]
    pub device: DeviceName,
    /// The ciphersuite; `null` where the device has uploaded nothing, or nothing that the server still knows of.
    #[schema(example = 1)]
    pub ciphersuite: Option<u16>,
    /// KeyPackages that can be handed out for the first time.
    pub fresh: u64,
    /// When the device last uploaded something that was accepted.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub last_upload: Option<Timestamp>,
}
