//! The rate limiter of all limits, over the injected clock.

use std::{num::NonZeroU32, sync::Arc, time::Duration};

use governor::{
    NotUntil, Quota, RateLimiter, clock::Clock as GovernorClock, middleware::NoOpMiddleware, nanos::Nanos,
    state::keyed::DashMapStateStore,
};

use crate::clock::Clock;

pub(super) type Limiter<K> = RateLimiter<K, DashMapStateStore<K>, Time, NoOpMiddleware<Nanos>>;

/// Adapts the injected clock to the rate limiters, which need a clock that never goes back.
#[derive(Clone)]
pub(super) struct Time(pub Arc<dyn Clock>);

impl GovernorClock for Time {
    type Instant = Nanos;

    fn now(&self) -> Nanos {
        Nanos::from(self.0.elapsed())
    }
}

pub(super) fn wait(time: &Time, until: &NotUntil<Nanos>) -> Duration {
    until.wait_time_from(time.now())
}

pub(super) fn limiter<K: std::hash::Hash + Eq + Clone>(per_minute: u32, burst: u32, time: &Time) -> Limiter<K> {
    let at_least_one = |n| NonZeroU32::new(n).unwrap_or(NonZeroU32::MIN);
    let quota = Quota::per_minute(at_least_one(per_minute)).allow_burst(at_least_one(burst));
    RateLimiter::new(quota, DashMapStateStore::default(), time.clone())
}
