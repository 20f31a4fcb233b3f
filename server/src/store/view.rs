//! What time makes of what the database has, whether or not it has been tidied up since.

use diesel::{dsl::case_when, prelude::*, sql_types::Bool};
use jiff::Timestamp;
use keypool_openapi::State;

use super::{schema::key_packages, status::LiveKeyPackage};

/// The time, and the operator's word on what comes back.
#[derive(Clone, Copy, Debug)]
pub struct View {
    /// The time.
    pub now: Timestamp,
    /// Whether a KeyPackage that was handed out and came back is retired.
    pub retire: bool,
}

/// What is available or reserved by [`View::state`], as a condition. `retired_by` is [`View::retired_by`].
///
/// A `CASE`, since this is always asked of one device's KeyPackages: a planner that knows no better would go by the index of
/// what ages, and so through all pools.
#[diesel::dsl::auto_type]
pub(super) fn is_live(now: i64, retired_by: i64) -> _ {
    let in_time = key_packages::live.and(key_packages::not_after.gt(now));
    let is_held = key_packages::reserved_until.is_null().or(key_packages::reserved_until.gt(retired_by));
    case_when(in_time.and(is_held), true.into_sql::<Bool>()).otherwise(false.into_sql::<Bool>())
}

impl View {
    /// A KeyPackage whose reservation had ended by then is retired.
    pub(super) fn retired_by(self) -> i64 {
        if self.retire { self.now.as_second() } else { i64::MIN }
    }

    /// A KeyPackage whose reservation had ended by then may be handed out again.
    pub(super) fn returned_by(self) -> i64 {
        if self.retire { i64::MIN } else { self.now.as_second() }
    }

    /// Where a KeyPackage is in its life.
    pub(super) fn state(self, state: State, not_after: i64, reserved_until: Option<i64>) -> State {
        let now = self.now.as_second();
        match (state, reserved_until) {
            // What came first has ended it.
            (State::Available | State::Reserved, Some(until)) if until <= self.retired_by() && until < not_after => {
                State::Retired
            }
            (State::Available | State::Reserved, _) if not_after <= now => State::Expired,
            (State::Reserved, Some(until)) if until > now => State::Reserved,
            (State::Available | State::Reserved, _) => State::Available,
            (ended, _) => ended,
        }
    }

    /// Where one is that the database has as available or reserved.
    pub(crate) fn state_of(self, package: &LiveKeyPackage) -> State {
        let state = if package.is_held { State::Reserved } else { State::Available };
        self.state(state, package.not_after.as_second(), package.reserved_until.map(Timestamp::as_second))
    }
}
