//! Requests over a fixed number of connections, each of which sends its next one when the one before is answered.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use hdrhistogram::Histogram;
use http_body_util::{BodyExt, Full};
use hyper::{
    Method, Request, StatusCode,
    body::Bytes,
    client::conn::http1::{SendRequest, handshake},
    header::{AUTHORIZATION, CONTENT_TYPE, HOST},
};
use hyper_util::rt::TokioIo;
use rand::{RngExt, rngs::SmallRng};
use tokio::net::TcpStream;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    /// A KeyPackage of a random user.
    Reserve,
    /// The same, and then its reservation is spent: two requests.
    Invite,
    /// The pool of the caller.
    Status,
    /// Whether the server lives.
    Health,
}

/// Who asks whom.
#[derive(Clone, Debug)]
pub(crate) struct Cast {
    /// The server, as `127.0.0.1:8080`.
    pub address: String,
    /// Bearer tokens, which the connections take in turns.
    pub tokens: Vec<String>,
    /// Users are named `user-1` to this.
    pub users: u64,
}

/// What came of it.
#[derive(Debug)]
pub(crate) struct Measured {
    /// Answered with 200.
    pub done: u64,
    /// Answered otherwise.
    pub refused: u64,
    /// How long it took.
    pub took: Duration,
    /// How long each took, in microseconds.
    pub latency: Histogram<u64>,
}

impl Measured {
    /// Requests that were answered with 200, a second.
    pub(crate) fn rate(&self) -> f64 {
        as_f64(self.done) / self.took.as_secs_f64()
    }

    /// How long so many of 100 took at most, in milliseconds.
    pub(crate) fn percentile(&self, percent: f64) -> f64 {
        as_f64(self.latency.value_at_quantile(percent / 100.0)) / 1e3
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts and microseconds of a measurement are far from 2^52")]
pub(crate) fn as_f64(number: u64) -> f64 {
    number as f64
}

/// Asks over so many connections for so long.
pub(crate) async fn run(what: What, cast: &Arc<Cast>, connections: usize, span: Duration) -> Result<Measured> {
    let begun = Instant::now();
    let tasks: Vec<_> =
        (0..connections).map(|number| tokio::spawn(one(what, Arc::clone(cast), number, begun + span))).collect();
    let mut all = Measured { done: 0, refused: 0, took: Duration::ZERO, latency: histogram()? };
    for task in tasks {
        let one = task.await.context("a connection's task ended")??;
        all.done += one.done;
        all.refused += one.refused;
        all.latency.add(&one.latency).context("latencies do not add up")?;
    }
    all.took = begun.elapsed();
    ensure!(all.done > 0, "nothing was answered with 200, and {} requests otherwise", all.refused);
    Ok(all)
}

fn histogram() -> Result<Histogram<u64>> {
    Histogram::new_with_bounds(1, 60_000_000, 3).context("no histogram")
}

async fn one(what: What, cast: Arc<Cast>, number: usize, until: Instant) -> Result<Measured> {
    let stream = TcpStream::connect(&cast.address).await.with_context(|| format!("no server at {}", cast.address))?;
    stream.set_nodelay(true).context("a connection cannot be set up")?;
    let (mut sender, connection) = handshake(TokioIo::new(stream)).await.context("no HTTP")?;
    tokio::spawn(connection);
    let token = cast.tokens.get(number % cast.tokens.len().max(1)).map(|token| format!("Bearer {token}"));
    let mut rng: SmallRng = rand::make_rng();
    let mut measured = Measured { done: 0, refused: 0, took: Duration::ZERO, latency: histogram()? };
    while Instant::now() < until {
        let (method, path, body) = match what {
            What::Reserve | What::Invite => {
                let user = rng.random_range(1..=cast.users);
                (Method::POST, "/keypackages/reserve", format!(r#"{{"target_user":"user-{user}"}}"#))
            }
            What::Status => (Method::GET, "/keypackages/status", String::new()),
            What::Health => (Method::GET, "/healthz", String::new()),
        };
        let call = Call { address: &cast.address, token: token.as_deref(), method, path, body };
        let answer = call.send(&mut sender, &mut measured).await?;
        if what == What::Invite
            && let Some(reservation) = answer.as_deref().and_then(reservation_id)
        {
            let body = format!(r#"{{"reservation_id":"{reservation}","group_id":"ZnJpZW5kcw=="}}"#);
            let call = Call {
                address: &cast.address,
                token: token.as_deref(),
                method: Method::POST,
                path: "/keypackages/spend",
                body,
            };
            call.send(&mut sender, &mut measured).await?;
        }
    }
    Ok(measured)
}

struct Call<'a> {
    address: &'a str,
    token: Option<&'a str>,
    method: Method,
    path: &'a str,
    body: String,
}

impl Call<'_> {
    /// The body of an answer with 200.
    async fn send(self, sender: &mut SendRequest<Full<Bytes>>, measured: &mut Measured) -> Result<Option<Bytes>> {
        let mut request = Request::builder().method(self.method).uri(self.path).header(HOST, self.address);
        if let Some(token) = self.token {
            request = request.header(AUTHORIZATION, token);
        }
        if !self.body.is_empty() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        let request = request.body(Full::from(self.body)).context("no request")?;
        let begun = Instant::now();
        sender.ready().await.context("the server closed the connection")?;
        let answer = sender.send_request(request).await.context("the server does not answer")?;
        let status = answer.status();
        let body = answer.into_body().collect().await.context("an answer broke off")?.to_bytes();
        let micros = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
        measured.latency.saturating_record(micros.max(1));
        if status == StatusCode::OK {
            measured.done += 1;
            Ok(Some(body))
        } else {
            measured.refused += 1;
            Ok(None)
        }
    }
}

fn reservation_id(answer: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(answer).ok()?;
    text.split_once(r#""reservation_id":""#)?.1.split('"').next()
}
