//! Upload: what enters the pool.

use std::collections::{HashMap, HashSet};

use diesel::{prelude::*, result::Error};
use keypool_openapi::{Action, RejectionReason, State};
use keypool_validation::key_package::ValidatedKeyPackage;

use super::{
    Store, StoreError,
    audit::{AuditSql, Event},
    connection::with_conn,
    rows::{DeviceId, Ended, statements},
    schema::{devices, key_packages},
    storing::StoringSql,
    view::{View, is_live},
};

/// How much a pool holds.
#[derive(Clone, Copy, Debug)]
pub struct UploadLimits {
    /// KeyPackages that are available or reserved, per device and ciphersuite; the last resort is not counted.
    pub capacity: u32,
}

/// What a device puts into its pool at once.
#[derive(Clone, Copy, Debug)]
pub struct Upload<'a> {
    /// Whose pool it is.
    pub owner: DeviceId,
    /// Valid ones.
    pub packages: &'a [ValidatedKeyPackage],
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

        /// By owner and ciphersuite, without last resorts.
        fn live_counts(conn, owners: &[i64], view: View) -> QueryResult<Vec<((i64, i32), i64)>> {
            let kind = (key_packages::device_id, key_packages::ciphersuite);
            key_packages::table
                .filter(key_packages::device_id.eq_any(owners))
                .filter(is_live(view.now.as_second(), view.retired_by()))
                .filter(diesel::dsl::not(key_packages::last_resort))
                .group_by(kind)
                .select((kind, diesel::dsl::count_star()))
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

        fn mark_uploads(conn, owners: &[i64], now: i64) -> QueryResult<usize> {
            let theirs = devices::table.filter(devices::id.eq_any(owners));
            diesel::update(theirs).set(devices::last_upload.eq(now)).execute(conn)
        }
    }
}

/// Holds devices' rows until the transaction ends: the uploads of one device, and its removal, happen one after the other,
/// and what one has seen stays true.
pub(super) trait HoldDevice {
    /// Whether the device is still registered. Waits for whoever holds its row.
    fn hold_device(&mut self, owner: i64) -> QueryResult<bool>;
    /// Which of the devices are still registered, and held by nobody else.
    fn hold_idle(&mut self, owners: &[i64]) -> QueryResult<Vec<i64>>;
}

/// What there is already of what comes. As KeyPackages are accepted, it learns of them.
struct Judge {
    capacity: i64,
    /// By ref: whose, and where in its life.
    known: HashMap<Vec<u8>, (i64, State)>,
    /// By owner, those that it had.
    keys: HashSet<(i64, Vec<u8>)>,
    /// How many, by owner and ciphersuite.
    live: HashMap<(i64, i32), i64>,
}

/// What an upload had before the KeyPackage that is judged.
#[derive(Default)]
struct Before {
    refs: HashSet<Vec<u8>>,
    last_resorts: HashSet<u16>,
}

