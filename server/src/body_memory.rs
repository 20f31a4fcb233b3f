//! Memory limit for the bodies of requests and the values parsed from them.

use std::sync::Arc;

use keypool_openapi::ProblemType;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{metrics::Metrics, problem::Failure};

/// Memory of a request as a multiple of its body: the values parsed from it take as much again.
const TAKES_OF_BODIES: usize = 2;

/// Bodies up to this size have a quarter of the memory reserved for them.
const MODERATE_BODY: usize = 128 * 1024;

/// Bounds the memory of all bodies that are not small.
pub(crate) struct BodyMemory {
    /// One permit for each KiB.
    permits: Arc<Semaphore>,
    /// The part that is reserved for moderate bodies, in KiB.
    reserved: usize,
    metrics: Arc<Metrics>,
}

impl BodyMemory {
    pub(crate) fn new(bytes: usize, metrics: Arc<Metrics>) -> Self {
        let kib = bytes / 1024;
        Self { permits: Arc::new(Semaphore::new(kib)), reserved: kib / 4, metrics }
    }

    /// Takes memory for a body and the values parsed from it, until the answer is dropped.
    ///
    /// # Errors
    /// `unavailable` if too many large bodies are being handled.
    pub(crate) fn take(&self, bytes: usize) -> Result<OwnedSemaphorePermit, Failure> {
        let kib = (bytes * TAKES_OF_BODIES).div_ceil(1024);
        let reserved = if bytes > MODERATE_BODY { self.reserved } else { 0 };
        let is_free = self.permits.available_permits() >= kib + reserved;
        let kib = u32::try_from(kib).unwrap_or(u32::MAX);
        let taken = if is_free { Arc::clone(&self.permits).try_acquire_many_owned(kib).ok() } else { None };
        taken.ok_or_else(|| {
            self.metrics.shed();
            Failure::new(
                ProblemType::Unavailable,
                "The server has too many large requests at once. Try again in a moment, or send less at a time.",
            )
        })
    }
}
