//! A row's effective state at a given time, before the sweeper has updated it.

use diesel::{dsl::case_when, prelude::*, sql_types::Bool};
use jiff::Timestamp;
use keypool_openapi::State;

use super::{schema::key_packages, status::LiveKeyPackage};

/// A time, and what becomes of a KeyPackage whose reservation has lapsed by then.
#[derive(Clone, Copy, Debug)]
pub struct AsOf {
    /// The time.
    pub now: Timestamp,
    /// Whether a lapsed or released KeyPackage is retired (`on_lapse = retire`).
    pub retire: bool,
}

/// SQL condition: the KeyPackage is available or reserved by [`AsOf::state`]. `retired_by` is [`AsOf::retired_by`].
///
/// `CASE` hides the condition from the planner: without statistics, it would use the index on expiry and read the pools of all
/// devices.
#[diesel::dsl::auto_type]
pub(super) fn is_live(now: i64, retired_by: i64) -> _ {
    let in_time = key_packages::live.and(key_packages::not_after.gt(now));
    let is_held = key_packages::reserved_until.is_null().or(key_packages::reserved_until.gt(retired_by));
    case_when(in_time.and(is_held), true.into_sql::<Bool>()).otherwise(false.into_sql::<Bool>())
}

impl AsOf {
    /// A KeyPackage whose reservation ended at or before this second is retired.
    pub(super) fn retired_by(self) -> i64 {
        if self.retire { self.now.as_second() } else { i64::MIN }
    }

    /// A KeyPackage whose reservation ended at or before this second may be handed out again.
    pub(super) fn returned_by(self) -> i64 {
        if self.retire { i64::MIN } else { self.now.as_second() }
    }

    /// The state of a KeyPackage, from its row.
    pub(super) fn state(self, state: State, not_after: i64, reserved_until: Option<i64>) -> State {
        let now = self.now.as_second();
        match (state, reserved_until) {
            // The earlier of lapse and expiry decides.
            (State::Available | State::Reserved, Some(until)) if until <= self.retired_by() && until < not_after => {
                State::Retired
            }
            (State::Available | State::Reserved, _) if not_after <= now => State::Expired,
            (State::Reserved, Some(until)) if until > now => State::Reserved,
            (State::Available | State::Reserved, _) => State::Available,
            (ended, _) => ended,
        }
    }

    /// The state of a KeyPackage whose row says available or reserved.
    pub(crate) fn state_of(self, package: &LiveKeyPackage) -> State {
        let state = if package.is_held { State::Reserved } else { State::Available };
        self.state(state, package.not_after.as_second(), package.reserved_until.map(Timestamp::as_second))
    }
}
