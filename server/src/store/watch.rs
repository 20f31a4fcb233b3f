//! What a server remembers of its database beside what the database says of itself: how far it has come, and its time.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use diesel::QueryResult;
use jiff::{SignedDuration, Timestamp};

use super::{
    Store, StoreError,
    connection::with_conn,
    lineage::{Lineage, LineageSql, TakeUp, take_up},
};
use crate::{
    clock::Clock,
    config::{Config, OnRestore},
    metrics::Metrics,
};

/// A database that has a clock.
pub(super) trait DatabaseClock {
    /// What it says; `None` where its time is this machine's own.
    fn time(&mut self) -> QueryResult<Option<Timestamp>>;
}

/// This server's clock and the database's differ by more than is allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClockOff {
    /// How far this server's is ahead, at least.
    pub ahead: SignedDuration,
    /// How far it may be.
    pub most: Duration,
}

impl fmt::Display for ClockOff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (off, most) = (self.ahead.abs().as_secs_f64(), self.most.as_secs_f64());
        let side = if self.ahead.is_negative() { "behind" } else { "ahead of" };
        write!(f, "it is {off:.1} s {side} the database's, and {most} s are allowed")
    }
}

/// The memory of one server.
pub(super) struct Watch {
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
    trust: bool,
    most_off: Duration,
    /// The highest generation that was seen.
    reached: AtomicI64,
    /// By how many microseconds the clock is ahead of the database's, at least, as it was compared last.
    ahead: AtomicI64,
}

impl Watch {
    pub(super) fn new(config: &Config, clock: Arc<dyn Clock>, metrics: Arc<Metrics>) -> Self {
        Self {
            clock,
            metrics,
            trust: config.on_restore == OnRestore::Trust,
            most_off: config.max_clock_offset,
            reached: AtomicI64::new(0),
            ahead: AtomicI64::new(0),
        }
    }

    /// The generation that the database has at least. Asked for before the database is: it only goes up.
    pub(super) fn reached(&self) -> i64 {
        self.reached.load(Ordering::SeqCst)
    }

    pub(super) fn saw(&self, generation: i64) {
        self.reached.fetch_max(generation, Ordering::SeqCst);
    }

    pub(super) fn take_up<'a>(&self, origin: Option<&'a str>) -> TakeUp<'a> {
        // By the database's time: a server whose clock is off may be the first to see a restore.
        let now = self.clock.now().saturating_sub(self.ahead()).unwrap_or(Timestamp::MAX);
        TakeUp { origin, reached: self.reached(), trust: self.trust, now: now.as_second() }
    }

    /// Sees over a new connection whether the database was restored, and fences it then. After a failover or a restore all
    /// connections are new: so nothing is asked of one before this.
    pub(super) fn look<C: DatabaseClock + Lineage + LineageSql>(
        &self,
        conn: &mut C,
        transaction: impl FnOnce(&mut C, &mut dyn FnMut(&mut C) -> QueryResult<i64>) -> QueryResult<i64>,
    ) -> QueryResult<()> {
        self.compare_clocks(conn)?;
        let origin = conn.origin()?;
        let up = self.take_up(origin.as_deref());
        let generation = match up.known(conn.signs()?.as_ref()) {
            Some(generation) => generation,
            None => transaction(conn, &mut |conn| take_up(conn, &up))?,
        };
        self.saw(generation);
        Ok(())
    }

    /// Compares the clocks. The database's time is of some moment between question and answer: half of that is not counted.
    fn compare_clocks<C: DatabaseClock>(&self, conn: &mut C) -> QueryResult<()> {
        let (now, begun) = (self.clock.now(), self.clock.elapsed());
        let Some(said) = conn.time()? else { return Ok(()) };
        let round_trip = SignedDuration::try_from(self.clock.elapsed().saturating_sub(begun)).unwrap_or_default();
        let (half, theirs) = (round_trip / 2, self.clock.of_database(said));
        let ahead = now.saturating_add(half).unwrap_or(Timestamp::MAX).duration_since(theirs);
        let certain = ahead.abs().saturating_sub(half).max(SignedDuration::ZERO);
        self.note_offset(if ahead.is_negative() { -certain } else { certain });
        Ok(())
    }

    fn note_offset(&self, ahead: SignedDuration) {
        let was_right = self.check_clock().is_ok();
        self.ahead.store(i64::try_from(ahead.as_micros()).unwrap_or(i64::MAX), Ordering::SeqCst);
        self.metrics.clock_ahead(ahead);
        match self.check_clock() {
            Err(off) if was_right => {
                tracing::warn!("this server's clock is off: {off}. It is not ready, and reserves and sweeps nothing");
            }
            Ok(()) if !was_right => tracing::info!("this server's clock is right again"),
            _ => {}
        }
    }

    fn ahead(&self) -> SignedDuration {
        SignedDuration::from_micros(self.ahead.load(Ordering::SeqCst))
    }

    fn check_clock(&self) -> Result<(), ClockOff> {
        let (ahead, most) = (self.ahead(), self.most_off);
        if ahead.unsigned_abs() > most { Err(ClockOff { ahead, most }) } else { Ok(()) }
    }
}

