use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use strum::{Display, EnumIter, EnumString, IntoStaticStr};
use utoipa::ToSchema;

use crate::{
    Base64Bytes, DeviceName, KeyPackageRef, MAX_CIPHERSUITES, MAX_TARGETS, Proof, ReservationId, UserName,
    optional_list, or_default,
    schemas::{bind_schema, optional_group_id_schema},
    whole, whole_list,
};

/// The users whose KeyPackages to reserve: `target_user`, `targets`, or both.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ReserveRequest {
    /// A user to add to a group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "alice")]
    pub target_user: Option<UserName>,
    /// Up to 100 users to add to a group. Devices without a reservation are in `missing`.
    #[serde(default, deserialize_with = "optional_list::<_, _, MAX_TARGETS>", skip_serializing_if = "Option::is_none")]
    #[schema(min_items = 1, max_items = 100)]
    pub targets: Option<Vec<UserName>>,
    /// Reserve only for the device of this name; without it, for every device.
    #[serde(default)]
    #[schema(example = "laptop")]
    pub device: Option<DeviceName>,
    /// Reserve only KeyPackages of this ciphersuite; without it, of any.
    #[serde(default, deserialize_with = "whole")]
    #[schema(maximum = 65535, example = 1)]
    pub ciphersuite: Option<u16>,
    /// Reserve only KeyPackages of these ciphersuites, the most wanted first. Of each device, a fresh KeyPackage of any of them comes
    /// before one that was handed out before, and this before a last resort. Send it or `ciphersuite`, not both.
    #[serde(default, deserialize_with = "whole_list::<_, _, MAX_CIPHERSUITES>", skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Option<Vec<u16>>, max_items = 16, example = json!([2, 1]))]
    pub ciphersuites: Vec<u16>,
    /// Whether a last resort will do where nothing else is left; `false`: rather nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = true)]
    pub last_resort: Option<bool>,
    /// How long a KeyPackage has to be valid yet, in seconds. What ends sooner is left for others.
    #[serde(default, deserialize_with = "whole", skip_serializing_if = "Option::is_none")]
    #[schema(maximum = 4_294_967_295_u64, example = 86_400)]
    pub min_lifetime: Option<u32>,
    /// The group to which the users are added, for the owners' audit trails: an owner sees a digest of the id until the
    /// spend.
    #[serde(default)]
    #[schema(schema_with = optional_group_id_schema)]
    pub group_id: Option<Base64Bytes>,
    /// How long the reservations hold, in seconds; without it, the server's default.
    #[serde(default, deserialize_with = "whole")]
    #[schema(minimum = 1, example = 60)]
    pub ttl: Option<u64>,
    /// 32 random bytes that the caller draws for this request and keeps before it sends them. The server puts them into the
    /// transparency log, so that it cannot show one leaf of the log to two adders. Send the same in a repetition.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(schema_with = bind_schema)]
    pub bind: Option<Base64Bytes>,
    /// What the caller wants to get that binds the server to this hand-out.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Proof::is_none")]
    #[schema(value_type = Option<Proof>)]
    pub proof: Proof,
}

impl ReserveRequest {
    /// A request for a KeyPackage of each device of several users.
    #[must_use]
    pub fn of_all(users: Vec<UserName>) -> Self {
        Self { target_user: None, targets: Some(users), ..Self::of_nobody() }
    }

    /// A request for a KeyPackage of each of a user's devices.
    #[must_use]
    pub fn of(user: UserName) -> Self {
        Self { target_user: Some(user), ..Self::of_nobody() }
    }

    fn of_nobody() -> Self {
        Self {
            target_user: None,
            targets: None,
            device: None,
            ciphersuite: None,
            ciphersuites: Vec::new(),
            last_resort: None,
            min_lifetime: None,
            group_id: None,
            ttl: None,
            bind: None,
            proof: Proof::None,
        }
    }
}

/// One reservation for each device that had a KeyPackage.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ReserveResponse {
    /// The reservations.
    pub reservations: Vec<Reservation>,
    /// The devices without a reservation, and the users without a device.
    pub missing: Vec<MissingDevice>,
}

/// A KeyPackage that only the caller can spend until `expires_at`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Reservation {
    /// Names the reservation in `spend` and `release`.
    pub reservation_id: ReservationId,
    /// The owner's user.
    #[schema(example = "alice")]
    pub user: UserName,
    /// The owner's device.
    #[schema(example = "laptop")]
    pub device: DeviceName,
    /// The KeyPackage's ref.
    pub keypackage_ref: KeyPackageRef,
    /// The KeyPackage: the `MLSMessage` with the bytes that its owner uploaded.
    pub keypackage: Base64Bytes,
    /// Its ciphersuite.
    #[schema(example = 1)]
    pub ciphersuite: u16,
    /// When the KeyPackage expires.
    #[schema(value_type = String, format = DateTime)]
    pub not_after: Timestamp,
    /// When the reservation lapses, if it is not spent.
    #[schema(value_type = String, format = DateTime)]
    pub expires_at: Timestamp,
    /// Whether it is the last resort, which other adders may hold, too.
    pub last_resort: bool,
    /// The number of this hand-out in the transparency log: how often the KeyPackage was handed out before. `null` for a last
    /// resort.
    #[serde(default)]
    #[schema(example = 0)]
    pub handout: Option<u32>,
    /// The receipt, if the request asked for one (docs/transparency.md). A repetition gets none: ask `POST /log/proofs`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub receipt: Option<String>,
}

/// A device without a KeyPackage to reserve, or a user without such a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MissingDevice {
    /// The user.
    #[schema(example = "alice")]
    pub user: UserName,
    /// The device; `null` if the user has no device, or is unknown.
    #[schema(example = "laptop")]
    pub device: Option<DeviceName>,
    /// The reason.
    pub reason: MissingReason,
    /// The ciphersuites of the device's KeyPackages.
    #[schema(example = json!([2]))]
    pub ciphersuites: Vec<u16>,
}

/// Why a device has no KeyPackage in an answer to `POST /keypackages/reserve`.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Display, EnumIter, EnumString, IntoStaticStr, ToSchema,
)]
#[serde(rename_all = "kebab-case")]
#[strum(serialize_all = "kebab-case")]
pub enum MissingReason {
    /// There is no such user.
    UnknownUser,
    /// The user has no such device, or no device at all.
    UnknownDevice,
    /// The device's pool is empty, without a last resort.
    PoolExhausted,
    /// All KeyPackages of the device expire too soon to be handed out.
    PoolExpired,
    /// The device has KeyPackages, but of other ciphersuites.
    NoMatchingCiphersuite,
    /// The caller reserves this user's KeyPackages too often, or the answer has about 4 MiB already: send another
    /// request.
    TooManyRequests,
    /// Only in the answer to a repetition: the first reservation no longer holds, since it lapsed, or its KeyPackage
    /// was spent, released or revoked.
    ReservationLapsed,
}
