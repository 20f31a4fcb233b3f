//! What an auditor keeps of a log: its key, the last checkpoints, the edge of the tree, and the tags.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use keypool_transparency::{
    encoding::{Hash, Malformed, array_from_base64, base64},
    frontier::Frontier,
    note::{Note, VerifierKey},
};
use serde::{Deserialize, Serialize};

use crate::tags::Tags;

/// Why a state cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// A file of the state cannot be read or written.
    #[error("{0}: {1}")]
    File(PathBuf, io::Error),
    /// The state file is not one of ours, or damaged.
    #[error("{0}: {1}. Begin again with an empty --state directory")]
    Damaged(PathBuf, String),
    /// Another process uses the state.
    #[error("{0} is in use by another keypool-verify")]
    InUse(PathBuf),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Format {
    #[serde(rename = "keypool/audit/v1")]
    V1,
}

/// The state file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    format: Format,
    /// The log's key.
    pub key: VerifierKey,
    /// The newest signed checkpoint that was seen, whether or not it has been checked to its end.
    pub seen: Option<Note>,
    /// The last checkpoint whose leaves were all checked.
    pub checked: Option<Note>,
    /// How many leaves have been read, or are pruned. They are the beginning of the tree of `seen`.
    pub size: u64,
    /// The first leaf that was read: the log had pruned the entries before it.
    #[serde(default)]
    pub first: u64,
    /// The hashes of the partial tiles of the tree of that size, in base64.
    edge: Vec<Vec<String>>,
    /// The tags of the leaves that were read.
    pub tags: Tags,
}

/// A state in its directory, which is locked as long as this lives.
pub struct StateDirectory {
    directory: PathBuf,
    _lock: File,
}

impl State {
    /// The state before anything was read.
    pub fn new(key: VerifierKey) -> Self {
        let (format, tags) = (Format::V1, Tags::default());
        Self { format, key, seen: None, checked: None, size: 0, first: 0, edge: vec![Vec::new()], tags }
    }

    /// The edge of the tree.
    pub fn frontier(&self) -> Result<Frontier, Malformed> {
        let hash = |text: &String| array_from_base64("hash of an edge", text);
        let level = |level: &Vec<String>| level.iter().map(hash).collect::<Result<Vec<Hash>, _>>();
        Frontier::new(self.size, self.edge.iter().map(level).collect::<Result<_, _>>()?)
    }

    /// Notes how far has been read.
    pub fn set_frontier(&mut self, frontier: &Frontier) {
        self.size = frontier.size();
        let level = |level: &Vec<Hash>| level.iter().map(|hash| base64(hash)).collect();
        self.edge = frontier.edge().iter().map(level).collect();
    }
}

impl StateDirectory {
    /// Opens a directory, which is made if it is not there.
    pub fn open(directory: &Path) -> Result<Self, StateError> {
        let failed = |path: &Path, error| StateError::File(path.to_owned(), error);
        fs::create_dir_all(directory).map_err(|error| failed(directory, error))?;
        let path = directory.join("lock");
        let lock = File::create(&path).map_err(|error| failed(&path, error))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { directory: directory.to_owned(), _lock: lock }),
            Err(fs::TryLockError::WouldBlock) => Err(StateError::InUse(directory.to_owned())),
            Err(fs::TryLockError::Error(error)) => Err(failed(&path, error)),
        }
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.directory
    }

    fn file(&self) -> PathBuf {
        self.directory.join("state.json")
    }

    /// Reads the state; `None` if there is none yet. Files of an interrupted run are removed.
    pub fn load(&self) -> Result<Option<State>, StateError> {
        let path = self.file();
        let json = match fs::read(&path) {
            Ok(json) => json,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(StateError::File(path, error)),
        };
        let state: State =
            serde_json::from_slice(&json).map_err(|error| StateError::Damaged(path.clone(), error.to_string()))?;
        state.frontier().map_err(|error| StateError::Damaged(path, error.to_string()))?;
        state
            .tags
            .check_files(&self.directory)
            .map_err(|path| StateError::Damaged(path, "it has another length than when it was written".to_owned()))?;
        self.clean(&state)?;
        Ok(Some(state))
    }

    /// Replaces the state file: after a crash it is the old or the new one.
    pub fn save(&self, state: &State) -> Result<(), StateError> {
        let (path, new) = (self.file(), self.directory.join("state.json.new"));
        let write = || {
            let json = serde_json::to_vec(state).map_err(io::Error::other)?;
            let mut file = File::create(&new)?;
            file.write_all(&json)?;
            file.sync_all()?;
            fs::rename(&new, &path)?;
            File::open(&self.directory)?.sync_all()
        };
        write().map_err(|error| StateError::File(path.clone(), error))?;
        self.clean(state)
    }

    fn clean(&self, state: &State) -> Result<(), StateError> {
        let failed = |error| StateError::File(self.directory.clone(), error);
        state.tags.remove_others(&self.directory).map_err(failed)
    }
}
