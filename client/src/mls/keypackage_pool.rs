use std::time::Duration;

use jiff::Timestamp;
use keypool_openapi::KeyPackageRef;
use openmls::prelude::{
    Capabilities, ExtensionType, KeyPackage, KeyPackageBuilder, KeyPackageBundle, Lifetime, MlsMessageOut,
    OpenMlsCrypto,
    tls_codec::{DeserializeBytes as _, Serialize as _, VLByteSlice},
};
use openmls_traits::{OpenMlsProvider, storage::StorageProvider as _};

use super::{CIPHERSUITE, DeviceIdentity};
use crate::{
    error::{Error, Result},
    storage::{KeyPackageStatus, LocalCounts, LocalStore, Metadata},
};

/// How far into the past a new lifetime reaches, for peers whose clocks are behind.
const CLOCK_SKEW: Duration = Duration::from_hours(1);

/// How long the keys of a KeyPackage that may have been handed out outlive its `not_after`: a Welcome for it may be
/// under way.
const GRACE: Duration = Duration::from_hours(24);

/// How a device keeps its KeyPackage pool.
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

    /// How many KeyPackages to generate for a server that has `fresh` fresh ones among `available`.
    pub(crate) fn wanted(&self, fresh: usize, available: usize, fill: bool) -> usize {
        if fill || fresh < self.low_watermark {
            self.target_pool_size.saturating_sub(fresh).min(self.hard_cap.saturating_sub(available))
        } else {
            0
        }
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
#[derive(Clone, Debug)]
pub struct KeyPackagePool<'a> {
    store: &'a LocalStore,
}

impl<'a> KeyPackagePool<'a> {
    /// The pool in a store.
    #[must_use]
    pub fn new(store: &'a LocalStore) -> Self {
        Self { store }
    }

    /// Generates `count` KeyPackages and, if asked, a last resort, with a lifetime that starts at `now`. In one
    /// transaction: keys and metadata of all of them are stored, or of none.
    pub fn generate(
        &self,
        identity: &DeviceIdentity,
        (count, last_resort): (usize, bool),
        lifetime: Duration,
        now: Timestamp,
        progress: &dyn Fn(Progress),
    ) -> Result<()> {
        let total = count + usize::from(last_resort);
        self.store.transaction(|| {
            for index in 0..total {
                self.generate_one(identity, index == count, lifetime, now)?;
                progress(Progress::Generated { done: index + 1, total });
            }
            Ok(())
        })
    }

    fn generate_one(
        &self,
        identity: &DeviceIdentity,
        last_resort: bool,
        lifetime: Duration,
        now: Timestamp,
    ) -> Result<()> {
        let (not_before, not_after) = window(now, lifetime)?;
        let mut builder =
            KeyPackageBuilder::new().key_package_lifetime(Lifetime::init(not_before, not_after.unsigned_abs()));
        if last_resort {
            // RFC 9420, section 10: a KeyPackage's extensions must be among its leaf node's capabilities.
            let capabilities = Capabilities::builder().extensions(vec![ExtensionType::LastResort]).build();
            builder = builder.mark_as_last_resort().leaf_node_capabilities(capabilities);
        }
        let provider = self.store.provider();
        let bundle = builder
            .build(CIPHERSUITE, &provider, identity.signer(), identity.credential())
            .map_err(|error| Error::mls("generate a KeyPackage")(error.into()))?;
        let row = Metadata {
            keypackage_ref: keypackage_ref(bundle.key_package(), provider.crypto())?,
            status: KeyPackageStatus::Created,
            not_after,
            ciphersuite: CIPHERSUITE.into(),
            last_resort,
        };
        self.store.insert_metadata(&row, now)
    }

    /// The KeyPackages that the server has not confirmed and that are still valid, each as the `MLSMessage` to upload.
    pub fn unconfirmed(&self, now: Timestamp) -> Result<Vec<(KeyPackageRef, Vec<u8>)>> {
        self.store
            .metadata()?
            .into_iter()
            .filter(|row| row.status == KeyPackageStatus::Created && row.not_after > now.as_second())
            .map(|row| Ok((row.keypackage_ref.clone(), self.message(&row.keypackage_ref)?)))
            .collect()
    }

    /// The `MLSMessage` of a stored KeyPackage, the same bytes every time.
    fn message(&self, keypackage_ref: &KeyPackageRef) -> Result<Vec<u8>> {
        let bundle: Option<KeyPackageBundle> = self
            .store
            .provider()
            .storage()
            .key_package(&hash_reference(keypackage_ref.as_bytes())?)
            .map_err(Error::storage("read a KeyPackage"))?;
        let key_package =
            bundle.ok_or_else(|| Error::MissingKeys(format!("KeyPackage {keypackage_ref}")))?.into_key_package();
        MlsMessageOut::from(key_package)
            .tls_serialize_detached()
            .map_err(|error| Error::mls("encode a KeyPackage")(error.into()))
    }

    /// Removes what is of no use any more: what the server refused, and what has expired; but what may have been
    /// handed out keeps its keys for a day past its `not_after`. Answers how many were removed.
    pub fn remove_expired(&self, now: Timestamp) -> Result<usize> {
        let now = now.as_second();
        let grace = i64::try_from(GRACE.as_secs()).unwrap_or(i64::MAX);
        let mut removed = 0;
        self.store.transaction(|| {
            for row in self.store.metadata()? {
                let dead = match row.status {
                    KeyPackageStatus::Failed => true,
                    KeyPackageStatus::Created => row.not_after <= now,
                    _ => row.not_after.saturating_add(grace) <= now,
                };
                if dead {
                    self.delete(&row.keypackage_ref)?;
                    removed += 1;
                } else if row.not_after <= now && row.status != KeyPackageStatus::Expired {
                    self.store.set_status(&row.keypackage_ref, KeyPackageStatus::Expired)?;
                }
            }
            Ok(())
        })?;
        Ok(removed)
    }

    /// Deletes a KeyPackage: the keys first, then the row.
    fn delete(&self, keypackage_ref: &KeyPackageRef) -> Result<()> {
        self.store
            .provider()
            .storage()
            .delete_key_package(&hash_reference(keypackage_ref.as_bytes())?)
            .map_err(Error::storage("delete a KeyPackage's keys"))?;
        self.store.delete_metadata(keypackage_ref.as_bytes())
    }

    /// How many KeyPackages are stored.
    pub fn counts(&self) -> Result<LocalCounts> {
        let mut counts = LocalCounts::default();
        for row in self.store.metadata()? {
            if row.last_resort {
                counts.last_resort += 1;
            } else {
                counts.total += 1;
            }
            if row.status == KeyPackageStatus::Created {
                counts.unconfirmed += 1;
            }
        }
        Ok(counts)
    }
}

/// `not_before`, and `not_after` both as OpenMLS and as our table count it: in seconds.
fn window(now: Timestamp, lifetime: Duration) -> Result<(u64, i64)> {
    let out_of_range = || Error::Config(format!("no lifetime of {} s can start at {now}", lifetime.as_secs()));
    let now = now.as_second();
    let not_after = i64::try_from(lifetime.as_secs()).ok().and_then(|lifetime| now.checked_add(lifetime));
    let not_before = u64::try_from(now).ok().map(|now| now.saturating_sub(CLOCK_SKEW.as_secs()));
    not_before.zip(not_after).ok_or_else(out_of_range)
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