impl Judge {
    fn about<C: UploadSql + StoringSql>(
        conn: &mut C,
        uploads: &[Upload<'_>],
        limits: UploadLimits,
        view: View,
    ) -> Result<Self, StoreError> {
        let packages =
            || uploads.iter().flat_map(|upload| upload.packages.iter().map(|package| (upload.owner.0, package)));
        let refs: Vec<_> = packages().map(|(_, package)| package.keypackage_ref.as_bytes()).collect();
        let keys: Vec<_> =
            packages().flat_map(|(owner, p)| [(owner, p.init_key.as_slice()), (owner, &p.encryption_key)]).collect();
        let owners: Vec<_> = uploads.iter().map(|upload| upload.owner.0).collect();
        Ok(Self {
            capacity: i64::from(limits.capacity),
            known: conn.known_refs(&refs)?.into_iter().map(|row| known(row, view)).collect::<Result<_, _>>()?,
            keys: conn.known_keys(&keys)?.into_iter().collect(),
            live: conn.live_counts(&owners, view)?.into_iter().collect(),
        })
    }

    /// Judges the KeyPackages of an upload, in order.
    fn judge(&mut self, upload: Upload<'_>) -> Vec<UploadOutcome> {
        let mut before = Before::default();
        upload.packages.iter().map(|package| self.judge_one(upload.owner.0, package, &mut before)).collect()
    }

    fn judge_one(&mut self, owner: i64, package: &ValidatedKeyPackage, before: &mut Before) -> UploadOutcome {
        let package_ref = package.keypackage_ref.as_bytes();
        if !before.refs.insert(package_ref.to_vec()) {
            return UploadOutcome::Refused(RejectionReason::Duplicate);
        }
        let is_known = match self.known.get(package_ref) {
            Some((one, State::Available | State::Reserved)) if *one == owner => true,
            Some(_) => return UploadOutcome::Refused(RejectionReason::Duplicate),
            None => false,
        };
        let keys = [&package.init_key, &package.encryption_key].map(|key| (owner, key.clone()));
        if !is_known && keys.iter().any(|key| self.keys.contains(key)) {
            return UploadOutcome::Refused(RejectionReason::InitKeyReused);
        }
        // Nor is one that stands in the pool replaced by the upload that has it.
        if package.last_resort && !before.last_resorts.insert(package.ciphersuite) {
            return UploadOutcome::Refused(RejectionReason::SecondLastResort);
        }
        if is_known {
            return UploadOutcome::Known;
        }
        if !package.last_resort {
            let live = self.live.entry((owner, i32::from(package.ciphersuite))).or_default();
            if *live >= self.capacity {
                return UploadOutcome::Refused(RejectionReason::PoolFull);
            }
            *live += 1;
        }
        self.keys.extend(keys);
        self.known.insert(package_ref.to_vec(), (owner, State::Available));
        UploadOutcome::Stored
    }
}

/// Uploads of devices that are held, one each.
fn upload<C: UploadSql + StoringSql + AuditSql>(
    conn: &mut C,
    uploads: &[Upload<'_>],
    limits: UploadLimits,
    view: View,
) -> Result<Vec<Vec<UploadOutcome>>, StoreError> {
    let now = view.now.as_second();
    let mut judge = Judge::about(conn, uploads, limits, view)?;
    let (mut all, mut stored, mut uploaders) = (Vec::new(), Vec::new(), Vec::new());
    for upload in uploads {
        let outcomes = judge.judge(*upload);
        let new = upload.packages.iter().zip(&outcomes).filter(|(_, outcome)| **outcome == UploadOutcome::Stored);
        stored.extend(new.map(|(package, _)| (upload.owner.0, package)));
        if outcomes.iter().any(|outcome| !matches!(outcome, UploadOutcome::Refused(_))) {
            uploaders.push(upload.owner.0);
        }
        all.push(outcomes);
    }
    put(conn, &stored, now)?;
    if !uploaders.is_empty() {
        conn.mark_uploads(&uploaders, now)?;
    }
    Ok(all)
}

/// The uploads of devices that nobody else holds, the first of each; `None` for the others.
fn upload_idle<C: UploadSql + StoringSql + AuditSql + HoldDevice>(
    conn: &mut C,
    uploads: &[Upload<'_>],
    limits: UploadLimits,
    view: View,
) -> Result<Vec<Option<Vec<UploadOutcome>>>, StoreError> {
    let owners: Vec<_> = uploads.iter().map(|upload| upload.owner.0).collect();
    let mut held: HashSet<_> = conn.hold_idle(&owners)?.into_iter().collect();
    let is_held: Vec<_> = owners.iter().map(|owner| held.remove(owner)).collect();
    let theirs: Vec<_> = uploads.iter().zip(&is_held).filter_map(|(upload, held)| held.then_some(*upload)).collect();
    let mut outcomes = upload(conn, &theirs, limits, view)?.into_iter();
    Ok(is_held.into_iter().map(|held| if held { outcomes.next() } else { None }).collect())
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
    packages: &[(i64, &ValidatedKeyPackage)],
    now: i64,
) -> Result<(), StoreError> {
    if packages.is_empty() {
        return Ok(());
    }
    for (owner, package) in packages.iter().filter(|(_, package)| package.last_resort) {
        for retired in conn.retire_last_resort(*owner, i32::from(package.ciphersuite), now)? {
            conn.record(&[Event::plain((*owner, &retired), Action::Revoke, Some(*owner), true, now)])?;
        }
    }
    if conn.put(packages, now)? < packages.len() {
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
        one: Upload<'_>,
        limits: UploadLimits,
        view: View,
    ) -> Result<Option<Vec<UploadOutcome>>, StoreError> {
        with_conn!(self, write "upload", |conn| {
            if !conn.hold_device(one.owner.0)? {
                return Ok(None);
            }
            Ok(upload(conn, &[one], limits, view)?.pop())
        })
    }

    /// Does the same for several, in one transaction, without waiting for anybody. `None` for those that have to be done
    /// alone: another upload of the device was first, or somebody holds it, or it was removed.
    ///
    /// # Errors
    /// When the database fails. Nothing of any upload is stored then.
    pub fn upload_together(
        &self,
        uploads: &[Upload<'_>],
        limits: UploadLimits,
        view: View,
    ) -> Result<Vec<Option<Vec<UploadOutcome>>>, StoreError> {
        with_conn!(self, write "upload_together", |conn| upload_idle(conn, uploads, limits, view))
    }
}
