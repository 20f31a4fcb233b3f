//! How many reservations an adder holds, and of whom: against draining.

use std::collections::HashMap;

use diesel::{
    dsl::{count_star, min},
    prelude::*,
};
use jiff::Timestamp;

use super::{
    StoreError,
    key_packages::HoldDevice,
    reservations::{HoldLimits, Reserve},
    rows::{DeviceId, count, statements, timestamp},
    schema::{devices, key_packages},
};

/// A device, how many reservations it holds, and when the first of them lapses.
type HeldColumns = (Option<i64>, i64, Option<i64>);

statements! {
    pub(super) trait HoldSql {
        /// What the devices of a user hold.
        fn held_by_user(conn, user: &str, now: i64) -> QueryResult<Vec<HeldColumns>> {
            let own = devices::table.filter(devices::user_name.eq(user)).select(devices::id.nullable());
            key_packages::table
                .filter(key_packages::held.and(key_packages::reserved_until.gt(now)))
                .filter(key_packages::reserved_by.eq_any(own))
                .group_by(key_packages::reserved_by)
                .select((key_packages::reserved_by, count_star(), min(key_packages::reserved_until)))
                .load(conn)
        }

        /// Of whose KeyPackages the devices of a user hold how many.
        fn held_by_owner(conn, user: &str, now: i64) -> QueryResult<Vec<(i64, i64)>> {
            let own = devices::table.filter(devices::user_name.eq(user)).select(devices::id.nullable());
            key_packages::table
                .filter(key_packages::held.and(key_packages::reserved_until.gt(now)))
                .filter(key_packages::reserved_by.eq_any(own))
                .group_by(key_packages::device_id)
                .select((key_packages::device_id, count_star()))
                .load(conn)
        }
    }
}

/// What an adder holds. Other reservations of its user wait until the transaction ends, so that what was counted stays true.
pub(super) struct Held {
    limits: Option<HoldLimits>,
    /// By the adder itself, and when the first of it lapses.
    own: (u64, Option<i64>),
    /// By the adder's user, of each owner; empty where it is too little in all to matter.
    of_each: HashMap<i64, i64>,
}

impl Held {
    pub(super) fn by<C: HoldSql + HoldDevice>(
        conn: &mut C,
        want: &Reserve,
        now: Timestamp,
    ) -> Result<Self, StoreError> {
        let mut held = Self { limits: want.limits, own: (0, None), of_each: HashMap::new() };
        let Some(limits) = want.limits else { return Ok(held) };
        let (user, now) = (want.by_user.as_str(), now.as_second());
        let mut all = 0;
        for (device, n, first) in conn.held_by_user(user, now)? {
            all += n;
            if device == Some(want.by.device.0) {
                held.own = (count(n)?, first);
            }
        }
        if all >= i64::from(limits.per_device) {
            held.of_each = conn.held_by_owner(user, now)?.into_iter().collect();
        }
        Ok(held)
    }

    /// When the caller may ask again, if it would hold too much.
    pub(super) fn over_the_limit(&self, want: &Reserve, more: usize) -> Result<Option<Timestamp>, StoreError> {
        let Some(limits) = self.limits else { return Ok(None) };
        let (held, first) = self.own;
        let is_over = held.saturating_add(more as u64) > u64::from(limits.total);
        Ok(if is_over { Some(first.map(timestamp).transpose()?.unwrap_or(want.until)) } else { None })
    }

    /// Whether the adder's user may hold another KeyPackage of this device.
    pub(super) fn allows_another_of(&self, owner: DeviceId) -> bool {
        let held = self.of_each.get(&owner.0).copied().unwrap_or_default();
        self.limits.is_none_or(|limits| held < limits.per_device.into())
    }
}
