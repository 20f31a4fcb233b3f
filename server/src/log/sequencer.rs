//! Puts events into the log, twice a second.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use tokio::time::MissedTickBehavior;

use super::core::{Log, lock};
use crate::{problem::Failure, store::StoreError, witnesses::Witnesses, work::Work};

/// How often the sequencer looks.
const INTERVAL: Duration = Duration::from_millis(500);

impl Log {
    /// Puts all waiting events into the log, and returns whether there were any. Blocks.
    ///
    /// # Errors
    /// When the database fails.
    fn sequence(&self, now: Timestamp) -> Result<bool, StoreError> {
        let mut has_appended = false;
        loop {
            let after = {
                let mut end = lock(&self.outbox_end);
                if self.store.is_shared() { end.begin(Instant::now()) } else { end.follow() }
            };
            if !self.store.waits_for_the_log(after)? {
                *lock(&self.drained) = Instant::now();
                return Ok(has_appended);
            }
            let Some(done) = self.store.sequence(after, &self.owners, &self.edge, now)? else {
                return Ok(has_appended);
            };
            if let Some(last) = done.last {
                lock(&self.outbox_end).ended(Instant::now(), last);
            }
            self.saw(done.state);
            self.store.metrics().log().appended(done.state.size, done.entries, done.unnamed);
            has_appended |= done.entries > 0;
            if !done.more {
                *lock(&self.drained) = Instant::now();
                return Ok(has_appended);
            }
        }
    }
}

/// Runs the sequencer. Cheap to clone.
#[derive(Clone)]
pub struct Sequencer {
    log: Arc<Log>,
    work: Work,
    witnesses: Arc<Witnesses>,
}

impl Sequencer {
    pub(crate) fn new(log: Arc<Log>, work: Work, witnesses: Arc<Witnesses>) -> Self {
        Self { log, work, witnesses }
    }

    /// Puts all waiting events into the log.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn run_once(&self) -> Result<(), Failure> {
        let (log, witnesses) = (Arc::clone(&self.log), Arc::clone(&self.witnesses));
        let sequence = move |now| {
            let has_appended = log.sequence(now)?;
            // A backup that is put back must be noticed, or its log would be signed again with less in it.
            if has_appended && witnesses.has_file() { witnesses.renew() } else { Ok(()) }
        };
        let done = self.work.run_under_overload(sequence).await;
        let behind = lock(&self.log.drained).elapsed();
        self.log.store.metrics().log().lags(behind);
        done
    }

    /// Puts events into the log until it is stopped.
    pub(crate) async fn run(self) {
        let mut ticks = tokio::time::interval(INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut has_failed = false;
        loop {
            ticks.tick().await;
            match self.run_once().await {
                Ok(()) => has_failed = false,
                // Once for each outage: the metric goes on telling.
                Err(error) => {
                    if !std::mem::replace(&mut has_failed, true) {
                        tracing::warn!(%error, "hand-outs were not put into the transparency log; trying again");
                    }
                }
            }
        }
    }
}
