//! Receives the messages in this device's queue on the server.

use std::collections::BTreeSet;

use keypool_openapi::{AckRequest, MessageKind, MessagesPage, QueuedMessage, RefusalReason, RefusedMessage};
use tracing::warn;

use super::{
    group::GroupState,
    incoming::{Event, Incoming},
    membership::MlsMembership,
};
use crate::{
    error::{Error, Result},
    identity_check::Standings,
};

/// The number of messages in one page.
const PAGE: u32 = 100;

/// The largest number of pages that one call processes. The rest stays in the queue.
const MAX_PAGES: usize = 1_000;

impl MlsMembership<'_> {
    /// Processes this device's queue, and returns everything that is not marked as done yet, oldest first. If there is
    /// nothing, waits up to `wait` seconds.
    ///
    /// Returns the same items again until [`MlsMembership::done`] is called with them, so that a crash loses nothing.
    /// While it waits, other calls go on; what one of them finds in the queue ends the wait.
    pub async fn receive(&self, wait: u32) -> Result<Vec<Incoming>> {
        let mut turn = self.store.turns.groups().await;
        self.settle_in_turn().await?;
        let mut first = None;
        if wait > 0 && self.store.inbox()?.is_empty() {
            let mut fetches = self.store.turns.fetches();
            drop(turn);
            first = tokio::select! {
                biased;
                _ = fetches.changed() => None,
                page = self.page(wait) => Some(page?),
            };
            turn = self.store.turns.groups().await;
            // Another call may have processed the same messages meanwhile.
            first = first.filter(|_| fetches.has_changed().is_ok_and(|changed| !changed));
        }
        self.process_queue(first).await?;
        self.come_back_everywhere().await?;
        self.look_for_groups_in_turn().await;
        if let Err(error) = self.commit_to_all_proposals().await {
            // Another member may commit them. Return what arrived anyway.
            warn!(error = error.with_causes(), "could not commit the proposals of other members");
        }
        self.bring_in_arrivals().await?;
        let read = |json: String| {
            serde_json::from_str(&json).map_err(|error| Error::Damaged(format!("the inbox cannot be read: {error}")))
        };
        let incoming = self.store.inbox()?.into_iter().map(read).collect();
        drop(turn);
        incoming
    }

    /// Marks received items as done, so that [`Self::receive`] does not return them again.
    pub fn done(&self, incoming: &[Incoming]) -> Result<()> {
        self.store.transaction(|| incoming.iter().try_for_each(|one| self.store.delete_from_inbox(one.id)))
    }

    /// Settles pending Commits and processes the queue.
    pub(crate) async fn process_waiting(&self) -> Result<()> {
        let _turn = self.store.turns.groups().await;
        self.catch_up_in_turn().await
    }

    /// Settles pending Commits and processes the queue. Other members ignore or cannot read what this device sends in a
    /// past epoch. The caller has the turn.
    pub(super) async fn catch_up_in_turn(&self) -> Result<()> {
        self.settle_in_turn().await?;
        self.process_queue(None).await?;
        self.come_back_everywhere().await
    }

    /// Processes the queue, because the server is in another epoch of a group than this device: the Commits that came
    /// first are in the queue. If they are not, this device missed one, and comes back if it can.
    pub(super) async fn catch_up_with(&self, group_id: &[u8], epoch: Option<u64>) -> Result<()> {
        self.process_queue(None).await?;
        let own = self.load_group(group_id)?.epoch().as_u64();
        if epoch.is_some_and(|epoch| epoch > own) && self.state_of(group_id)? == GroupState::Active {
            self.fall_behind(group_id)?;
        }
        self.come_back_everywhere().await
    }

    /// A page of the queue. Waits up to `wait` seconds for a message.
    async fn page(&self, wait: u32) -> Result<MessagesPage> {
        let known = self.store.own_devices()?.map(|(version, _)| version);
        self.connection.api().messages(wait, PAGE, known).await
    }

    /// Processes the queue, page by page, until it is empty. Begins with the page `first` if it is given. Fails if the
    /// server sends a message that was acknowledged. The caller has the turn.
    ///
    /// If the identity check has no answer, the message and the later ones stay in the queue.
    pub(super) async fn process_queue(&self, mut first: Option<MessagesPage>) -> Result<()> {
        let mut acknowledged = BTreeSet::new();
        for _ in 0..MAX_PAGES {
            let page = match first.take() {
                Some(page) => page,
                None => self.page(0).await?,
            };
            self.watch_own_devices(page.devices_version).await;
            let page = page.messages;
            if page.is_empty() {
                return Ok(());
            }
            self.store.turns.fetched();
            if page.iter().any(|message| !acknowledged.insert(message.id)) {
                return Err(self.connection.api().unexpected("a message that was acknowledged before"));
            }
            let (mut done, mut strange) = (AckRequest::default(), Vec::new());
            // All messages of the page were sent before the first check, so its answers are valid for the whole page.
            let (mut standings, mut outcome) = (Standings::default(), Ok(()));
            for message in &page {
                match self.process_with_checks(message, &mut standings).await {
                    Ok(Some(Event::KeysGone { .. })) => done.unreadable.push(message.id),
                    Ok(Some(Event::Refused { kind: MessageKind::Welcome | MessageKind::Commit, reason, .. })) => {
                        done.refused.push(RefusedMessage { id: message.id, reason });
                    }
                    Ok(Some(Event::Stranger)) => strange.push(message),
                    Ok(_) => done.ids.push(message.id),
                    Err(error) => {
                        outcome = Err(error);
                        break;
                    }
                }
            }
            for message in strange {
                // A Welcome that came after it may have brought this device into the group.
                match self.load_group(&message.group_id.0) {
                    Ok(_) => done.ids.push(message.id),
                    Err(_) => {
                        done.refused.push(RefusedMessage { id: message.id, reason: RefusalReason::KeysGone });
                    }
                }
            }
            if done != AckRequest::default() {
                self.connection.api().acknowledge(&done).await?;
            }
            outcome?;
        }
        Ok(())
    }

    /// Processes one message, and asks the identity check about the leaves that it brings.
    async fn process_with_checks(&self, message: &QueuedMessage, standings: &mut Standings) -> Result<Option<Event>> {
        loop {
            match self.process_once(message, standings) {
                Err(Error::Unchecked { leaves }) => self.check_leaves(&leaves, standings).await?,
                outcome => return outcome,
            }
        }
    }
}
