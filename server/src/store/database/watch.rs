//! What a server remembers of its database: the highest generation, and the difference between their clocks.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use diesel::{QueryResult, prelude::*, sql_types::BigInt};
use jiff::{SignedDuration, Timestamp};

use super::conn::Conn;
use crate::{
    clock::Clock,
    config::{Config, OnRestore},
    metrics::Metrics,
};

#[derive(QueryableByName)]
struct Time {
    #[diesel(sql_type = BigInt)]
    micros: i64,
}

/// Returns the database's time; `None` on SQLite, which uses this machine's clock.
fn time(conn: &mut Conn<'_>) -> QueryResult<Option<Timestamp>> {
    let Conn::Postgres(conn) = conn else { return Ok(None) };
    let query = diesel::sql_query("SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint AS micros");
    let Time { micros } = query.get_result(*conn)?;
    let time = Timestamp::from_microsecond(micros);
    time.map(Some).map_err(|error| diesel::result::Error::DeserializationError(error.into()))
}

/// The clocks of this server and of the database differ by more than the limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClockOff {
    /// The least amount by which this server's clock is ahead.
    pub ahead: SignedDuration,
    /// The limit.
    pub most: Duration,
}

impl fmt::Display for ClockOff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (off, most) = (self.ahead.abs().as_secs_f64(), self.most.as_secs_f64());
        let side = if self.ahead.is_negative() { "behind" } else { "ahead of" };
        write!(f, "it is {off:.1} s {side} the database's, and {most} s are allowed")
    }
}

/// One server's memory of its database.
pub(crate) struct Watch {
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
    trust: bool,
    most_off: Duration,
    /// The highest generation that the server has seen.
    reached: AtomicI64,
    /// The least difference by which the clock is ahead of the database's, in microseconds, at the last comparison.
    ahead: AtomicI64,
}

impl Watch {
    pub(crate) fn new(config: &Config, clock: Arc<dyn Clock>, metrics: Arc<Metrics>) -> Self {
        Self {
            clock,
            metrics,
            trust: config.on_restore == OnRestore::Trust,
            most_off: config.max_clock_offset,
            reached: AtomicI64::new(0),
            ahead: AtomicI64::new(0),
        }
    }

    /// The highest known generation. Read it before the database's own generation, which only goes up.
    pub(crate) fn reached(&self) -> i64 {
        self.reached.load(Ordering::SeqCst)
    }

    pub(crate) fn saw(&self, generation: i64) {
        self.reached.fetch_max(generation, Ordering::SeqCst);
    }

    /// Whether the operator vouches for a database that was restored.
    pub(crate) fn trusts_restores(&self) -> bool {
        self.trust
    }

    /// The time by the database's clock. A server with a wrong clock may be the first to detect a restore.
    pub(crate) fn database_now(&self) -> Timestamp {
        self.clock.now().saturating_sub(self.ahead()).unwrap_or(Timestamp::MAX)
    }

    /// Compares the clocks. The database read its time at some moment of the round trip, so half of the round trip is
    /// subtracted from the difference.
    pub(crate) fn compare_clocks(&self, conn: &mut Conn<'_>) -> QueryResult<()> {
        self.compare_with(|| time(conn))
    }

    fn compare_with(&self, time: impl FnOnce() -> QueryResult<Option<Timestamp>>) -> QueryResult<()> {
        let (now, begun) = (self.clock.now(), self.clock.elapsed());
        let Some(said) = time()? else { return Ok(()) };
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

    pub(super) fn check_clock(&self) -> Result<(), ClockOff> {
        let (ahead, most) = (self.ahead(), self.most_off);
        if ahead.unsigned_abs() > most { Err(ClockOff { ahead, most }) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SystemClock;

    /// A clock, and a database with a slow round trip.
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
            watch.compare_with(|| Ok(Some(NOON - seconds(ahead)))).unwrap();
            assert_eq!(watch.check_clock().is_err(), is_off, "{round_trip} s, {ahead} s");
        }
    }

    #[test]
    fn a_database_on_the_same_machine_has_the_same_time() {
        let watch = watch(SystemClock);
        watch.compare_with(|| Ok(None)).unwrap();
        assert_eq!(watch.check_clock(), Ok(()));
    }

    #[test]
    fn a_clock_that_is_off_is_said_to_be() {
        let off = |ahead| ClockOff { ahead, most: Duration::from_secs(2) }.to_string();
        assert_eq!(off(seconds(90)), "it is 90.0 s ahead of the database's, and 2 s are allowed");
        assert_eq!(off(-seconds(3)), "it is 3.0 s behind the database's, and 2 s are allowed");
    }
}
