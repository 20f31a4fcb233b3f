//! The device's own KeyPackages on this side: counts, what to upload, and what to delete.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use keypool_openapi::{KeyPackageRef, PoolStatus, inventory_digest};
#[cfg(feature = "sqlite")]
use keypool_transparency::{key_package::KeyPackageFields, package::PackageId};
use openmls::prelude::{Ciphersuite, KeyPackageBundle, MlsMessageOut, tls_codec::Serialize as _};
use openmls_traits::{OpenMlsProvider as _, storage::StorageProvider as _};
use strum::IntoEnumIterator as _;

use super::{
    config::KeyPackagePoolConfig,
    metadata::{KeyPackageMetadata, ReservationInfo, Spending},
    store::PoolStore,
    transitions::{GRACE, begin_rotation, change_status, record_reservation, record_spend, rows},
};
use crate::{
    error::{Error, Result},
    key_package_ref::{hash_reference, keypackage_ref},
    key_package_status::KeyPackageStatus,
};

/// A KeyPackage is replaced when the server hands it out for less than this: the device may not be online again sooner.
const LEAD: SignedDuration = SignedDuration::from_hours(48);

/// The device's own KeyPackages in a store: [`crate::LocalStore`], or an application's own. OpenMLS's storage holds the private
/// keys, and one row of metadata stands for each KeyPackage. [`crate::Refresh`] brings it and the server to agree.
///
/// Counts cover one ciphersuite, without the last resort and without KeyPackages of a signature key that was rotated
/// away.
#[derive(Debug)]
pub struct KeyPackagePool<'a, S> {
    pub(crate) store: &'a S,
    pub(super) config: &'a KeyPackagePoolConfig,
    /// How long a KeyPackage must still be valid for the server to hand it out.
    min_remaining: SignedDuration,
}

impl<S> Clone for KeyPackagePool<'_, S> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<S> Copy for KeyPackagePool<'_, S> {}

impl<'a, S: PoolStore> KeyPackagePool<'a, S> {
    /// The pool in a store, for a server that hands out KeyPackages until they expire.
    #[must_use]
    pub fn new(store: &'a S, config: &'a KeyPackagePoolConfig) -> Self {
        Self { store, config, min_remaining: SignedDuration::ZERO }
    }

    /// The same pool for the server with this status, which no longer hands out a KeyPackage
    /// [some time](PoolStatus::min_remaining) before it expires.
    #[must_use]
    pub fn as_offered_by(self, server: &PoolStatus) -> Self {
        let seconds = i64::try_from(server.min_remaining).unwrap_or(i64::MAX);
        Self { min_remaining: SignedDuration::from_secs(seconds), ..self }
    }

    /// The number of KeyPackages that the server can hand out, including those not yet uploaded.
    pub fn get_available_count(&self, ciphersuite: Ciphersuite, now: Timestamp) -> Result<usize> {
        self.count(ciphersuite, |row| row.is_available(now) && self.lasts(row, SignedDuration::ZERO, now))
    }

    /// The number of available KeyPackages that were never handed out.
    pub fn get_fresh_count(&self, ciphersuite: Ciphersuite, now: Timestamp) -> Result<usize> {
        self.count(ciphersuite, |row| row.is_fresh(now) && self.lasts(row, SignedDuration::ZERO, now))
    }

    /// Whether the fresh KeyPackages that the server hands out for at least two more days are below the low watermark.
    pub fn should_replenish(&self, ciphersuite: Ciphersuite, now: Timestamp) -> Result<bool> {
        Ok(self.lasting(ciphersuite, now)? < self.config.low_watermark)
    }

    /// The number of KeyPackages that fill the pool up to its target, limited by the hard cap. Those that the server hands
    /// out for less than two more days do not count towards the target.
    pub fn get_replenishment_needed(&self, ciphersuite: Ciphersuite, now: Timestamp) -> Result<usize> {
        let missing = self.config.target_pool_size.saturating_sub(self.lasting(ciphersuite, now)?);
        Ok(missing.min(self.room(ciphersuite, now)?))
    }

