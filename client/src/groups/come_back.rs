//! Comes back into a group in which this device fell behind, by an external Commit (RFC 9420, section 12.4.3.2). Nobody
//! else has to be online.

use std::collections::BTreeSet;

use keypool_openapi::{Base64Bytes, CommitRequest, GroupInfoResponse, ProblemType};
use openmls::{
    messages::group_info::VerifiableGroupInfo,
    prelude::{CredentialWithKey, LeafNodeParameters, MlsGroup, MlsMessageBodyIn},
};
use openmls_traits::OpenMlsProvider as _;
use sha2::{Digest as _, Sha256};
use tracing::{info, warn};

use super::{
    admission::Admission,
    encoding::{decode, encode, group_path, signer_of_group_info},
    group::{GroupState, join_config, members_of},
    group_info::NextEpoch,
    incoming::{Event, Incoming},
    membership::{ATTEMPTS, MlsMembership},
    messages::log_undelivered,
};
use crate::{
    cause::Cause,
    error::{Error, Result},
    identity_check::{NewLeaves, Notice, Standings},
    storage::GroupRow,
};

impl MlsMembership<'_> {
    /// Comes back into a group in which this device fell behind. Messages that were sent meanwhile stay unread.
    ///
    /// Works if the group's newest Commit brought a GroupInfo, and this device has the signature key that its leaf in the
    /// group has. The GroupInfo must be signed by a member of the group in the last epoch that this device knows, and the
    /// identity check must accept all leaves. Changes nothing if this device is in the newest epoch.
    ///
    /// Fails with [`Error::UnknownSigner`] if another member has signed it. The next [`Self::receive`] then asks the members
    /// that this device knows to bring it back.
    pub async fn come_back(&self, group_id: &[u8]) -> Result<()> {
        let _turn = self.store.turns.groups().await;
        self.settle_in_turn().await?;
        self.process_queue(None).await?;
        self.come_back_in_turn(group_id).await
    }

    /// Finds out where this device fell behind, and comes back into these groups as far as possible.
    pub(super) async fn come_back_everywhere(&self) -> Result<()> {
        let is_doubtful = |row: &&GroupRow| row.may_be_behind && GroupState::of(row) == GroupState::Active;
        for row in self.store.groups()?.iter().filter(is_doubtful) {
            if let Err(error) = self.ask_for_epoch(&row.group_id).await {
                warn!(error = error.with_causes(), "cannot find out whether this device fell behind");
            }
        }
        for row in self.store.groups()?.iter().filter(|row| GroupState::of(row) == GroupState::FellBehind) {
            if let Err(error) = self.come_back_in_turn(&row.group_id).await {
                warn!(error = error.with_causes(), "cannot come back into a group by itself");
            }
        }
        Ok(())
    }

    /// Asks the server whether a group is in a later epoch than this device.
    async fn ask_for_epoch(&self, group_id: &[u8]) -> Result<()> {
        let own = self.load_group(group_id)?.epoch().as_u64();
        let epoch = match self.connection.api().group_info(&group_path(group_id)?).await {
            Ok(kept) => Some(kept.epoch),
            Err(error) if error.problem() == Some(ProblemType::UnknownGroup) => self.probe_epoch(group_id, own).await?,
            Err(error) => return Err(error),
        };
        if epoch.is_some_and(|epoch| epoch > own) {
            return self.fall_behind(group_id);
        }
        self.store.set_may_be_behind(group_id, false)
    }

    /// The server's epoch of a group without a GroupInfo, if it is another one: that of the refusal of a message to nobody.
    async fn probe_epoch(&self, group_id: &[u8], own: u64) -> Result<Option<u64>> {
        let mut group = self.load_group(group_id)?;
        let signer = self.identity.signer_in(self.store, &group)?;
        let message = self.store.transaction(|| {
            let message = group
                .create_message(&self.store.provider(), &signer, &[])
                .map_err(|error| Error::mls("encrypt a message")(error.into()))?;
            encode(&message)
        })?;
        match self.post(group_id, (&message, Vec::new()), Some(own)).await {
            Ok(_) => Ok(None),
            Err(error) if error.problem() == Some(ProblemType::StaleEpoch) => Ok(error.group_epoch()),
            Err(error) => Err(error),
        }
    }

    /// Records that this device missed a Commit, and puts that into the inbox.
    pub(super) fn fall_behind(&self, group_id: &[u8]) -> Result<()> {
        self.store.transaction(|| {
            self.store.record_missed_commit(group_id)?;
            self.store.set_may_be_behind(group_id, false)?;
            self.tell(group_id, Event::FellBehind, Vec::new())
        })
    }

    /// Puts an event of this device into the inbox.
    pub(super) fn tell(&self, group_id: &[u8], event: Event, notices: Vec<Notice>) -> Result<()> {
        let (id, group) = (self.store.next_local_id()?, hex::encode(group_id));
        self.put_in_inbox(&Incoming { id, group, sent_at: self.now(), event, notices })
    }

    /// See [`Self::come_back`]. The caller has the turn, and the queue is processed.
    pub(super) async fn come_back_in_turn(&self, group_id: &[u8]) -> Result<()> {
        let mut attempts = 0;
        loop {
            let kept = self.connection.api().group_info(&group_path(group_id)?).await?;
            if kept.epoch <= self.load_group(group_id)?.epoch().as_u64() && self.is_in_sync(group_id)? {
                return self.store.forget_refused_commit(group_id);
            }
            let (request, notices) = match self.stage_return(group_id, &kept).await {
                Err(error @ Error::UnknownSigner { .. }) => {
                    if self.store.asks_in_epoch(group_id, kept.epoch)? {
                        self.store.want_group(group_id, (true, false))?;
                    }
                    return Err(error);
                }
                staged => staged?,
            };
            attempts += 1;
            match self.connection.api().commit(&group_path(group_id)?, &request).await {
                Ok(answer) => {
                    log_undelivered(&answer.undelivered);
                    return self.accept_return(group_id, notices);
                }
                Err(error) if error.problem() == Some(ProblemType::StaleEpoch) && attempts < ATTEMPTS => {
                    self.store.delete_pending_commit(group_id)?;
                }
                Err(error) if is_refused(&error) => {
                    self.store.delete_pending_commit(group_id)?;
                    // This device may have another key than its leaf. Then a member brings it back.
                    let is_foreign = error.problem() == Some(ProblemType::Forbidden);
                    if is_foreign && self.store.tell_stranger(group_id, &self.own_device(), self.now())? {
                        self.store.want_group(group_id, (true, false))?;
                    }
                    return Err(error);
                }
                // An earlier attempt may have been accepted: `settle` finds out later.
                Err(error) => return Err(error),
            }
        }
    }

    /// Whether the stored state is one of the group's: this device applied each Commit that it received, and did not make
    /// an external Commit that the server has not accepted.
    fn is_in_sync(&self, group_id: &[u8]) -> Result<bool> {
        let row = self.store.groups()?.into_iter().find(|row| row.group_id == group_id);
        Ok(row.is_none_or(|row| !row.is_provisional && row.refused_commit.is_none_or(|refused| refused.by.is_empty())))
    }

    /// Makes the external Commit, and stores the group after it with the request that carries the Commit.
    async fn stage_return(&self, group_id: &[u8], kept: &GroupInfoResponse) -> Result<(CommitRequest, Vec<Notice>)> {
        let mut standings = Standings::default();
        loop {
            match self.store.transaction(|| self.stage_return_within(group_id, kept, &standings)) {
                Err(Error::Unchecked { leaves }) => self.check_leaves(&leaves, &mut standings).await?,
                outcome => return outcome,
            }
        }
    }

    fn stage_return_within(
        &self,
        group_id: &[u8],
        kept: &GroupInfoResponse,
        standings: &Standings,
    ) -> Result<(CommitRequest, Vec<Notice>)> {
        let failed = |cause: Cause| Error::mls("come back into the group")(cause);
        let mut old = self.load_group(group_id)?;
        let known: BTreeSet<_> = old.members().map(|member| member.signature_key).collect();
        let before = members_of(&old).into_iter().map(|(_, device)| device).collect();
        let signer = self.identity.signer_in(self.store, &old)?;
        let credential = old.credential().map_err(|error| failed(error.into()))?.clone();
        let own = CredentialWithKey { credential, signature_key: signer.to_public_vec().into() };
        let provider = self.store.provider();
        old.delete(provider.storage()).map_err(Error::storage("delete old keys"))?;
        let read = read_group_info(&kept.group_info.0)?;
        let admission = Admission::of(read.extensions());
        let built = MlsGroup::external_commit_builder()
            .with_config(join_config())
            // The leaves of members that joined long ago and never updated are past their lifetime.
            .skip_lifetime_validation()
            .build_group(&provider, read, own)
            .map_err(|error| failed(error.into()))?
            .leaf_node_parameters(LeafNodeParameters::default())
            .load_psks(provider.storage())
            .map_err(|error| failed(error.into()))?
            .create_group_info_with_extensions(admission.extensions()?)
            .map_err(|error| failed(error.into()))?
            .build(provider.rand(), provider.crypto(), &signer, |_| true)
            .map_err(|error| failed(error.into()))?;
        let (group, bundle) = built.finalize(&provider).map_err(|error| failed(error.into()))?;
        self.check_signer(&group, &known, (group_id, &kept.group_info.0))?;
        // Leaves in a tree may have old keys, so the time does not matter here.
        let now = self.now();
        let notices = NewLeaves::of_tree(&group).accept(self.store, standings, (now, now))?;
        let next_proof = self.epoch_proof(&group)?;
        self.record_entry(&group, &self.own_device().to_string(), Some(&before))?;
        self.learn_admission(&group, &admission)?;
        let recipients = self.others_in(&group);
        let (commit, _, info) = bundle.into_contents();
        let NextEpoch { group_info, members } = NextEpoch::now(&group, info, &self.own_device())?;
        let request = CommitRequest {
            commit: Base64Bytes(encode(&commit)?),
            welcome: None,
            proof: None,
            next_proof_digest: Some(Base64Bytes(Sha256::digest(next_proof).to_vec())),
            reservations: Vec::new(),
            binds: Vec::new(),
            recipients,
            group_info,
            members,
        };
        let json = serde_json::to_string(&request)
            .map_err(|error| Error::Damaged(format!("a Commit cannot be written: {error}")))?;
        self.store.put_pending_commit(group_id, &json, true)?;
        // Until the server has accepted the Commit, this device stays behind.
        self.store.record_missed_commit(group_id)?;
        self.store.set_provisional(group_id)?;
        Ok((request, notices))
    }

    /// Records that the server accepted the external Commit.
    pub(super) fn accept_return(&self, group_id: &[u8], notices: Vec<Notice>) -> Result<()> {
        info!("this device is back in a group");
        self.store.transaction(|| {
            self.store.delete_pending_commit(group_id)?;
            self.store.forget_refused_commit(group_id)?;
            self.tell(group_id, Event::CameBack, notices)
        })
    }

    /// Checks that a member of the last epoch that this device knows has signed the GroupInfo, so that the server cannot
    /// put a group that it made up in place of this one.
    fn check_signer(
        &self,
        group: &MlsGroup,
        known: &BTreeSet<Vec<u8>>,
        (group_id, info): (&[u8], &[u8]),
    ) -> Result<()> {
        let failed = |cause: Cause| Error::mls("come back into the group")(cause);
        if group.group_id().as_slice() != group_id {
            return Err(failed("the GroupInfo is of another group".into()));
        }
        let signer = signer_of_group_info(info).map_err(|error| failed(error.into()))?;
        // The external Commit removes one leaf, which has the key of this device. If that leaf has signed the GroupInfo, another
        // one of this device may be in its place, or none.
        let leaf = group.public_group().leaf(signer);
        if leaf.is_none_or(|leaf| known.contains(leaf.signature_key().as_slice())) {
            return Ok(());
        }
        Err(Error::UnknownSigner { group: self.group_name(group_id)? })
    }
}

/// Whether the server refused the external Commit for good.
fn is_refused(error: &Error) -> bool {
    use ProblemType as P;
    matches!(error.problem(), Some(P::StaleEpoch | P::Forbidden | P::MalformedRequest | P::PayloadTooLarge))
}

pub(super) fn read_group_info(bytes: &[u8]) -> Result<VerifiableGroupInfo> {
    let refused = |cause: Cause| Error::mls("read the GroupInfo")(cause);
    match decode(bytes).map_err(|error| refused(error.into()))?.extract() {
        MlsMessageBodyIn::GroupInfo(info) => Ok(info),
        _ => Err(refused("this MLSMessage is not a GroupInfo".into())),
    }
}
