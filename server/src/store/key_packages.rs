//! Upload: what enters the pool.

use std::collections::{HashMap, HashSet};

use diesel::{prelude::*, result::Error};
use keypool_openapi::{Action, RejectionReason, State};

use super::{
    Store, StoreError,
    audit::{AuditSql, Event},
    connection::with_conn,
    rows::{DeviceId, Ended, statements},
    schema::{devices, hpke_keys, key_packages},
    storing::StoringSql,
    view::{View, is_live},
};
use crate::key_package::ValidatedKeyPackage;

/// How much a pool holds.
#[derive(Clone, Copy, Debug)]
pub struct UploadLimits {
    /// KeyPackages that are available or reserved, per device and ciphersuite; the last resort is not counted.
    pub capacity: u32,
}

/// What became of a valid KeyPackage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UploadOutcome {
    /// It is in the pool now.
    Stored,
    /// It was in the pool before, and nothing changed: an upload whose answer was lost, repeated.
    Known,
    /// It was refused.
    Refused(RejectionReason),
}

/// Ref, owner, state, `not_after`, `reserved_until`.
type KnownColumns = (Vec<u8>, i64, String, i64, Option<i64>);

statements! {
    pub(super) trait UploadSql {
        fn known_refs(conn, refs: &[&[u8]]) -> QueryResult<Vec<KnownColumns>> {
            key_packages::table
                .filter(key_packages::keypackage_ref.eq_any(refs))
                .select((
                    key_packages::keypackage_ref,
                    key_packages::device_id,
                    key_packages::state,
                    key_packages::not_after,
                    key_packages::reserved_until,
                ))
                .load(conn)
        }

        fn known_keys(conn, owner: i64, keys: &[&[u8]]) -> QueryResult<Vec<Vec<u8>>> {
            hpke_keys::table
                .filter(hpke_keys::device_id.eq(owner).and(hpke_keys::public_key.eq_any(keys)))
                .select(hpke_keys::public_key)
                .load(conn)
        }

        fn live_counts(conn, owner: i64, view: View) -> QueryResult<Vec<(i32, i64)>> {
            key_packages::table
                .filter(key_packages::device_id.eq(owner))
                .filter(is_live(view.now.as_second(), view.retired_by()))
                .filter(diesel::dsl::not(key_packages::last_resort))
                .group_by(key_packages::ciphersuite)
                .select((key_packages::ciphersuite, diesel::dsl::count_star()))
                .load(conn)
        }

        fn retire_last_resort(conn, owner: i64, suite: i32, now: i64) -> QueryResult<Vec<Vec<u8>>> {
            diesel::update(key_packages::table)
                .filter(key_packages::device_id.eq(owner).and(key_packages::ciphersuite.eq(suite)))
                .filter(key_packages::last_resort.and(key_packages::state.eq(State::Available.as_ref())))
                .filter(key_packages::not_after.gt(now))
                .set(Ended::new(State::Revoked, now))
                .returning(key_packages::keypackage_ref)
                .get_results(conn)
        }

        fn mark_upload(conn, owner: i64, now: i64) -> QueryResult<usize> {
            diesel::update(devices::table.find(owner)).set(devices::last_upload.eq(now)).execute(conn)
        }
    }
}

/// Holds a device's row until the transaction ends: the uploads of one device, and its removal, happen one after the
/// other, and what one has seen stays true.
pub(super) trait HoldDevice {
    /// Whether the device is still registered.
    fn hold_device(&mut self, owner: i64) -> QueryResult<bool>;
}

/// Judges the KeyPackages of one upload, in order, against the pool and against each other.
struct Judge {
    owner: i64,
    capacity: i64,
    /// Whose, and where in its life.
    known: HashMap<Vec<u8>, (i64, State)>,
    keys: HashSet<Vec<u8>>,
    refs: HashSet<Vec<u8>>,
    live: HashMap<i32, i64>,
    last_resorts: HashSet<u16>,
}

