//! What the server reads of an `MLSMessage` (RFC 9420, section 6): its kind, its group, its epoch, and nothing else.

use openmls::{
    framing::{ContentType, MlsMessageBodyIn, MlsMessageIn},
    prelude::tls_codec::Deserialize,
};

/// What a message is, as its header says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Header {
    /// A Welcome, which names no group in clear.
    Welcome,
    /// A message of a group.
    OfGroup {
        /// The group's id.
        group_id: Vec<u8>,
        /// The epoch that it was made in.
        epoch: u64,
        /// Whether it is a Commit.
        is_commit: bool,
    },
    /// Anything else that MLS knows: a KeyPackage, a `GroupInfo`.
    Other,
}

/// Reads the header of a message; `None` where the bytes are not exactly one `MLSMessage`.
#[must_use]
pub fn header(bytes: &[u8]) -> Option<Header> {
    let mut rest = bytes;
    // By the reader: `tls_deserialize_exact_bytes` panics on truncated vectors in builds with debug assertions.
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
        },
        MlsMessageBodyIn::PublicMessage(message) => Header::OfGroup {
            group_id: message.group_id().to_vec(),
            epoch: message.epoch().as_u64(),
            is_commit: message.content_type() == ContentType::Commit,
        },
        _ => Header::Other,
    })
}
