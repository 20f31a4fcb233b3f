//! What people and programs see of the checks.

use jiff::Timestamp;
use keypool_openapi::KeyPackageRef;
use serde::Serialize;
use utoipa::ToSchema;

use super::ServerLog;
use crate::{
    error::{Error, Result},
    finding::Finding,
    storage::CheckCounts,
};

/// How far this device has checked the server's log.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct LogState {
    /// The name of the newest log; `null` if the server has shown none.
    pub origin: Option<String>,
    /// Its key, as a vkey (C2SP signed-note).
    pub key: Option<String>,
    /// The key of the first log that this device saw, or that its user gave. It has named those that followed.
    pub first_key: Option<String>,
    /// When this device first saw the log.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub since: Option<Timestamp>,
    /// How many leaves it had at the largest checkpoint that this device has verified.
    pub size: u64,
    /// When this device last compared it with what it knows.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub checked_at: Option<Timestamp>,
    /// The hand-outs of other devices' KeyPackages to this device.
    pub hand_outs: Checks,
    /// This device's own KeyPackages that were used or withdrawn.
    pub own: Checks,
    /// The promises that the server has broken.
    pub findings: Vec<Finding>,
}

/// How many checks have ended, and how.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
pub struct Checks {
    /// All is as it has to be.
    pub fine: u64,
    /// To be checked at the next refresh.
    pub due: u64,
    /// The server can no longer prove it, which proves nothing.
    pub unknown: u64,
}

impl From<CheckCounts> for Checks {
    fn from(CheckCounts { due, fine, unknown }: CheckCounts) -> Self {
        Self { fine, due, unknown }
    }
}

/// The comparison of the trail with the log, for one of this device's KeyPackages.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct TrailCheck {
    /// The KeyPackage.
    pub keypackage_ref: KeyPackageRef,
    /// How many events of the trail are about it and in the log.
    pub events: usize,
    /// Whether the trail and the log agree; `null` where that cannot be told.
    pub agrees: Option<bool>,
    /// What differs, or why it cannot be told.
    pub why: Option<String>,
}

impl ServerLog<'_> {
    /// How far this device has checked the server's log. Asks nobody.
    pub fn state(&self) -> Result<LogState> {
        let known = self.known()?;
        let newest = known.rows.last();
        let size = match known.checkpoint()? {
            Some(note) => {
                let unreadable = |error| Error::Damaged(format!("a checkpoint cannot be read: {error}"));
                known.keys.checkpoint(&note).map_err(unreadable)?.size
            }
            None => 0,
        };
        let (hand_outs, own) = self.store.check_counts()?;
        Ok(LogState {
            origin: newest.map(|row| row.origin.clone()),
            key: newest.map(|row| row.key.clone()),
            first_key: known.rows.iter().rev().find(|row| row.key_note.is_none()).map(|row| row.key.clone()),
            since: newest.map(|row| row.seen_at),
            size,
            checked_at: self.store.log_checked_at()?,
            hand_outs: hand_outs.into(),
            own: own.into(),
            findings: self.findings()?,
        })
    }
}