impl Judge {
    fn judge(&mut self, package: &ValidatedKeyPackage) -> UploadOutcome {
        let package_ref = package.keypackage_ref.as_bytes();
        if !self.refs.insert(package_ref.to_vec()) {
            return UploadOutcome::Refused(RejectionReason::Duplicate);
        }
        let is_known = match self.known.get(package_ref) {
            Some((owner, State::Available | State::Reserved)) if *owner == self.owner => true,
            Some(_) => return UploadOutcome::Refused(RejectionReason::Duplicate),
            None => false,
        };
        let keys = [&package.init_key, &package.encryption_key];
        if !is_known && keys.iter().any(|key| self.keys.contains(key.as_slice())) {
            return UploadOutcome::Refused(RejectionReason::InitKeyReused);
        }
        // Nor is one that stands in the pool replaced by the upload that has it.
        if package.last_resort && !self.last_resorts.insert(package.ciphersuite) {
            return UploadOutcome::Refused(RejectionReason::SecondLastResort);
        }
        if is_known {
            return UploadOutcome::Known;
        }
        if !package.last_resort {
            let live = self.live.entry(i32::from(package.ciphersuite)).or_default();
            if *live >= self.capacity {
                return UploadOutcome::Refused(RejectionReason::PoolFull);
            }
            *live += 1;
        }
        self.keys.extend(keys.into_iter().cloned());
        UploadOutcome::Stored
    }
}

fn upload<C: UploadSql + StoringSql + AuditSql + HoldDevice>(
    conn: &mut C,
    owner: DeviceId,
    packages: &[ValidatedKeyPackage],
    limits: UploadLimits,
    view: View,
) -> Result<Option<Vec<UploadOutcome>>, StoreError> {
    let now = view.now.as_second();
    if !conn.hold_device(owner.0)? {
        return Ok(None);
    }
    let refs: Vec<&[u8]> = packages.iter().map(|package| package.keypackage_ref.as_bytes()).collect();
    let keys: Vec<&[u8]> = packages.iter().flat_map(|p| [p.init_key.as_slice(), p.encryption_key.as_slice()]).collect();
    let mut judge = Judge {
        owner: owner.0,
        capacity: i64::from(limits.capacity),
        known: conn.known_refs(&refs)?.into_iter().map(|row| known(row, view)).collect::<Result<_, _>>()?,
        keys: conn.known_keys(owner.0, &keys)?.into_iter().collect(),
        refs: HashSet::new(),
        live: conn.live_counts(owner.0, view)?.into_iter().collect(),
        last_resorts: HashSet::new(),
    };
    let outcomes: Vec<_> = packages.iter().map(|package| judge.judge(package)).collect();
    let stored: Vec<_> = (packages.iter().zip(&outcomes))
        .filter_map(|(package, outcome)| (*outcome == UploadOutcome::Stored).then_some(package))
        .collect();
    put(conn, owner.0, &stored, now)?;
    if outcomes.iter().any(|outcome| !matches!(outcome, UploadOutcome::Refused(_))) {
        conn.mark_upload(owner.0, now)?;
    }
    Ok(Some(outcomes))
}

fn known(
    (keypackage_ref, owner, state, not_after, reserved_until): KnownColumns,
    view: View,
) -> Result<(Vec<u8>, (i64, State)), StoreError> {
    let state = state.parse().map_err(StoreError::fatal)?;
    Ok((keypackage_ref, (owner, view.state(state, not_after, reserved_until))))
}

fn put<C: UploadSql + StoringSql + AuditSql>(
    conn: &mut C,
    owner: i64,
    packages: &[&ValidatedKeyPackage],
    now: i64,
) -> Result<(), StoreError> {
    if packages.is_empty() {
        return Ok(());
    }
    for package in packages.iter().filter(|package| package.last_resort) {
        for retired in conn.retire_last_resort(owner, i32::from(package.ciphersuite), now)? {
            conn.record(&[Event::plain((owner, &retired), Action::Revoke, Some(owner), true, now)])?;
        }
    }
    if conn.put(owner, packages, now)? < packages.len() {
        // Another device put the same KeyPackage in since we looked: look again, and refuse it.
        return Err(Error::DatabaseError(
            diesel::result::DatabaseErrorKind::SerializationFailure,
            Box::new("a KeyPackage of this upload was uploaded by another device at the same time".to_owned()),
        )
        .into());
    }
    Ok(())
}

impl Store {
    /// Puts valid KeyPackages into their owner's pool; the outcomes are in the order of the packages. `None` where the
    /// device was removed in the meantime.
    ///
    /// # Errors
    /// When the database fails. Nothing of the upload is stored then.
    pub fn upload(
        &self,
        owner: DeviceId,
        packages: &[ValidatedKeyPackage],
        limits: UploadLimits,
        view: View,
    ) -> Result<Option<Vec<UploadOutcome>>, StoreError> {
        with_conn!(self, write "upload", |conn| upload(conn, owner, packages, limits, view))
    }
}
