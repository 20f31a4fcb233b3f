//! Adds the request id to each answer, writes a log line, and counts metrics.
//!
//! A log line names the route instead of the path, which may name a user. Headers, queries and bodies are never logged.

use std::borrow::Cow;

use actix_web::{
    Error, HttpMessage,
    body::MessageBody,
    dev::{ServiceRequest, ServiceResponse},
    http::{
        Method,
        header::{HeaderMap, HeaderName, HeaderValue},
    },
    middleware::Next,
    web,
};
use tracing::Span;
use tracing_actix_web::RootSpanBuilder;
use uuid::Uuid;

use crate::metrics::Metrics;

/// The header of a request's id, in the request and in the answer.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

const MAX_REQUEST_ID: usize = 128;

const UNMATCHED: Cow<'static, str> = Cow::Borrowed("unmatched");

/// Marks a 5xx that is no failure: the server is starting, and everybody gets it. The log has no line for each.
pub(crate) struct Announced;

/// The id and route of a request.
#[derive(Debug)]
struct Known {
    /// The id that the caller chose, or a generated one.
    id: String,
    /// The matching route. It is kept, since finding it takes as long as finding the handler.
    route: Cow<'static, str>,
}

fn id(headers: &HeaderMap) -> String {
    let given = headers.get(REQUEST_ID).and_then(|value| value.to_str().ok()).filter(|id| is_request_id(id));
    given.map_or_else(|| Uuid::new_v4().to_string(), str::to_owned)
}

/// Whether the id has only characters that are safe in a log.
fn is_request_id(id: &str) -> bool {
    (1..=MAX_REQUEST_ID).contains(&id.len())
        && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

/// Creates the span of all log lines about a request.
pub struct RequestSpan;

impl RootSpanBuilder for RequestSpan {
    fn on_request_start(request: &ServiceRequest) -> Span {
        let (id, method, route) = (id(request.headers()), method(request.method()), route(request));
        // The highest level, so that no filter removes the id from a line that it lets through.
        let span = tracing::error_span!("request", method, %route, request_id = id);
        request.extensions_mut().insert(Known { id, route });
        span
    }

    fn on_request_end<B: MessageBody>(_: Span, _: &Result<ServiceResponse<B>, Error>) {}
}

/// Counts, times and logs a request, and adds its id to the answer. Runs within the request's span.
pub async fn observe<B: MessageBody>(
    metrics: web::Data<Metrics>,
    mut request: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<B>, Error> {
    let known = request.extensions_mut().remove::<Known>();
    let (id, route) = known.map_or((None, UNMATCHED), |known| (HeaderValue::try_from(known.id).ok(), known.route));
    let running = metrics.request(method(request.method()), route);
    // Every resource that supports GET supports HEAD (RFC 9110, section 9.3.2). The body is left out when the answer is
    // sent.
    if *request.method() == Method::HEAD {
        request.head_mut().method = Method::GET;
    }
    let mut outcome = next.call(request).await;
    let (status, is_announced) = match &outcome {
        Ok(response) => (response.status().as_u16(), response.response().extensions().contains::<Announced>()),
        Err(error) => (error.as_response_error().status_code().as_u16(), false),
    };
    let seconds = running.elapsed().as_secs_f64();
    running.finish(status);
    if status < 500 || is_announced {
        tracing::debug!(status, seconds, "answered");
    } else {
        tracing::warn!(status, seconds, "answered with a failure of the server's own");
    }
    if let (Ok(response), Some(id)) = (&mut outcome, id) {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    outcome
}

/// The route that a request matches. Unlike paths, callers cannot invent new ones.
fn route(request: &ServiceRequest) -> Cow<'static, str> {
    request.match_pattern().map_or(UNMATCHED, Cow::Owned)
}

/// The method, if HTTP defines it.
fn method(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        Method::HEAD => "HEAD",
        Method::OPTIONS => "OPTIONS",
        Method::TRACE => "TRACE",
        Method::CONNECT => "CONNECT",
        _ => "OTHER",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_harmless_id_is_taken_over() {
        let of = |value: &[u8]| {
            let mut headers = HeaderMap::new();
            headers.insert(REQUEST_ID, HeaderValue::from_bytes(value).unwrap());
            id(&headers)
        };
        let longest = "a".repeat(MAX_REQUEST_ID);
        for good in ["a", "01-AZ_az.9", &longest] {
            assert_eq!(of(good.as_bytes()), good);
        }
        let too_long = "a".repeat(MAX_REQUEST_ID + 1);
        for bad in ["", "a b", "a\tb", "<a>", "a\"b", "a/b", "ä", &too_long] {
            assert!(Uuid::parse_str(&of(bad.as_bytes())).is_ok(), "{bad} was taken");
        }
        assert_ne!(id(&HeaderMap::new()), id(&HeaderMap::new()));
    }

    #[test]
    fn callers_cannot_make_up_labels() {
        assert_eq!(method(&Method::DELETE), "DELETE");
        assert_eq!(method(&Method::from_bytes(b"X-9f3a").unwrap()), "OTHER");
    }
}
