//! Revoke: the owner, or the operator, withdraws what is in the pool.

use std::collections::{HashMap, HashSet};

use diesel::prelude::*;
use jiff::Timestamp;
use keypool_openapi::{Action, EndedKeyPackage, KeyPackageRef, State};

use super::{
    Store, StoreError,
    audit::{AuditSql, Event},
    connection::with_conn,
    rows::{DeviceId, Ended, statements},
    schema::key_packages,
};

/// What became of a revocation.
#[derive(Clone, Debug, Default)]
pub struct Revoked {
    /// Those that are withdrawn now.
    pub revoked: Vec<KeyPackageRef>,
    /// Those whose life had ended before.
    pub ended: Vec<EndedKeyPackage>,
    /// Those that are not in the device's pool.
    pub unknown: Vec<KeyPackageRef>,
}

/// Ref, and whether it was a last resort.
type RevokedColumns = (Vec<u8>, bool);

statements! {
    pub(super) trait RevocationSql {
        /// All that is live.
        fn revoke_live(conn, owner: i64, now: i64) -> QueryResult<Vec<RevokedColumns>> {
            diesel::update(key_packages::table)
                .filter(key_packages::device_id.eq(owner).and(key_packages::live))
                .set(Ended::new(State::Revoked, now))
                .returning((key_packages::keypackage_ref, key_packages::last_resort))
                .get_results(conn)
        }

        fn revoke_refs(conn, owner: i64, refs: &[&[u8]], now: i64) -> QueryResult<Vec<RevokedColumns>> {
            diesel::update(key_packages::table)
                .filter(key_packages::device_id.eq(owner).and(key_packages::live))
                .filter(key_packages::keypackage_ref.eq_any(refs))
                .set(Ended::new(State::Revoked, now))
                .returning((key_packages::keypackage_ref, key_packages::last_resort))
                .get_results(conn)
        }

        fn states_of(conn, owner: i64, refs: &[&[u8]]) -> QueryResult<Vec<(Vec<u8>, String)>> {
            key_packages::table
                .filter(key_packages::device_id.eq(owner).and(key_packages::keypackage_ref.eq_any(refs)))
                .select((key_packages::keypackage_ref, key_packages::state))
                .load(conn)
        }
    }
}

/// Revokes all that a device has in its pool, the last resort included.
pub(super) fn revoke_all<C: RevocationSql + AuditSql>(
    conn: &mut C,
    owner: DeviceId,
    by: Option<DeviceId>,
    now: i64,
) -> Result<Vec<KeyPackageRef>, StoreError> {
    let rows = conn.revoke_live(owner.0, now)?;
    note(conn, owner, by, rows, now)
}

/// Writes revocations down.
fn note<C: AuditSql>(
    conn: &mut C,
    owner: DeviceId,
    by: Option<DeviceId>,
    rows: Vec<RevokedColumns>,
    now: i64,
) -> Result<Vec<KeyPackageRef>, StoreError> {
    let events: Vec<_> = rows
        .iter()
        .map(|(keypackage_ref, last_resort)| {
            Event::plain((owner.0, keypackage_ref), Action::Revoke, by.map(|by| by.0), *last_resort, now)
        })
        .collect();
    if !events.is_empty() {
        conn.record(&events)?;
    }
    Ok(rows.into_iter().map(|(keypackage_ref, _)| keypackage_ref.into()).collect())
}

fn revoke_some<C: RevocationSql + AuditSql>(
    conn: &mut C,
    owner: DeviceId,
    refs: &[KeyPackageRef],
    now: i64,
) -> Result<Revoked, StoreError> {
    let wanted: Vec<_> = refs.iter().map(KeyPackageRef::as_bytes).collect();
    let rows = conn.revoke_refs(owner.0, &wanted, now)?;
    let mut outcome = Revoked { revoked: note(conn, owner, Some(owner), rows, now)?, ..Revoked::default() };
    if outcome.revoked.len() == refs.len() {
        return Ok(outcome);
    }
    let states: HashMap<_, _> = conn.states_of(owner.0, &wanted)?.into_iter().collect();
    let now_revoked: HashSet<_> = outcome.revoked.iter().cloned().collect();
    for keypackage_ref in refs.iter().filter(|one| !now_revoked.contains(one)) {
        match states.get(keypackage_ref.as_bytes()) {
            None => outcome.unknown.push(keypackage_ref.clone()),
            Some(state) => outcome.ended.push(EndedKeyPackage {
                keypackage_ref: keypackage_ref.clone(),
                state: state.parse().map_err(StoreError::fatal)?,
            }),
        }
    }
    Ok(outcome)
}

impl Store {
    /// Revokes these KeyPackages of a device's own pool, or all of it where none is named.
    ///
    /// # Errors
    /// When the database fails. Nothing is revoked then.
    pub fn revoke(
        &self,
        owner: DeviceId,
        refs: Option<&[KeyPackageRef]>,
        now: Timestamp,
    ) -> Result<Revoked, StoreError> {
        let now = now.as_second();
        with_conn!(self, write "revoke", |conn| match refs {
            Some(refs) => revoke_some(conn, owner, refs, now),
            None => Ok(Revoked { revoked: revoke_all(conn, owner, Some(owner), now)?, ..Revoked::default() }),
        })
    }
}
