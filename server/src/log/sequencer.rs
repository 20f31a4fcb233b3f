//! Puts events into the log, twice a second.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use tokio::time::MissedTickBehavior;

use super::{Log, lock};
use crate::{
    problem::Failure,
    store::{StoreError, TreeState},
    work::Work,
};

/// How often the sequencer looks.
const INTERVAL: Duration = Duration::from_millis(500);

/// How long rows of the outbox before the last one may still come: their transactions began before and are not committed.
const STRAGGLERS: Duration = Duration::from_mins(1);

/// How often the outbox is read from its beginning.
const FROM_THE_BEGINNING: Duration = Duration::from_mins(1);

/// Where the next look into the outbox begins. Dead rows pile up at its head while an old snapshot is open, so most looks
/// begin where the outbox ended a minute ago.
#[derive(Debug, Default)]
pub(super) struct Next {
    /// The end of the outbox, and when it was there.
    ends: Vec<(Instant, i64)>,
    /// When it was last read from its beginning.
    whole: Option<Instant>,
}

impl Next {
    /// The row after which to begin.
    fn begin(&mut self, now: Instant) -> i64 {
        if self.whole.is_none_or(|whole| now.duration_since(whole) >= FROM_THE_BEGINNING) {
            self.whole = Some(now);
            return 0;
        }
        // The newest of those that are old enough, and none before it is needed any more.
        let old = self.ends.partition_point(|(at, _)| now.duration_since(*at) >= STRAGGLERS);
        self.ends.drain(..old.saturating_sub(1));
        self.ends.first().filter(|_| old > 0).map_or(0, |(_, last)| *last)
    }

    fn ended(&mut self, now: Instant, last: i64) {
        self.ends.push((now, last));
    }

    /// SQLite commits events in the order of their ids, so each look begins where the last one ended.
    fn follow(&mut self) -> i64 {
        self.ends.drain(..self.ends.len().saturating_sub(1));
        self.ends.first().map_or(0, |(_, last)| *last)
    }
}

impl Log {
    /// Puts all waiting events into the log, and returns the tree. Blocks.
    ///
    /// # Errors
    /// When the database fails.
    fn sequence(&self, now: Timestamp) -> Result<Option<TreeState>, StoreError> {
        let mut newest = None;
        loop {
            let after = {
                let mut next = lock(&self.next);
                if self.store.is_shared() { next.begin(Instant::now()) } else { next.follow() }
            };
            let Some(done) = self.store.sequence(after, &self.owners, &self.edge, now)? else { return Ok(newest) };
            if let Some(last) = done.last {
                lock(&self.next).ended(Instant::now(), last);
            }
            self.store.metrics().log().appended(done.state.size, done.entries, done.unnamed);
            newest = Some(done.state);
            if !done.more {
                *lock(&self.drained) = Instant::now();
                return Ok(newest);
            }
        }
    }
}

/// Runs the sequencer. Cheap to clone.
#[derive(Clone)]
pub struct Sequencer {
    log: Arc<Log>,
    work: Work,
}

impl Sequencer {
    pub(crate) fn new(log: Arc<Log>, work: Work) -> Self {
        Self { log, work }
    }

    /// Puts all waiting events into the log.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn run_once(&self) -> Result<(), Failure> {
        let log = Arc::clone(&self.log);
        let done = self.work.run_under_overload(move |now| log.sequence(now)).await;
        let behind = lock(&self.log.drained).elapsed();
        self.log.store.metrics().log().lags(behind);
        done.map(drop)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn most_looks_begin_where_the_outbox_ended_a_minute_ago() {
        let begun = Instant::now();
        let at = |seconds| begun + Duration::from_secs(seconds);
        let mut next = Next::default();
        assert_eq!(next.begin(at(0)), 0, "from the beginning");
        next.ended(at(0), 10);
        next.ended(at(30), 20);
        assert_eq!(next.begin(at(59)), 0, "earlier rows may still come");
        assert_eq!(next.begin(at(60)), 0, "once a minute from the beginning");
        assert_eq!(next.begin(at(61)), 10);
        assert_eq!(next.begin(at(91)), 20);
        assert_eq!(next.ends.len(), 1);
        assert_eq!(next.begin(at(121)), 0);
    }
}
