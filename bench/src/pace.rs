//! When a request is sent: as soon as the one before it is answered, or at a fixed time.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use tokio::sync::Semaphore;

use crate::report::as_f64;

/// How many requests there are, and how fast they come.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Pace {
    /// As fast as they are answered, for so long.
    Full(Duration),
    /// So many, as fast as they are answered.
    Count(u64),
    /// So many a second for so long, whether or not the earlier ones are answered.
    Fixed(f64, Duration),
}

impl Pace {
    /// How many requests there are, where that is known before.
    fn count(self) -> u64 {
        match self {
            Self::Full(_) => u64::MAX,
            Self::Count(count) => count,
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a measurement's requests")]
            Self::Fixed(rate, span) => (rate * span.as_secs_f64()) as u64,
        }
    }
}

/// When the request with this number is due, from the beginning.
fn due(rate: f64, number: u64) -> Duration {
    Duration::from_secs_f64(as_f64(number) / rate)
}

/// The requests' turns, which all connections take theirs of.
#[derive(Debug)]
pub(crate) struct Turns {
    pace: Pace,
    begun: Instant,
    taken: AtomicU64,
    /// A permit for each request that is due.
    due: Semaphore,
    stopped: AtomicBool,
}

impl Turns {
    /// Begins now. At a fixed pace, a thread says when a request is due: tokio's timers are exact to a millisecond only.
    pub(crate) fn begin(pace: Pace, connections: usize) -> Arc<Self> {
        let (taken, due, stopped) = (AtomicU64::new(0), Semaphore::new(0), AtomicBool::new(false));
        let turns = Arc::new(Self { pace, begun: Instant::now(), taken, due, stopped });
        if let Pace::Fixed(rate, _) = pace {
            let turns = Arc::clone(&turns);
            thread::spawn(move || turns.announce(rate, connections));
        }
        turns
    }

    fn announce(&self, rate: f64, connections: usize) {
        for number in 0..self.pace.count() {
            if self.stopped.load(Ordering::Relaxed) {
                return;
            }
            thread::sleep((self.begun + due(rate, number)).saturating_duration_since(Instant::now()));
            self.due.add_permits(1);
        }
        // So that each connection finds out that there are no more.
        self.due.add_permits(connections);
    }

    /// Waits for the next turn: when it began, which is what its latency counts from. At a fixed pace that is when it was
    /// due, however much later a connection is free for it: what waits for a slow server has been slow, too. `None` when
    /// all are over.
    pub(crate) async fn next(&self) -> Option<Instant> {
        if let Pace::Fixed(..) = self.pace {
            self.due.acquire().await.ok()?.forget();
        }
        let number = self.taken.fetch_add(1, Ordering::Relaxed);
        if number >= self.pace.count() || self.stopped.load(Ordering::Relaxed) {
            return None;
        }
        match self.pace {
            Pace::Full(span) => Some(Instant::now()).filter(|now| *now < self.begun + span),
            Pace::Count(_) => Some(Instant::now()),
            Pace::Fixed(rate, _) => Some(self.begun + due(rate, number)),
        }
    }

    /// There are no more turns.
    pub(crate) fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
        self.due.close();
    }

    /// Whether it was stopped early.
    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }

    /// How long ago it began.
    pub(crate) fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn at_a_fixed_pace_a_turn_begins_when_it_was_due() {
        let turns = Turns::begin(Pace::Fixed(100.0, Duration::from_millis(50)), 1);
        let first = turns.next().await.unwrap();
        tokio::time::sleep(Duration::from_millis(60)).await;
        let mut later = Vec::new();
        while let Some(turn) = turns.next().await {
            later.push((turn - first).as_millis());
        }
        assert_eq!(later, [10, 20, 30, 40]);
    }

    #[tokio::test]
    async fn a_count_is_kept_and_a_stop_ends_it() {
        let turns = Turns::begin(Pace::Count(3), 2);
        for _ in 0..3 {
            assert!(turns.next().await.is_some());
        }
        assert!(turns.next().await.is_none() && !turns.is_stopped());
        let turns = Turns::begin(Pace::Fixed(0.1, Duration::from_mins(1)), 2);
        assert!(turns.next().await.is_some());
        turns.stop();
        assert!(turns.next().await.is_none());
    }
}
