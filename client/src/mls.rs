//! What the client does with OpenMLS.

mod commits;
mod connection;
mod delivery;
mod identity;
mod identity_check;
mod incoming;
mod keypackage_pool;
mod membership;
mod own_devices;
mod proofs;
mod provider;
mod reconciliation;
mod renewal;
mod report;
mod rotation;
mod safety_number;
mod signing;
mod take_in;

pub use commits::{Invited, Removed};
pub use connection::MlsConnection;
pub use identity::DeviceIdentity;
pub use identity_check::{Checking, IdentityCheck, LeafIdentity, Standing};
pub use incoming::{DeviceChange, Incoming, Notice, What};
#[cfg(test)]
pub(crate) use keypackage_pool::hash_reference;
pub use keypackage_pool::{KeyPackagePool, KeyPackagePoolConfig, Progress};
pub(crate) use membership::clean;
pub use membership::{Group, GroupState, Invitation, MlsMembership};
pub use provider::{Cbor, CborError, Provider, SqliteStorage};
pub use renewal::Renewed;
pub use report::{RefreshReport, Rejection, Warning};
pub use safety_number::{KeyOfDevice, SafetyNumber};

use openmls::prelude::Ciphersuite;

/// The ciphersuite of a device that is not told otherwise: 1 of RFC 9420, which every MLS client has.
pub const CIPHERSUITE: Ciphersuite = Ciphersuite::MLS_128_DHKEMX25519_AES128GCM_SHA256_Ed25519;
