//! Generates KeyPackages and stores them: the keys in OpenMLS's storage, one row of metadata for each.

use std::time::Duration;

use jiff::Timestamp;
use openmls::prelude::{Capabilities, ExtensionType, KeyPackageBuilder, Lifetime};
use openmls_traits::{
    OpenMlsProvider,
    signatures::{Signer, SignerError},
    types::SignatureScheme,
};

use super::{
    identity::KeyPackageSigner,
    key_packages::KeyPackagePool,
    metadata::KeyPackageMetadata,
    progress::{OnProgress, Progress},
    store::PoolStore,
};
use crate::{
    error::{Error, Result},
    key_package_ref::keypackage_ref,
};

/// How far before the generation a lifetime begins, for devices whose clocks are behind.
const CLOCK_SKEW: Duration = Duration::from_hours(1);

/// OpenMLS takes a signer of a type that it knows.
struct AnySigner<'a>(&'a dyn Signer);

impl Signer for AnySigner<'_> {
    fn sign(&self, payload: &[u8]) -> Result<Vec<u8>, SignerError> {
        self.0.sign(payload)
    }

    fn signature_scheme(&self) -> SignatureScheme {
        self.0.signature_scheme()
    }
}

impl<S: PoolStore> KeyPackagePool<'_, S> {
    /// Generates `count` KeyPackages and optionally a last resort, with lifetimes that begin at `now`. One transaction
    /// stores the keys and metadata of all of them, or of none.
    ///
    /// Fails with [`Error::PoolCapacityExceeded`] if the pool would exceed the hard cap.
    pub fn generate_and_update_pool(
        &self,
        signer: &KeyPackageSigner,
        (count, last_resort): (usize, bool),
        now: Timestamp,
        progress: OnProgress<'_>,
    ) -> Result<()> {
        let available = self.room(signer.ciphersuite, now)?;
        if count > available {
            return Err(Error::PoolCapacityExceeded { needed: count, available });
        }
        let total = count + usize::from(last_resort);
        self.store.transaction(|| {
            let provider = self.store.provider();
            for index in 0..total {
                self.generate_one(&*provider, signer, index == count, now)?;
                progress(Progress::Generated { done: index + 1, total });
            }
            Ok(())
        })
    }

    fn generate_one(
        &self,
        provider: &impl OpenMlsProvider,
        signer: &KeyPackageSigner,
        last_resort: bool,
        now: Timestamp,
    ) -> Result<()> {
        let KeyPackageSigner { ciphersuite, credential, signer } = signer;
        let (lifetime, not_after) = window(now, self.config.lifetime)?;
        // RFC 9420, section 10: a KeyPackage's extensions must be among its leaf node's capabilities.
        let extensions = if last_resort { vec![ExtensionType::LastResort] } else { Vec::new() };
        // GREASE keeps other clients used to values that they do not know (RFC 9420, section 13.5).
        let capabilities = Capabilities::builder().extensions(extensions).with_grease(provider.rand()).build();
        let builder = KeyPackageBuilder::new().key_package_lifetime(lifetime).leaf_node_capabilities(capabilities);
        let builder = if last_resort { builder.mark_as_last_resort() } else { builder };
        let bundle = builder
            .build(*ciphersuite, provider, &AnySigner(&**signer), credential.clone())
            .map_err(|error| Error::mls("generate a KeyPackage")(error.into()))?;
        let keypackage_ref = keypackage_ref(bundle.key_package(), provider.crypto())?;
        let row = KeyPackageMetadata::created(keypackage_ref, (now, not_after), (*ciphersuite).into(), last_resort);
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
