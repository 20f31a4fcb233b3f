//! The device's own KeyPackages in the local store: counts, what to upload, and what to delete.

use std::collections::BTreeSet;

use jiff::{SignedDuration, Timestamp};
use keypool_openapi::{KeyPackageRef, PoolStatus, inventory_digest};
use openmls::prelude::{Ciphersuite, KeyPackageBundle, MlsMessageOut, tls_codec::Serialize as _};
use openmls_traits::{OpenMlsProvider as _, storage::StorageProvider as _};

use super::config::KeyPackagePoolConfig;
use crate::{
    error::{Error, Result},
    key_package_ref::hash_reference,
    key_package_status::KeyPackageStatus,
    storage::{KeyPackageMetadata, LocalStore, Spending},
};

/// How long the keys of a KeyPackage are kept after it expired or was revoked: a Welcome for it may still arrive.
pub(crate) const GRACE: SignedDuration = SignedDuration::from_hours(24);

/// A KeyPackage is replaced when the server hands it out for less than this: the device may not be online again sooner.
const LEAD: SignedDuration = SignedDuration::from_hours(48);

/// The device's own KeyPackages in the local store. OpenMLS's tables hold the private keys; our table holds one row of
/// metadata for each.
///
/// Counts cover one ciphersuite, without the last resort and without KeyPackages of a signature key that was rotated
/// away.
#[derive(Clone, Debug)]
pub struct KeyPackagePool<'a> {
    pub(super) store: &'a LocalStore,
    pub(super) config: &'a KeyPackagePoolConfig,
    /// How long a KeyPackage must still be valid for the server to hand it out.
    min_remaining: SignedDuration,
}

impl<'a> KeyPackagePool<'a> {
    /// The pool in a store, for a server that hands out KeyPackages until they expire.
    #[must_use]
    pub fn new(store: &'a LocalStore, config: &'a KeyPackagePoolConfig) -> Self {
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
        Ok(self.store.metadata()?.iter().filter(counted).count())
    }

    /// Whether a new last resort is needed: there is none, it was used, or it expires soon.
    pub fn needs_last_resort(&self, ciphersuite: Ciphersuite, uses: u64, now: Timestamp) -> Result<bool> {
        let own = |row: &KeyPackageMetadata| {
            row.ciphersuite == u16::from(ciphersuite) && row.last_resort && !row.superseded && row.is_live(now)
        };
        let newest = self.store.metadata()?.into_iter().rev().find(own);
        Ok(newest.is_none_or(|row| {
            // `uses` counts the uses of the last resort on the server, so it does not concern one that is not uploaded.
            uses > 0 && row.status != KeyPackageStatus::Created || !self.lasts(&row, self.lead(), now)
        }))
    }

    /// The KeyPackages that the server has not confirmed and would hand out, each as the `MLSMessage` to upload.
    pub fn unconfirmed(&self, now: Timestamp) -> Result<Vec<(KeyPackageRef, Vec<u8>)>> {
        let created = self.store.get_metadata_by_status(KeyPackageStatus::Created)?;
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

    /// Whether the local store has the private keys of a KeyPackage.
    pub fn has_keys(&self, keypackage_ref: &KeyPackageRef) -> Result<bool> {
        Ok(self.bundle(keypackage_ref)?.is_some())
    }

    pub(super) fn bundle(&self, keypackage_ref: &KeyPackageRef) -> Result<Option<KeyPackageBundle>> {
        self.store
            .provider()
            .storage()
            .key_package(&hash_reference(keypackage_ref.as_bytes())?)
            .map_err(Error::storage("read a KeyPackage"))
    }

    /// Records that a KeyPackage was spent. Its keys stay until its Welcome has arrived or can no longer arrive.
    pub fn mark_as_spent(&self, keypackage_ref: &KeyPackageRef, spending: &Spending, now: Timestamp) -> Result<()> {
        self.store.transaction(|| self.store.mark_spent(keypackage_ref, spending, now))
    }

    /// The KeyPackages that expired or were revoked at least [`GRACE`] ago: no Welcome for them is expected any more.
    pub(crate) fn ended(&self, now: Timestamp) -> Result<BTreeSet<KeyPackageRef>> {
        let revoked = self.failed(|row| row.keep_until.is_some_and(|until| until <= now))?;
        let expired = self.store.get_expired_refs(now.saturating_sub(GRACE).unwrap_or(Timestamp::MIN))?;
        Ok(revoked.into_iter().chain(expired).collect())
    }

    fn failed(&self, is: impl Fn(&KeyPackageMetadata) -> bool) -> Result<BTreeSet<KeyPackageRef>> {
        let failed = self.store.get_metadata_by_status(KeyPackageStatus::Failed)?.into_iter();
        Ok(failed.filter(is).map(|row| row.keypackage_ref).collect())
    }

    /// Deletes KeyPackages that are no longer needed: those that expired or were revoked at least a day ago, and
    /// those that the server refused and never handed out. Returns their number.
    pub fn cleanup_expired(&self, now: Timestamp) -> Result<usize> {
        let outdated = &self.ended(now)? | &self.failed(|row| row.keep_until.is_none())?;
        self.store.transaction(|| {
            outdated.iter().try_for_each(|keypackage_ref| self.delete(keypackage_ref))?;
            for keypackage_ref in self.store.get_expired_refs(now)? {
                let row = self.store.find_metadata(&keypackage_ref)?;
                if row.is_some_and(|row| row.status.may_become(KeyPackageStatus::Expired)) {
                    self.store.update_pool_metadata_status(&keypackage_ref, KeyPackageStatus::Expired, now)?;
                }
            }
            Ok(())
        })?;
        Ok(outdated.len())
    }

    /// Deletes a KeyPackage: the keys first, then the row.
    pub(crate) fn delete(&self, keypackage_ref: &KeyPackageRef) -> Result<()> {
        self.store
            .provider()
            .storage()
            .delete_key_package(&hash_reference(keypackage_ref.as_bytes())?)
            .map_err(Error::storage("delete a KeyPackage's keys"))?;
        self.store.delete_pool_metadata(keypackage_ref)
    }

    /// Whether the local store and the server agree about the pool: the same KeyPackages, by the server's digest, and
    /// the same numbers of fresh, lapsed and reserved ones.
    pub fn agrees_with(&self, server: &PoolStatus) -> Result<bool> {
        let rows = self.store.metadata()?;
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

/// Records that the server no longer hands out a KeyPackage. Its keys stay for [`GRACE`].
pub(crate) fn give_up(store: &LocalStore, keypackage_ref: &KeyPackageRef, now: Timestamp) -> Result<()> {
    store.mark_failed(keypackage_ref, Some(now.saturating_add(GRACE).unwrap_or(Timestamp::MAX)), now)
}
