//! The client of Keypool, the KeyPackage directory for MLS (RFC 9420).
//!
//! An [`MlsClient`] is one device of a user. It generates KeyPackages with OpenMLS, keeps its pool on the server full
//! ([`MlsClient::refresh_key_packages`]), adds other users to groups with KeyPackages that it reserves
//! ([`MlsMembership::invite`]), and joins groups from a Welcome ([`MlsClient::join`]). All that it stores is in one SQLite
//! file, the [`LocalStore`]: private keys in OpenMLS's own tables, and beside them only metadata.
//!
//! The `keypool` command is this library with a command line.
//!
//! # Example
//!
//! What happens before anything is uploaded needs no server:
//!
//! ```
//! use jiff::Timestamp;
//! use keypool_client::{CIPHERSUITE, DeviceIdentity, KeyPackagePool, KeyPackagePoolConfig, LocalStore};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let directory = tempfile::tempdir()?;
//! let store = LocalStore::open(directory.path())?;
//! let name = (&"alice".parse()?, &"laptop".parse()?);
//! let alice = DeviceIdentity::create(&store, "http://localhost:8080", name, &[CIPHERSUITE])?;
//!
//! let config = KeyPackagePoolConfig::default();
//! let pool = KeyPackagePool::new(&store, &config);
//! let now: Timestamp = "2030-01-01T00:00:00Z".parse()?;
//! pool.generate_and_update_pool(&alice, CIPHERSUITE, (3, true), now, &|_| {})?;
//!
//! assert_eq!(pool.get_available_count(CIPHERSUITE, now)?, 3);
//! assert_eq!(pool.unconfirmed(now)?.len(), 4);
//! assert!(pool.should_replenish(CIPHERSUITE, now)?);
//! assert_eq!(pool.get_replenishment_needed(CIPHERSUITE, now)?, 29);
//! # Ok(())
//! # }
//! ```
//!
//! With a server, [`MlsClient::init`] does that, registers the device, and uploads:
//!
//! ```no_run
//! use std::path::Path;
//!
//! use keypool_client::{CIPHERSUITE, MlsClient, NewDevice, Settings};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let alice = NewDevice {
//!     server: "http://localhost:8080".to_owned(),
//!     user: "alice".parse()?,
//!     device: "laptop".parse()?,
//!     user_token: None,
//!     ciphersuites: vec![CIPHERSUITE],
//! };
//! let (client, _) = MlsClient::init(Path::new("alice"), &alice, Settings::default(), &|_| {}).await?;
//! let mut group = client.create_group(b"friends")?;
//! let invitation = client.prepare_invitation(&mut group, &"bob".parse()?).await?;
//! std::fs::write("welcome-for-bob", invitation.welcome)?;
//! # Ok(())
//! # }
//! ```

mod api;
pub mod cli;
mod client;
mod clock;
mod doctor;
mod error;
mod mls;
mod storage;

pub use api::{ApiClient, DEFAULT_TIMEOUT};
pub use client::{MlsClient, NewDevice, Settings};
pub use clock::{Clock, ManualClock, SystemClock};
pub use doctor::{Check, Verdict};
pub use error::{Cause, Error, Result};
pub use mls::{
    CIPHERSUITE, Cbor, CborError, Checking, DeviceChange, DeviceIdentity, Group, GroupState, IdentityCheck, Incoming,
    Invitation, Invited, KeyOfDevice, KeyPackagePool, KeyPackagePoolConfig, LeafIdentity, MlsConnection, MlsMembership,
    Notice, Progress, Provider, RefreshReport, Rejection, Removed, Renewed, SafetyNumber, SqliteStorage, Standing,
    Warning, What,
};
pub use openmls;
pub use storage::{KeyPackageMetadata, KeyPackageStatus, LocalStore, ReservationInfo, Spending};

/// The guide's examples are compiled, too.
#[cfg(doctest)]
#[doc = include_str!("../../docs/keypackage-pool-implementation.md")]
struct Guide;
