//! Generates KeyPackages and stores them: the keys in OpenMLS's storage, one row of metadata for each.

use std::time::Duration;

use jiff::Timestamp;
use openmls::prelude::{
    Capabilities, Extension, ExtensionType, Extensions, KeyPackageBuilder, Lifetime, UnknownExtension,
};
use openmls_traits::{
    OpenMlsProvider,
    signatures::{Signer, SignerError},
    types::SignatureScheme,
};

use super::{
    config::LastResortForm,
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

/// The type of the extension `app_data_dictionary` (draft-ietf-mls-extensions).
const APP_DATA_DICTIONARY: u16 = 0x0006;

/// A dictionary whose only component marks a last resort, and has no data.
const MARKED: [u8; 4] = [3, 0x00, 0x04, 0];

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
        let form = last_resort.then_some(self.config.last_resort_form);
        let extensions = match form {
            Some(LastResortForm::Extension) => vec![ExtensionType::LastResort],
            Some(LastResortForm::Component) => vec![ExtensionType::Unknown(APP_DATA_DICTIONARY)],
            None => Vec::new(),
        };
        // GREASE keeps other clients used to values that they do not know (RFC 9420, section 13.5).
        let capabilities = Capabilities::builder().extensions(extensions).with_grease(provider.rand()).build();
        let builder = KeyPackageBuilder::new().key_package_lifetime(lifetime).leaf_node_capabilities(capabilities);
        let builder = match form {
            Some(LastResortForm::Extension) => builder.mark_as_last_resort(),
            Some(LastResortForm::Component) => {
                let dictionary = Extension::Unknown(APP_DATA_DICTIONARY, UnknownExtension(MARKED.to_vec()));
                let dictionary = Extensions::single(dictionary)
                    .map_err(|error| Error::mls("mark a KeyPackage as a last resort")(error.into()))?;
                builder.key_package_extensions(dictionary)
            }
            None => builder,
        };
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
