//! What a pool holds, for its owner.

use std::collections::BTreeMap;

use diesel::prelude::*;
use jiff::Timestamp;
use keypool_openapi::{KeyPackageRef, State, UserName};

use super::{
    Store, StoreError,
    audit::AuditSql,
    connection::with_conn,
    devices::DeviceSql,
    rows::{DeviceId, Names, count, statements, suite, timestamp},
    schema::{devices, key_packages, lineage},
};

/// What a device has in its pool.
#[derive(Clone, Debug, Default)]
pub struct PoolContents {
    /// What is neither spent nor revoked, nor swept as expired.
    pub live: Vec<LiveKeyPackage>,
    /// How many of each ciphersuite ended how; last resorts are left out.
    pub ended: Vec<(u16, State, u64)>,
    /// Whom the pool was handed out to lately, and how often.
    pub handed_out: Vec<(UserName, u64)>,
    /// When something was last accepted.
    pub last_upload: Option<Timestamp>,
    /// When everything was withdrawn, because the database had been restored.
    pub fenced_at: Option<Timestamp>,
}

/// A KeyPackage that is available or reserved.
#[derive(Clone, Debug)]
pub struct LiveKeyPackage {
    /// Its ref.
    pub keypackage_ref: KeyPackageRef,
    /// Its ciphersuite.
    pub ciphersuite: u16,
    /// When it expires.
    pub not_after: Timestamp,
    /// Whether the database has it as reserved.
    pub is_held: bool,
    /// When its newest reservation ends or ended; `None` where it was never handed out.
    pub reserved_until: Option<Timestamp>,
    /// Whether it is the last resort.
    pub last_resort: bool,
    /// How often it was handed out as a last resort.
    pub uses: u64,
}

type LiveColumns = (Vec<u8>, i32, i64, bool, Option<i64>, bool);

statements! {
    pub(super) trait StatusSql {
        fn live(conn, owner: i64) -> QueryResult<Vec<LiveColumns>> {
            key_packages::table
                .filter(key_packages::device_id.eq(owner).and(key_packages::live))
                .select((
                    key_packages::keypackage_ref,
                    key_packages::ciphersuite,
                    key_packages::not_after,
                    key_packages::held,
                    key_packages::reserved_until,
                    key_packages::last_resort,
                ))
                .order(key_packages::keypackage_ref.asc())
                .load(conn)
        }

        fn ended(conn, owner: i64) -> QueryResult<Vec<(i32, String, i64)>> {
            let ended = [State::Spent, State::Revoked, State::Expired, State::Retired].map(<&str>::from);
            key_packages::table
                // By their states, and not as those that are not live: there is an index over all of these, which a planner
                // whose statistics are old takes for a short one.
                .filter(key_packages::device_id.eq(owner).and(key_packages::state.eq_any(ended)))
                .filter(diesel::dsl::not(key_packages::last_resort))
                .group_by((key_packages::ciphersuite, key_packages::state))
                .select((key_packages::ciphersuite, key_packages::state, diesel::dsl::count_star()))
                .load(conn)
        }

        /// Which devices hold, or held since then, how many; released and spent ones included.
        fn handed_out_since(conn, owner: i64, since: i64) -> QueryResult<Vec<(Option<i64>, i64)>> {
            key_packages::table
                .filter(key_packages::device_id.eq(owner).and(key_packages::reserved_until.gt(since)))
                .group_by(key_packages::reserved_by)
                .select((key_packages::reserved_by, diesel::dsl::count_star()))
                .load(conn)
        }

        /// Its last upload, and the last fence.
        fn last_upload(conn, owner: i64) -> QueryResult<(Option<i64>, Option<i64>)> {
            let fenced_at = lineage::table.select(lineage::fenced_at).single_value();
            devices::table.find(owner).select((devices::last_upload, fenced_at)).first(conn)
        }
    }
}

/// How many KeyPackages each user was handed out since then, over all their devices.
fn handed_out<C: StatusSql + DeviceSql>(
    conn: &mut C,
    owner: i64,
    since: i64,
) -> Result<Vec<(UserName, u64)>, StoreError> {
    let rows = conn.handed_out_since(owner, since)?;
    if rows.is_empty() {
        return Ok(Vec::new());
    }
    let devices: Vec<_> = rows.iter().filter_map(|(device, _)| *device).collect();
    let names = Names::from_columns(conn.devices_by_id(&devices)?)?;
    let mut users = BTreeMap::new();
    for (device, n) in rows {
        if let Some(device) = device {
            *users.entry(names.of(device)?.user).or_default() += count(n)?;
        }
    }
    Ok(users.into_iter().collect())
}

fn contents<C: StatusSql + AuditSql + DeviceSql>(
    conn: &mut C,
    owner: i64,
    since: i64,
) -> Result<PoolContents, StoreError> {
    let live = conn.live(owner)?;
    let last_resorts: Vec<_> = live.iter().filter(|row| row.5).map(|row| row.0.clone()).collect();
    let uses = if last_resorts.is_empty() { Vec::new() } else { conn.last_resort_uses(owner, &last_resorts)? };
    let (last_upload, fenced_at) = conn.last_upload(owner)?;
    let uses_of = |keypackage_ref: &[u8]| uses.iter().find(|(used, _)| used == keypackage_ref).map_or(0, |(_, n)| *n);
    Ok(PoolContents {
        live: live
            .into_iter()
            .map(|(keypackage_ref, number, not_after, is_held, reserved_until, last_resort)| {
                Ok(LiveKeyPackage {
                    ciphersuite: suite(number)?,
                    not_after: timestamp(not_after)?,
                    is_held,
                    reserved_until: reserved_until.map(timestamp).transpose()?,
                    last_resort,
                    uses: count(uses_of(&keypackage_ref))?,
                    keypackage_ref: keypackage_ref.into(),
                })
            })
            .collect::<Result<_, StoreError>>()?,
        ended: conn
            .ended(owner)?
            .into_iter()
            .map(|(number, state, n)| Ok((suite(number)?, state.parse().map_err(StoreError::fatal)?, count(n)?)))
            .collect::<Result<_, StoreError>>()?,
        handed_out: handed_out(conn, owner, since)?,
        last_upload: last_upload.map(timestamp).transpose()?,
        fenced_at: fenced_at.map(timestamp).transpose()?,
    })
}

impl Store {
    /// What the device has in its pool, and whom it was handed out to since then.
    ///
    /// # Errors
    /// When the database fails.
    pub fn contents(&self, owner: DeviceId, since: Timestamp) -> Result<PoolContents, StoreError> {
        with_conn!(self, read, |conn| contents(conn, owner.0, since.as_second()))
    }
}
