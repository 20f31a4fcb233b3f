use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use strum::{Display, EnumIter, EnumString, IntoStaticStr};
use utoipa::{IntoParams, ToSchema};

use crate::{Base64Bytes, DeviceOf, KeyPackageRef, LogSize, ReservationId, UserName};

/// Which part of the audit trail to read.
#[derive(Clone, Debug, Default, Serialize, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct AuditQuery {
    /// The owner of the KeyPackages. Required with the admin token, and refused with a device's token, which reads the
    /// caller's own trail.
    #[param(nullable = false)]
    pub user: Option<UserName>,
    /// The page begins before this event: `next` of the previous page.
    #[param(nullable = false, minimum = 1)]
    pub before: Option<i64>,
    /// The most events to answer.
    #[param(nullable = false, minimum = 1, maximum = 1000, default = 100)]
    pub limit: Option<u32>,
}

/// A page of the audit trail.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct AuditPage {
    /// The events, newest first.
    pub events: Vec<AuditEvent>,
    /// Where the next page begins; `null` on the last page.
    pub next: Option<i64>,
    /// If the server has a transparency log: its size before the events were read. All steps that it has by then are in the
    /// trail. If you read several pages, keep that of the first one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub log: Option<LogSize>,
}

/// A step in the life of a KeyPackage.
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
    /// The owner uploaded the KeyPackage.
    Upload,
    /// An adder reserved it.
    Reserve,
    /// The adder used it in a Commit.
    Spend,
    /// The adder released it.
    Release,
    /// The owner or the operator revoked it.
    Revoke,
    /// Its reservation lapsed, and nobody reserved it again before the server recorded that.
    Lapse,
    /// Its `not_after` passed.
    Expire,
    /// It was the first KeyPackage under a new signature key of the owner, which replaced the previous key.
    SignatureKeyChanged,
}

/// One event of the audit trail.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AuditEvent {
    /// The event's number: later events have higher numbers.
    #[schema(example = 4711)]
    pub id: i64,
    /// The time of the event.
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
    /// The step.
    pub action: Action,
    /// The KeyPackage's ref.
    pub keypackage_ref: KeyPackageRef,
    /// The KeyPackage's owner.
    pub owner: DeviceOf,
    /// The device that took the step, or whose reservation lapsed; `null` for the operator, and for `expire`.
    pub actor: Option<DeviceOf>,
    /// The reservation.
    #[schema(value_type = Option<String>)]
    pub reservation_id: Option<ReservationId>,
    /// With `spend`: the group's id. With `reserve`: a digest of 32 bytes, the same for the same group and owner. It hides
    /// the id, which the owner must not know before being added (HMAC-SHA-256 with a key that only the server has).
    pub group_id: Option<Base64Bytes>,
    /// Whether the KeyPackage was the last resort.
    pub last_resort: bool,
    /// With `upload`: the KeyPackage's `not_after`. With `reserve`: the reservation's end.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub until: Option<Timestamp>,
    /// With `signature-key-changed`: the new signature key.
    #[serde(default)]
    pub signature_key: Option<Base64Bytes>,
    /// The number of the hand-out in the transparency log. A last resort has none, and an event that is not in the log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, example = 0)]
    pub handout: Option<u32>,
    /// How many leaves of the transparency log are of this event: none of an upload or `expire`; 2 if it is also the beginning
    /// of the hand-out that it ends, such as a spend after the reservation had lapsed.
    #[serde(default)]
    #[schema(maximum = 2, example = 1)]
    pub leaves: u8,
}
