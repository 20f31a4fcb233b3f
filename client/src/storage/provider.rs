use std::{borrow::Borrow, fmt};

use openmls_rust_crypto::RustCrypto;
use openmls_sqlite_storage::{Codec, SqliteStorageProvider};
use openmls_traits::OpenMlsProvider;
use parking_lot::ReentrantMutexGuard;
use rusqlite::Connection;
use serde::{Serialize, de::DeserializeOwned};

/// OpenMLS's tables in the local store.
pub type SqliteStorage<C> = SqliteStorageProvider<Cbor, C>;

/// The encoding of OpenMLS's values in SQLite. For a KeyPackage and its keys, CBOR is a third smaller than JSON.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cbor;

/// A value cannot be encoded as CBOR, or decoded from it.
#[derive(Debug, thiserror::Error)]
pub enum CborError {
    /// It cannot be encoded.
    #[error("cannot write CBOR")]
    Write(#[from] ciborium::ser::Error<std::io::Error>),
    /// It cannot be decoded.
    #[error("cannot read CBOR")]
    Read(#[from] ciborium::de::Error<std::io::Error>),
}

impl Codec for Cbor {
    type Error = CborError;

    fn to_vec<T: Serialize>(value: &T) -> Result<Vec<u8>, CborError> {
        let mut bytes = Vec::new();
        ciborium::into_writer(value, &mut bytes)?;
        Ok(bytes)
    }

    fn from_slice<T: DeserializeOwned>(slice: &[u8]) -> Result<T, CborError> {
        Ok(ciborium::from_reader(slice)?)
    }
}

/// The connection of the local store, which no other thread has meanwhile.
#[derive(Debug)]
pub struct HeldConnection<'a>(ReentrantMutexGuard<'a, Connection>);

impl Borrow<Connection> for HeldConnection<'_> {
    fn borrow(&self) -> &Connection {
        &self.0
    }
}

/// OpenMLS's provider: `RustCrypto`, and storage on the connection of the local store, so that the store's transactions
/// cover OpenMLS's writes.
pub struct Provider<'a> {
    crypto: RustCrypto,
    storage: SqliteStorage<HeldConnection<'a>>,
}

impl<'a> Provider<'a> {
    pub(super) fn new(connection: ReentrantMutexGuard<'a, Connection>) -> Self {
        Self { crypto: RustCrypto::default(), storage: SqliteStorageProvider::new(HeldConnection(connection)) }
    }
}

impl fmt::Debug for Provider<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Provider").finish_non_exhaustive()
    }
}

impl<'a> OpenMlsProvider for Provider<'a> {
    type CryptoProvider = RustCrypto;
    type RandProvider = RustCrypto;
    type StorageProvider = SqliteStorage<HeldConnection<'a>>;

    fn storage(&self) -> &Self::StorageProvider {
        &self.storage
    }

    fn crypto(&self) -> &RustCrypto {
        &self.crypto
    }

    fn rand(&self) -> &RustCrypto {
        &self.crypto
    }
}
