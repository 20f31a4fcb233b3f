//! What an answer says beside its content: why a call failed, when to try again, and the server's time.

use std::time::Duration;

use http::{
    HeaderMap,
    header::{DATE, RETRY_AFTER},
};
use jiff::{Timestamp, fmt::rfc2822::DateTimeParser};
use keypool_openapi::Problem;
use serde::Deserialize;

use crate::{error::Error, transport::TransportError};

/// The error of a call whose attempt got no answer.
pub(super) fn unreachable(server: String, source: TransportError) -> Error {
    match source {
        TransportError::Untrusted(_) => Error::Untrusted { server, source },
        TransportError::UnknownHost(_) => Error::UnknownHost { server, source },
        _ => Error::Unreachable { server, source },
    }
}

/// `Retry-After` in seconds. The form with a date is ignored, because servers do not send it to programs.
pub(super) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(RETRY_AFTER)?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_secs(seconds))
}

/// The server's time: `Date` (RFC 9110, section 6.6.1).
pub(super) fn date(headers: &HeaderMap) -> Option<Timestamp> {
    let date = headers.get(DATE)?.to_str().ok()?;
    DateTimeParser::new().parse_timestamp(date).ok()
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
    fn the_time_of_a_server_is_read() {
        let dated = |text: &'static str| date(&HeaderMap::from_iter([(DATE, http::HeaderValue::from_static(text))]));
        let time = "1994-11-15T08:12:31Z".parse().unwrap();
        assert_eq!(dated("Tue, 15 Nov 1994 08:12:31 GMT"), Some(time));
        assert_eq!(dated("yesterday"), None);
        assert_eq!(date(&HeaderMap::new()), None);
    }

    #[test]
    fn a_page_of_something_else_is_no_problem() {
        assert!(refusal(502, b"<html>Bad gateway</html>", None).is_none());
    }
}
