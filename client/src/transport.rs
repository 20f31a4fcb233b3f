//! What sends requests to the server and gives back its answers.

use std::{pin::Pin, time::Duration};

use http::{Request, Response};

use crate::cause::Cause;

/// What a [`Transport`] promises to give: the answer with its body, or why there is none.
pub type Sending<'a> = Pin<Box<dyn Future<Output = Result<Response<Vec<u8>>, TransportError>> + Send + 'a>>;

/// Sends requests to the server. `reqwest::Client` is one, with the feature `http`; an application with an HTTP stack of its
/// own implements this trait for it.
///
/// It makes one attempt: [`crate::ApiClient`] repeats requests, ends those that take too long by dropping the future, and
/// reads what the server says. It follows no redirects: they would send the bearer token to another path.
pub trait Transport: Send + Sync {
    /// Sends a request, whose address is absolute, and reads the answer. May stop reading after more than `limit` bytes of the
    /// body: the client refuses such an answer.
    fn send(&self, request: Request<Vec<u8>>, limit: usize) -> Sending<'_>;
}

/// Why a server cannot be reached.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TransportError {
    /// There is no connection: for example, nothing listens at the address. The client gives up after seconds.
    #[error(transparent)]
    Connect(Cause),
    /// The host has no address in the network. The client does not try again.
    #[error(transparent)]
    UnknownHost(Cause),
    /// The certificate of the server is not trusted. The client does not try again.
    #[error(transparent)]
    Untrusted(Cause),
    /// There was no answer in time.
    #[error("no answer within {0:.0?}")]
    Timeout(Duration),
    /// Anything else, such as a connection that was lost.
    #[error(transparent)]
    Other(Cause),
}
