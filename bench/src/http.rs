//! A minimal HTTP/1.1 connection, since the load driver shares the machine with the measured server.

use anyhow::{Context, Result};
use http_body_util::{BodyExt, Full};
use hyper::{
    Method, Request, StatusCode,
    body::Bytes,
    client::conn::http1::{SendRequest, handshake},
    header::{AUTHORIZATION, CONTENT_TYPE, HOST},
};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use tokio::net::TcpStream;

/// A persistent connection to the server.
pub(crate) struct Connection {
    address: String,
    sender: SendRequest<Full<Bytes>>,
}

/// A request.
#[derive(Debug)]
pub(crate) struct Call<'a> {
    pub method: Method,
    pub path: &'a str,
    /// The caller's token.
    pub token: Option<&'a str>,
    /// The `Idempotency-Key`.
    pub key: Option<String>,
    /// The JSON body, or empty.
    pub body: Bytes,
}

impl Connection {
    /// Connects to a server, such as `127.0.0.1:8080`.
    pub(crate) async fn open(address: &str) -> Result<Self> {
        let stream =
            TcpStream::connect(address).await.with_context(|| format!("no server at {address}: is it running?"))?;
        stream.set_nodelay(true).context("a connection cannot be set up")?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await.context("no HTTP")?;
        tokio::spawn(connection);
        Ok(Self { address: address.to_owned(), sender })
    }

    pub(crate) async fn send(&mut self, call: Call<'_>) -> Result<(StatusCode, Bytes)> {
        let mut request = Request::builder().method(call.method).uri(call.path).header(HOST, &self.address);
        if let Some(token) = call.token {
            request = request.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        if let Some(key) = call.key {
            request = request.header("Idempotency-Key", key);
        }
        if !call.body.is_empty() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        let request = request.body(Full::from(call.body)).context("no request")?;
        // A server that needs the descriptor closes idle connections; like any client, this one connects again.
        let answered = match self.sender.ready().await {
            Ok(()) => self.sender.send_request(request.clone()).await,
            Err(closed) => Err(closed),
        };
        let answer = match answered {
            Err(error) if error.is_closed() || error.is_incomplete_message() || error.is_canceled() => {
                *self = Self::open(&self.address).await?;
                self.sender.send_request(request).await
            }
            answered => answered,
        };
        let answer = answer.context("the server does not answer")?;
        let status = answer.status();
        let body = answer.into_body().collect().await.context("an answer broke off")?.to_bytes();
        Ok((status, body))
    }

    /// Posts a request that has to succeed.
    pub(crate) async fn post<T: DeserializeOwned>(
        &mut self,
        path: &str,
        token: Option<&str>,
        body: &impl Serialize,
    ) -> Result<T> {
        let call = Call { method: Method::POST, path, token, key: None, body: serde_json::to_vec(body)?.into() };
        let (status, body) = self.send(call).await?;
        anyhow::ensure!(status.is_success(), "{path}: {status}: {}", String::from_utf8_lossy(&body));
        serde_json::from_slice(&body).with_context(|| format!("{path}: an answer that is not understood"))
    }
}
