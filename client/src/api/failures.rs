//! Why a call failed: the server cannot be reached, or it refused the call.

use std::{error, io, iter, time::Duration};

use keypool_openapi::Problem;
use reqwest::{Response, header::RETRY_AFTER};
use serde::Deserialize;

use crate::error::Error;

/// Whether rustls refused the server's certificate. Each layer above it may wrap its error into one of `std::io`.
fn is_certificate(cause: &(dyn error::Error + 'static)) -> bool {
    match cause.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
        Some(inner) => is_certificate(inner),
        None => matches!(cause.downcast_ref(), Some(rustls::Error::InvalidCertificate(_))),
    }
}

/// Tells errors that time heals from those that somebody has to.
pub(super) fn unreachable(server: String, source: reqwest::Error) -> Error {
    let source = source.without_url();
    let causes = || iter::successors(Some(&source as &(dyn error::Error + 'static)), |cause| cause.source());
    if causes().any(is_certificate) {
        return Error::Untrusted { server, source };
    }
    // The connector of hyper-util names the step that failed.
    if source.is_connect() && causes().any(|cause| cause.to_string() == "dns error") {
        return Error::UnknownHost { server, source };
    }
    Error::Unreachable { server, source }
}

/// `Retry-After` in seconds. The form with a date is ignored, because servers do not send it to programs.
pub(super) fn retry_after(response: &Response) -> Option<Duration> {
    let seconds = response.headers().get(RETRY_AFTER)?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_secs(seconds))
}

/// A problem whose `type` may be newer than this program.
#[derive(Deserialize)]
struct AnyProblem {
    #[serde(rename = "type")]
    code: String,
    #[serde(default)]
    title: String,
    #[serde(default)]
    detail: String,
}

pub(super) fn refusal(status: u16, body: &[u8], retry_after: Option<Duration>) -> Option<Error> {
    let (kind, reservation_id, epoch, problem) = match serde_json::from_slice::<Problem>(body) {
        Ok(Problem { kind, title, detail, reservation_id, epoch, .. }) => {
            (Some(kind), reservation_id, epoch, AnyProblem { code: kind.to_string(), title, detail })
        }
        Err(_) => (None, None, None, serde_json::from_slice::<AnyProblem>(body).ok()?),
    };
    let AnyProblem { code, title, detail } = problem;
    let title = if title.is_empty() { code.clone() } else { title };
    let detail = if detail.is_empty() { format!("the server answered {status} and no more") } else { detail };
    let (title, detail) = (title.into(), detail.into());
    Some(Error::Refused { kind, code, status, title, detail, retry_after, reservation_id, epoch })
}

#[cfg(test)]
mod tests {
    use keypool_openapi::ProblemType;

    use super::*;

    #[test]
    fn a_known_problem_keeps_its_type() {
        let body = br#"{"type":"pool-exhausted","title":"No KeyPackage is left","status":404,"detail":"ask bob"}"#;
        let error = refusal(404, body, None).unwrap();
        assert_eq!(error.problem(), Some(ProblemType::PoolExhausted));
        assert_eq!(error.to_string(), "No KeyPackage is left: ask bob");
    }

    #[test]
    fn an_unknown_problem_is_still_told() {
        let body = br#"{"type":"moon-phase","title":"Wrong moon","status":409,"detail":"wait a week"}"#;
        let error = refusal(409, body, None).unwrap();
        assert_eq!(error.problem(), None);
        assert_eq!(error.to_string(), "Wrong moon: wait a week");
        assert!(matches!(error, Error::Refused { status: 409, code, .. } if code == "moon-phase"));
    }

    #[test]
    fn a_page_of_something_else_is_no_problem() {
        assert!(refusal(502, b"<html>Bad gateway</html>", None).is_none());
    }
}
