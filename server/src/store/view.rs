//! What time makes of what the database has, whether or not it has been tidied up since.

use jiff::Timestamp;
use keypool_openapi::State;

use super::status::LiveKeyPackage;

/// The time, and the operator's word on what comes back.
#[derive(Clone, Copy, Debug)]
pub struct View {
    /// The time.
    pub now: Timestamp,
    /// Whether a KeyPackage that was handed out and came back is retired.
    pub retire: bool,
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
            (State::Available | State::Reserved, Some(until)) if until <= self.retired_by() => State::Retired,
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
