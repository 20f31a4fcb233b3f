//! Messages: out to the members of a group, and in from this device's queue on the server.

use std::collections::BTreeSet;

use jiff::Timestamp;
use keypool_openapi::{AckRequest, Base64Bytes, DeviceOf, MessageKind, MessageRequest, QueuedMessage, Undelivered};
use openmls::prelude::{MlsGroup, ProcessedMessageContent, Sender};
use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use super::{
    MlsMembership,
    commits::{group_path, members_of, warn_of},
    membership::{decode, encode},
};
use crate::error::{Error, Result};

/// How many messages are fetched at once.
const PAGE: u32 = 100;

/// How many pages are taken in by one call. What is left stays in the queue for the next one.
const MAX_PAGES: usize = 1_000;

/// What travels inside of application messages.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Content {
    /// What somebody says.
    Text(String),
    /// How the group is called: the server never sees it.
    GroupName(String),
}

/// Something that came, and what it came to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Incoming {
    /// Names it in [`MlsMembership::done`].
    pub id: u64,
    /// The group, in hex.
    pub group: String,
    /// When it was sent.
    pub sent_at: Timestamp,
    /// What it is.
    #[serde(flatten)]
    pub what: What,
}

/// What came.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum What {
    /// Somebody says something.
    Text {
        /// Who, as their credential says.
        sender: String,
        /// What.
        text: String,
    },
    /// This device was added to the group.
    Joined {
        /// Who sent the Welcome.
        by: DeviceOf,
    },
    /// The group changed: members, keys, or its name.
    Changed,
    /// This device was removed from the group, or has left it.
    Removed,
    /// A device could not open the Welcome that this device sent it, and is in the group all the same: remove its user,
    /// with all of the user's devices, and invite them again.
    Unreadable {
        /// Which device.
        device: DeviceOf,
    },
    /// A Welcome came for a KeyPackage whose private keys are gone; its sender was told.
    KeysGone {
        /// Who sent it.
        by: DeviceOf,
    },
    /// Something old, repeated, or not for this device. Nothing to do.
    Ignored {
        /// Why.
        why: String,
    },
}

