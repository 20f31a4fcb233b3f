//! The store: the domain's verbs over either database, one file or folder for each verb.
//!
//! Each statement and each verb is written once, over a connection of either database. Code that differs between the
//! databases is beside its verb, as a match on the connection. Verbs block, so call them only where blocking is
//! allowed. Times and ids are passed in as values.

mod as_of;
mod audit;
mod census;
mod commits;
mod database;
mod devices;
mod directory;
mod group_infos;
mod idempotency;
mod inventory;
mod late_group_info;
mod links;
mod locks;
mod log;
mod low_pools;
mod messages;
mod notify;
mod queues;
mod registration;
mod release;
mod removal;
mod reservations;
mod reserve;
mod restore;
mod revoke;
mod server_keys;
mod signature_keys;
mod spend;
mod status;
mod steps;
mod sweep;
mod tokens;
mod upload;

pub use as_of::AsOf;
pub use commits::{Accepted, BoundReservation, Commit, CommitError};
pub use database::{
    ClockOff, Failure, ServerLock, Store, StoreError,
    rows::{DeviceId, DeviceRow},
};
pub use directory::{Directory, Listed, Listing};
pub use group_infos::{GroupInfo, ListedGroupRow, NewGroupInfo};
pub use idempotency::IdempotencyKey;
pub use late_group_info::{GroupInfoError, KeepGroupInfo};
pub use links::{LinkRow, NewLink};
pub use log::{
    Appended, Asked, Continuation, Edge, LogKey, LogOwner, OriginRow, Owners, Standing, StepFound, Steps, TreeState,
};
pub use low_pools::LowPoolPlace;
pub use messages::{PostError, Queued};
pub use notify::Heard;
pub(crate) use queues::MESSAGE_UNIT;
pub use queues::{Delivered, Post};
pub use registration::{Grant, NewDevice, RegisterError, Registered, TokenHash};
pub use release::{Release, Released};
pub use removal::{DeviceError, Removed};
pub use reservations::ReservationError;
pub use reserve::{HoldLimits, Reserve, ReserveError, Reserved, Wanted};
pub use restore::Restored;
pub use revoke::Revoked;
pub use server_keys::ServerKey;
pub use signature_keys::{KeptKey, KeyChange, Registration};
pub use spend::{Spend, SpendStep, Spent};
pub use status::{LiveKeyPackage, PoolContents};
pub use sweep::Swept;
pub use tokens::{ShownToken, TokenRevoked};
pub use upload::{Upload, UploadLimits, UploadOutcome, Uploaded};

/// Approximate size limit of the messages or KeyPackages in one answer, in bytes, so that each request uses bounded
/// memory.
const ANSWER_BYTES: usize = 4 * 1024 * 1024;
