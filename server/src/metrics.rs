//! What the server counts and measures, for Prometheus.
//!
//! Every server has its own registry, so that several in one process do not count each other's requests.

use std::{
    borrow::Cow,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use jiff::{SignedDuration, Timestamp};
use keypool_openapi::MissingReason;
use prometheus::{
    Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    Result, TextEncoder,
    core::{Collector, MetricVec, MetricVecBuilder},
};
use strum::IntoEnumIterator;

/// The bounds of the histograms, in seconds: from a lookup in memory to a long poll.
const SECONDS: &[f64] = &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

/// The bounds of the histogram of batches.
const BATCHES: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0];

/// The label `status` of a request whose client went away before it was answered.
const ABORTED: &str = "aborted";

/// The outcomes of a wish that was fulfilled.
pub const RESERVED: &str = "reserved";
/// See [`RESERVED`].
pub const LAST_RESORT: &str = "last-resort";

/// The metrics of one server.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    requests: IntCounterVec,
    request_seconds: HistogramVec,
    in_flight: IntGauge,
    reservations: IntCounterVec,
    retries: IntCounterVec,
    connection_wait: Histogram,
    batch_size: HistogramVec,
    batch_wait: HistogramVec,
    shed: IntCounter,
    writable: IntGauge,
    is_writable: AtomicBool,
    pool_packages: IntGaugeVec,
    swept: IntCounterVec,
    sweeper_lag: Gauge,
    sweeper_last_run: IntGauge,
    clock_ahead: Gauge,
}