    /// Checks that the server hands out what this device generates.
    ///
    /// # Errors
    /// [`Error::LifetimeTooShort`].
    pub fn check_lifetime(&self) -> Result<()> {
        let (lifetime, min_remaining) = (self.lifetime(), self.min_remaining);
        if lifetime > min_remaining { Ok(()) } else { Err(Error::LifetimeTooShort { lifetime, min_remaining }) }
    }

    fn lifetime(&self) -> SignedDuration {
        SignedDuration::try_from(self.config.lifetime).unwrap_or(SignedDuration::MAX)
    }

    fn lasting(&self, ciphersuite: Ciphersuite, now: Timestamp) -> Result<usize> {
        self.count(ciphersuite, |row| row.is_fresh(now) && self.lasts(row, self.lead(), now))
    }

    /// Whether the server still hands out a KeyPackage after this time.
    fn lasts(&self, row: &KeyPackageMetadata, time: SignedDuration, now: Timestamp) -> bool {
        row.not_after.duration_since(now) >= self.min_remaining.saturating_add(time)
    }

    /// How long before the server no longer hands it out a KeyPackage is replaced. At most half of the time in which it
    /// is handed out: otherwise a new KeyPackage with a short lifetime would need replacement at once.
    fn lead(&self) -> SignedDuration {
        LEAD.min(self.lifetime().saturating_sub(self.min_remaining) / 2).max(SignedDuration::ZERO)
    }

    pub(super) fn room(&self, ciphersuite: Ciphersuite, now: Timestamp) -> Result<usize> {
        Ok(self.config.hard_cap.saturating_sub(self.get_available_count(ciphersuite, now)?))
    }

    fn count(&self, ciphersuite: Ciphersuite, is: impl Fn(&KeyPackageMetadata) -> bool) -> Result<usize> {
        let counted = |row: &&KeyPackageMetadata| {
            row.ciphersuite == u16::from(ciphersuite) && !row.last_resort && !row.superseded && is(row)
        };
        Ok(self.rows()?.iter().filter(counted).count())
    }

    /// All rows, in the order of expiry.
    fn rows(&self) -> Result<Vec<KeyPackageMetadata>> {
        rows(self.store)
    }

    /// The rows of a status, in the order of expiry.
    pub fn get_metadata_by_status(&self, status: KeyPackageStatus) -> Result<Vec<KeyPackageMetadata>> {
        Ok(self.rows()?.into_iter().filter(|row| row.status == status).collect())
    }

    /// The number of rows of each status, including statuses without rows.
    pub fn count_by_status(&self) -> Result<BTreeMap<KeyPackageStatus, usize>> {
        let mut counts: BTreeMap<_, _> = KeyPackageStatus::iter().map(|status| (status, 0)).collect();
        for row in self.store.metadata()? {
            *counts.entry(row.status).or_default() += 1;
        }
        Ok(counts)
    }

    /// The refs of KeyPackages that have expired at `now`, in the order of expiry.
    pub fn get_expired_refs(&self, now: Timestamp) -> Result<Vec<KeyPackageRef>> {
        let expired = self.rows()?.into_iter().filter(|row| row.not_after <= now);
        Ok(expired.map(|row| row.keypackage_ref).collect())
    }

    /// Whether a new last resort is needed: there is none, it was used, or it expires soon.
    pub fn needs_last_resort(&self, ciphersuite: Ciphersuite, uses: u64, now: Timestamp) -> Result<bool> {
        let own = |row: &KeyPackageMetadata| {
            row.ciphersuite == u16::from(ciphersuite) && row.last_resort && !row.superseded && row.is_live(now)
        };
        let newest = self.rows()?.into_iter().rev().find(own);
        Ok(newest.is_none_or(|row| {
            // `uses` counts the uses of the last resort on the server, so it does not concern one that is not uploaded.
            uses > 0 && row.status != KeyPackageStatus::Created || !self.lasts(&row, self.lead(), now)
        }))
    }

    /// The KeyPackages that the server has not confirmed and would hand out, each as the `MLSMessage` to upload.
    pub fn unconfirmed(&self, now: Timestamp) -> Result<Vec<(KeyPackageRef, Vec<u8>)>> {
        let created = self.get_metadata_by_status(KeyPackageStatus::Created)?;
        created
            .into_iter()
            .filter(|row| row.is_live(now) && !row.superseded && self.lasts(row, SignedDuration::ZERO, now))
            .map(|row| Ok((row.keypackage_ref.clone(), self.message(&row.keypackage_ref)?)))
            .collect()
    }

