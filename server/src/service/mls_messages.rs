//! Checks MLS messages before the server accepts them.

use keypool_openapi::{GroupId, MAX_MESSAGE_SIZE, ProblemType};
use keypool_validation::mls_message::Header;

use crate::problem::Failure;

pub(super) fn malformed(detail: impl Into<String>) -> Failure {
    Failure::new(ProblemType::MalformedRequest, detail)
}

pub(super) fn sized(name: &str, bytes: &[u8]) -> Result<(), Failure> {
    if bytes.len() <= MAX_MESSAGE_SIZE {
        return Ok(());
    }
    Err(Failure::new(
        ProblemType::PayloadTooLarge,
        format!("`{name}` must have at most {MAX_MESSAGE_SIZE} bytes; got {}.", bytes.len()),
    ))
}

pub(super) fn wrong_message(name: &str, found: Option<Header>, group_id: &GroupId) -> Failure {
    malformed(match found {
        None => format!("The `{name}` is not exactly one MLSMessage (RFC 9420, section 6)."),
        Some(Header::OfGroup { group_id: other, .. }) if other != group_id.as_bytes() => {
            format!("The `{name}` is of another group than {group_id}, the group in the path.")
        }
        Some(Header::OfGroup { .. }) => {
            format!("The `{name}` is not a Commit. Send it to POST /groups/{group_id}/messages.")
        }
        Some(_) => {
            format!("The `{name}` must be a PrivateMessage or a PublicMessage.")
        }
    })
}

/// An epoch as the database keeps it. The next epoch is representable, too.
pub(super) fn representable(epoch: u64) -> Result<i64, Failure> {
    i64::try_from(epoch)
        .ok()
        .filter(|epoch| *epoch < i64::MAX)
        .ok_or_else(|| malformed(format!("The epoch {epoch} is too large. Create a new group.")))
}

/// Parses a SHA-256, which has 32 bytes.
pub(super) fn sha256(bytes: &[u8]) -> Result<[u8; 32], Failure> {
    let length = bytes.len();
    bytes
        .try_into()
        .map_err(|_| malformed(format!("`proof` and `next_proof_digest` must have 32 bytes; got {length}.")))
}

pub(super) fn unknown_group(group_id: &GroupId) -> Failure {
    let detail =
        format!("The group {group_id} is unknown: this server has received no Commit of it. Send a Commit first.");
    Failure::new(ProblemType::UnknownGroup, detail)
}
