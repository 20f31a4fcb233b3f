//! Revoke: the owner or the operator withdraws KeyPackages from a pool.

use std::collections::{HashMap, HashSet};

use diesel::prelude::*;
use keypool_openapi::{EndedKeyPackage, KeyPackageRef, State};

use super::{
    as_of::{AsOf, is_live},
    audit::{self, Withdrawn, withdrawn},
    database::{
        Conn, Failure, Store, StoreError,
        rows::{DeviceId, Ended},
        schema::key_packages,
        sql::statements,
    },
    steps,
    tokens::{ShownToken, TokenRevoked, hold_caller},
};

/// The result of a revocation.
#[derive(Clone, Debug, Default)]
pub struct Revoked {
    /// The KeyPackages that were revoked.
    pub revoked: Vec<KeyPackageRef>,
    /// The KeyPackages whose life had ended before.
    pub ended: Vec<EndedKeyPackage>,
    /// The refs that are not in the device's pool.
    pub unknown: Vec<KeyPackageRef>,
}

/// Ref, state, `not_after`, `reserved_until`.
type StateColumns = (Vec<u8>, String, i64, Option<i64>);

statements! {
    /// Revokes all KeyPackages that can still be handed out or spent. Lapsed or expired ones keep that state.
    pub(super) fn revoke_live(conn, owner: i64, as_of: AsOf) -> QueryResult<Vec<Withdrawn>> {
        let now = as_of.now.as_second();
        diesel::update(key_packages::table)
            .filter(key_packages::device_id.eq(owner))
            .filter(is_live(now, as_of.retired_by()))
            .set((Ended::new(State::Revoked, now), key_packages::step.eq(steps::revoked_in_row())))
            .returning(withdrawn())
            .get_results(conn)
    }

    pub(super) fn revoke_refs(conn, owner: i64, refs: &[&[u8]], as_of: AsOf) -> QueryResult<Vec<Withdrawn>> {
        let now = as_of.now.as_second();
        diesel::update(key_packages::table)
            .filter(key_packages::device_id.eq(owner).and(key_packages::keypackage_ref.eq_any(refs)))
            .filter(is_live(now, as_of.retired_by()))
            .set((Ended::new(State::Revoked, now), key_packages::step.eq(steps::revoked_in_row())))
            .returning(withdrawn())
            .get_results(conn)
    }

    pub(super) fn states_of(conn, owner: i64, refs: &[&[u8]]) -> QueryResult<Vec<StateColumns>> {
        key_packages::table
            .filter(key_packages::device_id.eq(owner).and(key_packages::keypackage_ref.eq_any(refs)))
            .select((
                key_packages::keypackage_ref,
                key_packages::state,
                key_packages::not_after,
                key_packages::reserved_until,
            ))
            .load(conn)
    }
}

/// Revokes all KeyPackages of a device, including the last resort.
pub(super) fn revoke_all(
    conn: &mut Conn<'_>,
    owner: DeviceId,
    by: Option<DeviceId>,
    as_of: AsOf,
) -> Result<Vec<KeyPackageRef>, StoreError> {
    let rows = revoke_live(conn, owner.0, as_of)?;
    note(conn, owner, by, rows, as_of.now.as_second())
}

/// Records revocations in the audit trail.
fn note(
    conn: &mut Conn<'_>,
    owner: DeviceId,
    by: Option<DeviceId>,
    rows: Vec<Withdrawn>,
    now: i64,
) -> Result<Vec<KeyPackageRef>, StoreError> {
    let events: Vec<_> = rows.iter().map(|row| row.revoke(owner.0, by.map(|by| by.0), now)).collect();
    audit::record(conn, &events)?;
    Ok(rows.into_iter().map(|row| row.keypackage_ref.into()).collect())
}

fn revoke_some(
    conn: &mut Conn<'_>,
    owner: DeviceId,
    refs: &[KeyPackageRef],
    as_of: AsOf,
) -> Result<Revoked, StoreError> {
    let wanted: Vec<_> = refs.iter().map(KeyPackageRef::as_bytes).collect();
    let rows = revoke_refs(conn, owner.0, &wanted, as_of)?;
    let mut outcome =
        Revoked { revoked: note(conn, owner, Some(owner), rows, as_of.now.as_second())?, ..Revoked::default() };
    if outcome.revoked.len() == refs.len() {
        return Ok(outcome);
    }
    let now_revoked: HashSet<_> = outcome.revoked.iter().cloned().collect();
    let mut states = HashMap::new();
    for (keypackage_ref, state, not_after, reserved_until) in states_of(conn, owner.0, &wanted)? {
        let state = state.parse().map_err(StoreError::fatal)?;
        states.insert(keypackage_ref, as_of.state(state, not_after, reserved_until));
    }
    for keypackage_ref in refs.iter().filter(|one| !now_revoked.contains(one)) {
        let keypackage_ref = keypackage_ref.clone();
        match states.get(keypackage_ref.as_bytes()) {
            None => outcome.unknown.push(keypackage_ref),
            Some(state) => outcome.ended.push(EndedKeyPackage { keypackage_ref, state: *state }),
        }
    }
    Ok(outcome)
}

impl Store {
    /// Revokes the named KeyPackages of a device's own pool, or the whole pool if none is named.
    ///
    /// # Errors
    /// `TokenRevoked`, or when the database fails. Nothing is revoked then.
    pub fn revoke(
        &self,
        by: &ShownToken,
        refs: Option<&[KeyPackageRef]>,
        as_of: AsOf,
    ) -> Result<Revoked, Failure<TokenRevoked>> {
        self.write("revoke", |conn| {
            hold_caller::<TokenRevoked>(conn, by)?;
            let owner = by.device;
            Ok(match refs {
                Some(refs) => revoke_some(conn, owner, refs, as_of)?,
                None => Revoked { revoked: revoke_all(conn, owner, Some(owner), as_of)?, ..Revoked::default() },
            })
        })
    }
}
