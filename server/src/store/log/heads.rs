//! How the logs of the database stand to a checkpoint that a client has seen.

use keypool_transparency::{checkpoint::Checkpoint, encoding::Hash, statement::Heir};

use super::{
    paths::Paths,
    state::{self, TreeState},
};
use crate::store::database::{Conn, Store, StoreError};

/// The most restores between the log that a client names and the newest one: each adds an entry of some 200 bytes and its path.
const MOST_HEIRS: i32 = 32;

/// How a tree continues the beginning of a log.
#[derive(Clone, Debug, Default)]
pub struct Continuation {
    /// The consistency path to the tree, or to what the first heir kept of the log.
    pub consistency: Vec<Hash>,
    /// The logs from the one that kept the log to the one of the tree.
    pub heirs: Vec<Heir>,
}

/// How the logs of the database stand to a signed checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// The newest log has the checkpoint's tree as its beginning, or keeps it.
    Continued,
    /// The log that the checkpoint is of has fewer leaves here, or is not here: the database went back.
    RolledBack {
        /// Whether the server has noticed: the log has ended, and the newest one continues what is left of it.
        is_noticed: bool,
    },
    /// The log has other leaves.
    Forked,
    /// The tiles that would show it are pruned.
    Pruned,
}

fn since(conn: &mut Conn<'_>, state: TreeState, origin: &str, size: u64) -> Result<Continuation, StoreError> {
    let mut paths = Paths::of(conn, state)?;
    let Some(k) = paths.number_of(origin).filter(|k| state.k.saturating_sub(*k) <= MOST_HEIRS) else {
        return Ok(Continuation::default());
    };
    let Some(heirs) = paths.heirs(k)? else { return Ok(Continuation::default()) };
    Ok(Continuation { consistency: paths.consistency(k, size)?, heirs })
}

fn standing(conn: &mut Conn<'_>, checkpoint: &Checkpoint) -> Result<Option<Standing>, StoreError> {
    let Some(state) = state::read(conn)? else { return Ok(None) };
    let mut paths = Paths::of(conn, state)?;
    let found = paths.number_of(&checkpoint.origin).and_then(|k| Some((k, paths.kept_of(k)?)));
    let Some((k, (size, root))) = found else { return Ok(Some(Standing::RolledBack { is_noticed: false })) };
    Ok(Some(if checkpoint.size > size {
        Standing::RolledBack { is_noticed: k < state.k }
    } else {
        let root = if checkpoint.size == size { Some(root) } else { paths.root(k, checkpoint.size)? };
        match root {
            None => Standing::Pruned,
            Some(root) if root == checkpoint.root => Standing::Continued,
            Some(_) => Standing::Forked,
        }
    }))
}

impl Store {
    /// How a tree continues the beginning of a log. Both parts are empty if the log is unknown.
    ///
    /// # Errors
    /// When the database fails.
    pub fn log_since(&self, state: &TreeState, origin: &str, size: u64) -> Result<Continuation, StoreError> {
        self.read(|conn| since(conn, *state, origin, size))
    }

    /// How a tree continues its own beginning, as [`Self::log_since`].
    ///
    /// # Errors
    /// When the database fails.
    pub fn log_consistency(&self, state: &TreeState, size: u64) -> Result<Vec<Hash>, StoreError> {
        self.read(|conn| Paths::of_newest(conn, *state).consistency(state.k, size))
    }

    /// How the logs of the database stand to a checkpoint, whose signature the caller has verified. `None` if the database has no
    /// log.
    ///
    /// # Errors
    /// When the database fails, or the log's tiles are damaged.
    pub fn log_standing(&self, checkpoint: &Checkpoint) -> Result<Option<Standing>, StoreError> {
        self.read(|conn| standing(conn, checkpoint))
    }
}
