//! What tests of the pool need of a store, so that they run over each.

use std::sync::Arc;

use keypool_openapi::KeyPackageRef;
use openmls::prelude::{BasicCredential, Ciphersuite, CredentialWithKey};
use openmls_basic_credential::SignatureKeyPair;
use openmls_traits::{OpenMlsProvider as _, storage::StorageProvider as _};
use tempfile::TempDir;

use super::{KeyPackageSigner, PoolStore, memory_store::MemoryStore};
use crate::{key_package_ref::hash_reference, storage::LocalStore};

/// Makes a test for each store of a function that is generic over it.
macro_rules! over_each_store {
    ($($test:ident),+ $(,)?) => {
        mod sqlite {
            $(#[test] fn $test() { super::$test::<crate::storage::LocalStore>(); })+
        }
        mod memory {
            $(#[test] fn $test() { super::$test::<crate::pool::memory_store::MemoryStore>(); })+
        }
    };
}
pub(crate) use over_each_store;

/// A store that tests open, and break.
pub(crate) trait TestStore: PoolStore + Sized {
    /// A new one, with the directory that it is in.
    fn open() -> (TempDir, Self);

    /// How many KeyPackages have private keys.
    fn keys(&self) -> usize;

    /// Has it refuse every row past the first `limit`.
    fn refuse_rows_after(&self, limit: u32);

    /// Takes the private keys of a KeyPackage away, and leaves its row.
    fn lose_keys(&self, keypackage_ref: &KeyPackageRef) {
        let hash = hash_reference(keypackage_ref.as_bytes()).unwrap();
        self.provider().storage().delete_key_package(&hash).unwrap();
    }
}

impl TestStore for LocalStore {
    fn open() -> (TempDir, Self) {
        let directory = tempfile::tempdir().unwrap();
        let store = Self::open(directory.path()).unwrap();
        (directory, store)
    }

    fn keys(&self) -> usize {
        self.count_keys().unwrap()
    }

    fn refuse_rows_after(&self, limit: u32) {
        Self::refuse_rows_after(self, limit);
    }
}

impl TestStore for MemoryStore {
    fn open() -> (TempDir, Self) {
        (tempfile::tempdir().unwrap(), Self::default())
    }

    fn keys(&self) -> usize {
        self.provider().storage().values.read().unwrap().len()
    }

    fn refuse_rows_after(&self, limit: u32) {
        *self.limit.lock() = Some(limit.try_into().unwrap());
    }
}

/// What signs KeyPackages of `alice/laptop`.
pub(crate) fn signer(ciphersuite: Ciphersuite) -> KeyPackageSigner {
    let pair = SignatureKeyPair::new(ciphersuite.signature_algorithm()).unwrap();
    let credential = BasicCredential::new(b"alice/laptop".to_vec()).into();
    let credential = CredentialWithKey { credential, signature_key: pair.to_public_vec().into() };
    KeyPackageSigner { ciphersuite, credential, signer: Arc::new(pair) }
}
