//! What came: messages, invitations, and changes of groups.

use jiff::Timestamp;
use keypool_openapi::{DeviceOf, MessageKind};
use serde::{Deserialize, Serialize};

/// A message that came, and its outcome.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Incoming {
    /// Names it in [`super::MlsMembership::done`].
    pub id: u64,
    /// The group, in hex.
    pub group: String,
    /// When it was sent.
    pub sent_at: Timestamp,
    /// What it is.
    #[serde(flatten)]
    pub what: What,
    /// What people should know of the members that it is about.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notices: Vec<Notice>,
}

/// What came.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum What {
    /// Somebody says something.
    Text {
        /// Who, as their credential says.
        sender: String,
        /// What.
        text: String,
    },
    /// This device was added to the group.
    Joined {
        /// Who signed the Welcome.
        by: DeviceOf,
    },
    /// Members were added or removed.
    Members {
        /// Who signed the Commit, as their credential says.
        by: String,
        /// Who was added, each as their credential says.
        added: Vec<String>,
        /// Who was removed, or has left.
        removed: Vec<String>,
    },
    /// The group changed: keys, or its name.
    Changed,
    /// This device was removed from the group, or has left it.
    Removed,
    /// Something was refused, because somebody in it is not who they say they are, or because it cannot be read. After a
    /// Commit that was refused, nobody who refused it can change the group any more; [`super::MlsMembership::renew`] is
    /// the way on.
    Refused {
        /// What it was.
        kind: MessageKind,
        /// Who sent it, as their credential says, or, where that is not to be trusted, as the server says.
        by: String,
        /// Why.
        why: String,
    },
    /// This group has taken the place of another one, which is read-only since: a Commit of that one was refused here.
    Renewed {
        /// Who made it, as their credential says.
        by: String,
        /// The other group, in hex.
        old_group: String,
        /// Who was in the other group and is not in this one.
        #[serde(default)]
        without: Vec<String>,
    },
    /// A member says that this group takes the place of another one, and that does not follow from a Commit that was refused
    /// here: none was, or its sender is in this group, or somebody else is left out, or new. Both go on: people decide, and
    /// leave one.
    RenewalClaimed {
        /// Who says so, as their credential says.
        by: String,
        /// The other group, in hex.
        old_group: String,
        /// Who was in the other group and is not in this one.
        without: Vec<String>,
        /// Who is in this group and was not in the other one.
        added: Vec<String>,
    },
    /// A device of this device's own user has changed: if its owner did not do that, somebody has a token of theirs. Of no
    /// group, whose id is empty.
    Device {
        /// Which device.
        device: DeviceOf,
        /// What became of it.
        change: DeviceChange,
    },
    /// A device could not open the Welcome that this device sent it, and is in the group all the same: remove its user,
    /// with all of the user's devices, and invite them again.
    Unreadable {
        /// Which device.
        device: DeviceOf,
    },
    /// A Welcome came for a KeyPackage whose private keys are gone; its sender was told.
    KeysGone {
        /// Who sent it.
        by: DeviceOf,
    },
    /// Something old, repeated, or not for this device. Nothing to do.
    Ignored {
        /// Why.
        why: String,
    },
}

/// What became of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeviceChange {
    /// It was registered, or registered anew.
    Registered,
    /// It was removed.
    Removed,
    /// It has another signature key.
    NewSignatureKey,
}

/// Something that people should know of a member of a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum Notice {
    /// A device that was seen before has another signature key now. Its owner has changed it, or has registered the device
    /// anew; ask them, if that is not expected.
    NewSignatureKey {
        /// The device, as its credential says.
        member: String,
        /// Since when, if the directory says so.
        since: Option<Timestamp>,
    },
    /// A member is in the group with a signature key that the device has replaced since.
    PreviousSignatureKey {
        /// The member, as its credential says.
        member: String,
        /// Until when the device had the key.
        until: Timestamp,
    },
    /// This member has committed to the removal of this device.
    RemovedBy {
        /// The member, as its credential says.
        member: String,
    },
    /// A member's device is removed from the server's directory.
    RemovedDevice {
        /// The member, as its credential says.
        member: String,
        /// When it was removed.
        at: Timestamp,
    },
}
