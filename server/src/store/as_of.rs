//! A row's effective state at a given time, before the sweeper has updated it.

use diesel::{dsl::case_when, prelude::*, sql_types::Bool};
use jiff::Timestamp;
use keypool_openapi::State;

use super::database::schema::key_packages;

/// A time, and the operator's rules about what may be handed out then.
#[derive(Clone, Copy, Debug)]
pub struct AsOf {
    /// The time.
    pub now: Timestamp,
    /// Whether a lapsed or released KeyPackage is retired (`on_lapse = retire`).
    pub retire: bool,
    /// How many seconds a KeyPackage must still be valid to be handed out. At least 1: one that expires in the current
    /// second has expired.
    pub min_remaining: i64,
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
    /// A KeyPackage that expires before this second is not handed out.
    pub(crate) fn usable_until(self) -> i64 {
        self.now.as_second().saturating_add(self.min_remaining)
    }

    /// A KeyPackage whose reservation ended at or before this second is retired.
    pub(super) fn retired_by(self) -> i64 {
        if self.retire { self.now.as_second() } else { i64::MIN }
    }

    /// A KeyPackage whose reservation ended at or before this second may be handed out again.
    pub(super) fn returned_by(self) -> i64 {
        if self.retire { i64::MIN } else { self.now.as_second() }
    }

    /// Returns the KeyPackage's state at this time, from the fields of its row.
    pub(super) fn state(self, state: State, not_after: i64, reserved_until: Option<i64>) -> State {
        let now = self.now.as_second();
        match (state, reserved_until) {
            // If a KeyPackage both lapses and expires, the earlier of the two decides.
            (State::Available | State::Reserved, Some(until)) if until <= self.retired_by() && until < not_after => {
                State::Retired
            }
            (State::Available | State::Reserved, _) if not_after <= now => State::Expired,
            (State::Reserved, Some(until)) if until > now => State::Reserved,
            (State::Available | State::Reserved, _) => State::Available,
            (ended, _) => ended,
        }
    }
}
