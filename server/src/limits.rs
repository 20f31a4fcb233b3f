//! Rate limits against draining: for each user in total, and for each pair of users. Each server counts for itself.

mod rate;
mod strangers;

use std::{
    collections::HashMap,
    num::NonZeroU32,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use keypool_openapi::UserName;

use rate::{Limiter, Time, limiter, wait};
pub(crate) use strangers::{Origin, Strangers};

use crate::{
    clock::Clock,
    config::{self, Config},
    problem::{Failure, whole_seconds},
};

/// The rate limits of users. If limits are off, every request is allowed.
pub struct Limits {
    users: Option<Limiters>,
    strangers: Strangers,
}

struct Limiters {
    time: Time,
    requesters: Limiter<UserName>,
    pairs: Limiter<(UserName, UserName)>,
    pair_burst: u32,
    /// The longest reservation that counts once.
    ttl: Duration,
    /// Each user's recent numbers of reservations and spends.
    habits: Mutex<HashMap<UserName, Habit>>,
}

/// KeyPackages that a user has reserved and spent. Both numbers halve at each sweep.
#[derive(Clone, Copy, Debug, Default)]
struct Habit {
    reserved: usize,
    spent: usize,
}

impl Habit {
    /// Whether the user reserves KeyPackages but adds hardly any member. Its reservations then count several times.
    fn is_of_a_drainer(self) -> bool {
        self.reserved >= DRAINER && self.spent < self.reserved / DRAINER_SPENDS
    }
}

/// The fewest recent reservations at which a user can count as draining.
const DRAINER: usize = 32;

/// A user that spends fewer than one in this many reservations counts as draining.
const DRAINER_SPENDS: usize = 4;

/// The weight of a draining user's reservation.
const DRAINER_WEIGHT: u64 = 4;

impl Limits {
    /// Creates the limits of this configuration.
    #[must_use]
    pub fn new(config: &Config, clock: Arc<dyn Clock>) -> Self {
        let strangers = Strangers::new(config, Arc::clone(&clock));
        if config.limits == config::Limits::Off {
            return Self { users: None, strangers };
        }
        let time = Time(clock);
        let users = Limiters {
            requesters: limiter(config.requester_per_minute, config.requester_burst, &time),
            pairs: limiter(config.pair_per_minute, config.pair_burst, &time),
            pair_burst: config.pair_burst,
            ttl: config.reservation_ttl,
            habits: Mutex::default(),
            time,
        };
        Self { users: Some(users), strangers }
    }

    /// The limits by address, for requests without a known token.
    pub(crate) fn strangers(&self) -> &Strangers {
        &self.strangers
    }

    /// Whether limits are on.
    pub fn are_on(&self) -> bool {
        self.users.is_some()
    }

    /// Counts a user's requests.
    ///
    /// # Errors
    /// `too-many-requests` if the limit is exceeded.
    pub fn request(&self, requester: &UserName, n: usize) -> Result<(), Failure> {
        let Some(limiters) = &self.users else { return Ok(()) };
        let Some(n) = u32::try_from(n).ok().and_then(NonZeroU32::new) else { return Ok(()) };
        let checked = limiters.requesters.check_key_n(requester, n);
        // A request above the whole burst gets the same answer as one above the remaining burst.
        let wait = match checked {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(until)) => wait(&limiters.time, &until),
            Err(_) => Duration::from_mins(1),
        };
        Err(Failure::too_many(
            format!(
                "{requester} asks for too much at a time. Try again in {} s, and then more slowly.",
                whole_seconds(wait)
            ),
            wait,
        ))
    }

    /// Counts a reservation by one user of another user's KeyPackages. A reservation that is longer than usual counts
    /// several times, and so does one by a user that spends hardly any.
    ///
    /// # Errors
    /// The time to wait if the limit is exceeded.
    pub fn pair(&self, requester: &UserName, target: &UserName, ttl: Duration) -> Result<(), Duration> {
        let Some(limiters) = &self.users else { return Ok(()) };
        let weight = NonZeroU32::new(limiters.weight(requester, ttl)).unwrap_or(NonZeroU32::MIN);
        match limiters.pairs.check_key_n(&(requester.clone(), target.clone()), weight) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(until)) => Err(wait(&limiters.time, &until)),
            // Cannot happen: the weight is within the burst.
            Err(_) => Err(Duration::from_mins(1)),
        }
    }

    /// Records that a user has reserved this many KeyPackages.
    pub fn reserved(&self, user: &UserName, n: usize) {
        self.note(user, |habit| habit.reserved = habit.reserved.saturating_add(n));
    }

    /// Records that a user has spent this many reservations.
    pub fn spent(&self, user: &UserName, n: usize) {
        self.note(user, |habit| habit.spent = habit.spent.saturating_add(n));
    }

    fn note(&self, user: &UserName, change: impl FnOnce(&mut Habit)) {
        let Some(limiters) = &self.users else { return };
        let mut habits = limiters.habits();
        match habits.get_mut(user) {
            Some(habit) => change(habit),
            None => change(habits.entry(user.clone()).or_default()),
        }
    }

    /// Removes users whose limits have refilled. Returns how many users drained pools until now.
    pub fn forget(&self) -> usize {
        self.strangers.forget();
        let Some(limiters) = &self.users else { return 0 };
        limiters.requesters.retain_recent();
        limiters.pairs.retain_recent();
        limiters.requesters.shrink_to_fit();
        limiters.pairs.shrink_to_fit();
        let mut drainers = 0;
        limiters.habits().retain(|_, habit| {
            drainers += usize::from(habit.is_of_a_drainer());
            *habit = Habit { reserved: habit.reserved / 2, spent: habit.spent / 2 };
            habit.reserved > 0
        });
        drainers
    }
}

