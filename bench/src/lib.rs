//! Real KeyPackages, for the measurements and criterion's benches.

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

/// The name of each user's device.
pub const DEVICE: &str = "main";

/// The lifetime of a [`Maker`]'s KeyPackages.
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

    /// A new KeyPackage as an `MLSMessage`.
    pub fn message(&self) -> Result<Vec<u8>> {
        let key_package = self.bundle()?.key_package().clone();
        Ok(MlsMessageOut::from(key_package).tls_serialize_detached()?)
    }
}

/// The server's validation of an uploaded KeyPackage.
#[derive(Debug)]
pub struct Validator {
    rules: Rules,
    now: Timestamp,
}

impl Validator {
    /// Validates by the server's default rules, at the current time.
    pub fn new() -> Result<Self> {
        let config = Config::default();
        let rules = Rules {
            max_lifetime: SignedDuration::try_from(config.max_lifetime)?,
            clock_tolerance: SignedDuration::try_from(config.clock_tolerance)?,
            credential_binding: config.credential_binding,
            ciphersuites: config.ciphersuites,
        };
        Ok(Self { rules, now: SystemClock.now() })
    }

    /// Validates a KeyPackage of a user's [`DEVICE`], given as an `MLSMessage`.
    pub fn validate(&self, message: Vec<u8>, user: &str) -> Result<ValidatedKeyPackage> {
        let validated = ValidatedKeyPackage::parse(message, (&user.parse()?, &DEVICE.parse()?), &self.rules, self.now);
        validated.map_err(|rejection| anyhow!("a KeyPackage of {user} is not valid: {}", rejection.detail))
    }
}
