//! What the client does with OpenMLS.

mod commits;
mod connection;
mod delivery;
mod identity;
mod keypackage_pool;
mod membership;
mod provider;
mod reconciliation;
mod report;
mod signing;

pub use commits::{Invited, Removed};
pub use connection::MlsConnection;
pub use delivery::{Incoming, What};
pub use identity::DeviceIdentity;
#[cfg(test)]
pub(crate) use keypackage_pool::hash_reference;
pub use keypackage_pool::{KeyPackagePool, KeyPackagePoolConfig, Progress};
pub(crate) use membership::clean;
pub use membership::{Group, Invitation, MlsMembership};
pub use provider::{Cbor, CborError, Provider, SqliteStorage};
pub use report::{RefreshReport, Rejection, Warning};

use openmls::prelude::Ciphersuite;

/// The ciphersuite of a device that is not told otherwise: 1 of RFC 9420, which every MLS client has.
pub const CIPHERSUITE: Ciphersuite = Ciphersuite::MLS_128_DHKEMX25519_AES128GCM_SHA256_Ed25519;
