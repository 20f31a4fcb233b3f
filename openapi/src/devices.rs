use std::{fmt, str::FromStr};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::{
    DeviceName, InvalidId, MAX_LOOKUP_USERS, PreviousSignatureKey, SignatureKey, UserName, device_name, list,
    or_default,
};

/// A device to register.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RegisterRequest {
    /// The user of the device. The first device of a new name creates the user.
    #[schema(example = "alice")]
    pub user: UserName,
    /// The device's name, unique among the user's devices.
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
    /// The bearer token of the device. No other answer has it: the server stores only its hash.
    #[schema(example = "keypool_tTnyVvyUjlJVyjUTbW0zQxzSnf6aEYpAfHyZxpQPnG0")]
    pub token: String,
}

/// A code by which a further device of the user registers, once.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
pub struct NewDeviceLink {
    /// The code. No other answer has it: the server stores only its hash.
    #[schema(example = "K7QP-2M4X-9TRD")]
    pub code: String,
    /// When it ends, if nobody has used it.
    #[schema(value_type = String, format = DateTime)]
    pub expires_at: Timestamp,
}

/// The codes of a user's devices.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DeviceLinks {
    /// The codes, at most one of each device.
    pub links: Vec<DeviceLink>,
}

/// A code by which a further device of a user registers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DeviceLink {
    /// The device that made it.
    #[schema(example = "laptop")]
    pub made_by: DeviceName,
    /// Its state.
    pub state: LinkState,
    /// The device that was registered with it; `null` if none was.
    #[serde(default)]
    #[schema(example = "phone")]
    pub device: Option<DeviceName>,
    /// When it ends, or has ended.
    #[schema(value_type = String, format = DateTime)]
    pub expires_at: Timestamp,
}

/// The state of a code for a further device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum LinkState {
    /// A device can be registered with it.
    Open,
    /// A device was registered with it.
    Used,
    /// Its time is over, the token of its device has ended, or there were too many wrong codes.
    Over,
}

/// A device's new bearer token.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
pub struct TokenResponse {
    /// The device.
    #[schema(example = "laptop")]
    pub device: DeviceName,
    /// The new bearer token. No other answer has it, and the previous token is no longer valid.
    #[schema(example = "keypool_tTnyVvyUjlJVyjUTbW0zQxzSnf6aEYpAfHyZxpQPnG0")]
    pub token: String,
}

/// A removed device.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct RemovedDevice {
    /// The user.
    #[schema(example = "alice")]
    pub user: UserName,
    /// The device.
    #[schema(example = "laptop")]
    pub device: DeviceName,
    /// How many KeyPackages were revoked with the device.
    #[schema(example = 33)]
    pub revoked: u64,
}

/// Which of a user's devices to list.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct DevicesQuery {
    /// If true, list removed devices, too.
    #[param(nullable = false, default = false)]
    pub removed: Option<bool>,
}

/// The devices of a user.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DeviceList {
    /// The user.
    #[schema(example = "alice")]
    pub user: UserName,
    /// The devices, sorted by name.
    pub devices: Vec<Device>,
}

/// One device of a user.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Device {
    /// The device's name.
    #[schema(example = "laptop")]
    pub device: DeviceName,
    /// When the device was last registered.
    #[schema(value_type = String, format = DateTime)]
    pub registered_at: Timestamp,
    /// When the device was removed; `null` while it is registered.
    #[serde(default)]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub removed_at: Option<Timestamp>,
    /// The device's signature keys, by ciphersuite: a new leaf node of the device has to carry its key. Empty if the
    /// device has uploaded nothing yet or was removed, or if the operator has set `KEYPOOL_CREDENTIAL_BINDING=off`.
    #[serde(default)]
    pub signature_keys: Vec<SignatureKey>,
    /// The device's previous signature keys, newest first, including those of earlier registrations: leaf nodes that
    /// are already in a group may carry them.
    #[serde(default)]
    pub previous_signature_keys: Vec<PreviousSignatureKey>,
}

/// The users whose devices to look up.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LookupRequest {
    /// The users, 1 to 1000.
    #[serde(deserialize_with = "list::<_, _, MAX_LOOKUP_USERS>")]
    #[schema(min_items = 1, max_items = 1000)]
    pub users: Vec<UserName>,
    /// If true, the answer has removed devices, too.
    #[serde(default, deserialize_with = "or_default")]
    #[schema(value_type = Option<bool>)]
    pub removed: bool,
}

/// The devices of several users.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LookupResponse {
    /// The known users with their devices, sorted by name.
    pub users: Vec<DeviceList>,
    /// The users that the server does not know.
    pub unknown: Vec<UserName>,
    /// The users who did not fit into this answer of about 4 MiB: ask for them in another call.
    pub remaining: Vec<UserName>,
}

/// A device and its user.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
pub struct DeviceOf {
    /// The user.
    #[schema(example = "bob")]
    pub user: UserName,
    /// The device's name.
    #[schema(example = "phone")]
    pub device: DeviceName,
}

impl fmt::Display for DeviceOf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&device_name(&self.user, &self.device))
    }
}

impl FromStr for DeviceOf {
    type Err = InvalidId;

    /// Reads `user/device`. A user's name may have slashes, a device's name has none.
    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let invalid = || InvalidId { what: "invalid device", why: "it has to be USER/DEVICE" };
        let (user, device) = text.rsplit_once('/').ok_or_else(invalid)?;
        Ok(Self { user: user.parse()?, device: device.parse()? })
    }
}
