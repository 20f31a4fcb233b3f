//! The server's transparency log, as this device checks it (docs/transparency.md).

mod checks;
mod export;
mod findings;
mod hand_outs;
mod origins;
mod proofs;
mod report;
mod waiting;

use jiff::Timestamp;
use keypool_transparency::{
    note::{Note, VerifierKey},
    policy::{LogKeys, Policy},
};

pub use self::{
    export::ExportedProof,
    report::{Checks, LogState, TrailCheck},
};
pub(crate) use self::{origins::Kept, waiting::ids_of};
use crate::{
    api::ApiClient,
    clock::Clock,
    error::{Error, Result},
    storage::{LocalStore, LogRow},
};

/// The server's log: what this device knows of it, checks in it, and has found.
///
/// A device believes the key of the first log that it sees, and every key that a believed one names. It keeps the largest
/// checkpoint, and what it needs to find each hand-out in the log: of the KeyPackages that it was handed, and of its own. Each
/// refresh compares them with the log, in one request more if there is something to compare.
#[derive(Clone)]
pub struct ServerLog<'a> {
    api: &'a ApiClient,
    store: &'a LocalStore,
    clock: &'a dyn Clock,
    /// This device, `user/device`.
    own: String,
    is_strict: bool,
}

impl std::fmt::Debug for ServerLog<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServerLog").field("own", &self.own).finish_non_exhaustive()
    }
}

/// The logs of the server that this device knows.
struct Known {
    rows: Vec<LogRow>,
    keys: LogKeys,
}

impl Known {
    fn key_notes(&self) -> Vec<Note> {
        self.rows.iter().filter_map(|row| row.key_note.as_ref()?.parse().ok()).collect()
    }

    /// A check believes the logs. Witnesses are not asked.
    fn policy(&self) -> Result<Policy> {
        let keys = self.rows.iter().map(|row| read_key(&row.key)).collect::<Result<Vec<_>>>()?;
        Ok(Policy::of_logs(keys))
    }

    /// The newest checkpoint.
    fn checkpoint(&self) -> Result<Option<Note>> {
        let Some(text) = self.rows.iter().rev().find_map(|row| row.checkpoint.as_ref()) else { return Ok(None) };
        text.parse().map(Some).map_err(|error| Error::Damaged(format!("a checkpoint cannot be read: {error}")))
    }
}

fn read_key(key: &str) -> Result<VerifierKey> {
    key.parse().map_err(|error| Error::Damaged(format!("the key of a log cannot be read: {error}")))
}

impl<'a> ServerLog<'a> {
    pub(crate) fn new(
        (api, store): (&'a ApiClient, &'a LocalStore),
        clock: &'a dyn Clock,
        own: String,
        is_strict: bool,
    ) -> Self {
        Self { api, store, clock, own, is_strict }
    }

    fn now(&self) -> Timestamp {
        self.clock.now()
    }

    fn known(&self) -> Result<Known> {
        let rows = self.store.logs()?;
        let keys = rows.iter().map(|row| read_key(&row.key)).collect::<Result<LogKeys>>()?;
        Ok(Known { rows, keys })
    }
}
