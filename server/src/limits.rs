//! Against draining: how much a user may ask for, of all and of each other user. Counted by each server for itself.

use std::{num::NonZeroU32, sync::Arc, time::Duration};

use governor::{
    NotUntil, Quota, RateLimiter,
    clock::{Clock as GovernorClock, Reference},
    middleware::NoOpMiddleware,
    nanos::Nanos,
    state::keyed::DashMapStateStore,
};
use keypool_openapi::UserName;

use crate::{
    clock::Clock,
    config::{self, Config},
    problem::Failure,
};

type Limiter<K> = RateLimiter<K, DashMapStateStore<K>, Time, NoOpMiddleware<Nanos>>;

/// The injected clock, as the limiters read it: they count on it that it never goes back.
#[derive(Clone)]
struct Time(Arc<dyn Clock>);

impl GovernorClock for Time {
    type Instant = Nanos;

    fn now(&self) -> Nanos {
        Nanos::from(self.0.elapsed())
    }
}

/// What is asked for, by whom. Where limits are off, anything goes.
pub struct Limits(Option<Limiters>);

struct Limiters {
    time: Time,
    requesters: Limiter<UserName>,
    pairs: Limiter<(UserName, UserName)>,
}

impl Limits {
    /// The limits of this configuration.
    #[must_use]
    pub fn new(config: &Config, clock: Arc<dyn Clock>) -> Self {
        if config.limits == config::Limits::Off {
            return Self(None);
        }
        let time = Time(clock);
        Self(Some(Limiters {
            requesters: limiter(config.requester_per_minute, config.requester_burst, &time),
            pairs: limiter(config.pair_per_minute, config.pair_burst, &time),
            time,
        }))
    }

    /// Whether anything is limited.
    pub fn are_on(&self) -> bool {
        self.0.is_some()
    }

    /// Counts what a user asks for.
    ///
    /// # Errors
    /// `too-many-requests` where it is too much now.
    pub fn request(&self, requester: &UserName, n: usize) -> Result<(), Failure> {
        let Some(limiters) = &self.0 else { return Ok(()) };
        let Some(n) = u32::try_from(n).ok().and_then(NonZeroU32::new) else { return Ok(()) };
        let checked = limiters.requesters.check_key_n(requester, n);
        // What can never be had at once is answered as what cannot be had now.
        let wait = match checked {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(until)) => limiters.wait(&until),
            Err(_) => Duration::from_mins(1),
        };
        Err(Failure::too_many(
            format!("{requester} asks for too much at a time. Try again in {} s, and then more slowly.", seconds(wait)),
            wait,
        ))
    }

    /// Counts that a user reserves of another.
    ///
    /// # Errors
    /// How long to wait where it is too often now.
    pub fn pair(&self, requester: &UserName, target: &UserName) -> Result<(), Duration> {
        let Some(limiters) = &self.0 else { return Ok(()) };
        let checked = limiters.pairs.check_key(&(requester.clone(), target.clone()));
        checked.map_err(|until| limiters.wait(&until))
    }

    /// Forgets whoever has asked for nothing for long enough to start anew.
    pub fn forget(&self) {
        if let Some(limiters) = &self.0 {
            limiters.requesters.retain_recent();
            limiters.pairs.retain_recent();
            limiters.requesters.shrink_to_fit();
            limiters.pairs.shrink_to_fit();
        }
    }
}

impl Limiters {
    fn wait<I: Reference + Into<Nanos>>(&self, until: &NotUntil<I>) -> Duration
    where
        Nanos: Into<I>,
    {
        until.wait_time_from(self.time.now().into())
    }
}

fn limiter<K: std::hash::Hash + Eq + Clone>(per_minute: u32, burst: u32, time: &Time) -> Limiter<K> {
    let at_least_one = |n| NonZeroU32::new(n).unwrap_or(NonZeroU32::MIN);
    let quota = Quota::per_minute(at_least_one(per_minute)).allow_burst(at_least_one(burst));
    RateLimiter::new(quota, DashMapStateStore::default(), time.clone())
}

/// Whole seconds to wait, never too few.
pub(crate) fn seconds(wait: Duration) -> u128 {
    wait.as_millis().div_ceil(1_000).max(1)
}

#[cfg(test)]
mod tests {
    use jiff::{SignedDuration, Timestamp};

    use super::*;
    use crate::clock::ManualClock;

    fn limits(change: impl FnOnce(&mut Config)) -> (Limits, Arc<ManualClock>) {
        let clock = Arc::new(ManualClock::at(Timestamp::from_second(1_800_000_000).unwrap()));
        let mut config = Config::default();
        change(&mut config);
        (Limits::new(&config, clock.clone()), clock)
    }

    fn name(name: &str) -> UserName {
        name.parse().unwrap()
    }

    #[test]
    fn of_one_user_thirty_at_once_and_then_one_every_two_seconds() {
        let (limits, clock) = limits(|_| ());
        let (bob, alice) = (name("bob"), name("alice"));
        for n in 0..30 {
            assert!(limits.pair(&bob, &alice).is_ok(), "{n}");
        }
        assert_eq!(limits.pair(&bob, &alice), Err(Duration::from_secs(2)));
        assert!(limits.pair(&bob, &name("carol")).is_ok());
        assert!(limits.pair(&name("carol"), &alice).is_ok());
        clock.advance(SignedDuration::from_secs(2));
        assert!(limits.pair(&bob, &alice).is_ok());
        assert!(limits.pair(&bob, &alice).is_err());
    }

    #[test]
    fn a_group_of_two_hundred_with_five_devices_each_fits_in_at_once() {
        let (limits, _) = limits(|_| ());
        let bob = name("bob");
        for person in 0..200 {
            limits.request(&bob, 1).unwrap();
            limits.pair(&bob, &name(&format!("friend-{person}"))).unwrap();
            for _spend in 0..5 {
                limits.request(&bob, 1).unwrap();
            }
        }
    }

    #[test]
    fn what_is_too_much_is_told_when_to_come_back() {
        let (limits, clock) = limits(|config| config.requester_burst = 100);
        let bob = name("bob");
        limits.request(&bob, 100).unwrap();
        let failure = limits.request(&bob, 20).unwrap_err();
        assert_eq!(failure.retry_after, Some(Duration::from_secs(1)));
        clock.advance(SignedDuration::from_secs(1));
        limits.request(&bob, 20).unwrap();
        limits.forget();
        assert!(limits.request(&bob, 1).is_err(), "a limit was forgotten while it was in force");
    }

    #[test]
    fn nobody_waits_for_a_clock_that_was_set_back() {
        let (limits, clock) = limits(|config| config.requester_burst = 100);
        let bob = name("bob");
        limits.request(&bob, 100).unwrap();
        clock.advance(-SignedDuration::from_hours(1));
        assert_eq!(limits.request(&bob, 20).unwrap_err().retry_after, Some(Duration::from_secs(1)));
        clock.advance(SignedDuration::from_secs(1));
        limits.request(&bob, 20).unwrap();
    }

    #[test]
    fn off_is_off() {
        let (limits, _) = limits(|config| config.limits = config::Limits::Off);
        for _ in 0..10_000 {
            limits.request(&name("bob"), 100).unwrap();
            limits.pair(&name("bob"), &name("alice")).unwrap();
        }
    }
}
