//! The store: the domain's verbs over either database.
//!
//! Each verb is one body, compiled against each connection type by the macro `with_conn`; what differs between the
//! databases is in the files `postgres` and `sqlite`. Verbs block: call them where blocking is allowed. Times and ids
//! come in as values.

mod as_of;
mod audit;
mod claims;
mod commits;
mod connection;
mod delivery;
mod devices;
mod directory;
mod exhausted;
mod group_digest;
mod holds;
mod idempotency;
mod inventory;
mod kept_answers;
mod key_packages;
mod lineage;
mod liveness;
mod postgres;
mod queue_shares;
mod reservations;
mod revocation;
mod rows;
mod schema;
mod signature_keys;
mod spending;
mod sql;
mod sqlite;
mod status;
mod storing;
mod sweep;
mod together;
mod tokens;
mod watch;
mod wishes;
mod writable;

use std::fmt;

pub use as_of::AsOf;
pub use commits::{Commit, CommitError};
pub use connection::Store;
pub use delivery::{Delivered, Heard, Post, Queued};
pub use devices::{DeviceError, Grant, NewDevice, RegisterError, Removed};
pub use directory::{Directory, Listed, Listing};
pub use idempotency::IdempotencyKey;
pub use key_packages::{Upload, UploadLimits, UploadOutcome, Uploaded};
pub use lineage::Restored;
pub(crate) use queue_shares::UNIT as MESSAGE_UNIT;
pub use reservations::{HoldLimits, Reserve, ReserveError};
pub use revocation::Revoked;
pub use rows::{DeviceId, DeviceRow};
pub use signature_keys::{KeptKey, KeyChange, Registration};
pub use spending::{Release, ReleaseError, Released, Spend, SpendError, Spent};
pub use status::{LiveKeyPackage, PoolContents};
pub use sweep::Swept;
pub use tokens::{CallerError, ShownToken, TokenRevoked};
pub use watch::ClockOff;

/// How many bytes of messages or KeyPackages one answer has, about, so that memory is bounded by what is asked at a time.
const ANSWER_BYTES: usize = 4 * 1024 * 1024;

/// The database could not do what it was asked.
#[derive(Debug)]
pub struct StoreError {
    /// Whether the same call may work in a moment: the database is away, busy, shutting down, or takes no writes.
    pub transient: bool,
    /// Whether it takes no writes. That is said in the log when it begins, and not for each request.
    pub refuses_writes: bool,
    source: anyhow::Error,
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the database failed: {:#}", self.source)
    }
}

impl std::error::Error for StoreError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.source()
    }
}

impl StoreError {
    pub(crate) fn transient(source: impl Into<anyhow::Error>) -> Self {
        Self { transient: true, refuses_writes: false, source: source.into() }
    }

    pub(crate) fn fatal(source: impl Into<anyhow::Error>) -> Self {
        Self { transient: false, refuses_writes: false, source: source.into() }
    }
}

impl From<diesel::result::Error> for StoreError {
    fn from(error: diesel::result::Error) -> Self {
        let refuses_writes = writable::is_refusal(&error);
        let transient = refuses_writes || connection::is_transient(&error);
        Self { transient, refuses_writes, source: error.into() }
    }
}
