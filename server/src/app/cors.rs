//! Lets the web pages of named origins call the server (CORS).

use actix_cors::Cors;
use actix_web::{
    http::{Method, header},
    middleware::Condition,
};

use crate::{auth::IDEMPOTENCY_KEY, config::CorsOrigins, observe::REQUEST_ID};

/// How long a browser may remember the answer to a preflight request, in seconds.
const MAX_AGE: usize = 24 * 60 * 60;

/// The middleware. Without origins, it is off.
///
/// Pages show a bearer token with each request, and no cookie counts, so `*` gives a foreign page nothing that any
/// other program could not do.
pub(super) fn cors(origins: &CorsOrigins) -> Condition<Cors> {
    let cors = Cors::default()
        .allowed_methods([Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::DELETE])
        .allowed_headers([header::AUTHORIZATION, header::CONTENT_TYPE, IDEMPOTENCY_KEY, REQUEST_ID])
        .expose_headers([header::DATE, header::RETRY_AFTER, REQUEST_ID])
        .max_age(MAX_AGE);
    let cors = if origins.are_all() {
        cors.allow_any_origin().send_wildcard()
    } else {
        origins.iter().fold(cors, Cors::allowed_origin)
    };
    Condition::new(!origins.is_empty(), cors)
}
