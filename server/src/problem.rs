//! The one error table: each problem type with its status and title.

mod response;

use std::{fmt, time::Duration};

use keypool_openapi::{MissingDevice, ProblemType, ReservationId};
use rand::rngs::SysError;

use crate::store::{self, ClockOff, StoreError, TokenRevoked};

/// The media type of every problem (RFC 9457).
pub const PROBLEM_JSON: &str = "application/problem+json";

/// `Retry-After` of `unavailable`.
const RETRY_AFTER: Duration = Duration::from_secs(2);

/// The status and title of each problem.
#[must_use]
pub fn table(kind: ProblemType) -> (u16, &'static str) {
    use ProblemType as P;
    match kind {
        P::MalformedRequest => (400, "The request is malformed"),
        P::Unauthenticated => (401, "A valid bearer token is needed"),
        P::Forbidden => (403, "The caller may not do this"),
        P::UnknownUser => (404, "There is no such user"),
        P::UnknownDevice => (404, "There is no such device"),
        P::UnknownReservation => (404, "There is no such reservation"),
        P::UnknownGroup => (404, "There is no such group"),
        P::StaleEpoch => (409, "The group is in another epoch"),
        P::NotFound => (404, "There is no call at this path"),
        P::MethodNotAllowed => (405, "The path does not allow this method"),
        P::PoolExhausted => (404, "No KeyPackage is left"),
        P::PoolExpired => (404, "All KeyPackages expire too soon"),
        P::NoMatchingCiphersuite => (404, "No KeyPackage has this ciphersuite"),
        P::AlreadyRegistered => (409, "The device is already registered"),
        P::AlreadySpent => (409, "The reservation is already spent"),
        P::ReservationLapsed => (409, "The reservation has lapsed"),
        P::NotYourReservation => (403, "Another device made this reservation"),
        P::LogRolledBack => (409, "The transparency log has lost leaves"),
        P::LogForked => (409, "The transparency log has another history"),
        P::QueueFull => (409, "A queue has no room for the caller's Welcome"),
        P::PoolFull => (409, "The pool is full"),
        P::PayloadTooLarge => (413, "The body is too large"),
        P::UnsupportedMediaType => (415, "The body has an encoding that the server does not read"),
        P::IdempotencyMismatch => (422, "Another request had this Idempotency-Key"),
        P::TooManyRequests => (429, "The caller asks for too much at a time"),
        P::Unavailable => (503, "The server cannot answer now"),
        P::Internal => (500, "The server has a fault"),
    }
}

/// A wait in whole seconds for `Retry-After` and messages: rounded up, and at least one.
pub(crate) fn whole_seconds(wait: Duration) -> u128 {
    wait.as_millis().div_ceil(1_000).max(1)
}

/// A request that failed.
#[derive(Debug)]
pub struct Failure {
    /// The problem type.
    pub kind: ProblemType,
    /// What happened, and what to do next.
    pub detail: String,
    /// After which time the same request may succeed.
    pub retry_after: Option<Duration>,
    /// Further fields for programs.
    pub about: About,
}

/// Further fields of a problem.
#[derive(Clone, Debug, Default)]
pub enum About {
    /// No further field.
    #[default]
    Nothing,
    /// The methods of the path, for `method-not-allowed`.
    Methods(String),
    /// The reason for each device, if nothing could be reserved.
    Missing(Vec<MissingDevice>),
    /// The reservation because of which a Commit, or a request for proofs, was refused.
    Reservation(ReservationId),
    /// The group's current epoch, if a Commit was refused because of its epoch.
    Epoch(u64),
}

impl Failure {
    /// A failure of this type.
    pub fn new(kind: ProblemType, detail: impl Into<String>) -> Self {
        let retry_after = (kind == ProblemType::Unavailable).then_some(RETRY_AFTER);
        Self { kind, detail: detail.into(), retry_after, about: About::Nothing }
    }

    /// A `too-many-requests` that ends after `retry_after`.
    pub fn too_many(detail: impl Into<String>, retry_after: Duration) -> Self {
        Self { retry_after: Some(retry_after), ..Self::new(ProblemType::TooManyRequests, detail) }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.kind, self.detail)
    }
}

impl From<StoreError> for Failure {
    /// The database's error goes to the log, never to the caller.
    fn from(error: StoreError) -> Self {
        if error.refuses_writes {
            tracing::debug!(%error, "the database takes no writes");
            Self::new(
                ProblemType::Unavailable,
                "The database takes no writes now. Nothing was changed; try again later.",
            )
        } else if error.transient {
            tracing::warn!(%error, "the database cannot answer now");
            Self::new(ProblemType::Unavailable, "The database cannot answer now; try again in a moment.")
        } else {
            tracing::error!(%error, "the database failed");
            Self::new(
                ProblemType::Internal,
                "The database failed; the server's log has the error. Nothing was changed.",
            )
        }
    }
}

impl From<store::Failure<TokenRevoked>> for Failure {
    fn from(failure: store::Failure<TokenRevoked>) -> Self {
        match failure {
            store::Failure::Refused(TokenRevoked) => unknown_token(),
            store::Failure::Store(error) => error.into(),
        }
    }
}

impl From<ClockOff> for Failure {
    fn from(off: ClockOff) -> Self {
        let detail =
            format!("The server's clock is off: {off}. The operator has to set it; try again at another server.");
        Self::new(ProblemType::Unavailable, detail)
    }
}

impl From<SysError> for Failure {
    fn from(error: SysError) -> Self {
        tracing::error!(%error, "the operating system gives no random bytes");
        Self::new(ProblemType::Internal, "The server has no source of randomness; try again later.")
    }
}

/// The failure of a request whose token belongs to no registered device.
pub(crate) fn unknown_token() -> Failure {
    Failure::new(
        ProblemType::Unauthenticated,
        "No registered device has this bearer token. Check that it is the token from the answer to POST /devices.",
    )
}

#[cfg(test)]
mod tests {
    use strum::IntoEnumIterator;

    use super::*;

    #[test]
    fn every_problem_is_an_error_and_titled() {
        for kind in ProblemType::iter() {
            let (status, title) = table(kind);
            assert!((400..600).contains(&status), "{kind}");
            assert!(!title.is_empty(), "{kind}");
        }
    }

    #[test]
    fn the_database_is_not_quoted_to_callers() {
        let failure = Failure::from(StoreError::fatal(anyhow::anyhow!("syntax error at or near SELECT")));
        assert_eq!(failure.kind, ProblemType::Internal);
        assert!(!failure.detail.contains("SELECT"));
        assert_eq!(Failure::from(StoreError::transient(anyhow::anyhow!("x"))).kind, ProblemType::Unavailable);
    }
}
