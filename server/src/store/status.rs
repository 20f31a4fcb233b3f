//! What a pool holds, for its owner.

use diesel::prelude::*;
use jiff::Timestamp;
use keypool_openapi::{KeyPackageRef, State};

use super::{
    Store, StoreError,
    audit::AuditSql,
    connection::with_conn,
    rows::{DeviceId, statements, suite, timestamp},
    schema::{devices, key_packages},
};

/// What a device has in its pool.
#[derive(Clone, Debug, Default)]
pub struct PoolContents {
    /// What is neither spent nor revoked, nor swept as expired.
    pub live: Vec<LiveKeyPackage>,
    /// How many of each ciphersuite ended how; last resorts are left out.
    pub ended: Vec<(u16, State, u64)>,
    /// When something was last accepted.
    pub last_upload: Option<Timestamp>,
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
    /// When its newest reservation ends or ended; `None` where it was never handed out.
    pub reserved_until: Option<Timestamp>,
    /// Whether it is the last resort.
    pub last_resort: bool,
    /// How often it was handed out as a last resort.
    pub uses: u64,
}

type LiveColumns = (Vec<u8>, i32, i64, Option<i64>, bool);

statements! {
    pub(super) trait StatusSql {
        fn live(conn, owner: i64) -> QueryResult<Vec<LiveColumns>> {
            key_packages::table
                .filter(key_packages::device_id.eq(owner))
                .filter(key_packages::state.eq_any([State::Available.as_ref(), State::Reserved.as_ref()]))
                .select((
                    key_packages::keypackage_ref,
                    key_packages::ciphersuite,
                    key_packages::not_after,
                    key_packages::reserved_until,
                    key_packages::last_resort,
                ))
                .order(key_packages::keypackage_ref.asc())
                .load(conn)
        }

        fn ended(conn, owner: i64) -> QueryResult<Vec<(i32, String, i64)>> {
            let ended = [State::Spent, State::Revoked, State::Expired].map(<&str>::from);
            key_packages::table
                .filter(key_packages::device_id.eq(owner).and(key_packages::state.eq_any(ended)))
                .filter(diesel::dsl::not(key_packages::last_resort))
                .group_by((key_packages::ciphersuite, key_packages::state))
                .select((key_packages::ciphersuite, key_packages::state, diesel::dsl::count_star()))
                .load(conn)
        }

        fn last_upload(conn, owner: i64) -> QueryResult<Option<i64>> {
            devices::table.find(owner).select(devices::last_upload).first(conn)
        }
    }
}

fn contents<C: StatusSql + AuditSql>(conn: &mut C, owner: i64) -> Result<PoolContents, StoreError> {
    let live = conn.live(owner)?;
    let last_resorts: Vec<_> = live.iter().filter(|row| row.4).map(|row| row.0.clone()).collect();
    let uses = if last_resorts.is_empty() { Vec::new() } else { conn.last_resort_uses(owner, &last_resorts)? };
    let uses_of = |keypackage_ref: &[u8]| uses.iter().find(|(used, _)| used == keypackage_ref).map_or(0, |(_, n)| *n);
    Ok(PoolContents {
        live: live
            .into_iter()
            .map(|(keypackage_ref, number, not_after, reserved_until, last_resort)| {
                Ok(LiveKeyPackage {
                    ciphersuite: suite(number)?,
                    not_after: timestamp(not_after)?,
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
        last_upload: conn.last_upload(owner)?.map(timestamp).transpose()?,
    })
}

fn count(rows: i64) -> Result<u64, StoreError> {
    u64::try_from(rows).map_err(StoreError::fatal)
}

impl Store {
    /// What the device has in its pool.
    ///
    /// # Errors
    /// When the database fails.
    pub fn contents(&self, owner: DeviceId) -> Result<PoolContents, StoreError> {
        with_conn!(self, read, |conn| contents(conn, owner.0))
    }
}
