//! Upload: what enters the pool.

use std::collections::{HashMap, HashSet};

use diesel::{prelude::*, result::Error};
use keypool_openapi::{Action, RejectionReason, State};
use keypool_validation::key_package::ValidatedKeyPackage;

use super::{
    Store, StoreError,
    as_of::{AsOf, is_live},
    audit::{AuditSql, Event, KeyChangeEvent},
    connection::with_conn,
    delivery::Announce,
    rows::{DeviceId, Ended, statements},
    schema::{devices, key_packages},
    signature_keys::{KeyChange, NewKey, Registration, SignatureKeySql, adopt, change_key},
    storing::StoringSql,
    tokens::{CallerError, ShownToken, TokenRevoked},
};

/// How much a pool holds.
#[derive(Clone, Copy, Debug)]
pub struct UploadLimits {
    /// KeyPackages that are available or reserved, per device and ciphersuite; the last resort is not counted.
    pub capacity: u32,
    /// Whether a device is held to one signature key in each ciphersuite.
    pub binds_keys: bool,
}

/// What a device puts into its pool at once.
#[derive(Clone, Copy, Debug)]
pub struct Upload<'a> {
    /// The owner of the pool, and the registration of its token.
    pub by: Registration,
    /// The SHA-256 of the token that it came with.
    pub token_hash: [u8; 32],
    /// Valid ones.
    pub packages: &'a [ValidatedKeyPackage],
    /// Signature keys that are to change, one of each ciphersuite at most.
    pub changes: &'a [KeyChange],
}

impl Upload<'_> {
    fn owner(&self) -> i64 {
        self.by.device.0
    }
}

/// What became of an upload.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Uploaded {
    /// What became of each KeyPackage, in their order.
    pub outcomes: Vec<UploadOutcome>,
    /// The other devices of the user, where a key has changed.
    pub told: Vec<DeviceId>,
}

/// What became of a valid KeyPackage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UploadOutcome {
    /// It is in the pool now.
    Stored,
    /// It was in the pool before, and nothing changed: an upload whose answer was lost, repeated.
    Known,
    /// It was refused, since the device has this other signature key.
    OtherKey(Vec<u8>),
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
        fn live_counts(conn, owners: &[i64], as_of: AsOf) -> QueryResult<Vec<((i64, i32), i64)>> {
            let kind = (key_packages::device_id, key_packages::ciphersuite);
            key_packages::table
                .filter(key_packages::device_id.eq_any(owners))
                .filter(is_live(as_of.now.as_second(), as_of.retired_by()))
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
    /// The SHA-256 of the device's token; `None` if the device is no longer registered. Waits for other transactions that hold
    /// its row.
    fn hold_device(&mut self, owner: i64) -> QueryResult<Option<Vec<u8>>>;
    /// Whether the token is still its device's. Keeps the row from changes, and lets other callers do the same.
    fn hold_caller(&mut self, caller: &ShownToken) -> QueryResult<bool>;
    /// Holds a user's row: others neither register a device of the user nor remove one.
    fn hold_user(&mut self, user: &str) -> QueryResult<()>;
    /// Makes other limited reservations of this user wait until the transaction ends.
    fn hold_adders(&mut self, user: &str) -> QueryResult<()>;
    /// The devices that are still registered and that no other transaction holds, each with the SHA-256 of its token.
    fn hold_idle(&mut self, owners: &[i64]) -> QueryResult<Vec<(i64, Vec<u8>)>>;
    /// Holds the KeyPackages of a device and ciphersuite: nobody reserves, spends or releases one meanwhile.
    fn hold_pool(&mut self, owner: i64, suite: i32) -> QueryResult<()>;
}

/// What the database already has of the refs, keys and pools of an upload, updated with each accepted KeyPackage.
struct UploadCheck {
    limits: UploadLimits,
    /// By ref: whose, and where in its life.
    known: HashMap<Vec<u8>, (i64, State)>,
    /// By owner, those that it had.
    keys: HashSet<(i64, Vec<u8>)>,
    /// The signature keys by owner and ciphersuite.
    signature_keys: HashMap<(i64, i32), Vec<u8>>,
    /// Signature keys that are recorded with this upload.
    first: Vec<NewKey>,
    /// How many, by owner and ciphersuite.
    live: HashMap<(i64, i32), i64>,
}

/// What an upload had before the KeyPackage that is checked.
#[derive(Default)]
struct Before {
    refs: HashSet<Vec<u8>>,
    last_resorts: HashSet<u16>,
}

