//! The device's own KeyPackages: how many there should be, their generation, and reconciliation with the server.

mod config;
mod generation;
mod key_packages;
mod progress;
mod reconciliation;
mod signer;
#[cfg(test)]
mod tests;

pub use config::KeyPackagePoolConfig;
pub use key_packages::KeyPackagePool;
pub(crate) use key_packages::{GRACE, give_up};
pub use progress::{OnProgress, Progress};
pub(crate) use reconciliation::{Reconciliation, reconcile};
