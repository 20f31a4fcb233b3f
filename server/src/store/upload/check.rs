//! Checks the KeyPackages of an upload against the refs, keys and counts in the database.

use std::collections::{HashMap, HashSet};

use diesel::{
    dsl::{case_when, count},
    prelude::*,
    sql_types::Bool,
};
use keypool_openapi::{KeyPackageRef, RejectionReason, State};
use keypool_validation::key_package::ValidatedKeyPackage;

use super::{
    insert,
    request::{Upload, UploadLimits, UploadOutcome},
    twin::twin,
};
use crate::store::{
    as_of::{AsOf, is_live},
    database::{Conn, StoreError, schema::key_packages, sql::statements},
    locks,
    signature_keys::{self, KeyChange, NewKey, Registration, adopt},
};

/// Ref, owner, state, `not_after`, `reserved_until`.
type KnownColumns = (Vec<u8>, i64, String, i64, Option<i64>);

statements! {
    pub(super) fn known_refs(conn, refs: &[&[u8]]) -> QueryResult<Vec<KnownColumns>> {
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

    /// Counts KeyPackages that are reserved or may be handed out, by owner and ciphersuite, without last resorts. A pool
    /// in which all live ones end too soon counts 0.
    pub(super) fn live_counts(conn, owners: &[i64], as_of: AsOf) -> QueryResult<Vec<((i64, i32), i64)>> {
        let kind = (key_packages::device_id, key_packages::ciphersuite);
        let kept = is_kept(as_of.now.as_second(), as_of.usable_until());
        key_packages::table
            .filter(key_packages::device_id.eq_any(owners))
            .filter(is_live(as_of.now.as_second(), as_of.retired_by()))
            .filter(diesel::dsl::not(key_packages::last_resort))
            .group_by(kind)
            .select((kind, count(key_packages::keypackage_ref).aggregate_filter(kept)))
            .load(conn)
    }
}

/// SQL condition: the KeyPackage is reserved, or it does not end too soon to be handed out.
#[diesel::dsl::auto_type(no_type_alias)]
fn is_kept(now: i64, usable_until: i64) -> _ {
    let is_kept = key_packages::not_after.ge(usable_until).or(key_packages::reserved_until.gt(now));
    case_when(is_kept, true.into_sql::<Bool>()).otherwise(false.into_sql::<Bool>())
}

/// The refs, keys and counts that the database has for the devices of an upload, updated with each accepted KeyPackage.
pub(super) struct UploadCheck {
    limits: UploadLimits,
    /// Owner and state, by ref.
    known: HashMap<Vec<u8>, (i64, State)>,
    /// HPKE keys that their owners have used before.
    keys: HashSet<(i64, Vec<u8>)>,
    /// Current signature keys, by owner and ciphersuite.
    signature_keys: HashMap<(i64, i32), Vec<u8>>,
    /// Signature keys to record with this upload.
    pub first: Vec<NewKey>,
    /// Number of KeyPackages that count against the capacity, by owner and ciphersuite.
    live: HashMap<(i64, i32), i64>,
}

/// The refs, keys and last resorts that came earlier in the same upload.
#[derive(Default)]
struct Before {
    refs: HashSet<Vec<u8>>,
    last_resorts: HashSet<u16>,
}

impl UploadCheck {
    pub fn about(
        conn: &mut Conn<'_>,
        uploads: &[Upload<'_>],
        limits: UploadLimits,
        as_of: AsOf,
    ) -> Result<Self, StoreError> {
        let packages =
            || uploads.iter().flat_map(|upload| upload.packages.iter().map(|package| (upload.owner(), package)));
        let twins: Vec<_> = packages().filter_map(|(_, package)| twin(package)).collect();
        let own = packages().map(|(_, package)| package.keypackage_ref.as_bytes());
        let refs: Vec<_> = own.chain(twins.iter().map(KeyPackageRef::as_bytes)).collect();
        let keys: Vec<_> =
            packages().flat_map(|(owner, p)| [(owner, p.init_key.as_slice()), (owner, &p.encryption_key)]).collect();
        let owners: Vec<_> = uploads.iter().map(Upload::owner).collect();
        let bound = if limits.binds_keys { uploads } else { &[] };
        let registrations: Vec<_> = bound.iter().map(|upload| upload.by).collect();
        let known = known_refs(conn, &refs)?.into_iter().map(|row| known(row, as_of)).collect::<Result<_, _>>()?;
        let known_keys = insert::known_keys(conn, &keys, &registrations)?;
        let mut check = Self {
            limits,
            known,
            keys: known_keys.hpke.into_iter().collect(),
            signature_keys: known_keys.signature.into_iter().collect(),
            first: Vec::new(),
            live: live_counts(conn, &owners, as_of)?.into_iter().collect(),
        };
        check.adopt(conn, &registrations, as_of)?;
        Ok(check)
    }

    /// Records a signature key for devices that have KeyPackages but no key: their pools are older than the table of
    /// keys.
    fn adopt(&mut self, conn: &mut Conn<'_>, registrations: &[Registration], as_of: AsOf) -> Result<(), StoreError> {
        let has_key: HashSet<_> = self.signature_keys.keys().map(|(owner, _)| *owner).collect();
        let has_pool: HashSet<_> = self.live.keys().map(|(owner, _)| *owner).collect();
        let devices = registrations.iter().map(|registration| registration.device.0);
        let old: Vec<_> = devices.filter(|device| has_pool.contains(device) && !has_key.contains(device)).collect();
        if !old.is_empty() {
            let adopted = adopt(conn, &old, as_of.now.as_second())?;
            self.signature_keys
                .extend(adopted.into_iter().map(|key| ((key.device_id, key.ciphersuite), key.signature_key)));
        }
        Ok(())
    }

    /// Returns the key changes that can be made, and checks later KeyPackages against the new keys. A change can be
    /// made if its old key is the current one and the upload has a KeyPackage under the new key.
    pub fn begin_changes<'a>(
        &mut self,
        conn: &mut Conn<'_>,
        upload: Upload<'a>,
        now: i64,
    ) -> Result<Vec<&'a KeyChange>, StoreError> {
        let mut begun = Vec::new();
        for change in upload.changes {
            let slot = (upload.owner(), i32::from(change.ciphersuite));
            let is_new =
                |p: &ValidatedKeyPackage| p.ciphersuite == change.ciphersuite && p.signature_key == change.new_key;
            let is_current = self.signature_keys.get(&slot) == Some(&change.old_key);
            if !is_current || !upload.packages.iter().any(is_new) {
                continue;
            }
            locks::hold_pool(conn, slot.0, slot.1)?;
            // The change revokes the available KeyPackages, so only reserved ones still count against the capacity.
            self.live.insert(slot, signature_keys::count_held(conn, slot.0, slot.1, now)?);
            self.signature_keys.insert(slot, change.new_key.clone());
            begun.push(change);
        }
        Ok(begun)
    }

    /// Makes room for an upload that replaces the pool: only reserved KeyPackages, and those of the upload that are in the pool
    /// already, still count against the capacity.
    pub fn begin_replacement(&mut self, conn: &mut Conn<'_>, upload: Upload<'_>, now: i64) -> Result<(), StoreError> {
        for suite in upload.suites() {
            let slot = (upload.owner(), i32::from(suite));
            locks::hold_pool(conn, slot.0, slot.1)?;
            let stays = |package: &&ValidatedKeyPackage| {
                let known = self.known.get(package.keypackage_ref.as_bytes());
                package.ciphersuite == suite
                    && !package.last_resort
                    && matches!(known, Some((owner, State::Available)) if *owner == slot.0)
            };
            let staying = upload.packages.iter().filter(stays).count();
            let staying = i64::try_from(staying).map_err(StoreError::fatal)?;
            self.live.insert(slot, signature_keys::count_held(conn, slot.0, slot.1, now)? + staying);
        }
        Ok(())
    }

    /// Checks the KeyPackages of an upload, in order.
    pub fn check(&mut self, upload: Upload<'_>, as_of: AsOf) -> Vec<UploadOutcome> {
        let mut before = Before::default();
        upload.packages.iter().map(|package| self.check_one(upload.by, package, &mut before, as_of)).collect()
    }

    fn check_one(
        &mut self,
        by: Registration,
        package: &ValidatedKeyPackage,
        before: &mut Before,
        as_of: AsOf,
    ) -> UploadOutcome {
        let package_ref = package.keypackage_ref.as_bytes();
        let slot = (by.device.0, i32::from(package.ciphersuite));
        let owner = slot.0;
        if !before.refs.insert(package_ref.to_vec()) {
            return UploadOutcome::Refused(RejectionReason::Duplicate);
        }
        // Under two refs, the log would have the hand-outs of one KeyPackage twice.
        if twin(package).is_some_and(|twin| self.known.contains_key(twin.as_bytes())) {
            return UploadOutcome::Refused(RejectionReason::Duplicate);
        }
        let is_known = match self.known.get(package_ref) {
            Some((one, State::Available | State::Reserved)) if *one == owner => true,
            Some(_) => return UploadOutcome::Refused(RejectionReason::Duplicate),
            None => false,
        };
        if !is_known && package.not_after.as_second() < as_of.usable_until() {
            return UploadOutcome::Refused(RejectionReason::NeverAvailable);
        }
        let bound = self.signature_keys.get(&slot);
        if let Some(other) = bound.filter(|key| !is_known && **key != package.signature_key) {
            return UploadOutcome::OtherKey(other.clone());
        }
        let keys = [&package.init_key, &package.encryption_key].map(|key| (owner, key.clone()));
        if !is_known && keys.iter().any(|key| self.keys.contains(key)) {
            return UploadOutcome::Refused(RejectionReason::InitKeyReused);
        }
        // A last resort that is already in the pool counts as well: uploading it again does not replace it.
        if package.last_resort && !before.last_resorts.insert(package.ciphersuite) {
            return UploadOutcome::Refused(RejectionReason::SecondLastResort);
        }
        if is_known {
            return UploadOutcome::Known;
        }
        if !package.last_resort {
            let live = self.live.entry(slot).or_default();
            if *live >= i64::from(self.limits.capacity) {
                return UploadOutcome::Refused(RejectionReason::PoolFull);
            }
            *live += 1;
        }
        if self.limits.binds_keys && !self.signature_keys.contains_key(&slot) {
            self.signature_keys.insert(slot, package.signature_key.clone());
            self.first.push(NewKey {
                device_id: owner,
                registered_at: by.at,
                ciphersuite: slot.1,
                signature_key: package.signature_key.clone(),
                since: as_of.now.as_second(),
            });
        }
        self.keys.extend(keys);
        self.known.insert(package_ref.to_vec(), (owner, State::Available));
        UploadOutcome::Stored
    }
}

fn known(
    (keypackage_ref, owner, state, not_after, reserved_until): KnownColumns,
    as_of: AsOf,
) -> Result<(Vec<u8>, (i64, State)), StoreError> {
    let state = state.parse().map_err(StoreError::fatal)?;
    Ok((keypackage_ref, (owner, as_of.state(state, not_after, reserved_until))))
}