impl Limiters {
    fn habits(&self) -> MutexGuard<'_, HashMap<UserName, Habit>> {
        self.habits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn weight(&self, requester: &UserName, ttl: Duration) -> u32 {
        let is_of_a_drainer = self.habits().get(requester).is_some_and(|habit| habit.is_of_a_drainer());
        let by_habit = if is_of_a_drainer { DRAINER_WEIGHT } else { 1 };
        let weight = ttl.as_secs().div_ceil(self.ttl.as_secs().max(1)).saturating_mul(by_habit);
        // A weight above the burst could never be allowed.
        u32::try_from(weight).unwrap_or(u32::MAX).min(self.pair_burst)
    }
}

#[cfg(test)]
mod tests {
    use jiff::{SignedDuration, Timestamp};

    use super::*;
    use crate::clock::ManualClock;

    const MINUTE: Duration = Duration::from_mins(1);

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
            assert!(limits.pair(&bob, &alice, MINUTE).is_ok(), "{n}");
        }
        assert_eq!(limits.pair(&bob, &alice, MINUTE), Err(Duration::from_secs(2)));
        assert!(limits.pair(&bob, &name("carol"), MINUTE).is_ok());
        assert!(limits.pair(&name("carol"), &alice, MINUTE).is_ok());
        clock.advance(SignedDuration::from_secs(2));
        assert!(limits.pair(&bob, &alice, MINUTE).is_ok());
        assert!(limits.pair(&bob, &alice, MINUTE).is_err());
    }

    #[test]
    fn what_is_held_longer_counts_like_several() {
        let (limits, _) = limits(|_| ());
        let (bob, alice) = (name("bob"), name("alice"));
        for n in 0..3 {
            assert!(limits.pair(&bob, &alice, 10 * MINUTE).is_ok(), "{n}");
        }
        assert!(limits.pair(&bob, &alice, Duration::from_secs(1)).is_err());
        let carol = name("carol");
        for n in 0..15 {
            assert!(limits.pair(&bob, &carol, Duration::from_secs(61)).is_ok(), "{n}");
        }
        assert!(limits.pair(&bob, &carol, MINUTE).is_err());
    }

    #[test]
    fn who_reserves_and_never_spends_has_less() {
        let (limits, clock) = limits(|_| ());
        let (bob, alice, carol) = (name("bob"), name("alice"), name("carol"));
        let possible = |user: &UserName, target: &str| {
            (0..100).take_while(|_| limits.pair(user, &name(target), MINUTE).is_ok()).count()
        };
        for user in [&bob, &carol] {
            limits.reserved(user, 31);
            assert_eq!(possible(user, "dave"), 30);
            limits.reserved(user, 1);
        }
        limits.spent(&carol, 8);
        assert_eq!((possible(&bob, "erin"), possible(&carol, "erin")), (7, 30));
        // The limits refill with time.
        limits.forget();
        assert_eq!(possible(&bob, "frank"), 30);
        for _ in 0..10 {
            limits.forget();
        }
        assert!(limits.users.as_ref().unwrap().habits().is_empty(), "habits are kept for ever");
        clock.advance(SignedDuration::from_mins(1));
        assert!(limits.pair(&bob, &alice, MINUTE).is_ok());
    }

    #[test]
    fn a_group_of_two_hundred_with_five_devices_each_fits_in_at_once() {
        let (limits, _) = limits(|_| ());
        let bob = name("bob");
        for person in 0..200 {
            limits.request(&bob, 1).unwrap();
            limits.pair(&bob, &name(&format!("friend-{person}")), MINUTE).unwrap();
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
            limits.pair(&name("bob"), &name("alice"), MINUTE).unwrap();
        }
    }
}
