//! What reads of the log share.

use actix_web::web::Bytes;
use keypool_transparency::tile::TileId;
use moka::sync::Cache;
use tokio::sync::Semaphore;

/// The most reads of strangers, and the most requests for proofs, that are answered at the same time.
const AT_ONCE: usize = 4;

/// Memory for full tiles, in bytes: an auditor and its siblings read the same ones.
const MEMORY: u64 = 8 * 1024 * 1024;

/// What reads of the log share.
pub(super) struct TileCache {
    pub turns: Semaphore,
    /// The proofs that are made at the same time.
    pub proofs: Semaphore,
    /// Full tiles, by log and path.
    pub full: Cache<(String, TileId), Bytes>,
}

impl Default for TileCache {
    fn default() -> Self {
        let weight = |_: &_, bytes: &Bytes| u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let full = Cache::builder().max_capacity(MEMORY).weigher(weight).build();
        Self { turns: Semaphore::new(AT_ONCE), proofs: Semaphore::new(AT_ONCE), full }
    }
}
