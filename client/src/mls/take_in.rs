//! What comes by the queue is taken in: checked, merged, and noted in the inbox, each message in one transaction.

use std::collections::BTreeSet;

use keypool_openapi::{AckRequest, MessageKind, QueuedMessage};
use openmls::prelude::{MlsGroup, ProcessedMessageContent, ProtocolMessage, QueuedProposal, Sender};
use tracing::{info, warn};

use super::{
    GroupState, Incoming, LeafIdentity, MlsMembership, Notice, What,
    delivery::{Content, provider_storage},
    identity_check::{Answers, Claims, check_sender, name_of},
    membership::decode,
};
use crate::error::{Error, Result};

/// How many messages are fetched at once.
const PAGE: u32 = 100;

/// How many pages are taken in by one call. What is left stays in the queue for the next one.
const MAX_PAGES: usize = 1_000;

/// The outcome of a message, and what people should know of its members.
type Outcome = (What, Vec<Notice>);

impl MlsMembership<'_> {
    /// Takes the queue in, page by page, until it is empty. A server that answers again what was acknowledged is given up.
    ///
    /// Where the identity check has no answer, the message and those after it stay in the queue, and come again.
    pub(super) async fn take_in(&self, wait: u32) -> Result<()> {
        let (mut wait, mut acknowledged) = (wait, BTreeSet::new());
        for _ in 0..MAX_PAGES {
            let known = self.store.own_devices()?.map(|(version, _)| version);
            let page = self.connection.api().messages(wait, PAGE, known).await?;
            self.look_at_own_devices(page.devices_version).await;
            let page = page.messages;
            if page.is_empty() {
                return Ok(());
            }
            wait = 0;
            if page.iter().any(|message| !acknowledged.insert(message.id)) {
                return Err(self.connection.api().unexpected("a message that was acknowledged before"));
            }
            let (mut ids, mut unreadable) = (Vec::new(), Vec::new());
            // All on this page was sent before the first question is asked, so one answer serves for the whole page.
            let (mut answers, mut outcome) = (Answers::default(), Ok(()));
            for message in &page {
                match self.take_in_checked(message, &mut answers).await {
                    Ok(Some(What::KeysGone { .. })) => unreadable.push(message.id),
                    Ok(_) => ids.push(message.id),
                    Err(error) => {
                        outcome = Err(error);
                        break;
                    }
                }
            }
            if !(ids.is_empty() && unreadable.is_empty()) {
                self.connection.api().acknowledge(&AckRequest { ids, unreadable }).await?;
            }
            outcome?;
        }
        Ok(())
    }

    /// Takes one message in, and asks the identity check about the members that it brings.
    async fn take_in_checked(&self, message: &QueuedMessage, answers: &mut Answers) -> Result<Option<What>> {
        loop {
            match self.take_in_once(message, answers) {
                Err(Error::Unchecked { leaves }) => self.ask(&leaves, answers).await?,
                outcome => return outcome,
            }
        }
    }

    /// Asks the identity check about leaves.
    pub(super) async fn ask(&self, leaves: &[LeafIdentity], answers: &mut Answers) -> Result<()> {
        let standings = self.check_identities(leaves).await?;
        answers.extend(leaves, standings)
    }

    /// Takes one message in, if that was not done before, and notes its outcome, in one transaction. Where a leaf was
    /// not asked about yet, nothing happens, and the error says which.
    pub(super) fn take_in_once(&self, message: &QueuedMessage, answers: &Answers) -> Result<Option<What>> {
        if self.store.is_in_inbox(message.id)? {
            return Ok(None);
        }
        let mut signer = None;
        let attempt = self.store.transaction(|| {
            let (what, notices) = self.process(message, answers, &mut signer)?;
            self.note(message, &what, notices)?;
            Ok(what)
        });
        match attempt {
            Ok(what) => Ok(Some(what)),
            // It was refused, and everything is as it was: it will not get better, and must not block the queue.
            Err(error @ (Error::Mls { .. } | Error::WrongIdentity { .. })) => {
                warn!(id = message.id, error = error.with_causes(), "a message could not be taken in");
                let what = self.refused(message, signer, &error);
                self.store.transaction(|| {
                    if let What::Refused { kind: MessageKind::Commit, by, .. } = &what {
                        self.store.note_refused_commit(&message.group_id.0, by)?;
                        // Nobody can commit to them any more, and nothing can be said while they are there.
                        self.load_group(&message.group_id.0)?
                            .clear_pending_proposals(provider_storage(&self.store.provider()))
                            .map_err(Error::storage("clear the proposals"))?;
                    }
                    self.note(message, &what, Vec::new())
                })?;
                Ok(Some(what))
            }
            Err(error) => Err(error),
        }
    }

    /// The outcome of a message that was refused. Who signed it is to blame, as far as that is known: whose token it was
    /// sent by, the server alone says.
    fn refused(&self, message: &QueuedMessage, signer: Option<String>, error: &Error) -> What {
        let why = error.with_causes();
        let from = || signer.unwrap_or_else(|| format!("{}/{}", message.from.user, message.from.device));
        match (error, message.kind) {
            (Error::WrongIdentity { .. }, kind) => What::Refused { kind, by: from(), why },
            // It was used before, or is of no use.
            (_, MessageKind::Welcome) if self.load_group(&message.group_id.0).is_ok() => {
                What::Ignored { why: "this device is in the group already".to_owned() }
            }
            (_, MessageKind::Welcome) => What::KeysGone { by: message.from.clone() },
            (_, kind @ MessageKind::Commit) if self.is_next(message) => What::Refused { kind, by: from(), why },
            _ => What::Ignored { why },
        }
    }

    /// Whether a Commit is of the epoch that its group is in here, so that the group goes on without this device.
    fn is_next(&self, message: &QueuedMessage) -> bool {
        let group = self.load_group(&message.group_id.0);
        group.is_ok_and(|group| protocol_message(message).is_ok_and(|protocol| protocol.epoch() == group.epoch()))
    }

    fn note(&self, message: &QueuedMessage, what: &What, notices: Vec<Notice>) -> Result<()> {
        let incoming = Incoming {
            id: message.id,
            group: hex::encode(&message.group_id.0),
            sent_at: message.sent_at,
            what: what.clone(),
            notices,
        };
        let json = serde_json::to_string(&incoming)
            .map_err(|error| Error::Damaged(format!("a message cannot be written: {error}")))?;
        self.store.put_in_inbox(message.id, &json)
    }

    /// Where a member has signed it, `signer` says who, whatever comes of it.
    fn process(&self, message: &QueuedMessage, answers: &Answers, signer: &mut Option<String>) -> Result<Outcome> {
        let group_id = &message.group_id.0;
        let ignored = |why: &str| Ok((What::Ignored { why: why.to_owned() }, Vec::new()));
        match message.kind {
            MessageKind::Unreadable => return Ok((What::Unreadable { device: message.from.clone() }, Vec::new())),
            MessageKind::Welcome => return self.welcomed(message, answers),
            MessageKind::Commit | MessageKind::Message => {}
        }
        let Ok(mut group) = self.load_group(group_id) else { return ignored("this device is not in the group") };
        let protocol = protocol_message(message)?;
        if message.kind == MessageKind::Commit && protocol.epoch() < group.epoch() {
            return ignored(&format!("it is of epoch {}, which is over", protocol.epoch()));
        }
        let processed = group
            .process_message(&self.store.provider(), protocol)
            .map_err(|error| Error::mls("read the message")(error.into()))?;
        let sender = processed.sender().clone();
        let by = name_of(processed.credential());
        if matches!(sender, Sender::Member(_)) {
            *signer = Some(by.clone());
        }
        if matches!(sender, Sender::Member(_) | Sender::NewMemberCommit) {
            check_sender(processed.credential(), &message.from, group.ciphersuite())?;
        }
        match processed.into_content() {
            ProcessedMessageContent::ApplicationMessage(bytes) => {
                Ok((self.said(&group, by, &bytes.into_bytes())?, Vec::new()))
            }
            ProcessedMessageContent::ProposalMessage(proposal) => {
                self.proposed(&mut group, &sender, *proposal, message, answers)
            }
            ProcessedMessageContent::StagedCommitMessage(commit) => {
                let (claims, changes) = Claims::of_commit(&group, &sender, &commit)?;
                let notices = claims.accept(self.store, answers, (message.sent_at, self.clock()))?;
                let removes_us = commit.self_removed();
                group
                    .merge_staged_commit(&self.store.provider(), *commit)
                    .map_err(|error| Error::mls("merge another's Commit")(error.into()))?;
                if removes_us {
                    self.forget_within(&mut group)?;
                    let notices = notices.into_iter().chain([Notice::RemovedBy { member: by }]).collect();
                    return Ok((What::Removed, notices));
                }
                self.proof(&group)?;
                self.store.forget_refused_commit(group_id)?;
                if changes.added.is_empty() && changes.removed.is_empty() {
                    return Ok((What::Changed, notices));
                }
                Ok((What::Members { by, added: changes.added, removed: changes.removed }, notices))
            }
            ProcessedMessageContent::ExternalJoinProposalMessage(_) => ignored("it proposes somebody from outside"),
            ProcessedMessageContent::OwnPendingCommit | ProcessedMessageContent::OwnPrivateMessage => {
                ignored("this device sent it")
            }
        }
    }

    /// Keeps a member's proposal for the next Commit.
    fn proposed(
        &self,
        group: &mut MlsGroup,
        sender: &Sender,
        proposal: QueuedProposal,
        message: &QueuedMessage,
        answers: &Answers,
    ) -> Result<Outcome> {
        if !matches!(sender, Sender::Member(_)) {
            return Ok((What::Ignored { why: "it is proposed from outside of the group".to_owned() }, Vec::new()));
        }
        // Where another group has taken the place of this one here, this one may go on for others, who commit to it.
        if self.state_of(&message.group_id.0)? == GroupState::Behind {
            return Ok((What::Ignored { why: "nobody can change the group any more".to_owned() }, Vec::new()));
        }
        let claims = Claims::of_proposal(group, sender, proposal.proposal())?;
        let notices = claims.accept(self.store, answers, (message.sent_at, self.clock()))?;
        group
            .store_pending_proposal(provider_storage(&self.store.provider()), proposal)
            .map_err(Error::storage("keep a proposal"))?;
        Ok((What::Changed, notices))
    }

    /// Joins a group. A device that is in it already may have fallen behind for good, as with a restored backup, and was removed
    /// and invited again since: what is here of the group gives way to a later epoch of it, by one of its members, and to
    /// nothing else. A server that makes up a group cannot put it in the place of one that there is.
    fn welcomed(&self, message: &QueuedMessage, answers: &Answers) -> Result<Outcome> {
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
        let joined = self.join_within(&message.message.0, known.as_ref().map(|(_, keys)| keys), answers)?;
        let is_later = known.is_none_or(|(known, _)| joined.group.epoch() > known);
        if joined.group.group_id().as_slice() != group_id.as_slice() || !is_later {
            let unfit = "it is of another group than the server says, or of an epoch that is over";
            return Err(Error::mls("join the group from this Welcome")(unfit.into()));
        }
        self.store.put_group(group_id, None, self.clock())?;
        self.store.forget_refused_commit(group_id)?;
        // The signer, not the name that the server gives, unless the credential names no device.
        let by = joined.inviter.device().unwrap_or_else(|| message.from.clone());
        Ok((What::Joined { by }, joined.notices))
    }

    /// What an application message says.
    fn said(&self, group: &MlsGroup, sender: String, bytes: &[u8]) -> Result<What> {
        let text = match serde_json::from_slice(bytes) {
            Ok(Content::GroupName(name)) => {
                info!(%sender, "the group has a name");
                self.store.put_group(group.group_id().as_slice(), Some(&name), self.clock())?;
                return Ok(What::Changed);
            }
            Ok(Content::Renews(old_group)) => return self.renewed(group, sender, &old_group),
            Ok(Content::Text(text)) => text,
            // Another client's message: what can be read of it is shown.
            Err(_) => String::from_utf8_lossy(bytes).into_owned(),
        };
        Ok(What::Text { sender, text })
    }
}

fn protocol_message(message: &QueuedMessage) -> Result<ProtocolMessage> {
    let refused = |error| Error::mls("read the message")(error);
    decode(&message.message.0)
        .map_err(|error| refused(error.into()))?
        .try_into_protocol_message()
        .map_err(|error| refused(error.into()))
}
