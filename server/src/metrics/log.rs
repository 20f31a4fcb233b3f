//! Metrics of the transparency log.

use std::time::Duration;

use prometheus::{Gauge, Histogram, IntCounter, IntGauge, Result};

use super::maker::Maker;

/// Bucket bounds of the histogram of leaves in a batch.
const BATCHES: &[f64] = &[16.0, 64.0, 256.0, 1_024.0, 4_096.0, 16_384.0];

/// What one server has seen of the log.
#[derive(Debug)]
pub(crate) struct LogMetrics {
    size: IntGauge,
    batch: Histogram,
    lag: Gauge,
    receipts: IntCounter,
    unnamed: IntCounter,
}

impl LogMetrics {
    pub(super) fn new(make: Maker<'_>) -> Result<Self> {
        Ok(Self {
            size: make.whole("log_size", "Leaves of the transparency log when this server last appended to it.")?,
            batch: make.histogram(
                "log_batch_leaves",
                "Leaves that one transaction appended, with filling.",
                BATCHES,
            )?,
            lag: make.gauge(
                "log_lag_seconds",
                "How long ago this server last saw that no hand-out waits for the transparency log.",
            )?,
            receipts: make.counter("log_receipts_total", "Receipts that were signed.")?,
            unnamed: make.counter(
                "log_without_leaf_total",
                "Steps without a leaf: a server of an older version took the KeyPackage and handed it out.",
            )?,
        })
    }

    /// Records what was appended.
    pub(crate) fn appended(&self, size: u64, entries: usize, unnamed: usize) {
        self.size.set(i64::try_from(size).unwrap_or(i64::MAX));
        self.unnamed.inc_by(unnamed as u64);
        if entries > 0 {
            self.batch.observe(f64::from(u32::try_from(entries).unwrap_or(u32::MAX)));
        }
    }

    /// Records for how long events have waited.
    pub(crate) fn lags(&self, behind: Duration) {
        self.lag.set(behind.as_secs_f64());
    }

    /// Counts signed receipts.
    pub(crate) fn signed(&self, receipts: usize) {
        self.receipts.inc_by(receipts as u64);
    }
}
