//! Readiness, and the steps at start and stop of the server.

use std::{ops::ControlFlow, sync::Arc};

use super::Service;
use crate::{
    config::Config,
    problem::Failure,
    store::{Heard, StoreError},
};

impl Service {
    /// Records the signature keys of devices whose pools are older than the table of keys. Blocks.
    ///
    /// # Errors
    /// When the database fails.
    pub(crate) fn adopt_signature_keys(&self) -> Result<(), StoreError> {
        if !self.policy.binds_keys {
            return Ok(());
        }
        let keys = self.store.adopt_signature_keys(self.work.now())?;
        if keys > 0 {
            tracing::info!(keys, "recorded the signature keys of KeyPackages from before they were kept");
        }
        Ok(())
    }

    /// Listens for messages that other servers of the database have queued, as long as this service exists.
    ///
    /// # Errors
    /// When the database cannot be listened to.
    pub(crate) fn listen(&self, config: &Config) -> anyhow::Result<()> {
        let fetches = Arc::downgrade(&self.fetches);
        self.store.listen(config, move |heard| match (fetches.upgrade(), heard) {
            (None, _) => ControlFlow::Break(()),
            (Some(fetches), Heard::For(devices)) => {
                fetches.ring(&devices);
                ControlFlow::Continue(())
            }
            (Some(fetches), Heard::Unsure) => {
                fetches.ring_all();
                ControlFlow::Continue(())
            }
        })
    }

    /// Ends all waits for messages, and allows no new ones, because the server is stopping.
    pub(crate) fn stop_waiting(&self) {
        self.fetches.close();
    }

    /// Checks that the database answers, accepts writes, and agrees with this server's clock. Overload does not make a
    /// server unready: its requests would go to the other servers, which have as much load.
    pub async fn ready(&self) -> Result<(), Failure> {
        let store = self.store.clone();
        let check = move |_| {
            store.ping()?;
            store.compare_clocks()?;
            Ok::<_, Failure>(store.check_clock()?)
        };
        self.work.run_under_overload(check).await
    }
}
