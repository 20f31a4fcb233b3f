//! What a pool needs of the place where its rows and its private keys are stored.

use std::ops::Deref;

use jiff::Timestamp;
use keypool_openapi::KeyPackageRef;
use openmls_traits::{
    OpenMlsProvider,
    storage::{CURRENT_VERSION, StorageProvider},
};

use super::metadata::KeyPackageMetadata;
use crate::error::Result;

/// Stores the rows of a pool, and gives access to OpenMLS's provider, whose storage holds the private keys. It only stores
/// what it is given: [`crate::KeyPackagePool`] has the rules.
///
/// [`crate::LocalStore`] is the implementation in SQLite. An application with its own database and its own OpenMLS provider
/// implements this trait for them. `client/examples/pool_only.rs` does so in memory.
pub trait PoolStore: Send + Sync {
    /// The error of OpenMLS's storage.
    type Error: std::error::Error + Send + Sync + 'static;

    /// A reference to OpenMLS's provider: `&'a P`, or a guard.
    type Provider<'a>: Deref<
        Target: OpenMlsProvider<StorageProvider: StorageProvider<CURRENT_VERSION, Error = Self::Error>> + Sized,
    >
    where
        Self: 'a;

    /// OpenMLS's provider. While the pool holds it, it may call the other methods; it waits for nothing else meanwhile.
    fn provider(&self) -> Self::Provider<'_>;

    /// Runs `write` in one transaction, which is rolled back on an error. Calls are never nested.
    ///
    /// If the transaction covers the rows and OpenMLS's storage, a crash leaves neither keys without a row nor a row without
    /// keys. If it covers only the rows, a crash can leave keys that nobody uses, and no other harm: the pool writes keys
    /// before their row, and deletes them before it.
    fn transaction<T>(&self, write: impl FnOnce() -> Result<T>) -> Result<T>;

    /// All rows, in any order.
    fn metadata(&self) -> Result<Vec<KeyPackageMetadata>>;

    /// The row of a KeyPackage, if there is one.
    fn find_metadata(&self, keypackage_ref: &KeyPackageRef) -> Result<Option<KeyPackageMetadata>>;

    /// Adds a row. Fails if the KeyPackage has one.
    fn create_pool_metadata(&self, row: &KeyPackageMetadata) -> Result<()>;

    /// Replaces the row of a KeyPackage. Does nothing if there is none: the device has joined with it meanwhile.
    fn update_pool_metadata(&self, row: &KeyPackageMetadata) -> Result<()>;

    /// Deletes a row, if there is one.
    fn delete_pool_metadata(&self, keypackage_ref: &KeyPackageRef) -> Result<()>;

    /// What the pool has recorded about the past; at first, [`PoolHistory::default`].
    fn history(&self) -> Result<PoolHistory>;

    /// Replaces what [`Self::history`] returns.
    fn set_history(&self, history: &PoolHistory) -> Result<()>;
}

/// What a pool records about the past, to tell a restored backup from a second client. Stored in whole seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolHistory {
    /// The last restore of the server's database that the pool has handled.
    pub fenced_at: Option<Timestamp>,
    /// The last time at which the pool on the server had KeyPackages that this device did not generate.
    pub foreign_at: Option<Timestamp>,
}
