use std::sync::Mutex;

use jiff::{SignedDuration, Timestamp};
#[cfg(feature = "sqlite")]
use openmls::treesync::errors::LifetimeError;

/// The source of the current time.
pub trait Clock: Send + Sync {
    /// The time now.
    fn now(&self) -> Timestamp;
}

/// The client warns if its clock and the server's differ by more than this: other devices may refuse its signatures.
pub const MAX_SKEW: SignedDuration = SignedDuration::from_mins(1);

/// How far this machine's clock is ahead of the server's. The server sends whole seconds.
#[must_use]
pub fn skew(here: Timestamp, there: Timestamp) -> SignedDuration {
    SignedDuration::from_secs(here.as_second().saturating_sub(there.as_second()))
}

/// Whether OpenMLS, which reads this machine's clock, refuses a lifetime that is valid by the server's. `ahead` is how far this
/// machine's clock is ahead of the server's, if known.
#[cfg(feature = "sqlite")]
pub(crate) fn is_own_clock_off(error: &LifetimeError, ahead: Option<SignedDuration>) -> bool {
    use LifetimeError as E;

    let Some(ahead) = ahead else { return false };
    let there = |here: u64| i128::from(here) - i128::from(ahead.as_secs());
    match error {
        E::Expired { not_after, now } => i128::from(*not_after) > there(*now),
        E::NotValidYet { not_before, now } => i128::from(*not_before) <= there(*now),
        E::SystemTimeBeforeUnixEpoch => true,
    }
}

/// The machine's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "the only place that reads the machine's clock")]
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }
}

/// A clock for tests. It stands still until a test moves it.
#[derive(Debug)]
pub struct ManualClock(Mutex<Timestamp>);

impl ManualClock {
    /// A clock that shows `now`.
    #[must_use]
    pub fn new(now: Timestamp) -> Self {
        Self(Mutex::new(now))
    }

    /// Moves the clock by a duration, backwards if it is negative. Stops at the first and last value of [`Timestamp`].
    pub fn advance(&self, by: SignedDuration) {
        let mut now = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let end = if by.is_negative() { Timestamp::MIN } else { Timestamp::MAX };
        *now = now.checked_add(by).unwrap_or(end);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        *self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
