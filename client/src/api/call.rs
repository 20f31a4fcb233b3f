//! A call before it is sent. Each attempt makes the same request of it.

use http::{
    HeaderValue, Method, Request,
    header::{AUTHORIZATION, CONTENT_TYPE},
};
use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;

use crate::error::{Error, Result};

const IDEMPOTENCY_KEY: &str = "idempotency-key";

/// A call of the API: a path below the server's address, and what goes with it.
pub(super) struct Call {
    method: Method,
    /// With its query.
    path: String,
    body: Option<Vec<u8>>,
    key: Option<String>,
}

impl Call {
    pub(super) fn get(path: &str) -> Self {
        Self { method: Method::GET, path: path.to_owned(), body: None, key: None }
    }

    pub(super) fn delete(path: &str) -> Self {
        Self { method: Method::DELETE, ..Self::get(path) }
    }

    pub(super) fn post(path: &str, body: &impl Serialize) -> Result<Self> {
        let body = serde_json::to_vec(body).map_err(|error| Error::Request(error.into()))?;
        Ok(Self { body: Some(body), ..Self::post_nothing(path) })
    }

    pub(super) fn put(path: &str, body: &impl Serialize) -> Result<Self> {
        Ok(Self { method: Method::PUT, ..Self::post(path, body)? })
    }

    pub(super) fn post_nothing(path: &str) -> Self {
        Self { method: Method::POST, ..Self::get(path) }
    }

    pub(super) fn query(self, query: &impl Serialize) -> Result<Self> {
        let query = serde_urlencoded::to_string(query).map_err(|error| Error::Request(error.into()))?;
        Ok(Self { path: format!("{}?{query}", self.path), ..self })
    }

    /// With an Idempotency-Key.
    pub(super) fn with_key(self, key: &str) -> Self {
        Self { key: Some(key.to_owned()), ..self }
    }

    /// The request of an attempt.
    pub(super) fn request(&self, server: &str, token: Option<&SecretString>) -> Result<Request<Vec<u8>>> {
        let mut request = Request::builder().method(&self.method).uri(format!("{server}{}", self.path));
        if let Some(token) = token {
            let mut value = HeaderValue::try_from(format!("Bearer {}", token.expose_secret()))
                .map_err(|error| Error::Request(error.into()))?;
            value.set_sensitive(true);
            request = request.header(AUTHORIZATION, value);
        }
        if let Some(key) = &self.key {
            request = request.header(IDEMPOTENCY_KEY, key);
        }
        if self.body.is_some() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        request.body(self.body.clone().unwrap_or_default()).map_err(|error| Error::Request(error.into()))
    }
}
