//! Creates metrics and registers them.

use prometheus::{
    Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    Result, core::Collector,
};

/// Bucket bounds of the time histograms, in seconds: from a lookup in memory to a long poll.
pub(super) const SECONDS: &[f64] =
    &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

/// Creates metrics of one registry. Each has the prefix `keypool_`.
#[derive(Clone, Copy)]
pub(super) struct Maker<'a>(pub &'a Registry);

fn opts(name: &str, help: &str) -> Opts {
    Opts::new(format!("keypool_{name}"), help)
}

impl Maker<'_> {
    fn registered<C: Collector + Clone + 'static>(self, metric: Result<C>) -> Result<C> {
        let metric = metric?;
        self.0.register(Box::new(metric.clone()))?;
        Ok(metric)
    }

    pub fn counter(self, name: &str, help: &str) -> Result<IntCounter> {
        self.registered(IntCounter::with_opts(opts(name, help)))
    }

    pub fn counters(self, name: &str, help: &str, labels: &[&str]) -> Result<IntCounterVec> {
        self.registered(IntCounterVec::new(opts(name, help), labels))
    }

    /// A gauge of whole numbers.
    pub fn whole(self, name: &str, help: &str) -> Result<IntGauge> {
        self.registered(IntGauge::with_opts(opts(name, help)))
    }

    /// Gauges of whole numbers, one for each value of the label.
    pub fn wholes(self, name: &str, help: &str, label: &str) -> Result<IntGaugeVec> {
        self.registered(IntGaugeVec::new(opts(name, help), &[label]))
    }

    pub fn gauge(self, name: &str, help: &str) -> Result<Gauge> {
        self.registered(Gauge::with_opts(opts(name, help)))
    }

    /// A histogram of times.
    pub fn seconds(self, name: &str, help: &str) -> Result<Histogram> {
        self.registered(Histogram::with_opts(HistogramOpts::from(opts(name, help)).buckets(SECONDS.to_vec())))
    }

    pub fn histogram(self, name: &str, help: &str, buckets: &[f64]) -> Result<Histogram> {
        self.registered(Histogram::with_opts(HistogramOpts::from(opts(name, help)).buckets(buckets.to_vec())))
    }

    pub fn histograms(self, name: &str, help: &str, (labels, buckets): (&[&str], &[f64])) -> Result<HistogramVec> {
        self.registered(HistogramVec::new(HistogramOpts::from(opts(name, help)).buckets(buckets.to_vec()), labels))
    }
}
