//! Counts the reservations that an adder holds, and enforces the limits that protect pools from draining.

use std::collections::HashMap;

use diesel::{
    dsl::{count_star, min},
    prelude::*,
};
use jiff::Timestamp;

use super::request::{HoldLimits, Reserve};
use crate::store::database::{
    Conn, StoreError,
    rows::{DeviceId, count, timestamp},
    schema::{devices, key_packages},
    sql::statements,
};

/// Device, number of reservations that it holds, and the time at which the first of them lapses.
type HeldColumns = (Option<i64>, i64, Option<i64>);

statements! {
    /// Counts the reservations that each device of a user holds.
    pub(super) fn held_by_user(conn, user: &str, now: i64) -> QueryResult<Vec<HeldColumns>> {
        let own = devices::table.filter(devices::user_name.eq(user)).select(devices::id.nullable());
        key_packages::table
            .filter(key_packages::held.and(key_packages::reserved_until.gt(now)))
            .filter(key_packages::reserved_by.eq_any(own))
            .group_by(key_packages::reserved_by)
            .select((key_packages::reserved_by, count_star(), min(key_packages::reserved_until)))
            .load(conn)
    }

    /// Counts the reservations that a user's devices hold, by owner.
    pub(super) fn held_by_owner(conn, user: &str, now: i64) -> QueryResult<Vec<(i64, i64)>> {
        let own = devices::table.filter(devices::user_name.eq(user)).select(devices::id.nullable());
        key_packages::table
            .filter(key_packages::held.and(key_packages::reserved_until.gt(now)))
            .filter(key_packages::reserved_by.eq_any(own))
            .group_by(key_packages::device_id)
            .select((key_packages::device_id, count_star()))
            .load(conn)
    }
}

/// The reservations that an adder holds. Other reservations of its user wait until the transaction ends, so the counts
/// stay true.
pub(super) struct Held {
    limits: Option<HoldLimits>,
    /// Reservations of the adder's own device, and the time at which the first of them lapses.
    own: (u64, Option<i64>),
    /// Reservations of the adder's user, by owner. Empty if their total is too small to reach a limit.
    of_each: HashMap<i64, i64>,
}

impl Held {
    pub(super) fn by(conn: &mut Conn<'_>, request: &Reserve, now: Timestamp) -> Result<Self, StoreError> {
        let mut held = Self { limits: request.limits, own: (0, None), of_each: HashMap::new() };
        let Some(limits) = request.limits else { return Ok(held) };
        let (user, now) = (request.by_user.as_str(), now.as_second());
        let mut all = 0;
        for (device, n, first) in held_by_user(conn, user, now)? {
            all += n;
            if device == Some(request.by.device.0) {
                held.own = (count(n)?, first);
            }
        }
        if all >= i64::from(limits.per_device) {
            held.of_each = held_by_owner(conn, user, now)?.into_iter().collect();
        }
        Ok(held)
    }

    /// Returns the time at which the caller may retry if the request would exceed its limit.
    pub(super) fn over_the_limit(&self, request: &Reserve, more: usize) -> Result<Option<Timestamp>, StoreError> {
        let Some(limits) = self.limits else { return Ok(None) };
        let (held, first) = self.own;
        let is_over = held.saturating_add(more as u64) > u64::from(limits.total);
        Ok(if is_over { Some(first.map(timestamp).transpose()?.unwrap_or(request.until)) } else { None })
    }

    /// Returns whether the adder's user may hold another KeyPackage of this device.
    pub(super) fn allows_another_of(&self, owner: DeviceId) -> bool {
        let held = self.of_each.get(&owner.0).copied().unwrap_or_default();
        self.limits.is_none_or(|limits| held < limits.per_device.into())
    }
}
