//! Calls of the server: JSON in, JSON out.

use anyhow::{Result, bail};
use reqwest::{Client, Method};
use serde_json::Value;

/// A server, and the token of a device once it has one.
pub(crate) struct Http {
    client: Client,
    server: String,
    pub(crate) token: Option<String>,
}

impl Http {
    pub(crate) fn new(client: Client, server: &str) -> Self {
        Self { client, server: server.trim_end_matches('/').to_owned(), token: None }
    }

    /// Makes a call. A problem of the server becomes an error with its type and detail.
    pub(crate) async fn call(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Value> {
        let mut request = self.client.request(method, format!("{}{path}", self.server));
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        if let Some(body) = body {
            request = request.json(body);
        }
        let response = request.send().await?;
        let status = response.status();
        let answer: Value = response.json().await?;
        if !status.is_success() {
            bail!("{}: {}", answer["type"], answer["detail"]);
        }
        Ok(answer)
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Result<Value> {
        self.call(Method::POST, path, Some(body)).await
    }

    pub(crate) async fn get(&self, path: &str) -> Result<Value> {
        self.call(Method::GET, path, None).await
    }
}
