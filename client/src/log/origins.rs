//! The keys of the server's logs, and whether a checkpoint continues the one before it.

use std::{collections::HashMap, convert::Infallible};

use keypool_openapi::{LogHead, LogInfo, LogOrigin, LogSize};
use keypool_transparency::{
    checkpoint::{BadNote, Checkpoint},
    encoding::Hash,
    history::{Head, Succession},
    note::Note,
    tile::TileId,
    tree::{TileStore, Tree, TreeError},
};
use tracing::{info, warn};

use super::{Known, ServerLog, read_key};
use crate::{
    error::{Error, Result},
    finding::LogError,
    storage::LogRow,
};

/// The most tiles that a path takes: a few for each level of the largest tree.
const MOST_TILES: usize = 64;

/// Tiles that were fetched.
#[derive(Default)]
struct Tiles(HashMap<TileId, Vec<u8>>);

impl TileStore for Tiles {
    type Error = Infallible;

    fn read(&self, tile: &TileId) -> std::result::Result<Option<Vec<u8>>, Infallible> {
        Ok(self.0.get(tile).cloned())
    }
}

/// A checkpoint that a request names, so that the answer shows how the log continues it.
pub(crate) struct Kept {
    note: Note,
    /// Its log and size.
    pub(crate) place: LogSize,
}

