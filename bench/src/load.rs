//! Sends requests over a fixed number of connections, and measures them.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use hdrhistogram::Histogram;
use hyper::StatusCode;

use crate::{
    http::Connection,
    pace::{Pace, Turns},
    report::as_f64,
    requests::{Caller, Cast, Kind, Mix},
};

/// The results of one kind of request.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// Requests that got 200.
    pub done: u64,
    /// Requests that got another status, by status code.
    pub refused: BTreeMap<u16, u64>,
    /// The latencies, in microseconds.
    pub latency: Histogram<u64>,
}

impl Outcome {
    fn new() -> Result<Self> {
        // Up to a minute, exact to a thousandth.
        let latency = Histogram::new_with_bounds(1, 60_000_000, 3).context("no histogram")?;
        Ok(Self { done: 0, refused: BTreeMap::new(), latency })
    }

    fn record(&mut self, status: StatusCode, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.latency.saturating_record(micros.max(1));
        match status {
            StatusCode::OK => self.done += 1,
            other => *self.refused.entry(other.as_u16()).or_default() += 1,
        }
    }

    /// The other statuses, as text.
    pub(crate) fn refusals(&self) -> String {
        let by_status: Vec<_> = self.refused.iter().map(|(status, count)| format!("{count} x {status}")).collect();
        if by_status.is_empty() { "0".to_owned() } else { by_status.join(", ") }
    }

    /// A percentile of the latencies, in milliseconds.
    pub(crate) fn percentile(&self, percent: f64) -> f64 {
        as_f64(self.latency.value_at_quantile(percent / 100.0)) / 1e3
    }
}

/// The results of all kinds of requests.
#[derive(Debug)]
pub(crate) struct Measured {
    /// The time from the beginning to the last answer.
    pub took: Duration,
    pub by_kind: BTreeMap<Kind, Outcome>,
    /// Whether the load ended early, because nothing was left to upload.
    pub used_up: bool,
}

impl Measured {
    /// Requests of all kinds that got 200, a second.
    pub(crate) fn rate(&self) -> f64 {
        as_f64(self.by_kind.values().map(|outcome| outcome.done).sum()) / self.took.as_secs_f64()
    }

    /// Requests of all kinds that got another status.
    pub(crate) fn refused(&self) -> u64 {
        self.by_kind.values().flat_map(|outcome| outcome.refused.values()).sum()
    }

    /// A percentile of one kind's latencies, in milliseconds.
    pub(crate) fn percentile(&self, kind: Kind, percent: f64) -> f64 {
        self.by_kind.get(&kind).map_or(f64::NAN, |outcome| outcome.percentile(percent))
    }
}

/// Sends a mix of requests over so many connections.
pub(crate) async fn run(mix: Mix, cast: &Arc<Cast>, connections: usize, pace: Pace) -> Result<Measured> {
    let mut open = Vec::new();
    for _ in 0..connections {
        open.push(Connection::open(&cast.address).await?);
    }
    let outcomes = Arc::new(Mutex::new(BTreeMap::new()));
    let turns = Turns::begin(pace, connections);
    let tasks: Vec<_> = open
        .into_iter()
        .enumerate()
        .map(|(number, connection)| {
            let caller = Caller::new(Arc::clone(cast), number);
            tokio::spawn(one(mix, caller, connection, Arc::clone(&turns), Arc::clone(&outcomes)))
        })
        .collect();
    for task in tasks {
        let ended = task.await.context("a connection's task ended").flatten();
        ended.inspect_err(|_| turns.stop())?;
    }
    let by_kind = std::mem::take(&mut *outcomes.lock().unwrap_or_else(PoisonError::into_inner));
    let measured = Measured { took: turns.elapsed(), by_kind, used_up: turns.is_stopped() };
    ensure!(
        measured.rate() > 0.0,
        "nothing was answered with 200, but {}: are the pools used up? Give more --packages",
        measured.by_kind.values().map(Outcome::refusals).collect::<Vec<_>>().join(", ")
    );
    Ok(measured)
}

async fn one(
    mix: Mix,
    mut caller: Caller,
    mut connection: Connection,
    turns: Arc<Turns>,
    outcomes: Arc<Mutex<BTreeMap<Kind, Outcome>>>,
) -> Result<()> {
    while let Some(begun) = turns.next().await {
        let Some((kind, call)) = caller.next(mix) else {
            turns.stop();
            break;
        };
        let (status, body) = connection.send(call).await?;
        let took = Instant::now().saturating_duration_since(begun);
        if status == StatusCode::OK {
            caller.learn(kind, &body)?;
        }
        let mut outcomes = outcomes.lock().unwrap_or_else(PoisonError::into_inner);
        match outcomes.get_mut(&kind) {
            Some(outcome) => outcome,
            None => outcomes.entry(kind).or_insert(Outcome::new()?),
        }
        .record(status, took);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;

    const STALL: Duration = Duration::from_millis(300);

    /// Answers one connection's requests at once, except the first, which takes [`STALL`].
    async fn stalling_server() -> Arc<Cast> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut bytes = [0; 4096];
            let mut stall = STALL;
            while stream.read(&mut bytes).await.unwrap() > 0 {
                tokio::time::sleep(std::mem::take(&mut stall)).await;
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
            }
        });
        Arc::new(Cast::new(address, Vec::new(), ("user-", 1)))
    }

    #[tokio::test]
    async fn at_a_fixed_pace_what_waits_behind_a_slow_request_counts_its_waiting() {
        let cast = stalling_server().await;
        let measured = run(Mix::HEALTH, &cast, 1, Pace::Fixed(100.0, STALL)).await.unwrap();
        let outcome = &measured.by_kind[&Kind::Health];
        assert_eq!(outcome.done, 30);
        // The request that was due half way waited for the other half.
        assert!((100.0..250.0).contains(&outcome.percentile(50.0)), "{} ms", outcome.percentile(50.0));
    }

    #[tokio::test]
    async fn at_full_pace_only_the_slow_request_is_slow() {
        let cast = stalling_server().await;
        let measured = run(Mix::HEALTH, &cast, 1, Pace::Count(30)).await.unwrap();
        let outcome = &measured.by_kind[&Kind::Health];
        assert_eq!((outcome.done, measured.refused(), measured.used_up), (30, 0, false));
        assert!(outcome.percentile(50.0) < 50.0 && outcome.percentile(100.0) >= 300.0);
    }

    #[test]
    fn percentiles_are_milliseconds_and_refusals_are_counted_by_status() {
        let mut outcome = Outcome::new().unwrap();
        for millisecond in 1..=100 {
            outcome.record(StatusCode::OK, Duration::from_millis(millisecond));
        }
        outcome.record(StatusCode::CONFLICT, Duration::from_secs(1));
        assert!((outcome.percentile(50.0) - 51.0).abs() < 0.1, "{}", outcome.percentile(50.0));
        assert!((outcome.percentile(99.0) - 100.0).abs() < 0.1);
        assert!((outcome.percentile(100.0) - 1_000.0).abs() < 1.0);
        assert_eq!((outcome.done, outcome.refused), (100, BTreeMap::from([(409, 1)])));
    }
}
