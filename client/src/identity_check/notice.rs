//! Notices for the user about the members of a group.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Something that the user should know about a member of a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum Notice {
    /// A known device has another signature key. Its owner changed it or registered the device again; ask the owner if
    /// that is unexpected.
    NewSignatureKey {
        /// The device, as its credential says.
        member: String,
        /// The start of the new key's use, if the directory knows it.
        #[schema(value_type = Option<String>, format = DateTime)]
        since: Option<Timestamp>,
    },
    /// A member is in the group with a signature key that its device has replaced since.
    PreviousSignatureKey {
        /// The member, as its credential says.
        member: String,
        /// The time at which the device replaced the key.
        #[schema(value_type = String, format = DateTime)]
        until: Timestamp,
    },
    /// This member removed this device from the group.
    RemovedBy {
        /// The member, as its credential says.
        member: String,
    },
    /// A member's device was removed from the server's directory.
    RemovedDevice {
        /// The member, as its credential says.
        member: String,
        /// When it was removed.
        #[schema(value_type = String, format = DateTime)]
        at: Timestamp,
    },
}
