//! The log of a database, and its keys.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use jiff::Timestamp;
use keypool_transparency::{
    checkpoint::Checkpoint,
    note::{Note, SignerKey},
    origin::key_note,
};

use super::{
    key_file::{self, KeyFile},
    outbox_end::OutboxEnd,
    tile_cache::TileCache,
};
use crate::{
    config::Config,
    store::{Edge, LogKey, OriginRow, Owners, Store, StoreError, TreeState},
};

/// For how long a tree is a recent one: as long as the sequencer takes a rest.
const RECENT: Duration = Duration::from_millis(500);

/// The transparency log of a database. It exists only where the server has the log's key.
pub struct Log {
    pub(super) store: Store,
    pub(super) key: KeyFile,
    pub(super) owners: Owners,
    pub(super) edge: Edge,
    /// The keys of the logs, by their numbers.
    signers: Mutex<HashMap<i32, Arc<SignerKey>>>,
    /// The last tree that was read, and when.
    recent: Mutex<Option<(Instant, TreeState)>>,
    /// The last checkpoint that was signed, and what it is of.
    pub(super) newest: Mutex<Option<(TreeState, Note)>>,
    /// Where the next look into the outbox begins.
    pub(super) outbox_end: Mutex<OutboxEnd>,
    /// When the outbox was last found empty.
    pub(super) drained: Mutex<Instant>,
    pub(super) tiles: TileCache,
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Log {
    /// Opens the log of the database: begins one if there is none, and makes its key file. `None` if the database needs
    /// a key file that is not configured. Blocks.
    ///
    /// # Errors
    /// When the key file cannot be read or is not the log's, or the database fails.
    pub(crate) fn open(store: &Store, config: &Config, now: Timestamp) -> anyhow::Result<Option<Arc<Self>>> {
        let origins = store.log_origins()?;
        let is_new = origins.first().is_none_or(|newest| newest.k == 1 && newest.key.is_none());
        let Some(path) = key_file::path(config) else {
            ensure!(
                is_new,
                "the database has the transparency log {}: set log_key to the file with its key",
                origins[0].origin
            );
            tracing::warn!("there is no transparency log, since log_key is not set: nobody can verify the hand-outs");
            return Ok(None);
        };
        let key = KeyFile::read(&path)?;
        let key = match key {
            Some(key) => key,
            None if is_new => KeyFile::make(&path)?,
            None => bail!(
                "{} does not exist, and the database has the transparency log {}: copy the key file of its other servers, or \
                 from a backup",
                path.display(),
                origins[0].origin
            ),
        };
        store.begin_log(now)?;
        let named = store.name_packages()?;
        if named > 0 {
            tracing::info!(named, "named the KeyPackages for the log that a server of the version before has taken");
        }
        let log = Self {
            store: store.clone(),
            key,
            owners: Owners::default(),
            edge: Edge::default(),
            signers: Mutex::default(),
            recent: Mutex::default(),
            newest: Mutex::default(),
            outbox_end: Mutex::default(),
            drained: Mutex::new(Instant::now()),
            tiles: TileCache::default(),
        };
        let newest = store.log_origins()?.into_iter().next().context("the log that was begun has no row")?;
        log.signer(newest.k).with_context(|| format!("cannot use the key file {}", path.display()))?;
        Ok(Some(Arc::new(log)))
    }

    /// The key of a log. Records its public key if no server has done so.
    pub(super) fn signer(&self, k: i32) -> Result<Arc<SignerKey>, StoreError> {
        if let Some(signer) = lock(&self.signers).get(&k) {
            return Ok(Arc::clone(signer));
        }
        let find = || -> Result<OriginRow, StoreError> {
            let found = self.store.log_origins()?.into_iter().find(|origin| origin.k == k);
            found.ok_or_else(|| StoreError::fatal(anyhow::anyhow!("the database has no log {k}")))
        };
        let mut row = find()?;
        let signer = self.key.signer(&row.origin)?;
        let vkey = signer.verifier().to_string();
        if row.key.is_none() {
            let note = self.note_of_next(&row, &signer)?;
            self.store.adopt_log_key(k, &LogKey { key: vkey.clone(), note })?;
            row = find()?;
        }
        if row.key.as_ref() != Some(&vkey) {
            return Err(StoreError::fatal(anyhow::anyhow!(
                "it gives {vkey} for the log {}, whose key is {}: use the key file of the other servers",
                row.origin,
                row.key.unwrap_or_default()
            )));
        }
        let signer = Arc::new(signer);
        lock(&self.signers).insert(k, Arc::clone(&signer));
        Ok(signer)
    }

    /// The note by which the key of the log before names the key of this one.
    fn note_of_next(&self, row: &OriginRow, signer: &SignerKey) -> Result<Option<String>, StoreError> {
        let before = self.store.log_origins()?.into_iter().find(|origin| origin.k == row.k - 1);
        let Some(before) = before else { return Ok(None) };
        let old = match before.key {
            // Two restores came in a row, and no server has signed with the log between them. It gets its key now: else it would
            // break the chain of notes, and clients would take the new log for a stranger's.
            None => self.signer(before.k)?,
            Some(key) => {
                let old = self.key.signer(&before.origin)?;
                // Another key file gives another key, which cannot speak for the log before.
                if key != old.verifier().to_string() {
                    return Ok(None);
                }
                Arc::new(old)
            }
        };
        Ok(Some(key_note(&old, signer.verifier()).map_err(StoreError::fatal)?.to_string()))
    }

    /// The signed checkpoint of a tree that the store has read, and that is therefore durable.
    ///
    /// # Errors
    /// When the database fails, or the key is not the log's.
    pub fn sign(&self, state: &TreeState) -> Result<Note, StoreError> {
        if let Some((_, note)) = lock(&self.newest).as_ref().filter(|(signed, _)| signed == state) {
            return Ok(note.clone());
        }
        let signer = self.signer(state.k)?;
        let origin = signer.verifier().name().to_owned();
        let checkpoint = Checkpoint { origin, size: state.size, root: state.root };
        let note = checkpoint.sign(&signer).map_err(StoreError::fatal)?;
        *lock(&self.newest) = Some((*state, note.clone()));
        Ok(note)
    }

    /// The newest tree. The first one has its first entry.
    ///
    /// # Errors
    /// When the database fails.
    pub fn state(&self) -> Result<TreeState, StoreError> {
        let state = self.store.log_state()?;
        let state = state.ok_or_else(|| StoreError::fatal(anyhow::anyhow!("the log's state is missing")))?;
        self.saw(state);
        Ok(state)
    }

    /// A tree that was the newest one a moment ago: frequent requests read none of their own.
    pub(super) fn recent(&self) -> Result<TreeState, StoreError> {
        let recent = *lock(&self.recent);
        match recent {
            Some((at, state)) if at.elapsed() < RECENT => Ok(state),
            _ => self.state(),
        }
    }

    /// Remembers a tree that is durable.
    pub(super) fn saw(&self, state: TreeState) {
        *lock(&self.recent) = Some((Instant::now(), state));
    }

    /// The names and secrets of devices that it remembers.
    #[must_use]
    pub fn owners(&self) -> &Owners {
        &self.owners
    }
}
