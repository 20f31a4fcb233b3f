//! The sweeper: records lapses and expiries, and deletes old rows. No request depends on it, since each computes the
//! state of a KeyPackage from the time.

use std::{sync::Arc, time::Duration};

use jiff::{SignedDuration, Timestamp};
use tokio::time::MissedTickBehavior;

use crate::{
    config::{Config, OnLapse},
    limits::Limits,
    problem::Failure,
    store::{AsOf, DeviceId, Store, StoreError, Swept},
    witnesses::Witnesses,
    work::Work,
};

/// How long an ended KeyPackage is kept after its `not_after`. Until then its ref and its keys cannot be uploaded
/// again; after that, no valid KeyPackage can have them.
const FORGET_AFTER: SignedDuration = SignedDuration::from_hours(7 * 24);

/// How long the entries of the transparency log are kept at least. Adders refuse KeyPackages that live longer than 90 days.
pub(crate) const LOG_RETENTION: SignedDuration = SignedDuration::from_hours(120 * 24);

/// The number of sweeps between two counts of what is in the database.
const CENSUS_EVERY: u64 = 10;

/// The operator's settings for the sweeper.
#[derive(Clone, Copy, Debug)]
struct Rules {
    retire: bool,
    min_remaining: i64,
    low_watermark: u64,
    batch: u32,
    audit_retention: Duration,
    message_retention: Duration,
}

/// Sweeps the database. Cheap to clone.
#[derive(Clone)]
pub struct Sweeper {
    store: Store,
    work: Work,
    rules: Rules,
    limits: Arc<Limits>,
    witnesses: Arc<Witnesses>,
}

/// The result of a sweep.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Reservations that were recorded as lapsed.
    pub lapsed: usize,
    /// KeyPackages that were recorded as expired.
    pub expired: usize,
    /// Rows that were deleted.
    pub forgotten: usize,
    /// How long the earliest of the recorded lapses and expiries was overdue.
    pub lag: Duration,
}

/// Sweeps once, batch by batch, until no row is left that was due at `now`.
fn sweep(store: &Store, rules: Rules, now: Timestamp) -> Result<Report, StoreError> {
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
    // Each batch starts where the previous one ended, so that rows that are locked or were just returned are not
    // searched again.
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

/// Counts what is in the database, for the metrics.
fn census(store: &Store, rules: Rules, now: Timestamp) -> Result<(), StoreError> {
    let as_of = AsOf { now, retire: rules.retire, min_remaining: rules.min_remaining };
    store.metrics().counted(&store.census(rules.low_watermark, as_of)?, now);
    Ok(())
}

fn forget(store: &Store, rules: Rules, now: Timestamp) -> Result<usize, StoreError> {
    let before = |span: SignedDuration| now.saturating_sub(span).unwrap_or(Timestamp::MIN);
    let span = |span| SignedDuration::try_from(span).unwrap_or(SignedDuration::MAX);
    let (trail, messages) = (before(span(rules.audit_retention)), before(span(rules.message_retention)));
    let mut total = 0;
    let steps: [&dyn Fn() -> Result<usize, StoreError>; 4] = [
        &|| store.forget(before(FORGET_AFTER), rules.batch, now),
        &|| store.forget_events(trail, rules.batch),
        // An event's leaf is proven as long as the event is there.
        &|| store.prune_log(before(LOG_RETENTION).min(trail), rules.batch),
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

impl Sweeper {
    pub(crate) fn new(
        (store, work): (Store, Work),
        config: &Config,
        limits: Arc<Limits>,
        witnesses: Arc<Witnesses>,
    ) -> Self {
        let rules = Rules {
            retire: config.on_lapse == OnLapse::Retire,
            min_remaining: config.min_remaining_seconds(),
            low_watermark: config.low_watermark.into(),
            batch: config.sweep_batch,
            audit_retention: config.audit_retention,
            message_retention: config.message_retention,
        };
        Self { store, work, rules, limits, witnesses }
    }

    /// Sweeps once: checks whether the database was restored, records lapses and expiries, and deletes old rows. Does
    /// nothing if this server's clock is wrong.
    ///
    /// # Errors
    /// When the database fails, or this server's clock is off.
    pub async fn sweep(&self) -> Result<Report, Failure> {
        self.store.metrics().drainers(self.limits.forget());
        let its = self.clone();
        let swept = self.work.run_under_overload(move |now| {
            its.store.compare_clocks()?;
            its.witnesses.renew()?;
            its.store.check_clock()?;
            Ok::<_, Failure>(sweep(&its.store, its.rules, now)?)
        });
        swept.await
    }

    /// Counts users, pools and queues, for the metrics.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn census(&self) -> Result<(), Failure> {
        let (store, rules) = (self.store.clone(), self.rules);
        self.work.run_under_overload(move |now| census(&store, rules, now)).await
    }

    /// Sweeps every `interval`, and counts the pools at some of the sweeps. Never returns. A failed sweep is tried
    /// again at the next interval.
    pub(crate) async fn run(self, interval: Duration) {
        let mut ticks = tokio::time::interval(interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        for tick in 0_u64.. {
            ticks.tick().await;
            // Before the sweep, whose end says that the work of a tick is done. The counts go by the time, not by what is
            // tidied up.
            if tick.is_multiple_of(CENSUS_EVERY)
                && let Err(error) = self.census().await
            {
                tracing::warn!(%error, "the pools could not be counted; the metrics show older numbers");
            }
            match self.sweep().await {
                Ok(report) if report != Report::default() => tracing::debug!(?report, "swept"),
                Ok(_) => {}
                Err(error) => tracing::warn!(%error, "the sweep failed; it is tried again in {interval:?}"),
            }
        }
    }
}
