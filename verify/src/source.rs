//! Where a log's checkpoint, tiles and bundles come from: a directory or a URL.

use std::{
    fs, io,
    path::PathBuf,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use keypool_transparency::{
    encoding::Malformed,
    note::{MAX_NOTE, Note},
    tile::TileId,
    tree::TileStore,
};

use crate::http::{Client, HttpError};

/// The most bytes of an entry bundle that are read: those of 256 entries of 2 KiB.
const MAX_BUNDLE: u64 = 256 * 2050;

/// The most requests at once.
const CONNECTIONS: usize = 8;

/// Why a log cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// A URL cannot be fetched.
    #[error(transparent)]
    Http(#[from] HttpError),
    /// A file cannot be read.
    #[error("{0}: {1}")]
    File(PathBuf, io::Error),
    /// The checkpoint is no note.
    #[error("the checkpoint: {0}")]
    Checkpoint(Malformed),
    /// Something is not there.
    #[error("{0} is missing")]
    Missing(String),
}

/// A log's files.
pub enum Source {
    /// Below a directory.
    Directory(PathBuf),
    /// Below a URL.
    Http(Client),
}

impl Source {
    /// A directory, or what begins with `http://` or `https://`.
    pub fn new(log: &str) -> Result<Self, SourceError> {
        if log.starts_with("http://") || log.starts_with("https://") {
            return Ok(Self::Http(Client::new(log)?));
        }
        Ok(Self::Directory(log.into()))
    }

    fn get(&self, path: &str, max_size: u64) -> Result<Option<Vec<u8>>, SourceError> {
        match self {
            Self::Http(client) => Ok(client.get(path, max_size)?),
            Self::Directory(directory) => {
                let file = directory.join(path);
                match fs::read(&file) {
                    Ok(bytes) => Ok(Some(bytes)),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                    Err(error) => Err(SourceError::File(file, error)),
                }
            }
        }
    }

    /// The newest checkpoint. Nothing is verified.
    pub fn checkpoint(&self) -> Result<Note, SourceError> {
        let bytes = self.get("checkpoint", MAX_NOTE as u64)?;
        let bytes = bytes.ok_or_else(|| SourceError::Missing("the log's checkpoint".to_owned()))?;
        String::from_utf8_lossy(&bytes).parse().map_err(SourceError::Checkpoint)
    }

    /// Tiles and bundles, several at a time, in the order of `tiles`.
    pub fn read_all(&self, tiles: &[TileId]) -> Vec<Result<Vec<u8>, SourceError>> {
        let next = AtomicUsize::new(0);
        let work = || {
            let mut done = Vec::new();
            while let Some((index, tile)) =
                Some(next.fetch_add(1, Ordering::Relaxed)).and_then(|index| Some((index, tiles.get(index)?)))
            {
                let bytes =
                    self.read(tile).and_then(|bytes| bytes.ok_or_else(|| SourceError::Missing(tile.to_string())));
                done.push((index, bytes));
            }
            done
        };
        // Files are read from this thread: what the disk's cache has comes at once.
        let connections = if matches!(self, Self::Http(_)) { CONNECTIONS.min(tiles.len()) } else { 1 };
        let mut read: Vec<_> = if connections < 2 {
            work()
        } else {
            thread::scope(|scope| {
                let threads: Vec<_> = (0..connections).map(|_| scope.spawn(work)).collect();
                threads.into_iter().flat_map(|thread| thread.join().unwrap_or_default()).collect()
            })
        };
        read.sort_by_key(|(index, _)| *index);
        read.into_iter().map(|(_, bytes)| bytes).collect()
    }
}

impl TileStore for Source {
    type Error = SourceError;

    /// A partial tile, or the full one that has replaced it.
    fn read(&self, tile: &TileId) -> Result<Option<Vec<u8>>, SourceError> {
        let bytes = self.get(&tile.to_string(), MAX_BUNDLE)?;
        if bytes.is_some() || tile.is_full() {
            return Ok(bytes);
        }
        self.get(&TileId { width: 256, ..*tile }.to_string(), MAX_BUNDLE)
    }
}
