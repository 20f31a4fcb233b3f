use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    Base64Bytes, DeviceName, KeyPackageRef, MAX_TARGETS, MissingReason, ReservationId, State, UserName,
    ids::{group_id_schema, optional_group_id_schema},
    present, some_bounded, whole,
};

/// Whose KeyPackages to reserve: `target_user`, `targets`, or both.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ReserveRequest {
    /// The user to be added to a group.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, example = "alice")]
    pub target_user: Option<UserName>,
    /// Up to 100 users to be added to a group. What cannot be reserved is in `missing`.
    #[serde(default, deserialize_with = "some_bounded::<_, _, MAX_TARGETS>", skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, min_items = 1, max_items = 100)]
    pub targets: Option<Vec<UserName>>,
    /// Only the device of this name; without it, every device.
    #[serde(default)]
    #[schema(example = "laptop")]
    pub device: Option<DeviceName>,
    /// Only KeyPackages of this ciphersuite; without it, of any.
    #[serde(default, deserialize_with = "whole")]
    #[schema(maximum = 65535, example = 1)]
    pub ciphersuite: Option<u16>,
    /// The group that they are to be added to, for the owners' audit trails: they see a digest of it until it is spent.
    #[serde(default)]
    #[schema(schema_with = optional_group_id_schema)]
    pub group_id: Option<Base64Bytes>,
    /// How long to hold them, in seconds; without it, the server's default.
    #[serde(default, deserialize_with = "whole")]
    #[schema(minimum = 1, example = 60)]
    pub ttl: Option<u64>,
}

impl ReserveRequest {
    /// A request for a KeyPackage of each device of several users.
    #[must_use]
    pub fn of_all(users: Vec<UserName>) -> Self {
        let (target_user, device, ciphersuite, group_id, ttl) = (None, None, None, None, None);
        Self { target_user, targets: Some(users), device, ciphersuite, group_id, ttl }
    }

    /// A request for a KeyPackage of each of a user's devices.
    #[must_use]
    pub fn of(user: UserName) -> Self {
        let (targets, device, ciphersuite, group_id, ttl) = (None, None, None, None, None);
        Self { target_user: Some(user), targets, device, ciphersuite, group_id, ttl }
    }
}

/// One reservation per device that had a KeyPackage.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ReserveResponse {
    /// What is held for the caller.
    pub reservations: Vec<Reservation>,
    /// The devices that had none, and the users who have no device.
    pub missing: Vec<MissingDevice>,
}

/// A KeyPackage that is held for the caller alone until `expires_at`.
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
    /// The KeyPackage: the very bytes that its owner uploaded, an `MLSMessage`.
    pub keypackage: Base64Bytes,
    /// Its ciphersuite.
    #[schema(example = 1)]
    pub ciphersuite: u16,
    /// When it expires.
    #[schema(value_type = String, format = DateTime)]
    pub not_after: Timestamp,
    /// When the reservation lapses, if it is not spent.
    #[schema(value_type = String, format = DateTime)]
    pub expires_at: Timestamp,
    /// Whether it is the last resort, which others may hold too.
    pub last_resort: bool,
}

/// A device that has no KeyPackage to reserve, or a user who has no such device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MissingDevice {
    /// The user.
    #[schema(example = "alice")]
    pub user: UserName,
    /// The device; `null` where the user has none, or is not known.
    #[schema(example = "laptop")]
    pub device: Option<DeviceName>,
    /// Why.
    pub reason: MissingReason,
    /// The ciphersuites of which the device has KeyPackages.
    #[schema(example = json!([2]))]
    pub ciphersuites: Vec<u16>,
}

/// A reservation whose KeyPackage is now in a Commit.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SpendRequest {
    /// The reservation.
    pub reservation_id: ReservationId,
    /// The group that the Commit belongs to.
    #[schema(schema_with = group_id_schema)]
    pub group_id: Base64Bytes,
}

/// A spent KeyPackage.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct SpendResponse {
    /// The KeyPackage.
    pub keypackage_ref: KeyPackageRef,
    /// `spent`; `available` for a last resort, which is never used up.
    pub state: State,
    /// When it was spent first.
    #[schema(value_type = String, format = DateTime)]
    pub spent_at: Timestamp,
}

/// A reservation that is not needed after all.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ReleaseRequest {
    /// The reservation.
    pub reservation_id: ReservationId,
}

/// A KeyPackage that is no longer held.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ReleaseResponse {
    /// The KeyPackage.
    pub keypackage_ref: KeyPackageRef,
    /// `available`, or `retired` where the operator has each KeyPackage handed out only once; `revoked` or `expired` where that came
    /// first.
    pub state: State,
}
