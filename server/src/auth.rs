//! From a bearer token to the caller of a request.

mod admin;
mod authenticator;
mod cache;
mod extract;
pub mod jwt;

pub(crate) use authenticator::Authenticator;
pub(crate) use extract::{Admin, Content, IDEMPOTENCY_KEY, IdempotencyHeader, LogReader, MaybeBearer, Params, Signed};
