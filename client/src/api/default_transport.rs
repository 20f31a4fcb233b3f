//! The usual transport: `reqwest` with `rustls`.

use std::{error, io, iter, time::Duration};

use http::{Request, Response};

use crate::{
    error::{Error, Result},
    transport::{Sending, Transport, TransportError},
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// The client that is used where the application gives none.
pub(super) fn client() -> Result<reqwest::Client> {
    // Fails only if the application has installed a provider before; then that one is used.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder()
        .user_agent(concat!("keypool/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(CONNECT_TIMEOUT)
        // No call needs redirects, and one could send the bearer token to another path of the host.
        .redirect(reqwest::redirect::Policy::none())
        .build()
        .map_err(|error| Error::Request(error.into()))
}

impl Transport for reqwest::Client {
    fn send(&self, request: Request<Vec<u8>>, limit: usize) -> Sending<'_> {
        Box::pin(async move {
            let request = request.try_into().map_err(unreachable)?;
            let mut response = self.execute(request).await.map_err(unreachable)?;
            let mut answer = Response::new(Vec::new());
            *answer.status_mut() = response.status();
            *answer.headers_mut() = std::mem::take(response.headers_mut());
            while let Some(chunk) = response.chunk().await.map_err(unreachable)? {
                answer.body_mut().extend_from_slice(&chunk);
                if answer.body().len() > limit {
                    break;
                }
            }
            Ok(answer)
        })
    }
}

/// Whether rustls refused the server's certificate. Each layer above it may wrap its error into one of `std::io`.
fn is_certificate(cause: &(dyn error::Error + 'static)) -> bool {
    match cause.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
        Some(inner) => is_certificate(inner),
        None => matches!(cause.downcast_ref(), Some(rustls::Error::InvalidCertificate(_))),
    }
}

/// Tells errors that time heals from those that somebody has to.
fn unreachable(source: reqwest::Error) -> TransportError {
    let source = source.without_url();
    let causes = || iter::successors(Some(&source as &(dyn error::Error + 'static)), |cause| cause.source());
    if causes().any(is_certificate) {
        return TransportError::Untrusted(source.into());
    }
    // The connector of hyper-util names the step that failed.
    if source.is_connect() && causes().any(|cause| cause.to_string() == "dns error") {
        return TransportError::UnknownHost(source.into());
    }
    if source.is_connect() { TransportError::Connect(source.into()) } else { TransportError::Other(source.into()) }
}
