//! Time as a value: code that needs the time takes a [`Clock`], which tests can move.

use std::{
    sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use jiff::{SignedDuration, Timestamp};

/// A source of the time.
pub trait Clock: Send + Sync + 'static {
    /// The current time.
    fn now(&self) -> Timestamp;

    /// The time since some fixed moment. It never goes back, even if the system's time is set.
    fn elapsed(&self) -> Duration;

    /// The database's time; `said` is the answer of the database. A test clock returns its own time instead.
    fn of_database(&self, said: Timestamp) -> Timestamp {
        said
    }
}

/// The operating system's clock.
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

/// A clock that stands still until a test moves it. Clones share the time.
#[derive(Clone, Debug)]
pub struct ManualClock {
    /// The true time, which the database has.
    hands: Arc<Mutex<(Timestamp, Duration)>>,
    /// How far this clock is ahead of the true time.
    ahead: Arc<Mutex<SignedDuration>>,
}

impl ManualClock {
    /// Creates a clock that stands at this time.
    #[must_use]
    pub fn at(now: Timestamp) -> Self {
        Self { hands: Arc::new(Mutex::new((now, Duration::ZERO))), ahead: Arc::default() }
    }

    /// Creates the clock of another machine. The time advances for both, and each can be set ahead on its own.
    #[must_use]
    pub fn beside(&self) -> Self {
        Self { hands: Arc::clone(&self.hands), ahead: Arc::default() }
    }

    /// Advances the time, at most to `Timestamp::MAX`. A negative span sets the time back.
    pub fn advance(&self, span: SignedDuration) {
        let (now, elapsed) = &mut *held(&self.hands);
        *now = now.saturating_add(span).unwrap_or(Timestamp::MAX);
        *elapsed = elapsed.saturating_add(Duration::try_from(span).unwrap_or_default());
    }

    /// Sets this clock ahead of the database's time by this much.
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
