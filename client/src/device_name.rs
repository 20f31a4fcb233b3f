//! A device in full, as its credential and people name it: `user/device`.

use keypool_openapi::{DeviceName, DeviceOf, UserName};

/// The `user/device` of a device.
pub(crate) fn device_name(user: &UserName, device: &DeviceName) -> String {
    format!("{user}/{device}")
}

/// The same for a [`DeviceOf`].
pub(crate) fn name_of(DeviceOf { user, device }: &DeviceOf) -> String {
    device_name(user, device)
}

/// The `user/device` of a device, or the user's name for all devices of a user.
pub(crate) fn target_name(user: &UserName, device: Option<&DeviceName>) -> String {
    device.map_or_else(|| user.to_string(), |device| device_name(user, device))
}

/// The device that a `user/device` names; `None` if the text has another form. A user's name may have slashes, a device's
/// name has none.
pub(crate) fn parse_device(text: &str) -> Option<DeviceOf> {
    let (user, device) = text.rsplit_once('/')?;
    Some(DeviceOf { user: user.parse().ok()?, device: device.parse().ok()? })
}
