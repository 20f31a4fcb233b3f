//! Time as a value: code that needs the time takes a [`Clock`], which tests can move.

use std::{
    sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use jiff::{SignedDuration, Timestamp};

/// Tells the time.
pub trait Clock: Send + Sync + 'static {
    /// The time now.
    fn now(&self) -> Timestamp;

    /// How long it has been since some moment. It never goes back, even where the time is set.
    fn elapsed(&self) -> Duration;

    /// The time of the database, which has just said that it is this. A clock of tests knows better.
    fn of_database(&self, said: Timestamp) -> Timestamp {
        said
    }
}

/// The operating system's time.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "this is the clock")]
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }

    fn elapsed(&self) -> Duration {
        static BEGIN: LazyLock<Instant> = LazyLock::new(Instant::now);
        BEGIN.elapsed()
    }
}

/// A time that stands still until it is moved. Clones share it.
#[derive(Clone, Debug)]
pub struct ManualClock {
    /// The true time, which the database has.
    hands: Arc<Mutex<(Timestamp, Duration)>>,
    /// How far this clock is ahead of it.
    ahead: Arc<Mutex<SignedDuration>>,
}

impl ManualClock {
    /// A clock that stands at this time.
    #[must_use]
    pub fn at(now: Timestamp) -> Self {
        Self { hands: Arc::new(Mutex::new((now, Duration::ZERO))), ahead: Arc::default() }
    }

    /// The clock of another machine: the time moves on for both, and each can be set.
    #[must_use]
    pub fn beside(&self) -> Self {
        Self { hands: Arc::clone(&self.hands), ahead: Arc::default() }
    }

    /// Moves the time on, at most to `Timestamp::MAX`. A negative span sets the time back.
    pub fn advance(&self, span: SignedDuration) {
        let (now, elapsed) = &mut *held(&self.hands);
        *now = now.saturating_add(span).unwrap_or(Timestamp::MAX);
        *elapsed = elapsed.saturating_add(Duration::try_from(span).unwrap_or_default());
    }

    /// Sets this clock so far ahead of the time that the database has.
    pub fn set_ahead(&self, span: SignedDuration) {
        *held(&self.ahead) = span;
    }
}

fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        let ahead = *held(&self.ahead);
        held(&self.hands).0.saturating_add(ahead).unwrap_or(Timestamp::MAX)
    }

    fn elapsed(&self) -> Duration {
        held(&self.hands).1
    }

    fn of_database(&self, _: Timestamp) -> Timestamp {
        held(&self.hands).0
    }
}
