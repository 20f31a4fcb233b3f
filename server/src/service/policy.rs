//! The operator's policy: the settings that decide about requests.

use std::time::Duration;

use jiff::Timestamp;
use keypool_validation::key_package::CredentialBinding;

use crate::{
    config::{Config, OnLapse, Registration},
    limits::Limits,
    store::{AsOf, HoldLimits},
};

/// The counts of fresh KeyPackages that separate the levels of a pool's health.
#[derive(Clone, Copy, Debug)]
pub(super) struct Watermarks {
    /// The count of a full pool.
    pub target: u64,
    /// A pool with fewer is low.
    pub low: u64,
}

/// The settings that the rules use.
#[derive(Clone, Debug)]
pub(super) struct Policy {
    pub registration: Registration,
    pub max_devices: u32,
    /// Whether a device must keep to one signature key in each ciphersuite.
    pub binds_keys: bool,
    pub reservation_ttl: Duration,
    pub max_reservation_ttl: Duration,
    /// Whether a KeyPackage is handed out only once.
    pub retire: bool,
    pub idempotency_window: Duration,
    /// In seconds, at least 1.
    pub min_remaining: i64,
    /// `None` if requests are not limited.
    pub hold_limits: Option<HoldLimits>,
    pub message_retention: Duration,
    pub queue_capacity: u32,
    pub health: Watermarks,
}

impl Policy {
    pub(super) fn of(config: &Config, limits: &Limits) -> Self {
        Self {
            registration: config.registration,
            max_devices: config.max_devices,
            binds_keys: config.credential_binding == CredentialBinding::Strict,
            reservation_ttl: config.reservation_ttl,
            max_reservation_ttl: config.max_reservation_ttl,
            retire: config.on_lapse == OnLapse::Retire,
            idempotency_window: config.idempotency_window,
            min_remaining: config.min_remaining_seconds(),
            hold_limits: limits
                .are_on()
                .then_some(HoldLimits { total: config.max_live_reservations, per_device: config.max_live_per_pair }),
            message_retention: config.message_retention,
            queue_capacity: config.queue_capacity,
            health: Watermarks { target: config.pool_target.into(), low: config.low_watermark.into() },
        }
    }

    pub(super) fn as_of(&self, now: Timestamp) -> AsOf {
        AsOf { now, retire: self.retire, min_remaining: self.min_remaining }
    }
}
