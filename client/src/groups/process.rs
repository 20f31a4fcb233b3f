//! Processes one message of the queue: checks it, merges it, and records its outcome in the inbox, in one transaction.

use keypool_openapi::{MessageKind, QueuedMessage, RefusalReason};
use openmls::{
    group::ProcessMessageError,
    prelude::{MlsGroup, ProcessedMessageContent, ProtocolMessage, QueuedProposal, Sender},
};
use openmls_traits::OpenMlsProvider as _;
use tracing::{info, warn};

use super::{
    content::Content,
    encoding::decode,
    group::GroupState,
    incoming::{Event, Incoming, Outcome},
    membership::MlsMembership,
    refusal::{lacks_proposal, lifetime_error, reason_of},
};
use crate::{
    clock::is_own_clock_off,
    error::{Error, Result},
    identity_check::{MemberChanges, NewLeaves, Notice, Standings, check_sender},
    leaf_identity::credential_name,
    storage::Ask,
};

impl MlsMembership<'_> {
    /// Processes one message, unless that was done before, and records its outcome, in one transaction. Changes nothing
    /// and fails with [`Error::Unchecked`] if there is no answer about a leaf yet.
    pub(super) fn process_once(&self, message: &QueuedMessage, standings: &Standings) -> Result<Option<Event>> {
        if self.store.is_in_inbox(message.id)? {
            return Ok(None);
        }
        let mut signer = None;
        let attempt = self.store.transaction(|| {
            let (event, notices) = self.process(message, standings, &mut signer)?;
            self.record(message, &event, notices)?;
            Ok(event)
        });
        match attempt {
            Ok(event) => Ok(Some(event)),
            // By the server's time it is valid: it stays in the queue until this machine's clock is right.
            Err(error) if self.is_own_clock_off(&error) => {
                let ahead = self.connection.api().clock_ahead().unwrap_or_default();
                Err(Error::WrongClock { ahead })
            }
            // The message was refused and nothing has changed. It must not block the queue, because it will never be
            // accepted.
            Err(error @ (Error::Mls { .. } | Error::WrongIdentity { .. })) => {
                warn!(id = message.id, error = error.with_causes(), "a message was refused");
                let event = self.refused(message, signer, &error)?;
                self.store.transaction(|| {
                    if let Event::Refused { kind: MessageKind::Message, reason: RefusalReason::NotTrusted, .. } = &event
                    {
                        let epoch = self.load_group(&message.group_id.0)?.epoch().as_u64();
                        self.store.record_refused_proposal(&message.group_id.0, epoch)?;
                    }
                    if let Event::Refused { kind: MessageKind::Commit, by, reason, .. } = &event {
                        self.store.record_refused_commit(&message.group_id.0, (by, *reason))?;
                        // Nobody can commit the proposals any more, and they would prevent sending messages.
                        self.load_group(&message.group_id.0)?
                            .clear_pending_proposals(self.store.provider().storage())
                            .map_err(Error::storage("clear the proposals"))?;
                    }
                    if let Event::KeysGone { .. } = &event {
                        self.store.want_group(&message.group_id.0, (true, true))?;
                    }
                    self.record(message, &event, Vec::new())
                })?;
                Ok(Some(event))
            }
            Err(error) => Err(error),
        }
    }

    /// Whether a message was refused because this machine's clock is off the server's.
    fn is_own_clock_off(&self, error: &Error) -> bool {
        let ahead = self.connection.api().clock_ahead();
        lifetime_error(error).is_some_and(|lifetime| is_own_clock_off(lifetime, ahead))
    }

    /// The outcome of a refused message. It names the signer, if known; otherwise the sender, for which there is only
    /// the server's word.
    fn refused(&self, message: &QueuedMessage, signer: Option<String>, error: &Error) -> Result<Event> {
        let (kind, why) = (message.kind, error.with_causes());
        let reason = if lacks_proposal(error) && self.has_refused_proposal(message)? {
            // All honest members have refused the proposal, and refuse the Commit.
            RefusalReason::NotTrusted
        } else {
            reason_of(error)
        };
        let is_refused = match kind {
            _ if reason == RefusalReason::NotTrusted => true,
            // It was used before.
            MessageKind::Welcome if self.follows(&message.group_id.0) => {
                return Ok(Event::Ignored { why: "this device is in the group already".to_owned() });
            }
            MessageKind::Welcome if !self.has_keys_for(&message.message.0) => {
                return Ok(Event::KeysGone { by: message.from.clone() });
            }
            MessageKind::Welcome => true,
            MessageKind::Commit => self.is_next(message),
            MessageKind::Message | MessageKind::Unreadable => false,
        };
        let by = signer.unwrap_or_else(|| message.from.to_string());
        Ok(if is_refused { Event::Refused { kind, by, reason, why } } else { Event::Ignored { why } })
    }

    /// Whether this device refused a proposal in the epoch of its group.
    fn has_refused_proposal(&self, message: &QueuedMessage) -> Result<bool> {
        let group_id = &message.group_id.0;
        let epoch = self.load_group(group_id)?.epoch().as_u64();
        self.store.has_refused_proposal(group_id, epoch)
    }

    /// Whether this device is in the group, and in its newest epoch as far as it knows.
    fn follows(&self, group_id: &[u8]) -> bool {
        self.load_group(group_id).is_ok() && self.state_of(group_id).is_ok_and(|state| state == GroupState::Active)
    }

    /// Whether a Commit belongs to the current epoch of its group, so that the group continues without this device.
    fn is_next(&self, message: &QueuedMessage) -> bool {
        let group = self.load_group(&message.group_id.0);
        group.is_ok_and(|group| protocol_message(message).is_ok_and(|protocol| protocol.epoch() == group.epoch()))
    }

    fn record(&self, message: &QueuedMessage, event: &Event, notices: Vec<Notice>) -> Result<()> {
        let incoming = Incoming {
            id: message.id,
            group: hex::encode(&message.group_id.0),
            sent_at: message.sent_at,
            event: event.clone(),
            notices,
        };
        self.put_in_inbox(&incoming)
    }

    /// Puts an item into the inbox, within the caller's transaction.
    pub(super) fn put_in_inbox(&self, incoming: &Incoming) -> Result<()> {
        let json = serde_json::to_string(incoming)
            .map_err(|error| Error::Damaged(format!("a received item cannot be written: {error}")))?;
        self.store.put_in_inbox(incoming.id, &json)
    }

    /// Sets `signer` if a member signed the message, even on an error.
    fn process(&self, message: &QueuedMessage, standings: &Standings, signer: &mut Option<String>) -> Result<Outcome> {
        let group_id = &message.group_id.0;
        let ignored = |why: &str| Ok((Event::Ignored { why: why.to_owned() }, Vec::new()));
        match message.kind {
            MessageKind::Unreadable => return self.process_notice(message),
            MessageKind::Welcome => return self.process_welcome(message, standings),
            MessageKind::Commit | MessageKind::Message => {}
        }
        let mut group = match self.load_group(group_id) {
            Ok(group) => group,
            Err(Error::UnknownGroup(_)) => return self.process_stranger(message),
            Err(error) => return Err(error),
        };
        let protocol = protocol_message(message)?;
        if message.kind == MessageKind::Commit && protocol.epoch() < group.epoch() {
            return ignored(&format!("its epoch {} is past", protocol.epoch()));
        }
        // The queue has the Commits in their order, so one is missing, or the message is false: nobody can check it.
        if protocol.epoch() > group.epoch() && self.state_of(group_id)? == GroupState::Active {
            self.store.set_may_be_behind(group_id, true)?;
            return ignored(&format!("it is of the later epoch {}", protocol.epoch()));
        }
        if message.kind == MessageKind::Message
            && protocol.epoch() < group.epoch()
            && let Some(outcome) = self.process_late_ask(&group, message)?
        {
            return Ok(outcome);
        }
        let processed = group.process_message(&self.store.provider(), protocol).map_err(|error| match error {
            ProcessMessageError::StorageError(error) => Error::storage("read the message")(error),
            error => Error::mls("read the message")(error.into()),
        })?;
        let sender = processed.sender().clone();
        let (by, epoch) = (credential_name(processed.credential()), processed.epoch().as_u64());
        if matches!(sender, Sender::Member(_)) {
            *signer = Some(by.clone());
        }
        if matches!(sender, Sender::Member(_) | Sender::NewMemberCommit) {
            check_sender(processed.credential(), &message.from, group.ciphersuite())?;
        }
        match processed.into_content() {
            ProcessedMessageContent::ApplicationMessage(bytes) => {
                Ok((self.process_content((&group, epoch), by, &bytes.into_bytes())?, Vec::new()))
            }
            ProcessedMessageContent::ProposalMessage(proposal) => {
                self.process_proposal(&mut group, (&sender, by), *proposal, message, standings)
            }
            ProcessedMessageContent::StagedCommitMessage(commit) => {
                let (leaves, changes) = NewLeaves::of_commit(&group, &sender, &commit)?;
                let notices = leaves.accept(self.store, standings, (message.sent_at, self.now()))?;
                let removes_us = commit.self_removed();
                group
                    .merge_staged_commit(&self.store.provider(), *commit)
                    .map_err(|error| Error::mls("merge another's Commit")(error.into()))?;
                self.record_commit(&group, (message.sent_at, &by), &changes)?;
                if removes_us {
                    self.forget_within(&mut group)?;
                    if changes.updated.contains(&self.own_device().to_string()) {
                        // A Welcome brings this device back. If it is lost, the device asks for another one.
                        let MemberChanges { added, removed, updated } = changes;
                        return Ok((Event::Members { by, added, removed, updated }, notices));
                    }
                    let notices = notices.into_iter().chain([Notice::RemovedBy { member: by }]).collect();
                    return Ok((Event::Removed, notices));
                }
                self.epoch_proof(&group)?;
                self.store.forget_refused_commit(group_id)?;
                if changes == MemberChanges::default() {
                    return Ok((Event::Changed { by, name: None }, notices));
                }
                let MemberChanges { added, removed, updated } = changes;
                Ok((Event::Members { by, added, removed, updated }, notices))
            }
            ProcessedMessageContent::ExternalJoinProposalMessage(proposal) => {
                self.process_ask(&group, &proposal, message)
            }
            ProcessedMessageContent::OwnPendingCommit | ProcessedMessageContent::OwnPrivateMessage => {
                ignored("this device sent it")
            }
        }
    }

    /// Processes a notice that another device could not use a message of this device. A device without its keys is to be
    /// brought back, if it is installed anew.
    fn process_notice(&self, message: &QueuedMessage) -> Result<Outcome> {
        let event = unreadable(message);
        if let Event::Unreadable { device, reason: RefusalReason::KeysGone, .. } = &event {
            self.store.put_arriving_device(&message.group_id.0, device, Ask::default())?;
        }
        Ok((event, Vec::new()))
    }

    /// Processes a message of a group that this device is not in: it may have been installed anew, and the sender does not
    /// know that yet. Tells each sender once a day, and asks the members to be brought back.
    fn process_stranger(&self, message: &QueuedMessage) -> Result<Outcome> {
        let is_news = message.kind == MessageKind::Message
            && self.store.tell_stranger(&message.group_id.0, &message.from, self.now())?;
        if is_news {
            self.store.want_group(&message.group_id.0, (true, false))?;
        }
        let ignored = Event::Ignored { why: "this device is not in the group".to_owned() };
        Ok((if is_news { Event::Stranger } else { ignored }, Vec::new()))
    }

    /// Stores a member's proposal for the next Commit.
    fn process_proposal(
        &self,
        group: &mut MlsGroup,
        (sender, by): (&Sender, String),
        proposal: QueuedProposal,
        message: &QueuedMessage,
        standings: &Standings,
    ) -> Result<Outcome> {
        if !matches!(sender, Sender::Member(_)) {
            return Ok((Event::Ignored { why: "it is a proposal from outside the group".to_owned() }, Vec::new()));
        }
        // If this group was replaced here, it may still be in use by other members, and they commit the proposal.
        if matches!(self.state_of(&message.group_id.0)?, GroupState::Behind | GroupState::FellBehind) {
            return Ok((Event::Ignored { why: "nobody can change the group any more".to_owned() }, Vec::new()));
        }
        let leaves = NewLeaves::of_proposal(group, sender, proposal.proposal())?;
        let notices = leaves.accept(self.store, standings, (message.sent_at, self.now()))?;
        group
            .store_pending_proposal(self.store.provider().storage(), proposal)
            .map_err(Error::storage("keep a proposal"))?;
        Ok((Event::Changed { by, name: None }, notices))
    }

    /// Processes the content of an application message, which was sent in an epoch of the group.
    fn process_content(&self, (group, epoch): (&MlsGroup, u64), sender: String, bytes: &[u8]) -> Result<Event> {
        let text = match serde_json::from_slice(bytes) {
            Ok(Content::GroupName(name)) => {
                info!(%sender, "the group has a name");
                self.store.put_group(group.group_id().as_slice(), Some(&name), self.now())?;
                return Ok(Event::Changed { by: sender, name: Some(name) });
            }
            Ok(Content::AdmitsDevices(admits)) => {
                self.store.set_admits_devices(group.group_id().as_slice(), admits, epoch)?;
                return Ok(Event::Changed { by: sender, name: None });
            }
            Ok(Content::Renews(old_group)) => return self.process_renewal(group, sender, &old_group),
            Ok(Content::Data { content_type, data: bytes }) => {
                return Ok(Event::Content { sender, content_type, bytes });
            }
            Ok(Content::Text(text)) => text,
            // A message of another client: show its text as far as it is readable.
            Err(_) => String::from_utf8_lossy(bytes).into_owned(),
        };
        Ok(Event::Text { sender, text })
    }
}

/// The notice that another device could not use a message of this device.
fn unreadable(message: &QueuedMessage) -> Event {
    let refused = message.refusal.map(|refusal| (refusal.about, refusal.reason));
    let (about, reason) = refused.unwrap_or((MessageKind::Welcome, RefusalReason::KeysGone));
    Event::Unreadable { device: message.from.clone(), about, reason }
}

fn protocol_message(message: &QueuedMessage) -> Result<ProtocolMessage> {
    let refused = |error| Error::mls("read the message")(error);
    decode(&message.message.0)
        .map_err(|error| refused(error.into()))?
        .try_into_protocol_message()
        .map_err(|error| refused(error.into()))
}
