//! Metrics of the server, for Prometheus.
//!
//! Every server has its own registry, so that several servers in one process do not count each other's requests.

mod census;
mod log;
mod maker;
mod request;

use std::{
    borrow::Cow,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use keypool_openapi::MissingReason;
use prometheus::{
    Gauge, Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, PullingGauge, Registry, Result, TextEncoder,
    core::{MetricVec, MetricVecBuilder},
};
use strum::IntoEnumIterator;

pub use self::{census::Census, request::Request};
use self::{census::CensusMetrics, log::LogMetrics, maker::Maker, request::RequestMetrics};

/// Bucket bounds of the histogram of batch sizes.
const BATCHES: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0];

/// The outcome of a request for a KeyPackage that was served from the pool.
pub const RESERVED: &str = "reserved";
/// The outcome of a request that was served with the last resort.
pub const LAST_RESORT: &str = "last-resort";

/// The metrics of one server.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    requests: RequestMetrics,
    reservations: IntCounterVec,
    drainers: IntGauge,
    retries: IntCounterVec,
    connection_wait: Histogram,
    batch_size: HistogramVec,
    batch_wait: HistogramVec,
    shed: IntCounter,
    writable: IntGauge,
    is_writable: AtomicBool,
    census: CensusMetrics,
    swept: IntCounterVec,
    sweeper_lag: Gauge,
    sweeper_last_run: IntGauge,
    clock_ahead: Gauge,
    log: LogMetrics,
}