impl MlsMembership<'_> {
    /// Sends a text to all other members of a group, in the epoch that the group is in by now. What comes meanwhile is
    /// answered by the next [`MlsMembership::receive`].
    ///
    /// Answers the devices that the server could not queue it for.
    pub async fn send(&self, group_id: &[u8], text: &str) -> Result<Vec<Undelivered>> {
        self.catch_up().await?;
        // Nothing can be said while something is proposed (RFC 9420, section 12.4).
        self.commit_to_proposals(group_id).await?;
        self.send_content(group_id, &Content::Text(text.to_owned())).await
    }

    /// Tells the members of a group how it is called. What fails is told at the next addition.
    pub(super) async fn tell_name(&self, group_id: &[u8]) {
        let told = async {
            let row = self.store.groups()?.into_iter().find(|row| row.group_id == group_id);
            match row.and_then(|row| row.name) {
                Some(name) => self.send_content(group_id, &Content::GroupName(name)).await,
                None => Ok(Vec::new()),
            }
        };
        match told.await {
            Ok(undelivered) => warn_of(&undelivered),
            Err(error) => warn!(%error, "could not tell the group's name"),
        }
    }

    async fn send_content(&self, group_id: &[u8], content: &Content) -> Result<Vec<Undelivered>> {
        let mut group = self.load_group(group_id)?;
        let recipients = self.others_in(&group);
        if recipients.is_empty() {
            return Ok(Vec::new());
        }
        let bytes = serde_json::to_vec(content)
            .map_err(|error| Error::Damaged(format!("a message cannot be written: {error}")))?;
        let signer = self.identity.signer_in(self.store, &group)?;
        let message = self.store.transaction(|| {
            let message = group
                .create_message(&self.store.provider(), &signer, &bytes)
                .map_err(|error| Error::mls("encrypt the message")(error.into()))?;
            encode(&message)
        })?;
        self.post(group_id, message, recipients).await
    }

    async fn post(&self, group_id: &[u8], message: Vec<u8>, recipients: Vec<DeviceOf>) -> Result<Vec<Undelivered>> {
        let request = MessageRequest { message: Base64Bytes(message), recipients };
        Ok(self.connection.api().send_message(&group_path(group_id)?, &request).await?.undelivered)
    }

    /// Asks the others to remove this device from a group: a device cannot remove itself (RFC 9420, section 12.2). It is
    /// out when one of them has committed to that. A group without others is gone at once.
    ///
    /// Answers the devices that the server could not queue it for.
    pub async fn leave(&self, group_id: &[u8]) -> Result<Vec<Undelivered>> {
        self.catch_up().await?;
        let mut group = self.load_group(group_id)?;
        let recipients = self.others_in(&group);
        if recipients.is_empty() {
            self.forget_group(&mut group)?;
            return Ok(Vec::new());
        }
        let signer = self.identity.signer_in(self.store, &group)?;
        let message = self.store.transaction(|| {
            let proposal = group
                .leave_group(&self.store.provider(), &signer)
                .map_err(|error| Error::mls("propose to leave the group")(error.into()))?;
            encode(&proposal)
        })?;
        self.post(group_id, message, recipients).await
    }

    /// Takes in what waits in this device's queue, and answers all that was not dealt with yet, the oldest first. Waits
    /// so many seconds for something where there is nothing.
    ///
    /// What is answered is answered again until [`MlsMembership::done`] is called with it: a crash loses nothing.
    pub async fn receive(&self, wait: u32) -> Result<Vec<Incoming>> {
        self.settle().await?;
        let wait = if self.store.inbox()?.is_empty() { wait } else { 0 };
        self.take_in(wait).await?;
        if let Err(error) = self.commit_to_all_proposals().await {
            // Another member may do it, and what came is told all the same.
            warn!(error = error.with_causes(), "could not commit to what others proposed");
        }
        let read = |json: String| {
            serde_json::from_str(&json).map_err(|error| Error::Damaged(format!("the inbox cannot be read: {error}")))
        };
        self.store.inbox()?.into_iter().map(read).collect()
    }

    /// What was received is dealt with, and is not answered again.
    pub fn done(&self, incoming: &[Incoming]) -> Result<()> {
        self.store.transaction(|| incoming.iter().try_for_each(|one| self.store.delete_from_inbox(one.id)))
    }

    /// Takes the queue in, page by page, until it is empty. A server that answers again what was acknowledged is given up.
    pub(super) async fn take_in(&self, wait: u32) -> Result<()> {
        let (mut wait, mut acknowledged) = (wait, BTreeSet::new());
        for _ in 0..MAX_PAGES {
            let page = self.connection.api().messages(wait, PAGE).await?.messages;
            if page.is_empty() {
                return Ok(());
            }
            wait = 0;
            if page.iter().any(|message| !acknowledged.insert(message.id)) {
                return Err(self.connection.api().unexpected("a message that was acknowledged before"));
            }
            let (mut ids, mut unreadable) = (Vec::new(), Vec::new());
            for message in &page {
                let what = self.take_in_once(message)?;
                if matches!(what, Some(What::KeysGone { .. })) { &mut unreadable } else { &mut ids }.push(message.id);
            }
            self.connection.api().acknowledge(&AckRequest { ids, unreadable }).await?;
        }
        Ok(())
    }

    /// Takes one message in, if that was not done before, and notes what it came to, in one transaction.
    pub(super) fn take_in_once(&self, message: &QueuedMessage) -> Result<Option<What>> {
        if self.store.is_in_inbox(message.id)? {
            return Ok(None);
        }
        let attempt = self.store.transaction(|| {
            let what = self.process(message)?;
            self.note(message, &what)?;
            Ok(what)
        });
        match attempt {
            Ok(what) => Ok(Some(what)),
            // OpenMLS refused it, and everything is as it was: it will not get better, and must not block the queue.
            Err(error @ Error::Mls { .. }) => {
                let what = match message.kind {
                    // It was used before, or is of no use.
                    MessageKind::Welcome if self.load_group(&message.group_id.0).is_ok() => {
                        What::Ignored { why: "this device is in the group already".to_owned() }
                    }
                    MessageKind::Welcome => What::KeysGone { by: message.from.clone() },
                    _ => What::Ignored { why: error.with_causes() },
                };
                warn!(id = message.id, error = error.with_causes(), "a message could not be taken in");
                self.store.transaction(|| self.note(message, &what))?;
                Ok(Some(what))
            }
            Err(error) => Err(error),
        }
    }

    fn note(&self, message: &QueuedMessage, what: &What) -> Result<()> {
        let incoming = Incoming {
            id: message.id,
            group: hex::encode(&message.group_id.0),
            sent_at: message.sent_at,
            what: what.clone(),
        };
        let json = serde_json::to_string(&incoming)
            .map_err(|error| Error::Damaged(format!("a message cannot be written: {error}")))?;
        self.store.put_in_inbox(message.id, &json)
    }

    fn process(&self, message: &QueuedMessage) -> Result<What> {
        let group_id = &message.group_id.0;
        match message.kind {
            MessageKind::Unreadable => return Ok(What::Unreadable { device: message.from.clone() }),
            MessageKind::Welcome => return self.welcomed(message),
            MessageKind::Commit | MessageKind::Message => {}
        }
        let Ok(mut group) = self.load_group(group_id) else {
            return Ok(What::Ignored { why: "this device is not in the group".to_owned() });
        };
        let refused = |error| Error::mls("read the message")(error);
        let protocol = decode(&message.message.0)
            .map_err(|error| refused(error.into()))?
            .try_into_protocol_message()
            .map_err(|error| refused(error.into()))?;
        if message.kind == MessageKind::Commit && protocol.epoch() < group.epoch() {
            return Ok(What::Ignored { why: format!("it is of epoch {}, which is over", protocol.epoch()) });
        }
        let provider = self.store.provider();
        let processed = group.process_message(&provider, protocol).map_err(|error| refused(error.into()))?;
        let sender = match processed.sender() {
            Sender::Member(_) => String::from_utf8_lossy(processed.credential().serialized_content()).into_owned(),
            _ => String::new(),
        };
        match processed.into_content() {
            ProcessedMessageContent::ApplicationMessage(bytes) => self.said(&group, sender, &bytes.into_bytes()),
            ProcessedMessageContent::ProposalMessage(proposal) => {
                group
                    .store_pending_proposal(provider_storage(&provider), *proposal)
                    .map_err(Error::storage("keep a proposal"))?;
                Ok(What::Changed)
            }
            ProcessedMessageContent::StagedCommitMessage(commit) => {
                let removes_us = commit.self_removed();
                group
                    .merge_staged_commit(&provider, *commit)
                    .map_err(|error| Error::mls("merge another's Commit")(error.into()))?;
                if removes_us {
                    self.forget_within(&mut group)?;
                    return Ok(What::Removed);
                }
                Ok(What::Changed)
            }
            ProcessedMessageContent::ExternalJoinProposalMessage(_) => {
                Ok(What::Ignored { why: "it proposes somebody from outside".to_owned() })
            }
            ProcessedMessageContent::OwnPendingCommit | ProcessedMessageContent::OwnPrivateMessage => {
                Ok(What::Ignored { why: "this device sent it".to_owned() })
            }
        }
    }

    /// Joins a group. Whoever is in it already may have fallen behind for good, as with a restored backup, and was removed
    /// and invited again since: what is here of the group gives way to a later epoch of it, by one of its members, and to
    /// nothing else. A server that makes up a group cannot put it in the place of one that there is.
    fn welcomed(&self, message: &QueuedMessage) -> Result<What> {
        let group_id = &message.group_id.0;
        let known = match self.load_group(group_id) {
            Ok(mut group) => {
                let keys: BTreeSet<_> = group.members().map(|member| member.signature_key).collect();
                // Not its row: the group keeps its name.
                group.delete(provider_storage(&self.store.provider())).map_err(Error::storage("delete old keys"))?;
                self.store.delete_pending_commit(group_id)?;
                Some((group.epoch(), keys))
            }
            Err(Error::UnknownGroup(_)) => None,
            Err(error) => return Err(error),
        };
        let group = self.join_within(&message.message.0, known.as_ref().map(|(_, keys)| keys))?;
        let is_later = known.is_none_or(|(known, _)| group.epoch() > known);
        if group.group_id().as_slice() != group_id.as_slice() || !is_later {
            let unfit = "it is of another group than the server says, or of an epoch that is over";
            return Err(Error::mls("join the group from this Welcome")(unfit.into()));
        }
        self.store.put_group(group_id, None, self.clock())?;
        Ok(What::Joined { by: message.from.clone() })
    }

    /// What an application message says.
    fn said(&self, group: &MlsGroup, sender: String, bytes: &[u8]) -> Result<What> {
        let text = match serde_json::from_slice(bytes) {
            Ok(Content::GroupName(name)) => {
                info!(%sender, "the group has a name");
                self.store.put_group(group.group_id().as_slice(), Some(&name), self.clock())?;
                return Ok(What::Changed);
            }
            Ok(Content::Text(text)) => text,
            // Another client's message: what can be read of it is shown.
            Err(_) => String::from_utf8_lossy(bytes).into_owned(),
        };
        Ok(What::Text { sender, text })
    }

    async fn commit_to_all_proposals(&self) -> Result<()> {
        for row in self.store.groups()? {
            self.commit_to_proposals(&row.group_id).await?;
        }
        Ok(())
    }

    pub(super) fn forget_group(&self, group: &mut MlsGroup) -> Result<()> {
        self.store.transaction(|| self.forget_within(group))
    }

    fn forget_within(&self, group: &mut MlsGroup) -> Result<()> {
        let group_id = group.group_id().to_vec();
        group.delete(provider_storage(&self.store.provider())).map_err(Error::storage("delete the group's keys"))?;
        self.store.delete_group(&group_id)
    }

    /// The name of a group for people: its own, or its id in hex.
    pub(super) fn name_of(&self, group_id: &[u8]) -> Result<String> {
        let row = self.store.groups()?.into_iter().find(|row| row.group_id == group_id);
        Ok(row.and_then(|row| row.name).unwrap_or_else(|| hex::encode(group_id)))
    }

    /// The devices in a group.
    pub fn members(&self, group_id: &[u8]) -> Result<Vec<DeviceOf>> {
        Ok(members_of(&self.load_group(group_id)?).into_iter().map(|(_, device)| device).collect())
    }
}

fn provider_storage<'p>(provider: &'p super::Provider<'p>) -> &'p super::SqliteStorage<&'p rusqlite::Connection> {
    use openmls_traits::OpenMlsProvider as _;

    provider.storage()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_another_client_says_is_a_text() {
        assert!(serde_json::from_slice::<Content>(br#"{"text":"hello"}"#).is_ok());
        assert!(serde_json::from_slice::<Content>(b"hello").is_err());
    }
}