impl UploadCheck {
    fn about<C: UploadSql + StoringSql + SignatureKeySql>(
        conn: &mut C,
        uploads: &[Upload<'_>],
        limits: UploadLimits,
        as_of: AsOf,
    ) -> Result<Self, StoreError> {
        let packages =
            || uploads.iter().flat_map(|upload| upload.packages.iter().map(|package| (upload.owner(), package)));
        let refs: Vec<_> = packages().map(|(_, package)| package.keypackage_ref.as_bytes()).collect();
        let keys: Vec<_> =
            packages().flat_map(|(owner, p)| [(owner, p.init_key.as_slice()), (owner, &p.encryption_key)]).collect();
        let owners: Vec<_> = uploads.iter().map(Upload::owner).collect();
        let bound = if limits.binds_keys { uploads } else { &[] };
        let registrations: Vec<_> = bound.iter().map(|upload| upload.by).collect();
        let known = conn.known_refs(&refs)?.into_iter().map(|row| known(row, as_of)).collect::<Result<_, _>>()?;
        let known_keys = conn.known_keys(&keys, &registrations)?;
        let mut check = Self {
            limits,
            known,
            keys: known_keys.hpke.into_iter().collect(),
            signature_keys: known_keys.signature.into_iter().collect(),
            first: Vec::new(),
            live: conn.live_counts(&owners, as_of)?.into_iter().collect(),
        };
        check.adopt(conn, &registrations, as_of)?;
        Ok(check)
    }

    /// Devices that have KeyPackages and no signature key are from before keys were kept.
    fn adopt<C: SignatureKeySql>(
        &mut self,
        conn: &mut C,
        registrations: &[Registration],
        as_of: AsOf,
    ) -> Result<(), StoreError> {
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

    /// Answers the changes that can be made, and checks KeyPackages by the new keys from now on. A change can be made if its
    /// old key is the current one and the upload has a KeyPackage under the new one.
    fn begin_changes<'a, C: SignatureKeySql + HoldDevice>(
        &mut self,
        conn: &mut C,
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
            conn.hold_pool(slot.0, slot.1)?;
            // The change revokes what is available: only what is reserved still counts against the capacity.
            self.live.insert(slot, conn.count_held(slot.0, slot.1, now)?);
            self.signature_keys.insert(slot, change.new_key.clone());
            begun.push(change);
        }
        Ok(begun)
    }

    /// Checks the KeyPackages of an upload, in order.
    fn check(&mut self, upload: Upload<'_>, now: i64) -> Vec<UploadOutcome> {
        let mut before = Before::default();
        upload.packages.iter().map(|package| self.check_one(upload.by, package, &mut before, now)).collect()
    }

    fn check_one(
        &mut self,
        by: Registration,
        package: &ValidatedKeyPackage,
        before: &mut Before,
        now: i64,
    ) -> UploadOutcome {
        let package_ref = package.keypackage_ref.as_bytes();
        let slot = (by.device.0, i32::from(package.ciphersuite));
        let owner = slot.0;
        if !before.refs.insert(package_ref.to_vec()) {
            return UploadOutcome::Refused(RejectionReason::Duplicate);
        }
        let is_known = match self.known.get(package_ref) {
            Some((one, State::Available | State::Reserved)) if *one == owner => true,
            Some(_) => return UploadOutcome::Refused(RejectionReason::Duplicate),
            None => false,
        };
        let bound = self.signature_keys.get(&slot);
        if let Some(other) = bound.filter(|key| !is_known && **key != package.signature_key) {
            return UploadOutcome::OtherKey(other.clone());
        }
        let keys = [&package.init_key, &package.encryption_key].map(|key| (owner, key.clone()));
        if !is_known && keys.iter().any(|key| self.keys.contains(key)) {
            return UploadOutcome::Refused(RejectionReason::InitKeyReused);
        }
        // This includes a last resort that the pool has already: its own upload does not replace it.
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
                since: now,
            });
        }
        self.keys.extend(keys);
        self.known.insert(package_ref.to_vec(), (owner, State::Available));
        UploadOutcome::Stored
    }
}

