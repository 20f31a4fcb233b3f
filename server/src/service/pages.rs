//! Pages of lists.

use keypool_openapi::ProblemType;

use crate::problem::Failure;

/// The longest page of a list.
const MAX_PAGE: u32 = 1_000;

/// Returns the length of a page: the requested one, or this default.
///
/// # Errors
/// `malformed-request` if the requested length is zero or too large.
pub(super) fn page(wanted: Option<u32>, default: u32) -> Result<u32, Failure> {
    match wanted.unwrap_or(default) {
        limit @ 1..=MAX_PAGE => Ok(limit),
        limit => {
            Err(Failure::new(ProblemType::MalformedRequest, format!("`limit` must be 1 to {MAX_PAGE}; got {limit}.")))
        }
    }
}