impl ServerLog<'_> {
    /// The newest checkpoint that this device has verified, for the server to show how its log continues.
    pub(crate) fn kept(&self) -> Result<Option<Kept>> {
        let Some(note) = self.known()?.checkpoint()? else { return Ok(None) };
        let Checkpoint { origin, size, .. } = Checkpoint::unverified(&note)
            .map_err(|error| Error::Damaged(format!("a checkpoint cannot be read: {error}")))?;
        Ok(Some(Kept { note, place: LogSize { origin, size } }))
    }

    /// Reads what the server shows with the status of the pool.
    pub(super) fn read_head(&self, head: &LogHead) -> Result<Head> {
        serde_json::to_value(head)
            .and_then(serde_json::from_value)
            .map_err(|error| self.api.unexpected(format!("the checkpoint of its log: {error}")))
    }

    /// Takes over the newest checkpoint of the server, if it continues the one that the request named. Answers it, and how many
    /// leaves the log has lost in a restore.
    pub(super) async fn follow(&self, head: &Head, named: Option<&Kept>) -> Result<(Checkpoint, u64)> {
        let (known, new) = self.read_checkpoint(&head.checkpoint).await?;
        let lost = match named {
            Some(kept) => self.compare(&kept.note, head, &new, &known).await?,
            None => Some(0),
        };
        // Another call may have kept a newer one meanwhile, with which this one was not compared.
        let is_newest = self.known()?.checkpoint()?.as_ref() == named.map(|kept| &kept.note);
        if lost.is_some() && is_newest {
            self.store.set_checkpoint(&new.origin, &head.checkpoint.to_string())?;
        }
        Ok((new, lost.unwrap_or_default()))
    }

    /// How many leaves the log has lost since the kept checkpoint; `None` if the new one is older.
    async fn compare(&self, kept: &Note, head: &Head, new: &Checkpoint, known: &Known) -> Result<Option<u64>> {
        let unreadable = |error: BadNote| Error::Damaged(format!("a checkpoint cannot be read: {error}"));
        let report = || [kept, &head.checkpoint].map(Note::to_string).concat();
        let old = known.keys.checkpoint(kept).map_err(unreadable)?;
        let shown = match head.succession(kept, &known.keys).map_err(unreadable)? {
            // The log's own tiles may show that the two contradict each other.
            Succession::NotShown if new.origin == old.origin => {
                let consistency = self.explicit_path(new, old.size).await?;
                let head = Head { consistency, ..head.clone() };
                head.succession(kept, &known.keys).map_err(unreadable)?
            }
            shown => shown,
        };
        Ok(match shown {
            Succession::Continues => Some(0),
            // A replica or a cache may lag behind.
            Succession::Older => None,
            Succession::Shortened { kept } => {
                let lost = old.size.saturating_sub(kept);
                warn!(lost, "the server was restored from a backup, and its log has lost leaves");
                Some(lost)
            }
            Succession::OtherLog if was_given(new, known) => Some(0),
            // A log without an entry cannot show it yet, and a replica or a cache may lag behind.
            Succession::OtherLog if new.size == 0 || is_before(new, &old, known) => None,
            Succession::Forked(evidence) => {
                let problem = "it has signed two histories of its log".to_owned();
                return Err(self.raise(problem, Some(*evidence), known, report));
            }
            Succession::NotShown | Succession::OtherLog => {
                let problem = "its log does not continue as the checkpoint says that it signed before".to_owned();
                return Err(self.raise(problem, None, known, report));
            }
        })
    }

    /// The consistency path that the tiles of a log give, with its first hash explicit; empty if they give none.
    async fn explicit_path(&self, new: &Checkpoint, old: u64) -> Result<Vec<Hash>> {
        let mut tiles = Tiles::default();
        let directory = new.origin.rsplit('/').next().unwrap_or_default();
        for _ in 0..MOST_TILES {
            let path = Tree::new(&tiles, new.size).explicit_consistency(old);
            match path {
                Ok(path) => return Ok(path),
                Err(TreeError::Missing(tile)) => {
                    let bytes = self.api.log_tile(&format!("log/{directory}/{tile}")).await?;
                    tiles.0.insert(tile, bytes);
                }
                Err(_) => break,
            }
        }
        Ok(Vec::new())
    }

    fn origin_of(&self, note: &Note) -> Result<String> {
        let found =
            Checkpoint::unverified(note).map_err(|error| self.api.unexpected(format!("its checkpoint: {error}")))?;
        Ok(found.origin)
    }

    /// Verifies the signature of a checkpoint, and learns the key of its log where that is new.
    async fn read_checkpoint(&self, note: &Note) -> Result<(Known, Checkpoint)> {
        let mut known = self.known()?;
        if known.keys.get(&self.origin_of(note)?).is_none() {
            known = self.learn().await?;
        }
        let checkpoint = known
            .keys
            .checkpoint(note)
            .map_err(|error| self.api.unexpected(format!("a checkpoint that this device does not believe: {error}")))?;
        Ok((known, checkpoint))
    }

    /// Asks for the server's logs, and believes the keys that a believed one names; of the first log, the key that the server
    /// gives.
    pub(super) async fn learn(&self) -> Result<Known> {
        let LogInfo { origin: newest, before, .. } = self.api.log_info().await?;
        let mut known = self.known()?;
        if known.rows.is_empty() {
            info!(origin = newest.origin, "this device believes the key of the server's log from now on");
            self.believe(&newest.origin, &newest.key, None)?;
            return self.known();
        }
        for LogOrigin { origin, key, key_note, .. } in before.iter().rev().chain([&newest]) {
            if known.rows.iter().any(|row| row.origin == *origin) {
                continue;
            }
            let Some(text) = key_note else { continue };
            let note: Note =
                text.parse().map_err(|error| self.api.unexpected(format!("the key note of {origin}: {error}")))?;
            let is_named = known.keys.follow(&note).is_ok()
                && known.keys.get(origin).is_some_and(|named| named.to_string() == *key);
            if is_named {
                self.believe(origin, key, Some(text))?;
            }
            known = self.known()?;
        }
        if known.keys.get(&newest.origin).is_none() {
            return Err(LogError::Untrusted { origin: newest.origin, key: newest.key }.into());
        }
        Ok(known)
    }

    fn believe(&self, origin: &str, key: &str, key_note: Option<&str>) -> Result<()> {
        let of = read_key(key).map_err(|_| self.api.unexpected(format!("{key:?} as the key of its log")))?;
        if of.name() != origin || !of.signs_notes() {
            return Err(self.api.unexpected(format!("the key of {} as that of its log {origin}", of.name())));
        }
        let key_note = key_note.map(str::to_owned);
        self.store.put_log(&LogRow {
            origin: origin.to_owned(),
            key: key.to_owned(),
            key_note,
            checkpoint: None,
            seen_at: self.now(),
        })
    }

    /// Believes the key of a log from now on: the user was given it by the operator, after the old key was lost or stolen.
    ///
    /// # Errors
    /// [`Error::Config`] if it is no key of a log.
    pub fn trust(&self, key: &str) -> Result<()> {
        let refused = |why: &str| Error::Config(format!("{key:?} is no key of a log: {why}"));
        let parsed = read_key(key).map_err(|_| refused("a vkey is NAME+ID+KEY, as GET /log of the server shows it"))?;
        if !parsed.signs_notes() {
            return Err(refused("it does not sign notes"));
        }
        let row = LogRow {
            origin: parsed.name().to_owned(),
            key: parsed.to_string(),
            key_note: None,
            checkpoint: None,
            seen_at: self.now(),
        };
        self.store.put_log(&row)
    }
}

/// Whether the user has given the key of this log, so that it need not continue another one.
fn was_given(new: &Checkpoint, known: &Known) -> bool {
    let row = known.rows.iter().find(|row| row.origin == new.origin);
    row.is_some_and(|row| row.key_note.is_none() && row.checkpoint.is_none())
}

/// Whether a checkpoint is of an older log than another one.
fn is_before(new: &Checkpoint, old: &Checkpoint, known: &Known) -> bool {
    let place = |checkpoint: &Checkpoint| known.rows.iter().position(|row| row.origin == checkpoint.origin);
    place(new) < place(old)
}