/// Uploads of devices that are held, one each.
fn upload<C: UploadSql + StoringSql + AuditSql + SignatureKeySql + HoldDevice + Announce>(
    conn: &mut C,
    uploads: &[Upload<'_>],
    limits: UploadLimits,
    as_of: AsOf,
) -> Result<Vec<Uploaded>, StoreError> {
    let now = as_of.now.as_second();
    let mut check = UploadCheck::about(conn, uploads, limits, as_of)?;
    let (mut all, mut stored, mut uploaders, mut first_of_new_keys) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for upload in uploads {
        let changes = check.begin_changes(conn, *upload, now)?;
        let outcomes = check.check(*upload, now);
        let new: Vec<_> = upload
            .packages
            .iter()
            .zip(&outcomes)
            .filter(|(_, outcome)| **outcome == UploadOutcome::Stored)
            .map(|(package, _)| (upload.owner(), package))
            .collect();
        let mut uploaded = Uploaded::default();
        for change in changes {
            // Without an accepted KeyPackage under the new key, the key stays.
            if let Some(first) = new.iter().find(|(_, package)| package.ciphersuite == change.ciphersuite) {
                uploaded.told = change_key(conn, upload.by, change, as_of)?;
                first_of_new_keys.push(*first);
            }
        }
        stored.extend(new);
        if outcomes.iter().any(|outcome| matches!(outcome, UploadOutcome::Stored | UploadOutcome::Known)) {
            uploaders.push(upload.owner());
        }
        all.push(Uploaded { outcomes, ..uploaded });
    }
    for key in &check.first {
        conn.open_key(key)?;
    }
    put(conn, &stored, now)?;
    for (owner, package) in first_of_new_keys {
        let of = (owner, package.keypackage_ref.as_bytes());
        conn.record_key_change(KeyChangeEvent::new(of, &package.signature_key, package.last_resort, now))?;
    }
    if !uploaders.is_empty() {
        conn.mark_uploads(&uploaders, now)?;
    }
    Ok(all)
}

/// The uploads of devices that nobody else holds and whose token is still valid, the first of each; `None` for the others.
fn upload_idle<C: UploadSql + StoringSql + AuditSql + SignatureKeySql + HoldDevice + Announce>(
    conn: &mut C,
    uploads: &[Upload<'_>],
    limits: UploadLimits,
    as_of: AsOf,
) -> Result<Vec<Option<Uploaded>>, StoreError> {
    let owners: Vec<_> = uploads.iter().map(Upload::owner).collect();
    let mut tokens: HashMap<_, _> = conn.hold_idle(&owners)?.into_iter().collect();
    let mut is_valid =
        |upload: &Upload<'_>| tokens.remove(&upload.owner()).is_some_and(|token| token == upload.token_hash);
    let are_valid: Vec<_> = uploads.iter().map(&mut is_valid).collect();
    let valid: Vec<_> = uploads.iter().zip(&are_valid).filter_map(|(upload, valid)| valid.then_some(*upload)).collect();
    let mut outcomes = upload(conn, &valid, limits, as_of)?.into_iter();
    Ok(are_valid.into_iter().map(|valid| valid.then(|| outcomes.next()).flatten()).collect())
}

fn known(
    (keypackage_ref, owner, state, not_after, reserved_until): KnownColumns,
    as_of: AsOf,
) -> Result<(Vec<u8>, (i64, State)), StoreError> {
    let state = state.parse().map_err(StoreError::fatal)?;
    Ok((keypackage_ref, (owner, as_of.state(state, not_after, reserved_until))))
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
    /// Puts valid KeyPackages into their owner's pool, and changes its signature keys.
    ///
    /// # Errors
    /// See [`CallerError`]. Nothing of the upload is stored then.
    pub fn upload(&self, one: Upload<'_>, limits: UploadLimits, as_of: AsOf) -> Result<Uploaded, CallerError> {
        with_conn!(self, write "upload", |conn| {
            if conn.hold_device(one.owner())?.is_none_or(|token_hash| token_hash != one.token_hash) {
                return Err(TokenRevoked.into());
            }
            Ok(upload(conn, &[one], limits, as_of)?.pop().unwrap_or_default())
        })
    }

    /// Does the same for several, in one transaction, without waiting for anybody. `None` for those that have to be done
    /// alone: another upload of the device was first, or another transaction holds the device, or its token has ended.
    ///
    /// # Errors
    /// When the database fails. Nothing of any upload is stored then.
    pub fn upload_together(
        &self,
        uploads: &[Upload<'_>],
        limits: UploadLimits,
        as_of: AsOf,
    ) -> Result<Vec<Option<Uploaded>>, StoreError> {
        with_conn!(self, write "upload_together", |conn| upload_idle(conn, uploads, limits, as_of))
    }
}
