//! When a request is sent: after the previous answer, or at a fixed time.

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

/// The number and the rate of requests.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Pace {
    /// As fast as the server answers, for a duration.
    Full(Duration),
    /// A number of requests, as fast as the server answers.
    Count(u64),
    /// A rate a second for a duration, independent of the answers.
    Fixed(f64, Duration),
}

impl Pace {
    /// The number of requests, if it is known in advance.
    fn count(self) -> u64 {
        match self {
            Self::Full(_) => u64::MAX,
            Self::Count(count) => count,
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a measurement's requests")]
            Self::Fixed(rate, span) => (rate * span.as_secs_f64()) as u64,
        }
    }
}

/// When a request is due, by its number, from the beginning.
fn due(rate: f64, number: u64) -> Duration {
    Duration::from_secs_f64(as_f64(number) / rate)
}

/// The turns of requests, shared by all connections.
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
    /// Begins now. At a fixed pace, a thread releases each request when it is due, since tokio's timers are exact only
    /// to a millisecond.
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
        // Each connection then sees that no turns are left.
        self.due.add_permits(connections);
    }

    /// Waits for the next turn and returns when it began; its latency counts from then. At a fixed pace this is the
    /// time when it was due, even if no connection was free: a wait for a slow server counts as latency. `None` after
    /// the last turn.
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

    /// Ends the turns.
    pub(crate) fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
        self.due.close();
    }

    /// Whether the turns ended early.
    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }

    /// The time since the beginning.
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
