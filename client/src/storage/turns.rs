//! Locks for calls that ask the server something between two transactions.

use tokio::sync::{Mutex, MutexGuard, watch};

/// The locks of a device. A call that is dropped releases its lock. A call that needs both takes that of the pool first.
#[derive(Debug, Default)]
pub(crate) struct Turns {
    pool: Mutex<()>,
    groups: Mutex<()>,
    /// The number of pages of messages that were processed.
    fetches: watch::Sender<u64>,
}

impl Turns {
    /// Waits for the turn to change the pool of KeyPackages or the signature keys.
    pub(crate) async fn pool(&self) -> MutexGuard<'_, ()> {
        self.pool.lock().await
    }

    /// Waits for the turn to change groups or to process the queue.
    pub(crate) async fn groups(&self) -> MutexGuard<'_, ()> {
        self.groups.lock().await
    }

    /// Sees each page of messages that is processed from now on. An older page may list messages that are done.
    pub(crate) fn fetches(&self) -> watch::Receiver<u64> {
        self.fetches.subscribe()
    }

    /// Records that a page of messages is about to be processed.
    pub(crate) fn fetched(&self) {
        self.fetches.send_modify(|fetches| *fetches += 1);
    }
}
