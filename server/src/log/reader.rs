//! Reads the log for others: few at the same time, and full tiles from memory.

use actix_web::web::Bytes;
use keypool_transparency::{note::Note, tile::TileId};
use tokio::sync::SemaphorePermit;

use super::core::Log;
use crate::store::{OriginRow, StoreError};

impl Log {
    /// The logs, the newest first.
    pub(crate) fn origins(&self) -> Result<Vec<OriginRow>, StoreError> {
        let origins = self.store.log_origins()?;
        match origins.first() {
            // It began just now, after a restore.
            Some(newest) if newest.key.is_none() => {
                self.signer(newest.k)?;
                self.store.log_origins()
            }
            _ => Ok(origins),
        }
    }

    /// The checkpoint of a log; `None` if it has ended.
    pub(crate) fn checkpoint(&self, k: i32) -> Result<Option<Note>, StoreError> {
        let state = self.state()?;
        if state.k == k { self.sign(&state).map(Some) } else { Ok(None) }
    }

    /// Waits for a turn to read the log.
    pub(crate) async fn turn(&self) -> Option<SemaphorePermit<'_>> {
        self.tiles.turns.acquire().await.ok()
    }

    /// Waits for a turn to make proofs.
    pub(crate) async fn proof_turn(&self) -> Option<SemaphorePermit<'_>> {
        self.tiles.proofs.acquire().await.ok()
    }

    /// A full tile that was read before.
    pub(crate) fn remembered(&self, directory: &str, tile: &TileId) -> Option<Bytes> {
        if tile.is_full() { self.tiles.full.get(&(directory.to_owned(), *tile)) } else { None }
    }

    /// Reads a tile.
    pub(crate) fn tile(&self, (k, directory): (i32, &str), tile: &TileId) -> Result<Option<Bytes>, StoreError> {
        let found = self.store.log_tile(k, tile)?.map(Bytes::from);
        if let Some(bytes) = found.as_ref().filter(|_| tile.is_full()) {
            self.tiles.full.insert((directory.to_owned(), *tile), bytes.clone());
        }
        Ok(found)
    }
}