impl Metrics {
    /// Creates the metrics, all at zero.
    ///
    /// # Errors
    /// When two metrics have the same name.
    pub fn new() -> Result<Self> {
        let registry = Registry::new();
        let make = Maker(&registry);
        let metrics = Self {
            requests: RequestMetrics::new(make)?,
            reservations: make.counters(
                "reservations_total",
                "What became of wishes for a device's KeyPackage: reserved, last-resort, or why there was none.",
                &["outcome"],
            )?,
            drainers: make.whole(
                "drainers",
                "Users of this server that reserve many KeyPackages and spend hardly any, at the last sweep.",
            )?,
            retries: make.counters(
                "transaction_retries_total",
                "Write transactions that lost to another one and ran again.",
                &["name"],
            )?,
            connection_wait: make
                .seconds("connection_wait_seconds", "Time that a request waited for a connection to the database.")?,
            batch_size: make.histograms(
                "batch_size",
                "Requests that shared a statement and a commit, by what they did.",
                (&["name"], BATCHES),
            )?,
            batch_wait: make.histograms(
                "batch_wait_seconds",
                "Time that a request waited for those before it, by what it does.",
                (&["name"], maker::SECONDS),
            )?,
            shed: make
                .counter("shed_requests_total", "Requests that were refused because too many waited for the database.")?,
            writable: make.whole(
                "database_writable",
                "1 as long as the database takes writes, 0 from when it has refused one until it is seen to take them again.",
            )?,
            is_writable: AtomicBool::new(true),
            census: CensusMetrics::new(make)?,
            swept: make.counters("swept_total", "Rows that the sweeper tidied up, by what it did to them.", &["kind"])?,
            sweeper_lag: make.gauge(
                "sweeper_lag_seconds",
                "How long the oldest row that the last sweep tidied up had been due.",
            )?,
            sweeper_last_run: make.whole(
                "sweeper_last_run_timestamp_seconds",
                "When the sweeper last finished, in seconds since 1970; 0 before it first did.",
            )?,
            clock_ahead: make.gauge(
                "clock_ahead_seconds",
                "How far the server's clock was ahead of the database's when they were last compared.",
            )?,
            log: LogMetrics::new(make)?,
            registry,
        };
        #[cfg(target_os = "linux")]
        metrics.registry.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))?;
        metrics.begin();
        Ok(metrics)
    }

    /// Creates all known label values at the start: a rate over a series that appears later misses its beginning.
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

    /// Adds a gauge whose value is read when the metrics are rendered, and a second one, `NAME_limit`, that says how high
    /// it can get.
    ///
    /// # Errors
    /// When there is a metric of this name.
    pub(crate) fn watch(
        &self,
        name: &str,
        help: &str,
        (limit, value): (usize, impl Fn() -> usize + Send + Sync + 'static),
    ) -> Result<()> {
        #[expect(clippy::cast_precision_loss, reason = "a gauge is a floating-point number")]
        let read = move || value() as f64;
        self.registry.register(Box::new(PullingGauge::new(format!("keypool_{name}"), help, Box::new(read))?))?;
        let most = Maker(&self.registry)
            .whole(&format!("{name}_limit"), "The most that the metric without `_limit` can be.")?;
        most.set(i64::try_from(limit).unwrap_or(i64::MAX));
        Ok(())
    }

    /// Renders all metrics in Prometheus's text format.
    ///
    /// # Errors
    /// When a metric cannot be encoded.
    pub fn render(&self) -> Result<String> {
        TextEncoder::new().encode_to_string(&self.registry.gather())
    }

    /// Counts a request that has begun. It is in flight until it is finished or dropped.
    pub fn request(&self, method: &'static str, route: Cow<'static, str>) -> Request<'_> {
        self.requests.begin(method, route)
    }

    /// Counts the outcomes of requests for KeyPackages.
    pub fn reserved(&self, outcome: &'static str, n: u64) {
        child(&self.reservations, outcome, |counter| counter.inc_by(n));
    }

    /// Counts a retry of a write transaction.
    pub fn retried(&self, name: &'static str) {
        child(&self.retries, name, IntCounter::inc);
    }

    /// Records the time that a request waited for a connection.
    pub fn waited_for_connection(&self, wait: Duration) {
        self.connection_wait.observe(wait.as_secs_f64());
    }

    /// Records the size of a batch, whose requests share a statement and a commit.
    pub fn batch(&self, name: &'static str, size: usize) {
        child(&self.batch_size, name, |histogram| {
            histogram.observe(f64::from(u32::try_from(size).unwrap_or(u32::MAX)));
        });
    }

    /// Records the time that a request waited for its batch.
    pub fn waited_in_batch(&self, name: &'static str, wait: Duration) {
        child(&self.batch_wait, name, |histogram| histogram.observe(wait.as_secs_f64()));
    }

    /// Counts a request that was refused because too many waited.
    pub fn shed(&self) {
        self.shed.inc();
    }

    /// Records whether the database accepts writes. Returns whether that has changed.
    pub fn database_is_writable(&self, is_writable: bool) -> bool {
        self.writable.set(is_writable.into());
        self.is_writable.swap(is_writable, Ordering::Relaxed) != is_writable
    }

    /// Whether the database accepted writes at the last check.
    #[must_use]
    pub fn database_was_writable(&self) -> bool {
        self.is_writable.load(Ordering::Relaxed)
    }

    /// Records the number of users that drain pools.
    pub fn drainers(&self, n: usize) {
        self.drainers.set(i64::try_from(n).unwrap_or(i64::MAX));
    }

    /// Records what was counted in the database at this time.
    pub fn counted(&self, census: &Census, now: Timestamp) {
        self.census.set(census, now);
    }

    /// Counts rows that the sweeper has changed, by kind.
    pub fn swept(&self, kind: &'static str, n: u64) {
        child(&self.swept, kind, |counter| counter.inc_by(n));
    }

    /// Records that the sweeper has finished at this time, and how long its oldest row was overdue.
    pub fn sweeper_ran(&self, at: Timestamp, lag: Duration) {
        self.sweeper_last_run.set(at.as_second());
        self.sweeper_lag.set(lag.as_secs_f64());
    }

    /// The metrics of the transparency log.
    #[must_use]
    pub(crate) fn log(&self) -> &LogMetrics {
        &self.log
    }

    /// Records how far the server's clock is ahead of the database's.
    pub fn clock_ahead(&self, ahead: SignedDuration) {
        self.clock_ahead.set(ahead.as_secs_f64());
    }
}

/// Changes the metric of one label value. An error would mean that the metric was created with another number of
/// labels.
fn child<T: MetricVecBuilder>(metrics: &MetricVec<T>, label: &str, change: impl FnOnce(&T::M)) {
    if let Ok(metric) = metrics.get_metric_with_label_values(&[label]) {
        change(&metric);
    }
}

#[cfg(test)]
mod tests {
    use keypool_openapi::{Health, State};

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
        let census = Census {
            packages: vec![(State::Available, 7)],
            pools: vec![(Health::Empty, 2)],
            oldest_message: Some(Timestamp::from_second(1_799_999_000).unwrap()),
            users: 3,
            ..Census::default()
        };
        metrics.counted(&census, Timestamp::from_second(1_800_000_000).unwrap());
        metrics.watch("answer_bytes", "Memory.", (100, || 40)).unwrap();
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
            r#"keypool_pool_packages{state="spent"} 0"#,
            r#"keypool_pools{health="empty"} 2"#,
            r#"keypool_pools{health="good"} 0"#,
            "keypool_users 3",
            "keypool_oldest_message_seconds 1000",
            "keypool_answer_bytes 40",
            "keypool_answer_bytes_limit 100",
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
