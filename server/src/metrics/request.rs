//! Metrics of requests.

use std::{
    borrow::Cow,
    time::{Duration, Instant},
};

use prometheus::{HistogramVec, IntCounterVec, IntGauge, Result};

use super::maker::{Maker, SECONDS};

/// The label `status` of a request whose client disconnected before it was answered.
const ABORTED: &str = "aborted";

#[derive(Debug)]
pub(super) struct RequestMetrics {
    total: IntCounterVec,
    seconds: HistogramVec,
    in_flight: IntGauge,
}

impl RequestMetrics {
    pub fn new(make: Maker<'_>) -> Result<Self> {
        Ok(Self {
            total: make.counters(
                "http_requests_total",
                "Requests by method, matched route and status; `aborted` where the client went away.",
                &["method", "route", "status"],
            )?,
            seconds: make.histograms(
                "http_request_duration_seconds",
                "Time from a request's head to its answer's head.",
                (&["method", "route"], SECONDS),
            )?,
            in_flight: make.whole("http_requests_in_flight", "Requests that are being answered.")?,
        })
    }

    pub fn begin(&self, method: &'static str, route: Cow<'static, str>) -> Request<'_> {
        self.in_flight.inc();
        Request { metrics: self, method, route, begun: Instant::now(), status: None }
    }
}

/// A request in flight. It is counted when this value is dropped.
#[derive(Debug)]
#[must_use]
pub struct Request<'a> {
    metrics: &'a RequestMetrics,
    method: &'static str,
    route: Cow<'static, str>,
    begun: Instant,
    status: Option<u16>,
}

impl Request<'_> {
    /// The time since the request began.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }

    /// Records the status of the answer.
    pub fn finish(mut self, status: u16) {
        self.status = Some(status);
    }
}

impl Drop for Request<'_> {
    fn drop(&mut self) {
        let metrics = self.metrics;
        metrics.in_flight.dec();
        let status = self.status.map_or(Cow::Borrowed(ABORTED), |status| status.to_string().into());
        if let Ok(requests) = metrics.total.get_metric_with_label_values(&[self.method, &self.route, &status]) {
            requests.inc();
        }
        if let Ok(seconds) = metrics.seconds.get_metric_with_label_values(&[self.method, &self.route]) {
            seconds.observe(self.elapsed().as_secs_f64());
        }
    }
}