impl Metrics {
    /// Metrics that all stand at zero.
    ///
    /// # Errors
    /// When two of them have the same name.
    pub fn new() -> Result<Self> {
        let registry = Registry::new();
        let opts = |name: &str, help: &str| Opts::new(format!("keypool_{name}"), help);
        let histogram = |name: &str, help: &str| HistogramOpts::from(opts(name, help)).buckets(SECONDS.to_vec());
        let metrics = Self {
            requests: IntCounterVec::new(
                opts(
                    "http_requests_total",
                    "Requests by method, matched route and status; `aborted` where the client went away.",
                ),
                &["method", "route", "status"],
            )?,
            request_seconds: HistogramVec::new(
                histogram("http_request_duration_seconds", "Time from a request's head to its answer's head."),
                &["method", "route"],
            )?,
            in_flight: IntGauge::with_opts(opts("http_requests_in_flight", "Requests that are being answered."))?,
            reservations: IntCounterVec::new(
                opts(
                    "reservations_total",
                    "What became of wishes for a device's KeyPackage: reserved, last-resort, or why there was none.",
                ),
                &["outcome"],
            )?,
            retries: IntCounterVec::new(
                opts("transaction_retries_total", "Write transactions that lost to another one and ran again."),
                &["name"],
            )?,
            connection_wait: Histogram::with_opts(histogram(
                "connection_wait_seconds",
                "Time that a request waited for a connection to the database.",
            ))?,
            batch_size: HistogramVec::new(
                HistogramOpts::from(opts(
                    "batch_size",
                    "Requests that shared a statement and a commit, by what they did.",
                ))
                .buckets(BATCHES.to_vec()),
                &["name"],
            )?,
            batch_wait: HistogramVec::new(
                histogram("batch_wait_seconds", "Time that a request waited for those before it, by what it does."),
                &["name"],
            )?,
            shed: IntCounter::with_opts(opts(
                "shed_requests_total",
                "Requests that were refused because too many waited for the database.",
            ))?,
            writable: IntGauge::with_opts(opts(
                "database_writable",
                "1 as long as the database takes writes, 0 from when it has refused one until it is seen to take them again.",
            ))?,
            is_writable: AtomicBool::new(true),
            pool_packages: IntGaugeVec::new(
                opts(
                    "pool_packages",
                    "KeyPackages of all pools by state in the database, when they were last counted; estimated where \
                     PostgreSQL has very many.",
                ),
                &["state"],
            )?,
            swept: IntCounterVec::new(
                opts("swept_total", "Rows that the sweeper tidied up, by what it did to them."),
                &["kind"],
            )?,
            sweeper_lag: Gauge::with_opts(opts(
                "sweeper_lag_seconds",
                "How long the oldest row that the last sweep tidied up had been due.",
            ))?,
            sweeper_last_run: IntGauge::with_opts(opts(
                "sweeper_last_run_timestamp_seconds",
                "When the sweeper last finished, in seconds since 1970; 0 before it first did.",
            ))?,
            clock_ahead: Gauge::with_opts(opts(
                "clock_ahead_seconds",
                "How far the server's clock was ahead of the database's when they were last compared.",
            ))?,
            registry,
        };
        for metric in metrics.all() {
            metrics.registry.register(metric)?;
        }
        #[cfg(target_os = "linux")]
        metrics.registry.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))?;
        metrics.begin();
        Ok(metrics)
    }

    /// What can be named beforehand is there from the start: a rate over what appears later misses its beginning.
    fn begin(&self) {
        self.writable.set(1);
        let outcomes = [RESERVED, LAST_RESORT].into_iter().chain(MissingReason::iter().map(<&str>::from));
        outcomes.for_each(|outcome| self.reserved(outcome, 0));
        for kind in ["lapsed", "expired", "forgotten"] {
            self.swept(kind, 0);
        }
        for name in ["upload", "reserve", "spend", "release", "commit"] {
            child(&self.retries, name, |counter| counter.inc_by(0));
        }
    }

    fn all(&self) -> [Box<dyn Collector>; 15] {
        [
            Box::new(self.requests.clone()),
            Box::new(self.request_seconds.clone()),
            Box::new(self.in_flight.clone()),
            Box::new(self.reservations.clone()),
            Box::new(self.retries.clone()),
            Box::new(self.connection_wait.clone()),
            Box::new(self.batch_size.clone()),
            Box::new(self.batch_wait.clone()),
            Box::new(self.shed.clone()),
            Box::new(self.writable.clone()),
            Box::new(self.pool_packages.clone()),
            Box::new(self.swept.clone()),
            Box::new(self.sweeper_lag.clone()),
            Box::new(self.sweeper_last_run.clone()),
            Box::new(self.clock_ahead.clone()),
        ]
    }

    /// All of them in Prometheus's text format.
    ///
    /// # Errors
    /// When one of them cannot be written down.
    pub fn render(&self) -> Result<String> {
        TextEncoder::new().encode_to_string(&self.registry.gather())
    }

    /// A request that has begun: in flight until it is finished or dropped.
    pub fn request(&self, method: &'static str, route: Cow<'static, str>) -> Request<'_> {
        self.in_flight.inc();
        Request { metrics: self, method, route, begun: Instant::now(), status: None }
    }

    /// What became of wishes for KeyPackages.
    pub fn reserved(&self, outcome: &'static str, n: u64) {
        child(&self.reservations, outcome, |counter| counter.inc_by(n));
    }

    /// A write transaction runs again.
    pub fn retried(&self, name: &'static str) {
        child(&self.retries, name, IntCounter::inc);
    }

    /// A request waited so long for a connection.
    pub fn waited_for_connection(&self, wait: Duration) {
        self.connection_wait.observe(wait.as_secs_f64());
    }

    /// So many requests share a statement and a commit.
    pub fn batch(&self, name: &'static str, size: usize) {
        child(&self.batch_size, name, |histogram| {
            histogram.observe(f64::from(u32::try_from(size).unwrap_or(u32::MAX)));
        });
    }

    /// A request waited so long for those before it.
    pub fn waited_in_batch(&self, name: &'static str, wait: Duration) {
        child(&self.batch_wait, name, |histogram| histogram.observe(wait.as_secs_f64()));
    }

    /// A request was refused because too many waited.
    pub fn shed(&self) {
        self.shed.inc();
    }

    /// Whether the database takes writes; answers whether that is news.
    pub fn database_is_writable(&self, is_writable: bool) -> bool {
        self.writable.set(is_writable.into());
        self.is_writable.swap(is_writable, Ordering::Relaxed) != is_writable
    }

    /// Whether the database took writes when it was seen last.
    #[must_use]
    pub fn database_was_writable(&self) -> bool {
        self.is_writable.load(Ordering::Relaxed)
    }

    /// How many KeyPackages are in this state.
    pub fn pool_packages(&self, state: &'static str, n: i64) {
        child(&self.pool_packages, state, |gauge| gauge.set(n));
    }

    /// The sweeper did this to so many rows.
    pub fn swept(&self, kind: &'static str, n: u64) {
        child(&self.swept, kind, |counter| counter.inc_by(n));
    }

    /// The sweeper finished at this time, and the oldest of what it did had been due for so long.
    pub fn sweeper_ran(&self, at: Timestamp, lag: Duration) {
        self.sweeper_last_run.set(at.as_second());
        self.sweeper_lag.set(lag.as_secs_f64());
    }

    /// The server's clock is so far ahead of the database's.
    pub fn clock_ahead(&self, ahead: SignedDuration) {
        self.clock_ahead.set(ahead.as_secs_f64());
    }
}

