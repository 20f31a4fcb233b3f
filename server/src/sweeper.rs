//! Tidying up: lapse, expire, forget. Nothing waits for it: what time has done counts whether or not it is written down.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use crate::{
    pool::Pool,
    store::{Store, StoreError, Swept},
};

/// How long an ended KeyPackage stays known past its `not_after`. Until then its ref and its keys cannot come back;
/// after it, nothing that carries them is valid any longer.
const FORGET_AFTER: SignedDuration = SignedDuration::from_hours(7 * 24);

/// How the operator wants it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    pub retire: bool,
    pub batch: u32,
    pub audit_retention: Duration,
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
    let mut noted = |step: &dyn Fn() -> Result<Swept, StoreError>| -> Result<usize, StoreError> {
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
    let lapsed = noted(&|| store.sweep_lapsed(rules.retire, rules.batch, now))?;
    let expired = noted(&|| store.sweep_expired(rules.batch, now))?;
    let forgotten = forget(store, rules, now)?;
    Ok(Report { lapsed, expired, forgotten, ..report })
}

fn forget(store: &Store, rules: Rules, now: Timestamp) -> Result<usize, StoreError> {
    let before = |span: SignedDuration| now.saturating_sub(span).unwrap_or(Timestamp::MIN);
    let retention = SignedDuration::try_from(rules.audit_retention).unwrap_or(SignedDuration::MAX);
    let mut total = 0;
    for step in [&|| store.forget(before(FORGET_AFTER), rules.batch, now) as Result<usize, StoreError>, &|| {
        store.forget_events(before(retention), rules.batch)
    }] as [&dyn Fn() -> Result<usize, StoreError>; 2]
    {
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

/// Sweeps every `interval`, for ever. A sweep that fails is tried again at the next.
pub(crate) async fn run(pool: Pool, interval: Duration) {
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        match pool.sweep().await {
            Ok(report) if report != Report::default() => tracing::debug!(?report, "swept"),
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "the sweep failed; it is tried again in {interval:?}"),
        }
    }
}
