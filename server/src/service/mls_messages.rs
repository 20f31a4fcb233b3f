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
