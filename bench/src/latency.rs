//! The latencies of a load, as figures and as a table.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::{
    load::{Measured, Outcome},
    report::{as_f64, table},
};

/// The figures of one kind of request; times are milliseconds.
#[derive(Debug, Serialize)]
struct Figures {
    /// Requests that got 200.
    done: u64,
    /// Requests that got another status, by status code.
    refused: BTreeMap<u16, u64>,
    /// The same as text.
    #[serde(skip)]
    refusals: String,
    /// Requests a second that got 200.
    rate: f64,
    p50_ms: f64,
    p90_ms: f64,
    p99_ms: f64,
    p99_9_ms: f64,
    max_ms: f64,
}

impl Figures {
    fn of(outcome: &Outcome, seconds: f64) -> Self {
        Self {
            done: outcome.done,
            refused: outcome.refused.clone(),
            refusals: outcome.refusals(),
            rate: as_f64(outcome.done) / seconds,
            p50_ms: outcome.percentile(50.0),
            p90_ms: outcome.percentile(90.0),
            p99_ms: outcome.percentile(99.0),
            p99_9_ms: outcome.percentile(99.9),
            max_ms: outcome.percentile(100.0),
        }
    }
}

/// The result of a load.
#[derive(Debug, Serialize)]
pub(crate) struct Latencies {
    /// The time from the beginning to the last answer.
    seconds: f64,
    /// Whether the load ended early, because nothing was left to upload.
    used_up: bool,
    requests: BTreeMap<&'static str, Figures>,
    /// The memory of a server that this program started, in megabytes.
    server_memory_mb: Option<f64>,
}

impl Latencies {
    pub(crate) fn of(measured: &Measured) -> Self {
        let seconds = measured.took.as_secs_f64();
        let requests =
            measured.by_kind.iter().map(|(kind, outcome)| (kind.name(), Figures::of(outcome, seconds))).collect();
        Self { seconds, used_up: measured.used_up, requests, server_memory_mb: None }
    }

    pub(crate) fn with_memory(self, server_memory_mb: f64) -> Self {
        Self { server_memory_mb: Some(server_memory_mb), ..self }
    }

    pub(crate) fn text(&self) -> String {
        let mut table = table(["", "done", "refused", "a second", "p50 ms", "p90 ms", "p99 ms", "p99.9 ms", "max ms"]);
        for (name, figures) in &self.requests {
            let &Figures { done, rate, p50_ms, p90_ms, p99_ms, p99_9_ms, max_ms, .. } = figures;
            let counts = [(*name).to_owned(), done.to_string(), figures.refusals.clone(), format!("{rate:.0}")];
            let times = [p50_ms, p90_ms, p99_ms, p99_9_ms, max_ms].map(|time| format!("{time:.2}"));
            table.add_row(counts.into_iter().chain(times));
        }
        let early =
            if self.used_up { ", which is early: nothing was left to upload, so give more --packages" } else { "" };
        let memory =
            self.server_memory_mb.map_or_else(String::new, |memory| format!("; the server has {memory:.0} MB"));
        format!("{table}\nin {:.1} s{early}{memory}", self.seconds)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use hdrhistogram::Histogram;

    use super::*;
    use crate::requests::Kind;

    #[test]
    fn the_table_and_the_json_tell_the_same() {
        let mut latency = Histogram::new(3).unwrap();
        latency.record(1_500).unwrap();
        let outcome = Outcome { done: 40, refused: [(404, 2), (503, 1)].into(), latency };
        let by_kind = [(Kind::Reserve, outcome)].into();
        let found = Latencies::of(&Measured { took: Duration::from_secs(4), by_kind, used_up: true });
        let json = serde_json::to_value(&found).unwrap();
        assert_eq!(json["requests"]["reserve"]["rate"], 10.0);
        assert_eq!(json["requests"]["reserve"]["refused"]["404"], 2);
        let text = found.text();
        for part in ["reserve", "40", "2 x 404, 1 x 503", "1.50", "in 4.0 s", "--packages"] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }
}