/// The metric of one label: an error would mean another number of labels than it was made with.
fn child<T: MetricVecBuilder>(metrics: &MetricVec<T>, label: &str, change: impl FnOnce(&T::M)) {
    if let Ok(metric) = metrics.get_metric_with_label_values(&[label]) {
        change(&metric);
    }
}

/// A request in flight, which counts when it is dropped.
#[derive(Debug)]
#[must_use]
pub struct Request<'a> {
    metrics: &'a Metrics,
    method: &'static str,
    route: Cow<'static, str>,
    begun: Instant,
    status: Option<u16>,
}

impl Request<'_> {
    /// How long it has been running.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }

    /// It is answered.
    pub fn finish(mut self, status: u16) {
        self.status = Some(status);
    }
}

impl Drop for Request<'_> {
    fn drop(&mut self) {
        let metrics = self.metrics;
        metrics.in_flight.dec();
        let status = self.status.map_or(Cow::Borrowed(ABORTED), |status| status.to_string().into());
        if let Ok(requests) = metrics.requests.get_metric_with_label_values(&[self.method, &self.route, &status]) {
            requests.inc();
        }
        if let Ok(seconds) = metrics.request_seconds.get_metric_with_label_values(&[self.method, &self.route]) {
            seconds.observe(self.elapsed().as_secs_f64());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_happened_can_be_read() {
        let metrics = Metrics::new().unwrap();
        let answered = metrics.request("GET", "/users/{user}/devices".into());
        let running = metrics.request("POST", "/devices".into());
        drop(metrics.request("POST", "/devices".into()));
        answered.finish(200);
        metrics.reserved("reserved", 2);
        metrics.retried("reserve");
        metrics.waited_for_connection(Duration::from_millis(3));
        metrics.shed();
        metrics.pool_packages("available", 7);
        metrics.swept("expired", 5);
        metrics.sweeper_ran(Timestamp::from_second(1_800_000_000).unwrap(), Duration::from_millis(1500));
        metrics.clock_ahead(SignedDuration::from_millis(-250));
        let text = metrics.render().unwrap();
        for line in [
            r#"keypool_http_requests_total{method="GET",route="/users/{user}/devices",status="200"} 1"#,
            r#"keypool_http_requests_total{method="POST",route="/devices",status="aborted"} 1"#,
            r#"keypool_http_request_duration_seconds_count{method="GET",route="/users/{user}/devices"} 1"#,
            "keypool_http_requests_in_flight 1",
            r#"keypool_reservations_total{outcome="reserved"} 2"#,
            r#"keypool_transaction_retries_total{name="reserve"} 1"#,
            r#"keypool_connection_wait_seconds_bucket{le="0.0025"} 0"#,
            r#"keypool_connection_wait_seconds_bucket{le="0.005"} 1"#,
            "keypool_shed_requests_total 1",
            r#"keypool_pool_packages{state="available"} 7"#,
            r#"keypool_swept_total{kind="expired"} 5"#,
            "keypool_sweeper_lag_seconds 1.5",
            "keypool_sweeper_last_run_timestamp_seconds 1800000000",
            "keypool_clock_ahead_seconds -0.25",
        ] {
            assert!(text.lines().any(|found| found == line), "no {line} in\n{text}");
        }
        running.finish(201);
        assert!(metrics.render().unwrap().contains("keypool_http_requests_in_flight 0\n"));
    }

    #[test]
    fn servers_of_one_process_count_apart() {
        let (one, other) = (Metrics::new().unwrap(), Metrics::new().unwrap());
        one.shed();
        assert!(other.render().unwrap().contains("keypool_shed_requests_total 0\n"));
    }
}
