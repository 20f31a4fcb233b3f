//! Whose KeyPackages a pool has: the device, its credentials and its signers.

use std::{fmt, sync::Arc};

use keypool_openapi::DeviceOf;
use openmls::prelude::{Ciphersuite, CredentialWithKey};
use openmls_traits::signatures::Signer;

use crate::error::Result;

/// The device whose pool is kept full. [`crate::MlsClient`] has its own; an application with its own signature keys
/// implements this trait for them.
pub trait PoolIdentity: Send + Sync {
    /// The device, as it is registered on the server.
    fn device(&self) -> DeviceOf;

    /// The ciphersuites in which the device keeps a pool.
    fn ciphersuites(&self) -> Vec<Ciphersuite>;

    /// What signs new KeyPackages of a ciphersuite: while the signature key is being changed, the next key.
    fn key_package_signer(&self, ciphersuite: Ciphersuite) -> Result<KeyPackageSigner>;

    /// The change of the signature key of a ciphersuite that the server has not accepted yet.
    fn change(&self, ciphersuite: u16) -> Option<KeyChange> {
        let _ = ciphersuite;
        None
    }

    /// Records that the server has accepted the change of a ciphersuite's signature key, within the pool's transaction. Does
    /// nothing if there is no change.
    fn accept_change(&self, ciphersuite: u16) -> Result<()> {
        let _ = ciphersuite;
        Ok(())
    }
}

/// A key that signs, from memory or from anywhere else.
pub type SharedSigner = Arc<dyn Signer + Send + Sync>;

/// What signs the KeyPackages of a ciphersuite.
#[derive(Clone)]
pub struct KeyPackageSigner {
    /// The ciphersuite.
    pub ciphersuite: Ciphersuite,
    /// The credential with the public signature key. A server checks that the credential is the `user/device` of the uploading
    /// device, unless it is configured otherwise.
    pub credential: CredentialWithKey,
    /// The private signature key.
    pub signer: SharedSigner,
}

/// A change of a signature key: the old key signs it.
#[derive(Clone)]
pub struct KeyChange {
    /// The public key that the server has.
    pub old_key: Vec<u8>,
    /// The private key to it.
    pub old_signer: SharedSigner,
    /// The public key that replaces it.
    pub new_key: Vec<u8>,
}

impl fmt::Debug for KeyPackageSigner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyPackageSigner").field("ciphersuite", &self.ciphersuite).finish_non_exhaustive()
    }
}

impl fmt::Debug for KeyChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyChange").finish_non_exhaustive()
    }
}
