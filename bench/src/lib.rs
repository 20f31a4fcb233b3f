//! Real KeyPackages: what the measurements and criterion's benches have in common.

use std::time::Duration;

use anyhow::{Result, anyhow};
use jiff::{SignedDuration, Timestamp};
use keypool_client::{Clock, SystemClock};
use keypool_server::config::Config;
use keypool_validation::key_package::{Rules, ValidatedKeyPackage};
use openmls::prelude::{
    BasicCredential, Ciphersuite, CredentialWithKey, KeyPackageBuilder, KeyPackageBundle, Lifetime, MlsMessageOut,
    tls_codec::Serialize,
};
use openmls_basic_credential::SignatureKeyPair;
use openmls_rust_crypto::OpenMlsRustCrypto;

/// The device that each user of a measurement has.
pub const DEVICE: &str = "main";

/// How long a [`Maker`]'s KeyPackages are valid, from when it was made.
pub const LIFETIME: Duration = Duration::from_hours(14 * 24);

/// A device that makes KeyPackages with OpenMLS, in memory.
pub struct Maker {
    provider: OpenMlsRustCrypto,
    signer: SignatureKeyPair,
    identity: String,
    ciphersuite: Ciphersuite,
    lifetime: Lifetime,
}

impl std::fmt::Debug for Maker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Maker").field("identity", &self.identity).finish_non_exhaustive()
    }
}

impl Maker {
    /// A user's [`DEVICE`], with a new signature key.
    pub fn new(user: &str, ciphersuite: Ciphersuite) -> Result<Self> {
        let now = u64::try_from(SystemClock.now().as_second())?;
        Ok(Self {
            provider: OpenMlsRustCrypto::default(),
            signer: SignatureKeyPair::new(ciphersuite.signature_algorithm())?,
            identity: format!("{user}/{DEVICE}"),
            ciphersuite,
            lifetime: Lifetime::init(now - 3_600, now + LIFETIME.as_secs()),
        })
    }

    /// A new KeyPackage with its private keys.
    pub fn bundle(&self) -> Result<KeyPackageBundle> {
        let credential = CredentialWithKey {
            credential: BasicCredential::new(self.identity.clone().into_bytes()).into(),
            signature_key: self.signer.to_public_vec().into(),
        };
        let builder = KeyPackageBuilder::new().key_package_lifetime(self.lifetime);
        Ok(builder.build(self.ciphersuite, &self.provider, &self.signer, credential)?)
    }

    /// A new KeyPackage as the `MLSMessage` that is uploaded.
    pub fn message(&self) -> Result<Vec<u8>> {
        let key_package = self.bundle()?.key_package().clone();
        Ok(MlsMessageOut::from(key_package).tls_serialize_detached()?)
    }
}

/// What the server does with an uploaded KeyPackage before it looks into the database.
#[derive(Debug)]
pub struct Judge {
    rules: Rules,
    now: Timestamp,
}

impl Judge {
    /// By the server's default rules, now.
    pub fn new() -> Result<Self> {
        let config = Config::default();
        let rules = Rules {
            max_lifetime: SignedDuration::try_from(config.max_lifetime)?,
            credential_binding: config.credential_binding,
            ciphersuites: config.ciphersuites,
        };
        Ok(Self { rules, now: SystemClock.now() })
    }

    /// Judges a KeyPackage of a user's [`DEVICE`], as the `MLSMessage` that is uploaded.
    pub fn judge(&self, message: Vec<u8>, user: &str) -> Result<ValidatedKeyPackage> {
        let judged = ValidatedKeyPackage::parse(message, (&user.parse()?, &DEVICE.parse()?), &self.rules, self.now);
        judged.map_err(|rejection| anyhow!("a KeyPackage of {user} is not valid: {}", rejection.detail))
    }
}
