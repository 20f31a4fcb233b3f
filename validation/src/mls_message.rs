//! Reads the header of an `MLSMessage` (RFC 9420, section 6): its kind, group and epoch.

use openmls::{
    framing::{ContentType, MlsMessageBodyIn, MlsMessageIn, Sender},
    prelude::tls_codec::Deserialize,
};

/// The header of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Header {
    /// A Welcome, whose group is encrypted.
    Welcome,
    /// A message of a group.
    OfGroup {
        /// The group's id.
        group_id: Vec<u8>,
        /// The epoch in which the message was made.
        epoch: u64,
        /// Whether the message is a Commit.
        is_commit: bool,
        /// Whether it is an external Commit, by which a device joins (RFC 9420, section 12.4.3.2).
        is_external: bool,
    },
    /// Any other MLS message: a KeyPackage or a `GroupInfo`.
    Other,
}

/// Reads the header of a message; `None` if the bytes are not exactly one `MLSMessage`.
#[must_use]
pub fn header(bytes: &[u8]) -> Option<Header> {
    let mut rest = bytes;
    // Not `tls_deserialize_exact_bytes`, which panics on truncated vectors in builds with debug assertions.
    let message = MlsMessageIn::tls_deserialize(&mut rest).ok()?;
    if !rest.is_empty() {
        return None;
    }
    Some(match message.extract() {
        MlsMessageBodyIn::Welcome(_) => Header::Welcome,
        MlsMessageBodyIn::PrivateMessage(message) => Header::OfGroup {
            group_id: message.group_id().to_vec(),
            epoch: message.epoch().as_u64(),
            is_commit: message.content_type() == ContentType::Commit,
            is_external: false,
        },
        MlsMessageBodyIn::PublicMessage(message) => Header::OfGroup {
            group_id: message.group_id().to_vec(),
            epoch: message.epoch().as_u64(),
            is_commit: message.content_type() == ContentType::Commit,
            is_external: *message.sender() == Sender::NewMemberCommit,
        },
        _ => Header::Other,
    })
}
