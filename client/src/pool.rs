//! The device's own KeyPackages: how many there should be, their generation, and reconciliation with the server. Over any
//! OpenMLS provider and any store of rows; nothing here asks the server.

mod config;
mod generation;
mod identity;
mod key_packages;
#[cfg(test)]
pub(crate) mod memory_store;
mod metadata;
mod progress;
mod reconciliation;
mod store;
#[cfg(test)]
pub(crate) mod test_support;
#[cfg(test)]
mod tests;
mod transitions;

pub use config::{CIPHERSUITE, KeyPackagePoolConfig, LastResortForm};
pub use identity::{KeyChange, KeyPackageSigner, PoolIdentity, SharedSigner};
pub use key_packages::KeyPackagePool;
pub use metadata::{KeyPackageMetadata, ReservationInfo, Spending};
pub use progress::{OnProgress, Progress};
pub(crate) use reconciliation::{Reconciliation, reconcile};
pub use store::{PoolHistory, PoolStore};
pub(crate) use transitions::{GRACE, change_status, confirm_uploaded, fail, give_up, rows};
#[cfg(feature = "sqlite")]
pub(crate) use transitions::{begin_rotation, supersede_all};
