//! Tidying up: lapse, expire, forget. Nothing waits for it: what time has done counts whether or not it is written down.

use std::{collections::HashMap, time::Duration};

use jiff::{SignedDuration, Timestamp};
use keypool_openapi::State;
use strum::IntoEnumIterator;
use tokio::time::MissedTickBehavior;

use crate::{
    pool::Pool,
    store::{DeviceId, Store, StoreError, Swept},
};

/// How long an ended KeyPackage stays known past its `not_after`. Until then its ref and its keys cannot come back;
/// after it, nothing that carries them is valid any longer.
const FORGET_AFTER: SignedDuration = SignedDuration::from_hours(7 * 24);

/// So many sweeps go by between two counts of all pools, each of which reads the whole table.
const CENSUS_EVERY: u64 = 10;

/// How the operator wants it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    pub retire: bool,
    pub batch: u32,
    pub audit_retention: Duration,
    pub message_retention: Duration,
}

/// What a sweep changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Reservations that were noted as lapsed.
    pub lapsed: usize,
    /// KeyPackages that were noted as expired.
    pub expired: usize,
    /// Rows that were forgotten.
    pub forgotten: usize,
    /// How long the first of all that was noted had been due.
    pub lag: Duration,
}

/// Sweeps once, batch by batch, until nothing is left that was due at `now`.
pub(crate) fn sweep(store: &Store, rules: Rules, now: Timestamp) -> Result<Report, StoreError> {
    let mut report = Report::default();
    let mut noted = |step: &mut dyn FnMut() -> Result<Swept, StoreError>| -> Result<usize, StoreError> {
        let mut total = 0;
        loop {
            let Swept { rows, due } = step()?;
            total += rows;
            if let Some(due) = due {
                report.lag = report.lag.max(Duration::try_from(now.duration_since(due)).unwrap_or_default());
            }
            if rows < rules.batch as usize {
                return Ok(total);
            }
        }
    };
    // Each batch goes on where the one before it ended: what is still held, and what was just given back, is not searched
    // again.
    let mut from = DeviceId::default();
    let lapsed = noted(&mut || {
        let (swept, last) = store.sweep_lapsed(rules.retire, (from, rules.batch), now)?;
        from = last;
        Ok(swept)
    })?;
    let expired = noted(&mut || store.sweep_expired(rules.batch, now))?;
    let forgotten = forget(store, rules, now)?;
    let metrics = store.metrics();
    for (kind, rows) in [("lapsed", lapsed), ("expired", expired), ("forgotten", forgotten)] {
        metrics.swept(kind, rows as u64);
    }
    metrics.sweeper_ran(now, report.lag);
    Ok(Report { lapsed, expired, forgotten, ..report })
}

/// Sets the gauges of what is in the pools.
pub(crate) fn census(store: &Store) -> Result<(), StoreError> {
    let counts: HashMap<State, u64> = store.census()?.into_iter().collect();
    for state in State::iter() {
        let n = counts.get(&state).copied().unwrap_or_default();
        store.metrics().pool_packages(state.into(), i64::try_from(n).unwrap_or(i64::MAX));
    }
    Ok(())
}

fn forget(store: &Store, rules: Rules, now: Timestamp) -> Result<usize, StoreError> {
    let before = |span: SignedDuration| now.saturating_sub(span).unwrap_or(Timestamp::MIN);
    let span = |span| SignedDuration::try_from(span).unwrap_or(SignedDuration::MAX);
    let (trail, messages) = (before(span(rules.audit_retention)), before(span(rules.message_retention)));
    let mut total = 0;
    let steps: [&dyn Fn() -> Result<usize, StoreError>; 3] = [
        &|| store.forget(before(FORGET_AFTER), rules.batch, now),
        &|| store.forget_events(trail, rules.batch),
        &|| store.forget_messages(messages, rules.batch, now),
    ];
    for step in steps {
        loop {
            let rows = step()?;
            total += rows;
            if rows < rules.batch as usize {
                break;
            }
        }
    }
    Ok(total)
}

/// Sweeps every `interval`, for ever, and counts the pools now and then. What fails is tried again at the next.
pub(crate) async fn run(pool: Pool, interval: Duration) {
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for tick in 0_u64.. {
        ticks.tick().await;
        match pool.sweep().await {
            Ok(report) if report != Report::default() => tracing::debug!(?report, "swept"),
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "the sweep failed; it is tried again in {interval:?}"),
        }
        if tick.is_multiple_of(CENSUS_EVERY)
            && let Err(error) = pool.census().await
        {
            tracing::warn!(%error, "the pools could not be counted; the metrics show older numbers");
        }
    }
}