    /// The `MLSMessage` of a stored KeyPackage. Repeated calls return the same bytes.
    fn message(&self, keypackage_ref: &KeyPackageRef) -> Result<Vec<u8>> {
        let key_package = self
            .bundle(keypackage_ref)?
            .ok_or_else(|| Error::MissingKeys(format!("KeyPackage {keypackage_ref}")))?
            .into_key_package();
        MlsMessageOut::from(key_package)
            .tls_serialize_detached()
            .map_err(|error| Error::mls("encode a KeyPackage")(error.into()))
    }

    /// The name of a KeyPackage in the server's log; `None` if its keys are gone.
    #[cfg(feature = "sqlite")]
    pub(crate) fn name_in_log(&self, keypackage_ref: &KeyPackageRef) -> Result<Option<PackageId>> {
        if !self.has_keys(keypackage_ref)? {
            return Ok(None);
        }
        let fields = KeyPackageFields::parse(&self.message(keypackage_ref)?)
            .map_err(|error| Error::Damaged(format!("a KeyPackage cannot be read: {error}")))?;
        Ok(Some(PackageId::of(&fields)))
    }

    /// Whether the local store has the private keys of a KeyPackage.
    pub fn has_keys(&self, keypackage_ref: &KeyPackageRef) -> Result<bool> {
        Ok(self.bundle(keypackage_ref)?.is_some())
    }

    pub(super) fn bundle(&self, keypackage_ref: &KeyPackageRef) -> Result<Option<KeyPackageBundle>> {
        let hash = hash_reference(keypackage_ref.as_bytes())?;
        self.store.provider().storage().key_package(&hash).map_err(Error::storage("read a KeyPackage"))
    }

    /// Changes the status of a KeyPackage. A change that [`KeyPackageStatus::may_become`] does not allow fails with
    /// [`Error::InvalidTransition`], and changes nothing.
    pub fn update_pool_metadata_status(
        &self,
        keypackage_ref: &KeyPackageRef,
        next: KeyPackageStatus,
        now: Timestamp,
    ) -> Result<()> {
        self.store.transaction(|| change_status(self.store, keypackage_ref, next, now))
    }

    /// Records the last reservation of a KeyPackage.
    pub fn update_reservation_info(
        &self,
        keypackage_ref: &KeyPackageRef,
        info: &ReservationInfo,
        now: Timestamp,
    ) -> Result<()> {
        self.store.transaction(|| record_reservation(self.store, keypackage_ref, info, now))
    }

    /// Records that a KeyPackage was spent. Its keys stay until its Welcome has arrived or can no longer arrive.
    pub fn mark_as_spent(&self, keypackage_ref: &KeyPackageRef, spending: &Spending, now: Timestamp) -> Result<()> {
        self.store.transaction(|| record_spend(self.store, keypackage_ref, spending, now))
    }

    /// The last resorts among these. To be read before a Welcome is, since OpenMLS deletes the keys of those that only a component
    /// marks; and to be given to [`Self::keep_last_resorts`] after it, in the transaction that joins.
    pub fn last_resorts(&self, refs: &[KeyPackageRef]) -> Result<Vec<KeyPackageBundle>> {
        let mut found = Vec::new();
        for keypackage_ref in refs {
            if self.store.find_metadata(keypackage_ref)?.is_some_and(|row| row.last_resort) {
                found.extend(self.bundle(keypackage_ref)?);
            }
        }
        Ok(found)
    }

    /// Puts the keys of last resorts back, if OpenMLS has deleted them at a join: others may be invited with them, too.
    pub fn keep_last_resorts(&self, last_resorts: &[KeyPackageBundle]) -> Result<()> {
        let provider = self.store.provider();
        for bundle in last_resorts {
            let keypackage_ref = keypackage_ref(bundle.key_package(), provider.crypto())?;
            if self.has_keys(&keypackage_ref)? {
                continue;
            }
            let hash = hash_reference(keypackage_ref.as_bytes())?;
            provider
                .storage()
                .write_key_package(&hash, bundle)
                .map_err(Error::storage("keep the keys of a last resort"))?;
        }
        Ok(())
    }

