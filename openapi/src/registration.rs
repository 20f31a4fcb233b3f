use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::{DeviceName, MAX_LOOKUP_USERS, PreviousSignatureKey, SignatureKey, UserName, bounded};

/// A new device, to be registered.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RegisterRequest {
    /// The user whose device it is. A user comes to be with the first device.
    #[schema(example = "alice")]
    pub user: UserName,
    /// The device's name, unique among the user's.
    #[schema(example = "laptop")]
    pub device: DeviceName,
}

/// A registered device with its bearer token.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
pub struct RegisterResponse {
    /// The user.
    #[schema(example = "alice")]
    pub user: UserName,
    /// The device.
    #[schema(example = "laptop")]
    pub device: DeviceName,
    /// The bearer token of the device. Shown this once: the server keeps only its hash.
    #[schema(example = "keypool_tTnyVvyUjlJVyjUTbW0zQxzSnf6aEYpAfHyZxpQPnG0")]
    pub token: String,
}

/// A device's new bearer token.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
pub struct TokenResponse {
    /// The device.
    #[schema(example = "laptop")]
    pub device: DeviceName,
    /// The bearer token. Shown this once; the one before it is no longer valid.
    #[schema(example = "keypool_tTnyVvyUjlJVyjUTbW0zQxzSnf6aEYpAfHyZxpQPnG0")]
    pub token: String,
}

/// A device that was removed.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct RemovedDevice {
    /// The user.
    #[schema(example = "alice")]
    pub user: UserName,
    /// The device.
    #[schema(example = "laptop")]
    pub device: DeviceName,
    /// How many KeyPackages were revoked with it.
    #[schema(example = 33)]
    pub revoked: u64,
}

/// Which of a user's devices to list.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct DevicesQuery {
    /// Whether to list removed devices, too.
    #[param(nullable = false, default = false)]
    pub removed: Option<bool>,
}

/// The devices of a user.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DeviceList {
    /// The user.
    #[schema(example = "alice")]
    pub user: UserName,
    /// The devices, by name.
    pub devices: Vec<Device>,
}

/// One device of a user.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Device {
    /// The device's name.
    #[schema(example = "laptop")]
    pub device: DeviceName,
    /// When it was registered last.
    #[schema(value_type = String, format = DateTime)]
    pub registered_at: Timestamp,
    /// When it was removed; `null` where it is registered.
    #[serde(default)]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub removed_at: Option<Timestamp>,
    /// Its signature keys, by ciphersuite: what a new leaf of the device has to carry. Empty where it has uploaded
    /// nothing yet, where it was removed, and where the operator has set `KEYPOOL_CREDENTIAL_BINDING=off`.
    #[serde(default)]
    pub signature_keys: Vec<SignatureKey>,
    /// The signature keys that it had before, the newest first, those of earlier registrations included: what leaves that
    /// are in a group already may carry.
    #[serde(default)]
    pub previous_signature_keys: Vec<PreviousSignatureKey>,
}

/// Whose devices to look up.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LookupRequest {
    /// The users, 1 to 1000.
    #[serde(deserialize_with = "bounded::<_, _, MAX_LOOKUP_USERS>")]
    #[schema(min_items = 1, max_items = 1000)]
    pub users: Vec<UserName>,
    /// Whether to answer removed devices, too.
    #[serde(default)]
    pub removed: bool,
}

/// The devices of several users.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LookupResponse {
    /// The users and their devices, by name.
    pub users: Vec<DeviceList>,
    /// The users that the server does not know.
    pub unknown: Vec<UserName>,
    /// The users for whom this answer, of 4 MiB about, had no room: another call answers them.
    pub remaining: Vec<UserName>,
}
