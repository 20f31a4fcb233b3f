use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{DeviceName, UserName};

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

/// The devices of a user.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct DeviceList {
    /// The user.
    #[schema(example = "alice")]
    pub user: UserName,
    /// The devices, by name.
    pub devices: Vec<Device>,
}

/// One device of a user.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Device {
    /// The device's name.
    #[schema(example = "laptop")]
    pub device: DeviceName,
    /// When it was registered.
    #[schema(value_type = String, format = DateTime)]
    pub registered_at: Timestamp,
}
