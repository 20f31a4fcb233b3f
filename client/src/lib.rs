//! The client of Keypool, the KeyPackage directory for MLS (RFC 9420).
//!
//! An [`MlsClient`] is one device of a user. It generates KeyPackages with OpenMLS, keeps its pool on the server full
//! ([`MlsClient::refresh_key_packages`]), adds other users to groups with KeyPackages that it reserves
//! ([`MlsMembership::invite`]), and joins groups from a Welcome ([`MlsClient::join`]). It stores everything in one
//! SQLite file, the [`LocalStore`]: private keys in OpenMLS's own tables, and only metadata in ours.
//!
//! Its layers can be taken alone. A messenger with its own OpenMLS provider, database, HTTP client or delivery service takes the
//! pool and nothing else: a [`KeyPackagePool`] over its [`PoolStore`], an [`ApiClient`] over its [`Transport`], and a [`Refresh`]
//! that keeps the pool full for its [`PoolIdentity`]. Without the features `sqlite` and `http`, there is nothing else to build.
//!
//! The `keypool` command, the crate `keypool-cli`, is this library with a command line.
//!
//! # Example
//!
//! Generating KeyPackages needs no server:
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
//! pool.generate_and_update_pool(&alice.key_package_signer(CIPHERSUITE)?, (3, true), now, &|_| {})?;
//!
//! assert_eq!(pool.get_available_count(CIPHERSUITE, now)?, 3);
//! assert_eq!(pool.unconfirmed(now)?.len(), 4);
//! assert!(pool.should_replenish(CIPHERSUITE, now)?);
//! assert_eq!(pool.get_replenishment_needed(CIPHERSUITE, now)?, 29);
//! # Ok(())
//! # }
//! ```
//!
//! [`MlsClient::init`] does the same, registers the device, and uploads the KeyPackages:
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
//! // Here, the application's delivery service accepts `invitation.commit`.
//! client.confirm_invitation(&mut group, &invitation).await?;
//! std::fs::write("welcome-for-bob", invitation.welcome)?;
//! # Ok(())
//! # }
//! ```

#![warn(unnameable_types)]

mod api;
mod cause;
mod clock;
mod error;
mod finding;
mod key_package_ref;
mod key_package_status;
mod leaf_identity;
mod log_report;
mod pool;
mod refresh;
mod transport;

#[cfg(feature = "sqlite")]
mod client;
#[cfg(feature = "sqlite")]
mod connection;
#[cfg(feature = "sqlite")]
mod groups;
#[cfg(feature = "sqlite")]
mod identity;
#[cfg(feature = "sqlite")]
mod identity_check;
#[cfg(feature = "sqlite")]
mod log;
#[cfg(feature = "sqlite")]
mod prepared_signer;
#[cfg(feature = "sqlite")]
mod safety_number;
#[cfg(feature = "sqlite")]
mod storage;
#[cfg(feature = "sqlite")]
mod text;

pub use api::{ApiClient, DEFAULT_TIMEOUT, OnRetry, is_in_the_clear};
pub use cause::Cause;
#[cfg(feature = "sqlite")]
pub use client::{MlsClient, NewDevice, Settings};
pub use clock::{Clock, MAX_SKEW, ManualClock, SystemClock, skew};
#[cfg(feature = "sqlite")]
pub use connection::MlsConnection;
pub use error::{Error, Result};
pub use finding::{Finding, LogError};
#[cfg(feature = "sqlite")]
pub use groups::{
    DeviceChange, Event, Group, GroupState, Incoming, Invitation, Invited, MembershipChange, Message, MlsMembership,
    Removed, Renewed, UnfitDevice, UnfitReason,
};
/// The types of a [`Transport`]'s requests and answers.
pub use http;
#[cfg(feature = "sqlite")]
pub use identity::DeviceIdentity;
#[cfg(feature = "sqlite")]
pub use identity_check::{Checking, IdentityCheck, Notice, Standing};
/// Times and spans of time.
pub use jiff;
pub use key_package_status::KeyPackageStatus;
/// The types of the server's API.
pub use keypool_openapi as wire;
/// The formats of the server's transparency log, and what they prove.
#[cfg(feature = "sqlite")]
pub use keypool_transparency as transparency;
pub use leaf_identity::LeafIdentity;
#[cfg(feature = "sqlite")]
pub use log::{Checks, ExportedProof, LogState, ServerLog, TrailCheck};
pub use log_report::LogReport;
pub use openmls;
pub use openmls_traits;
pub use pool::{
    CIPHERSUITE, KeyChange, KeyPackageMetadata, KeyPackagePool, KeyPackagePoolConfig, KeyPackageSigner, LastResortForm,
    OnProgress, PoolHistory, PoolIdentity, PoolStore, Progress, ReservationInfo, SharedSigner, Spending,
};
pub use refresh::{CatchUp, CatchingUp, Refresh, RefreshReport, Rejection, Warning};
#[cfg(feature = "http")]
pub use reqwest;
#[cfg(feature = "sqlite")]
pub use safety_number::{KeyOfDevice, SafetyNumber};
/// Passphrases and tokens.
pub use secrecy;
#[cfg(feature = "sqlite")]
pub use storage::{Cbor, CborError, HeldConnection, LocalStore, Provider, SqliteStorage};
#[cfg(feature = "sqlite")]
pub use text::turns_text;
pub use transport::{Sending, Transport, TransportError};

/// Compiles the examples of the guide.
#[cfg(doctest)]
#[doc = include_str!("../../docs/keypackage-pool-implementation.md")]
struct Guide;
