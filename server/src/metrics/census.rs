//! Metrics of what was last counted in the database. Every server of a database has the same numbers, so they must not be
//! added up.

use std::collections::HashMap;

use jiff::Timestamp;
use keypool_openapi::{Health, State};
use prometheus::{IntGauge, IntGaugeVec, Result};
use strum::IntoEnumIterator;

use super::maker::Maker;

/// What is in the database. `PostgreSQL` estimates the numbers where there are very many.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// Users that have a device.
    pub users: u64,
    /// Registered devices.
    pub devices: u64,
    /// Registered devices that have never uploaded a KeyPackage.
    pub without_upload: u64,
    /// KeyPackages by state. Those that end too soon to be handed out are expired.
    pub packages: Vec<(State, u64)>,
    /// Pools by health, one for each ciphersuite of a device that has uploaded KeyPackages.
    pub pools: Vec<(Health, u64)>,
    /// Messages that wait for a device.
    pub messages: u64,
    /// When the oldest of them was sent.
    pub oldest_message: Option<Timestamp>,
}

#[derive(Debug)]
pub(super) struct CensusMetrics {
    users: IntGauge,
    devices: IntGauge,
    without_upload: IntGauge,
    packages: IntGaugeVec,
    pools: IntGaugeVec,
    messages: IntGauge,
    oldest_message: IntGauge,
}

impl CensusMetrics {
    pub fn new(make: Maker<'_>) -> Result<Self> {
        let metrics = Self {
            users: make.whole("users", "Users that have a device, when they were last counted.")?,
            devices: make.whole("devices", "Registered devices, when they were last counted.")?,
            without_upload: make.whole(
                "devices_without_upload",
                "Registered devices that have never uploaded a KeyPackage, when they were last counted.",
            )?,
            packages: make.wholes(
                "pool_packages",
                "KeyPackages of all pools by state, when they were last counted; those that end too soon to be handed out \
                 are expired. Estimated where PostgreSQL has very many.",
                "state",
            )?,
            pools: make.wholes(
                "pools",
                "Pools by health, one for each ciphersuite of a device that has uploaded, when they were last counted. \
                 Estimated where PostgreSQL has very many.",
                "health",
            )?,
            messages: make.whole(
                "queued_messages",
                "Messages that wait for a device, when they were last counted; estimated where PostgreSQL has very many.",
            )?,
            oldest_message: make
                .whole("oldest_message_seconds", "How long the oldest of them had waited; 0 if there was none.")?,
        };
        metrics.set(&Census::default(), Timestamp::UNIX_EPOCH);
        Ok(metrics)
    }

    pub fn set(&self, census: &Census, now: Timestamp) {
        self.users.set(whole(census.users));
        self.devices.set(whole(census.devices));
        self.without_upload.set(whole(census.without_upload));
        let packages: HashMap<_, _> = census.packages.iter().copied().collect();
        for state in State::iter() {
            set(&self.packages, state.into(), packages.get(&state));
        }
        let pools: HashMap<_, _> = census.pools.iter().copied().collect();
        for health in Health::iter() {
            set(&self.pools, health.into(), pools.get(&health));
        }
        self.messages.set(whole(census.messages));
        // Times in the database are whole seconds.
        let waited = census.oldest_message.map_or(0, |sent| now.as_second() - sent.as_second());
        self.oldest_message.set(waited.max(0));
    }
}

fn whole(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

/// Sets the gauge of one label value. An error would mean that the metric was created with another number of labels.
fn set(gauges: &IntGaugeVec, label: &'static str, n: Option<&u64>) {
    if let Ok(gauge) = gauges.get_metric_with_label_values(&[label]) {
        gauge.set(whole(n.copied().unwrap_or_default()));
    }
}
