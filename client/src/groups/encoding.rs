//! The encoding of MLS messages and group ids.

use keypool_openapi::GroupId;
use openmls::prelude::{
    LeafNodeIndex, MlsMessageIn, MlsMessageOut,
    tls_codec::{self, Deserialize as _, Serialize as _, VLBytes},
};

use crate::error::{Error, Result};

pub(super) fn encode(message: &MlsMessageOut) -> Result<Vec<u8>> {
    message.tls_serialize_detached().map_err(|error| Error::mls("encode a message")(error.into()))
}

/// Decodes an `MLSMessage` from exactly these bytes. Uses the reader, because `tls_deserialize_exact_bytes` panics on
/// truncated vectors in builds with debug assertions.
pub(super) fn decode(bytes: &[u8]) -> std::result::Result<MlsMessageIn, tls_codec::Error> {
    let mut rest = bytes;
    let message = MlsMessageIn::tls_deserialize(&mut rest)?;
    if rest.is_empty() { Ok(message) } else { Err(tls_codec::Error::TrailingData) }
}

pub(super) fn group_path(group_id: &[u8]) -> Result<GroupId> {
    GroupId::new(group_id.to_vec()).map_err(|error| Error::Damaged(error.to_string()))
}

/// Whether an `MLSMessage` is a PublicMessage of the sender type `new_member_proposal` (RFC 9420, section 6).
pub(super) fn is_join_proposal(bytes: &[u8]) -> bool {
    let sender_type = || {
        let mut rest = bytes;
        u16::tls_deserialize(&mut rest)?;
        let wire_format = u16::tls_deserialize(&mut rest)?;
        VLBytes::tls_deserialize(&mut rest)?;
        u64::tls_deserialize(&mut rest)?;
        Ok::<_, tls_codec::Error>((wire_format, u8::tls_deserialize(&mut rest)?))
    };
    // mls_public_message, and new_member_proposal.
    sender_type() == Ok((1, 3))
}

/// The leaf index of a GroupInfo's signer (RFC 9420, section 12.4.3).
pub(super) fn signer_of_group_info(bytes: &[u8]) -> std::result::Result<LeafNodeIndex, tls_codec::Error> {
    let mut rest = bytes;
    // Version and wire format of the message; version and ciphersuite of the group.
    for _ in 0..4 {
        u16::tls_deserialize(&mut rest)?;
    }
    VLBytes::tls_deserialize(&mut rest)?;
    u64::tls_deserialize(&mut rest)?;
    // Tree hash, transcript hash, extensions of the group, extensions of the GroupInfo, confirmation tag.
    for _ in 0..5 {
        VLBytes::tls_deserialize(&mut rest)?;
    }
    u32::tls_deserialize(&mut rest).map(LeafNodeIndex::new)
}