impl Store {
    /// Asks the database for its time, and compares this server's clock with it.
    ///
    /// # Errors
    /// When the database does not answer.
    pub fn compare_clocks(&self) -> Result<(), StoreError> {
        with_conn!(self, read, |conn| self.watch.compare_clocks(conn))
    }

    /// Whether this server's clock was right when it was compared last.
    ///
    /// # Errors
    /// When it was off by more than is allowed.
    pub fn check_clock(&self) -> Result<(), ClockOff> {
        self.watch.check_clock()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SystemClock;

    /// A clock, and a database that takes its time to answer.
    #[derive(Clone)]
    struct Slow {
        round_trip: Duration,
        elapsed: Arc<AtomicI64>,
    }

    const NOON: Timestamp = Timestamp::constant(1_800_000_000, 0);

    impl Clock for Slow {
        fn now(&self) -> Timestamp {
            NOON
        }

        fn elapsed(&self) -> Duration {
            self.round_trip * u32::try_from(self.elapsed.fetch_add(1, Ordering::SeqCst)).unwrap()
        }
    }

    struct Says(Option<Timestamp>);

    impl DatabaseClock for Says {
        fn time(&mut self) -> QueryResult<Option<Timestamp>> {
            Ok(self.0)
        }
    }

    fn watch(clock: impl Clock) -> Watch {
        Watch::new(&Config::default(), Arc::new(clock), Arc::new(Metrics::new().unwrap()))
    }

    fn seconds(seconds: i64) -> SignedDuration {
        SignedDuration::from_secs(seconds)
    }

    #[test]
    fn a_clock_may_be_two_seconds_off_and_half_the_round_trip() {
        for (round_trip, ahead, is_off) in [(0, 2, false), (0, 3, true), (0, -2, false), (0, -3, true)]
            .into_iter()
            // In the middle of the round trip it is 5 s later here.
            .chain([(10, 2, false), (10, -12, false), (10, 3, true), (10, -13, true)])
        {
            let watch = watch(Slow { round_trip: Duration::from_secs(round_trip), elapsed: Arc::default() });
            watch.compare_clocks(&mut Says(Some(NOON - seconds(ahead)))).unwrap();
            assert_eq!(watch.check_clock().is_err(), is_off, "{round_trip} s, {ahead} s");
        }
    }

    #[test]
    fn a_database_on_the_same_machine_has_the_same_time() {
        let watch = watch(SystemClock);
        watch.compare_clocks(&mut Says(None)).unwrap();
        assert_eq!(watch.check_clock(), Ok(()));
    }

    #[test]
    fn a_clock_that_is_off_is_said_to_be() {
        let off = |ahead| ClockOff { ahead, most: Duration::from_secs(2) }.to_string();
        assert_eq!(off(seconds(90)), "it is 90.0 s ahead of the database's, and 2 s are allowed");
        assert_eq!(off(-seconds(3)), "it is 3.0 s behind the database's, and 2 s are allowed");
    }
}
