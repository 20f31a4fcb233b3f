//! Generates KeyPackages and stores them: the keys in OpenMLS's tables, one row of metadata in ours.

use std::time::Duration;

use jiff::Timestamp;
use openmls::prelude::{Capabilities, Ciphersuite, ExtensionType, KeyPackageBuilder, Lifetime};
use openmls_traits::OpenMlsProvider as _;

use super::{
    key_packages::KeyPackagePool,
    progress::{OnProgress, Progress},
    signer::PreparedSigner,
};
use crate::{
    error::{Error, Result},
    identity::DeviceIdentity,
    key_package_ref::keypackage_ref,
    storage::{KeyPackageMetadata, Provider},
};

/// How far before the generation a lifetime begins, for devices whose clocks are behind.
const CLOCK_SKEW: Duration = Duration::from_hours(1);

impl KeyPackagePool<'_> {
    /// Generates `count` KeyPackages and optionally a last resort, with lifetimes that begin at `now`. One transaction
    /// stores the keys and metadata of all of them, or of none.
    ///
    /// Fails with [`Error::PoolCapacityExceeded`] if the pool would exceed the hard cap.
    pub fn generate_and_update_pool(
        &self,
        identity: &DeviceIdentity,
        ciphersuite: Ciphersuite,
        (count, last_resort): (usize, bool),
        now: Timestamp,
        progress: OnProgress<'_>,
    ) -> Result<()> {
        let available = self.room(ciphersuite, now)?;
        if count > available {
            return Err(Error::PoolCapacityExceeded { needed: count, available });
        }
        let total = count + usize::from(last_resort);
        let provider = self.store.provider();
        let signer = identity.key_package_signer(ciphersuite)?;
        let signer =
            PreparedSigner::new(&signer).map_err(|error| Error::mls("read the signature key pair")(error.into()))?;
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
        (provider, signer): (&Provider<'_>, &PreparedSigner<'_>),
        (identity, ciphersuite): (&DeviceIdentity, Ciphersuite),
        last_resort: bool,
        now: Timestamp,
    ) -> Result<()> {
        let (lifetime, not_after) = window(now, self.config.lifetime)?;
        // RFC 9420, section 10: a KeyPackage's extensions must be among its leaf node's capabilities.
        let extensions = if last_resort { vec![ExtensionType::LastResort] } else { Vec::new() };
        // GREASE keeps other clients used to values that they do not know (RFC 9420, section 13.5).
        let capabilities = Capabilities::builder().extensions(extensions).with_grease(provider.rand()).build();
        let builder = KeyPackageBuilder::new().key_package_lifetime(lifetime).leaf_node_capabilities(capabilities);
        let builder = if last_resort { builder.mark_as_last_resort() } else { builder };
        let bundle = builder
            .build(ciphersuite, provider, signer, identity.credential_with(&*identity.key_package_signer(ciphersuite)?))
            .map_err(|error| Error::mls("generate a KeyPackage")(error.into()))?;
        let keypackage_ref = keypackage_ref(bundle.key_package(), provider.crypto())?;
        let row = KeyPackageMetadata::created(keypackage_ref, (now, not_after), ciphersuite.into(), last_resort);
        self.store.create_pool_metadata(&row)
    }
}

/// The lifetime in OpenMLS's type, and its end for our table.
fn window(now: Timestamp, lifetime: Duration) -> Result<(Lifetime, Timestamp)> {
    let out_of_range = || Error::Config(format!("no lifetime of {} s can start at {now}", lifetime.as_secs()));
    let not_after = now.checked_add(Duration::from_secs(lifetime.as_secs())).map_err(|_| out_of_range())?;
    let second = |time: Timestamp| u64::try_from(time.as_second()).map_err(|_| out_of_range());
    let not_before = second(now)?.saturating_sub(CLOCK_SKEW.as_secs());
    Ok((Lifetime::init(not_before, second(not_after)?), not_after))
}
