//! A store in memory, for tests: the rules must not depend on SQLite.

use std::collections::BTreeMap;

use keypool_openapi::KeyPackageRef;
use openmls_rust_crypto::{MemoryStorageError, OpenMlsRustCrypto};
use openmls_traits::OpenMlsProvider as _;
use parking_lot::Mutex;

use super::{
    metadata::KeyPackageMetadata,
    store::{PoolHistory, PoolStore},
};
use crate::error::{Error, Result};

#[derive(Clone, Debug, Default)]
struct Rows {
    rows: BTreeMap<KeyPackageRef, KeyPackageMetadata>,
    history: PoolHistory,
}

#[derive(Debug, Default)]
pub(crate) struct MemoryStore {
    openmls: OpenMlsRustCrypto,
    rows: Mutex<Rows>,
    /// How many rows it takes.
    pub(crate) limit: Mutex<Option<usize>>,
    is_in_transaction: Mutex<bool>,
}

impl PoolStore for MemoryStore {
    type Error = MemoryStorageError;
    type Provider<'a> = &'a OpenMlsRustCrypto;

    fn provider(&self) -> &OpenMlsRustCrypto {
        &self.openmls
    }

    fn transaction<T>(&self, write: impl FnOnce() -> Result<T>) -> Result<T> {
        assert!(!std::mem::replace(&mut *self.is_in_transaction.lock(), true), "transactions are not nested");
        let (rows, keys) = (self.rows.lock().clone(), self.openmls.storage().values.read().unwrap().clone());
        let done = write();
        if done.is_err() {
            *self.rows.lock() = rows;
            *self.openmls.storage().values.write().unwrap() = keys;
        }
        *self.is_in_transaction.lock() = false;
        done
    }

    fn metadata(&self) -> Result<Vec<KeyPackageMetadata>> {
        Ok(self.rows.lock().rows.values().cloned().collect())
    }

    fn find_metadata(&self, keypackage_ref: &KeyPackageRef) -> Result<Option<KeyPackageMetadata>> {
        Ok(self.rows.lock().rows.get(keypackage_ref).cloned())
    }

    fn create_pool_metadata(&self, row: &KeyPackageMetadata) -> Result<()> {
        let Rows { rows, .. } = &mut *self.rows.lock();
        let is_full = self.limit.lock().is_some_and(|limit| rows.len() >= limit);
        if is_full || rows.contains_key(&row.keypackage_ref) {
            return Err(Error::storage("write a row")("it is full, or has the row"));
        }
        rows.insert(row.keypackage_ref.clone(), row.clone());
        Ok(())
    }

    fn update_pool_metadata(&self, row: &KeyPackageMetadata) -> Result<()> {
        if let Some(old) = self.rows.lock().rows.get_mut(&row.keypackage_ref) {
            *old = row.clone();
        }
        Ok(())
    }

    fn delete_pool_metadata(&self, keypackage_ref: &KeyPackageRef) -> Result<()> {
        self.rows.lock().rows.remove(keypackage_ref);
        Ok(())
    }

    fn history(&self) -> Result<PoolHistory> {
        Ok(self.rows.lock().history)
    }

    fn set_history(&self, history: &PoolHistory) -> Result<()> {
        self.rows.lock().history = *history;
        Ok(())
    }
}
