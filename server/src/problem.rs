//! The one error table: every problem a request can meet, with its status and title.

use std::{fmt, time::Duration};

use actix_web::{
    HttpResponse, ResponseError,
    http::{StatusCode, header},
};
use keypool_openapi::{MissingDevice, Problem, ProblemType, ReservationId};
use rand::rngs::SysError;

use crate::{
    auth::unknown_token,
    store::{CallerError, ClockOff, StoreError},
};

/// The media type of every problem (RFC 9457).
pub const PROBLEM_JSON: &str = "application/problem+json";

/// How long a client waits before it asks a server again that cannot answer now.
const RETRY_AFTER: Duration = Duration::from_secs(2);

/// The status and title of each problem.
#[must_use]
pub fn table(kind: ProblemType) -> (StatusCode, &'static str) {
    use ProblemType as P;
    use StatusCode as S;
    match kind {
        P::MalformedRequest => (S::BAD_REQUEST, "The request cannot be read"),
        P::Unauthenticated => (S::UNAUTHORIZED, "A valid bearer token is needed"),
        P::Forbidden => (S::FORBIDDEN, "The caller may not do this"),
        P::UnknownUser => (S::NOT_FOUND, "There is no such user"),
        P::UnknownDevice => (S::NOT_FOUND, "There is no such device"),
        P::UnknownReservation => (S::NOT_FOUND, "There is no such reservation"),
        P::UnknownGroup => (S::NOT_FOUND, "There is no such group"),
        P::StaleEpoch => (S::CONFLICT, "The group is in another epoch"),
        P::NotFound => (S::NOT_FOUND, "Nothing is served at this path"),
        P::MethodNotAllowed => (S::METHOD_NOT_ALLOWED, "The path has no such method"),
        P::PoolExhausted => (S::NOT_FOUND, "No KeyPackage is left"),
        P::PoolExpired => (S::NOT_FOUND, "All KeyPackages expire too soon"),
        P::NoMatchingCiphersuite => (S::NOT_FOUND, "No KeyPackage has this ciphersuite"),
        P::AlreadyRegistered => (S::CONFLICT, "The device is registered already"),
        P::AlreadySpent => (S::CONFLICT, "The reservation is spent already"),
        P::ReservationLapsed => (S::CONFLICT, "The reservation has lapsed"),
        P::NotYourReservation => (S::FORBIDDEN, "Another device made this reservation"),
        P::QueueFull => (S::CONFLICT, "A queue takes no more of the caller"),
        P::PoolFull => (S::CONFLICT, "The pool is full"),
        P::PayloadTooLarge => (S::PAYLOAD_TOO_LARGE, "The body is too large"),
        P::IdempotencyMismatch => (S::UNPROCESSABLE_ENTITY, "The Idempotency-Key is another request's"),
        P::TooManyRequests => (S::TOO_MANY_REQUESTS, "Too much is asked for at a time"),
        P::Unavailable => (S::SERVICE_UNAVAILABLE, "The server cannot answer now"),
        P::Internal => (S::INTERNAL_SERVER_ERROR, "The server has a fault"),
    }
}

/// A request that failed.
#[derive(Debug)]
pub struct Failure {
    /// Which problem it met.
    pub kind: ProblemType,
    /// What happened, to what, and what to do next.
    pub detail: String,
    /// When the same request may work.
    pub retry_after: Option<Duration>,
    /// What programs can use of it.
    pub about: About,
}

/// What a problem says beside its words.
#[derive(Clone, Debug, Default)]
pub enum About {
    /// Nothing.
    #[default]
    Nothing,
    /// Which methods the path has, where it has not this one.
    Methods(String),
    /// What each device lacks, where nothing could be reserved.
    Missing(Vec<MissingDevice>),
    /// Which reservation, where a Commit was refused for one.
    Reservation(ReservationId),
    /// The group's epoch, where a Commit was refused for its own.
    Epoch(u64),
}

impl Failure {
    /// A failure of this kind.
    pub fn new(kind: ProblemType, detail: impl Into<String>) -> Self {
        let retry_after = (kind == ProblemType::Unavailable).then_some(RETRY_AFTER);
        Self { kind, detail: detail.into(), retry_after, about: About::Nothing }
    }

    /// A failure that time will cure.
    pub fn too_many(detail: impl Into<String>, retry_after: Duration) -> Self {
        Self { retry_after: Some(retry_after), ..Self::new(ProblemType::TooManyRequests, detail) }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.kind, self.detail)
    }
}

impl ResponseError for Failure {
    fn status_code(&self) -> StatusCode {
        table(self.kind).0
    }

    fn error_response(&self) -> HttpResponse {
        let (status, title) = table(self.kind);
        let mut response = HttpResponse::build(status);
        response.content_type(PROBLEM_JSON);
        if let Some(wait) = self.retry_after {
            // Whole seconds, and never too few.
            response.insert_header((header::RETRY_AFTER, wait.as_millis().div_ceil(1_000).max(1).to_string()));
        }
        if let About::Methods(methods) = &self.about {
            response.insert_header((header::ALLOW, methods.as_str()));
        }
        if self.kind == ProblemType::Unauthenticated {
            response.insert_header((header::WWW_AUTHENTICATE, "Bearer"));
        }
        let (mut missing, mut reservation_id, mut epoch) = (Vec::new(), None, None);
        match &self.about {
            About::Nothing | About::Methods(_) => {}
            About::Missing(devices) => missing.clone_from(devices),
            About::Reservation(id) => reservation_id = Some(*id),
            About::Epoch(number) => epoch = Some(*number),
        }
        response.json(Problem {
            kind: self.kind,
            title: title.to_owned(),
            status: status.as_u16(),
            detail: self.detail.clone(),
            missing,
            reservation_id,
            epoch,
        })
    }
}

impl From<StoreError> for Failure {
    /// What the database said goes to the log, never to the caller.
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
            Self::new(ProblemType::Internal, "The database failed; the server's log says how. Nothing was changed.")
        }
    }
}

impl From<CallerError> for Failure {
    fn from(error: CallerError) -> Self {
        match error {
            CallerError::TokenRevoked(_) => unknown_token(),
            CallerError::Store(error) => error.into(),
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

#[cfg(test)]
mod tests {
    use strum::IntoEnumIterator;

    use super::*;

    #[test]
    fn every_problem_is_an_error_and_titled() {
        for kind in ProblemType::iter() {
            let (status, title) = table(kind);
            assert!(status.is_client_error() || status.is_server_error(), "{kind}");
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
