use std::{collections::BTreeSet, time::Duration};

use jiff::{SignedDuration, Timestamp};
use keypool_openapi::{KeyPackageRef, PoolStatus};
use openmls::prelude::{
    Capabilities, Ciphersuite, ExtensionType, KeyPackage, KeyPackageBuilder, KeyPackageBundle, Lifetime, MlsMessageOut,
    OpenMlsCrypto,
    tls_codec::{DeserializeBytes as _, Serialize as _, VLByteSlice},
};
use openmls_traits::{OpenMlsProvider, storage::StorageProvider as _};
use sha2::{Digest, Sha256};

use super::{DeviceIdentity, Provider, signing::ManySignatures};
use crate::{
    error::{Error, Result},
    storage::{KeyPackageMetadata, KeyPackageStatus, LocalStore, Spending},
};

/// How far into the past a new lifetime reaches, for peers whose clocks are behind.
const CLOCK_SKEW: Duration = Duration::from_hours(1);

/// How long the keys of a KeyPackage outlive its end, be it `not_after` or its withdrawal: a Welcome for it may be under
/// way.
pub(crate) const GRACE: SignedDuration = SignedDuration::from_hours(24);

/// A last resort that has less than this left is replaced.
const LAST_RESORT_MARGIN: SignedDuration = SignedDuration::from_hours(48);

/// How a device keeps its KeyPackage pool, for each ciphersuite that it has one of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyPackagePoolConfig {
    /// How many fresh KeyPackages a full pool has.
    pub target_pool_size: usize,
    /// A pool with fewer fresh KeyPackages than this is filled up to the target.
    pub low_watermark: usize,
    /// How many KeyPackages may be available on the server at once, those that lapsed included.
    pub hard_cap: usize,
    /// How long a new KeyPackage is valid, from now on. Whole seconds count.
    pub lifetime: Duration,
}

impl Default for KeyPackagePoolConfig {
    fn default() -> Self {
        Self { target_pool_size: 32, low_watermark: 8, hard_cap: 64, lifetime: Duration::from_hours(14 * 24) }
    }
}

impl KeyPackagePoolConfig {
    /// Checks that `1 <= low_watermark <= target_pool_size <= hard_cap`, and that the lifetime is from an hour to 84
    /// days, the most that OpenMLS accepts.
    pub fn validate(&self) -> Result<()> {
        let Self { target_pool_size, low_watermark, hard_cap, lifetime } = self;
        let broken = if *low_watermark == 0 {
            "low_watermark is 0: a pool would never be filled".to_owned()
        } else if low_watermark > target_pool_size {
            format!("low_watermark {low_watermark} is above target_pool_size {target_pool_size}")
        } else if target_pool_size > hard_cap {
            format!("target_pool_size {target_pool_size} is above hard_cap {hard_cap}")
        } else if !(Duration::from_hours(1)..=Duration::from_hours(84 * 24)).contains(lifetime) {
            format!("lifetime {} s is not from 1 hour to 84 days", lifetime.as_secs())
        } else {
            return Ok(());
        };
        Err(Error::Config(broken))
    }
}

/// How far a long call is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// So many KeyPackages of so many are generated.
    Generated {
        /// Generated so far.
        done: usize,
        /// To be generated.
        total: usize,
    },
    /// So many KeyPackages of so many are uploaded.
    Uploaded {
        /// Uploaded so far.
        done: usize,
        /// To be uploaded.
        total: usize,
    },
}

/// The device's own KeyPackages in the local store: the bundles with their private keys in OpenMLS's tables, and one
/// metadata row each.
///
/// Counts are of one ciphersuite, and leave out the last resort and what a rotation of the signature key has superseded.
#[derive(Clone, Debug)]
pub struct KeyPackagePool<'a> {
    store: &'a LocalStore,
    config: &'a KeyPackagePoolConfig,
}

impl<'a> KeyPackagePool<'a> {
    /// The pool in a store.
    #[must_use]
    pub fn new(store: &'a LocalStore, config: &'a KeyPackagePoolConfig) -> Self {
        Self { store, config }
    }

    /// Generates `count` KeyPackages and, if asked, a last resort, with a lifetime that starts at `now`. In one
    /// transaction: keys and metadata of all of them are stored, or of none.
    ///
    /// More than the hard cap leaves room for is [`Error::PoolCapacityExceeded`].
    pub fn generate_and_update_pool(
        &self,
        identity: &DeviceIdentity,
        ciphersuite: Ciphersuite,
        (count, last_resort): (usize, bool),
        now: Timestamp,
        progress: &dyn Fn(Progress),
    ) -> Result<()> {
        let available = self.room(ciphersuite, now)?;
        if count > available {
            return Err(Error::PoolCapacityExceeded { needed: count, available });
        }
        let total = count + usize::from(last_resort);
        let provider = self.store.provider();
        let signer = ManySignatures::by(identity.key_package_signer(ciphersuite)?)
            .map_err(|error| Error::mls("read the signature key pair")(error.into()))?;
        self.store.transaction(|| {
            for index in 0..total {
                self.generate_one((&provider, &signer), (identity, ciphersuite), index == count, now)?;
                progress(Progress::Generated { done: index + 1, total });
            }
            Ok(())
        })
    }

