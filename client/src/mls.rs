//! What the client does with OpenMLS.

mod connection;
mod identity;
mod keypackage_pool;
mod membership;
mod provider;

pub use connection::{MlsConnection, RefreshReport, Rejection};
pub use identity::DeviceIdentity;
pub use keypackage_pool::{KeyPackagePool, KeyPackagePoolConfig, Progress};
pub use membership::{Invitation, MlsMembership};
pub use provider::{Cbor, CborError, Provider, SqliteStorage};

use openmls::prelude::Ciphersuite;

/// The ciphersuite of all that this client generates: 1 of RFC 9420, which every MLS client has.
pub const CIPHERSUITE: Ciphersuite = Ciphersuite::MLS_128_DHKEMX25519_AES128GCM_SHA256_Ed25519;