    /// Deletes the rows of the KeyPackages with these refs whose keys OpenMLS has deleted, because the device has joined a
    /// group with them. To be called for the refs in a Welcome, in the transaction that joins.
    pub fn forget_joined(&self, refs: &[KeyPackageRef]) -> Result<()> {
        for keypackage_ref in refs {
            if !self.has_keys(keypackage_ref)? {
                self.store.delete_pool_metadata(keypackage_ref)?;
            }
        }
        Ok(())
    }

    /// Marks every KeyPackage as one of an old signature key. To be called when [`crate::PoolIdentity::change`] begins to
    /// return a change; the next refresh makes KeyPackages of the next key, and revokes the old ones.
    pub fn begin_rotation(&self) -> Result<()> {
        self.store.transaction(|| begin_rotation(self.store))
    }

    /// The KeyPackages that expired or were revoked at least [`GRACE`] ago: no Welcome for them is expected any more.
    pub(crate) fn ended(&self, now: Timestamp) -> Result<BTreeSet<KeyPackageRef>> {
        let revoked = self.failed(|row| row.keep_until.is_some_and(|until| until <= now))?;
        let expired = self.get_expired_refs(now.saturating_sub(GRACE).unwrap_or(Timestamp::MIN))?;
        Ok(revoked.into_iter().chain(expired).collect())
    }

    fn failed(&self, is: impl Fn(&KeyPackageMetadata) -> bool) -> Result<BTreeSet<KeyPackageRef>> {
        let failed = self.get_metadata_by_status(KeyPackageStatus::Failed)?.into_iter();
        Ok(failed.filter(is).map(|row| row.keypackage_ref).collect())
    }

    /// Deletes KeyPackages that are no longer needed: those that expired or were revoked at least a day ago, and
    /// those that the server refused and never handed out. Returns their number.
    pub fn cleanup_expired(&self, now: Timestamp) -> Result<usize> {
        let outdated = &self.ended(now)? | &self.failed(|row| row.keep_until.is_none())?;
        self.store.transaction(|| {
            outdated.iter().try_for_each(|keypackage_ref| self.delete(keypackage_ref))?;
            let has_expired =
                |row: &KeyPackageMetadata| row.not_after <= now && row.status.may_become(KeyPackageStatus::Expired);
            let mut expired = self.rows()?.into_iter().filter(has_expired);
            expired.try_for_each(|row| change_status(self.store, &row.keypackage_ref, KeyPackageStatus::Expired, now))
        })?;
        Ok(outdated.len())
    }

    /// Deletes a KeyPackage: the keys first, then the row.
    pub(crate) fn delete(&self, keypackage_ref: &KeyPackageRef) -> Result<()> {
        let hash = hash_reference(keypackage_ref.as_bytes())?;
        self.store
            .provider()
            .storage()
            .delete_key_package(&hash)
            .map_err(Error::storage("delete a KeyPackage's keys"))?;
        self.store.delete_pool_metadata(keypackage_ref)
    }

    /// Whether the local store and the server agree about the pool: the same KeyPackages, by the server's digest, and
    /// the same numbers of fresh, lapsed and reserved ones.
    pub fn agrees_with(&self, server: &PoolStatus) -> Result<bool> {
        let rows = self.rows()?;
        let there: Vec<_> =
            rows.iter().filter(|row| row.is_live(server.at) && row.status != KeyPackageStatus::Created).collect();
        let count = |is: &dyn Fn(&KeyPackageMetadata) -> bool| {
            let count = there.iter().filter(|row| !row.last_resort && is(row)).count();
            u64::try_from(count).unwrap_or(u64::MAX)
        };
        let fresh = count(&|row| row.is_fresh(server.at));
        let available = count(&|row| row.is_available(server.at));
        let reserved = count(&|row| row.status == KeyPackageStatus::Reserved);
        Ok((fresh, available, reserved) == (server.fresh, server.available, server.reserved)
            && inventory_digest(there.iter().map(|row| &row.keypackage_ref)) == server.inventory_digest)
    }
}
