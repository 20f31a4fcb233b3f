//! Received items: messages, invitations, and changes of groups.

use jiff::Timestamp;
use keypool_openapi::{Base64Bytes, DeviceOf, MessageKind, RefusalReason};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::identity_check::Notice;

/// A received message and its outcome.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Incoming {
    /// Its id, for [`super::MlsMembership::done`].
    pub id: u64,
    /// The group's id, in hex; empty if the item concerns no group.
    pub group: String,
    /// When it was sent.
    #[schema(value_type = String, format = DateTime)]
    pub sent_at: Timestamp,
    /// Its outcome.
    #[serde(flatten)]
    pub event: Event,
    /// Notices for the user about the members that it concerns.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notices: Vec<Notice>,
}

/// The outcome of a received message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum Event {
    /// A text from a member.
    Text {
        /// The sender, by the credential.
        sender: String,
        /// The text.
        text: String,
    },
    /// This device was added to the group.
    Joined {
        /// The device that signed the Welcome.
        by: DeviceOf,
    },
    /// Members were added or removed.
    Members {
        /// The member that signed the Commit, by the credential.
        by: String,
        /// The added members, by their credentials.
        added: Vec<String>,
        /// The members that were removed or left.
        removed: Vec<String>,
        /// The members whose leaf was replaced: they came back after they fell behind or were installed anew.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        updated: Vec<String>,
    },
    /// A message of another type than text from a member.
    Content {
        /// The sender, by the credential.
        sender: String,
        /// Its media type, as the sender says.
        content_type: String,
        /// The message.
        bytes: Base64Bytes,
    },
    /// A member changed keys, proposed a change, or gave the group its name.
    Changed {
        /// The member, by the credential.
        #[serde(default)]
        by: String,
        /// The group's name, if it changed.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        name: Option<String>,
    },
    /// This device missed a Commit: the group is in a later epoch. It comes back by itself if it can.
    FellBehind,
    /// This device fell behind and is back. What was sent meanwhile stays unread.
    CameBack,
    /// This device was removed from the group or left it.
    Removed,
    /// A message was refused: it cannot be read, or a leaf in it does not belong to the device that it names. The
    /// server passes the reason on to the sender of a refused Welcome or Commit. After a refused Commit, the group is
    /// [`super::GroupState::Behind`] or [`super::GroupState::FellBehind`].
    Refused {
        /// The kind of message.
        kind: MessageKind,
        /// The sender, by the credential; by the server's word if the signature could not be checked.
        by: String,
        /// The reason, for programs.
        #[serde(default = "not_trusted")]
        reason: RefusalReason,
        /// The reason, for people.
        why: String,
    },
    /// This group replaced another one, of which this device refused a Commit. The other group is read-only now.
    Renewed {
        /// The member that made this group, by the credential.
        by: String,
        /// The other group's id, in hex.
        old_group: String,
        /// The members of the other group that are not in this one.
        #[serde(default)]
        without: Vec<String>,
    },
    /// A member claims that this group replaces another one, but no refused Commit explains it: this device refused
    /// none, its sender is in this group, or other members are missing or new. Both groups stay in use: the user
    /// decides, and leaves one.
    RenewalClaimed {
        /// The member that claims it, by the credential.
        by: String,
        /// The other group's id, in hex.
        old_group: String,
        /// The members of the other group that are not in this one.
        without: Vec<String>,
        /// The members of this group that were not in the other one.
        added: Vec<String>,
    },
    /// A device of this device's own user changed. If the user did not do that, somebody has a token of one of the
    /// devices. The group id is empty.
    Device {
        /// The device.
        device: DeviceOf,
        /// The change.
        change: DeviceChange,
    },
    /// A device could not use a Welcome or a Commit of this device. It is in the group, and cannot read it. Remove its
    /// user, with all devices, and invite the user again.
    Unreadable {
        /// The device.
        device: DeviceOf,
        /// The kind of message: a Welcome or a Commit.
        #[serde(default = "welcome")]
        about: MessageKind,
        /// The reason.
        #[serde(default = "keys_gone")]
        reason: RefusalReason,
    },
    /// A Welcome arrived for a KeyPackage whose private keys are gone. Its sender was notified.
    KeysGone {
        /// The sender of the Welcome.
        by: DeviceOf,
    },
    /// A message arrived for a group that this device is not in, for example because it was installed anew. Its sender was
    /// notified.
    Stranger,
    /// A device of a member's user asks to be brought into the group: it is new, was installed anew, or lost what it had.
    Asks {
        /// The device, by the server's word.
        device: DeviceOf,
        /// Whether members bring it in by themselves. If not, somebody has to invite its user.
        is_admitted: bool,
    },
    /// The message is old, repeated, or not for this device. Nothing has to be done.
    Ignored {
        /// The reason.
        why: String,
    },
}

// What older versions did not store.
const fn not_trusted() -> RefusalReason {
    RefusalReason::NotTrusted
}

const fn keys_gone() -> RefusalReason {
    RefusalReason::KeysGone
}

const fn welcome() -> MessageKind {
    MessageKind::Welcome
}

/// The outcome of a message, with notices for the user.
pub(super) type Outcome = (Event, Vec<Notice>);

/// The change of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum DeviceChange {
    /// It was registered, or registered again.
    Registered,
    /// It was removed.
    Removed,
    /// It has another signature key.
    NewSignatureKey,
}