    fn generate_one(
        &self,
        (provider, signer): (&Provider<'_>, &ManySignatures<'_>),
        (identity, ciphersuite): (&DeviceIdentity, Ciphersuite),
        last_resort: bool,
        now: Timestamp,
    ) -> Result<()> {
        let (lifetime, not_after) = window(now, self.config.lifetime)?;
        let mut builder = KeyPackageBuilder::new().key_package_lifetime(lifetime);
        if last_resort {
            // RFC 9420, section 10: a KeyPackage's extensions must be among its leaf node's capabilities.
            let capabilities = Capabilities::builder().extensions(vec![ExtensionType::LastResort]).build();
            builder = builder.mark_as_last_resort().leaf_node_capabilities(capabilities);
        }
        let bundle = builder
            .build(ciphersuite, provider, signer, identity.credential_with(identity.key_package_signer(ciphersuite)?))
            .map_err(|error| Error::mls("generate a KeyPackage")(error.into()))?;
        let keypackage_ref = keypackage_ref(bundle.key_package(), provider.crypto())?;
        let row = KeyPackageMetadata::created(keypackage_ref, (now, not_after), ciphersuite.into(), last_resort);
        self.store.create_pool_metadata(&row)
    }

    /// How many KeyPackages can be handed out, or will be once they are uploaded.
    pub fn get_available_count(&self, ciphersuite: Ciphersuite, now: Timestamp) -> Result<usize> {
        self.count(ciphersuite, |row| row.is_available(now))
    }

    /// How many of them were never handed out before: those that replenishing goes by.
    pub fn get_fresh_count(&self, ciphersuite: Ciphersuite, now: Timestamp) -> Result<usize> {
        self.count(ciphersuite, |row| row.is_fresh(now))
    }

    /// Whether fresh KeyPackages are below the low watermark.
    pub fn should_replenish(&self, ciphersuite: Ciphersuite, now: Timestamp) -> Result<bool> {
        Ok(self.get_fresh_count(ciphersuite, now)? < self.config.low_watermark)
    }

    /// How many KeyPackages fill the pool up to its target, as far as the hard cap allows.
    pub fn get_replenishment_needed(&self, ciphersuite: Ciphersuite, now: Timestamp) -> Result<usize> {
        let missing = self.config.target_pool_size.saturating_sub(self.get_fresh_count(ciphersuite, now)?);
        Ok(missing.min(self.room(ciphersuite, now)?))
    }

    fn room(&self, ciphersuite: Ciphersuite, now: Timestamp) -> Result<usize> {
        Ok(self.config.hard_cap.saturating_sub(self.get_available_count(ciphersuite, now)?))
    }

    fn count(&self, ciphersuite: Ciphersuite, is: impl Fn(&KeyPackageMetadata) -> bool) -> Result<usize> {
        let counted = |row: &&KeyPackageMetadata| {
            row.ciphersuite == u16::from(ciphersuite) && !row.last_resort && !row.superseded && is(row)
        };
        Ok(self.store.metadata()?.iter().filter(counted).count())
    }

    /// Whether a last resort is to be generated: there is none, or it was used, or it is near its end.
    pub fn needs_last_resort(&self, ciphersuite: Ciphersuite, uses: u64, now: Timestamp) -> Result<bool> {
        let own = |row: &KeyPackageMetadata| {
            row.ciphersuite == u16::from(ciphersuite) && row.last_resort && !row.superseded && row.is_live(now)
        };
        let newest = self.store.metadata()?.into_iter().rev().find(own);
        // Half of a short lifetime, else a new one would be near its end at once.
        let half = SignedDuration::try_from(self.config.lifetime / 2).unwrap_or(SignedDuration::MAX);
        Ok(newest.is_none_or(|row| {
            // The uses are those of the one that the server has.
            uses > 0 && row.status != KeyPackageStatus::Created
                || row.not_after.duration_since(now) < LAST_RESORT_MARGIN.min(half)
        }))
    }

    /// The KeyPackages that the server has not confirmed and that are still valid, each as the `MLSMessage` to upload.
    pub fn unconfirmed(&self, now: Timestamp) -> Result<Vec<(KeyPackageRef, Vec<u8>)>> {
        let created = self.store.get_metadata_by_status(KeyPackageStatus::Created)?;
        created
            .into_iter()
            .filter(|row| row.is_live(now) && !row.superseded)
            .map(|row| Ok((row.keypackage_ref.clone(), self.message(&row.keypackage_ref)?)))
            .collect()
    }

