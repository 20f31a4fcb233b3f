//! Runs blocking work on separate threads, with a bounded number of waiting requests.

use std::sync::Arc;

use jiff::Timestamp;
use keypool_openapi::ProblemType;
use tokio::sync::Semaphore;

use crate::{clock::Clock, metrics::Metrics, problem::Failure};

/// Runs the store's verbs. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Work {
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
    /// One permit for each request that may wait for the database.
    permits: Arc<Semaphore>,
}

impl Work {
    pub(crate) fn new(clock: Arc<dyn Clock>, metrics: Arc<Metrics>, most_waiting: usize) -> Self {
        Self { clock, metrics, permits: Arc::new(Semaphore::new(most_waiting)) }
    }

    pub(crate) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Runs a verb on a thread that may block. If too many requests wait already, fails at once: the client would give
    /// up before its turn.
    pub(crate) async fn run<T, E>(
        &self,
        verb: impl FnOnce(Timestamp) -> Result<T, E> + Send + 'static,
    ) -> Result<T, Failure>
    where
        T: Send + 'static,
        E: Send + 'static,
        Failure: From<E>,
    {
        let permit = Arc::clone(&self.permits).try_acquire_owned().map_err(|_| self.overloaded())?;
        self.run_under_overload(move |now| {
            // Held until the work is done, even if the request was dropped.
            let _permit = permit;
            verb(now)
        })
        .await
    }

    /// Like [`Self::run`], without the bound on waiting requests: for work that must continue under overload.
    pub(crate) async fn run_under_overload<T, E>(
        &self,
        verb: impl FnOnce(Timestamp) -> Result<T, E> + Send + 'static,
    ) -> Result<T, Failure>
    where
        T: Send + 'static,
        E: Send + 'static,
        Failure: From<E>,
    {
        let (clock, request) = (Arc::clone(&self.clock), tracing::Span::current());
        let result = tokio::task::spawn_blocking(move || {
            let _request = request.entered();
            verb(clock.now())
        });
        Ok(result.await.map_err(|_| not_finished())??)
    }

    /// The failure of a request that exceeds the bound on waiting requests.
    pub(crate) fn overloaded(&self) -> Failure {
        self.metrics.shed();
        Failure::new(ProblemType::Unavailable, "Too many requests wait for the database. Try again in a moment.")
    }
}

/// The failure of a request whose work ended without an answer.
pub(crate) fn not_finished() -> Failure {
    Failure::new(
        ProblemType::Unavailable,
        "The server did not finish the request: it is stopping, or its log shows a fault. Try again.",
    )
}
