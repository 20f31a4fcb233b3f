//! Times in whole seconds, as in the database.

use std::time::Duration;

use jiff::Timestamp;
use keypool_openapi::ProblemType;

use crate::problem::Failure;

/// Rounds a time to the precision of the database, so that a repeated request gets the same answer.
pub(super) fn whole_second(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

/// Adds a duration to a second.
///
/// # Errors
/// `internal` if the duration, which is from the configuration, is too long.
pub(super) fn after(second: i64, span: Duration) -> Result<Timestamp, Failure> {
    i64::try_from(span.as_secs())
        .ok()
        .and_then(|span| second.checked_add(span))
        .and_then(|second| Timestamp::from_second(second).ok())
        .ok_or_else(|| {
            Failure::new(
                ProblemType::Internal,
                "A duration in the configuration is too long; the operator has to lower it.",
            )
        })
}