    /// The `MLSMessage` of a stored KeyPackage, the same bytes every time.
    fn message(&self, keypackage_ref: &KeyPackageRef) -> Result<Vec<u8>> {
        let key_package = self
            .bundle(keypackage_ref)?
            .ok_or_else(|| Error::MissingKeys(format!("KeyPackage {keypackage_ref}")))?
            .into_key_package();
        MlsMessageOut::from(key_package)
            .tls_serialize_detached()
            .map_err(|error| Error::mls("encode a KeyPackage")(error.into()))
    }

    /// Whether the private keys of a KeyPackage are here.
    pub fn has_keys(&self, keypackage_ref: &KeyPackageRef) -> Result<bool> {
        Ok(self.bundle(keypackage_ref)?.is_some())
    }

    fn bundle(&self, keypackage_ref: &KeyPackageRef) -> Result<Option<KeyPackageBundle>> {
        self.store
            .provider()
            .storage()
            .key_package(&hash_reference(keypackage_ref.as_bytes())?)
            .map_err(Error::storage("read a KeyPackage"))
    }

    /// Notes that a KeyPackage is used up. Its keys stay until its Welcome is here, or cannot come any more.
    pub fn mark_as_spent(&self, keypackage_ref: &KeyPackageRef, spending: &Spending, now: Timestamp) -> Result<()> {
        self.store.transaction(|| self.store.mark_spent(keypackage_ref, spending, now))
    }

    /// What expired or was withdrawn a day ago: until then, a Welcome for it may be under way.
    pub(crate) fn ended(&self, now: Timestamp) -> Result<BTreeSet<KeyPackageRef>> {
        let withdrawn = self.failed(|row| row.keep_until.is_some_and(|until| until <= now))?;
        let expired = self.store.get_expired_refs(now.saturating_sub(GRACE).unwrap_or(Timestamp::MIN))?;
        Ok(withdrawn.into_iter().chain(expired).collect())
    }

    fn failed(&self, is: impl Fn(&KeyPackageMetadata) -> bool) -> Result<BTreeSet<KeyPackageRef>> {
        let failed = self.store.get_metadata_by_status(KeyPackageStatus::Failed)?.into_iter();
        Ok(failed.filter(is).map(|row| row.keypackage_ref).collect())
    }

    /// Removes what is of no use any more, the keys first: what has ended, and what the server refused and never handed
    /// out. Answers how many were removed.
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

    /// Whether what is known here of the pool on the server is exactly what the server says of it: the same KeyPackages
    /// by its digest, and as many of them fresh, lapsed and reserved.
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
            && digest(there.iter().map(|row| &row.keypackage_ref)) == server.inventory_digest)
    }
}

/// Notes that the server does not hand a KeyPackage out any more. Its keys stay for a day.
pub(crate) fn give_up(store: &LocalStore, keypackage_ref: &KeyPackageRef, now: Timestamp) -> Result<()> {
    store.mark_failed(keypackage_ref, Some(now.saturating_add(GRACE).unwrap_or(Timestamp::MAX)), now)
}

/// SHA-256 over the sorted refs, in lower-case hex, as the server has it in its status.
fn digest<'r>(refs: impl Iterator<Item = &'r KeyPackageRef>) -> String {
    let mut refs: Vec<_> = refs.collect();
    refs.sort_unstable();
    let hash = refs.into_iter().fold(Sha256::new(), |hash, one| hash.chain_update(one.as_bytes()));
    hex::encode(hash.finalize())
}

/// The lifetime as OpenMLS has it, and its end as our table has it.
fn window(now: Timestamp, lifetime: Duration) -> Result<(Lifetime, Timestamp)> {
    let out_of_range = || Error::Config(format!("no lifetime of {} s can start at {now}", lifetime.as_secs()));
    let not_after = now.checked_add(Duration::from_secs(lifetime.as_secs())).map_err(|_| out_of_range())?;
    let second = |time: Timestamp| u64::try_from(time.as_second()).map_err(|_| out_of_range());
    let not_before = second(now)?.saturating_sub(CLOCK_SKEW.as_secs());
    Ok((Lifetime::init(not_before, second(not_after)?), not_after))
}

/// The ref of a KeyPackage (RFC 9420, section 5.2).
pub(crate) fn keypackage_ref(key_package: &KeyPackage, crypto: &impl OpenMlsCrypto) -> Result<KeyPackageRef> {
    let hash = key_package.hash_ref(crypto).map_err(|error| Error::mls("hash a KeyPackage")(error.into()))?;
    Ok(hash.as_slice().to_vec().into())
}

/// OpenMLS's type for a ref. It can be read from an encoding only.
pub(crate) fn hash_reference(keypackage_ref: &[u8]) -> Result<openmls::prelude::KeyPackageRef> {
    VLByteSlice(keypackage_ref)
        .tls_serialize_detached()
        .and_then(|bytes| openmls::prelude::KeyPackageRef::tls_deserialize_exact_bytes(&bytes))
        .map_err(|error| Error::mls("read a KeyPackageRef")(error.into()))
}

#[cfg(test)]
mod tests;
