//! The service: what all verbs share.

use std::sync::Arc;

use jiff::Timestamp;

use super::{batches::Batches, policy::Policy};
use crate::{
    answers::Answers,
    config::Config,
    fetches::Fetches,
    limits::Limits,
    log::Log,
    problem::Failure,
    store::{AsOf, Store},
    work::Work,
};

/// The rules over the store. Cheap to clone.
#[derive(Clone)]
pub struct Service {
    pub(super) store: Store,
    pub(super) work: Work,
    pub(super) policy: Arc<Policy>,
    pub(super) limits: Arc<Limits>,
    /// The frequent requests, which share statements.
    pub(super) batches: Batches,
    /// The running fetches of messages, and the means to wake those that wait.
    pub(super) fetches: Arc<Fetches>,
    /// Memory for large answers.
    pub(super) answers: Arc<Answers>,
    /// The transparency log, if there is one.
    pub(super) log: Option<Arc<Log>>,
}

impl Service {
    /// Creates the service over this store with this configuration.
    ///
    /// # Errors
    /// When a setting cannot be used, for example a duration that is too long, or when the system cannot start a
    /// thread.
    pub(crate) fn new(
        (store, work): (Store, Work),
        config: &Config,
        limits: Arc<Limits>,
        (fetches, answers): (Arc<Fetches>, Arc<Answers>),
        log: Option<Arc<Log>>,
    ) -> anyhow::Result<Self> {
        let policy = Arc::new(Policy::of(config, &limits));
        let batches = Batches::start((&store, &work), config, &policy, log.as_ref())?;
        Ok(Self { store, work, policy, limits, batches, fetches, answers, log })
    }

    /// Runs a verb of the store on a thread that may block.
    pub(super) async fn block<T, E>(
        &self,
        verb: impl FnOnce(&Self, Timestamp) -> Result<T, E> + Send + 'static,
    ) -> Result<T, Failure>
    where
        T: Send + 'static,
        E: Send + 'static,
        Failure: From<E>,
    {
        let service = self.clone();
        self.work.run(move |now| verb(&service, now)).await
    }

    /// The time and rule by which states are read.
    pub(super) fn as_of(&self, now: Timestamp) -> AsOf {
        self.policy.as_of(now)
    }
}
