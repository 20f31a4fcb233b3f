//! Commits through the server's fence: this device merges its Commit only after the server has accepted it.

use std::collections::BTreeSet;

use keypool_openapi::{Base64Bytes, CommitRequest, ProblemType, Reservation, ReservationId, SpendReceipt, Undelivered};
use openmls::{
    group::MlsGroupStateError,
    messages::group_info::GroupInfo,
    prelude::{KeyPackage, LeafNodeIndex, LeafNodeParameters, MlsGroup, MlsMessageOut, Sender},
};
use openmls_basic_credential::SignatureKeyPair;
use openmls_traits::OpenMlsProvider as _;
use sha2::{Digest, Sha256};
use tracing::warn;

use super::{
    admission::Changes,
    commit_proof::{PROOF_LABEL, PROOF_LENGTH},
    encoding::encode,
    group::members_of,
    group_info::NextEpoch,
    membership::{ATTEMPTS, MlsMembership},
    messages::log_undelivered,
    reserve::device_of,
};
use crate::{
    error::{Error, Result},
    identity_check::{MemberChanges, NewLeaves},
    log::ids_of,
    storage::{PendingCommit, RefusedCommit},
};

/// The change that a Commit makes.
#[derive(Clone, Debug)]
pub(super) enum Change<'c> {
    Add(&'c [Reservation]),
    /// The members with these leaf indexes, which are valid in the current epoch only.
    Remove(Vec<LeafNodeIndex>),
    /// New keys of this device, and the pending proposals.
    Update,
    /// As [`Self::Update`]. From then on, members bring devices into the group by themselves, or do not.
    Admit(bool),
}

/// The reason for giving up a Commit.
pub(super) enum Refusal {
    /// Another Commit came first, and was merged.
    Stale(Error),
    /// A reservation lapsed and went to another adder.
    Lapsed(ReservationId, Error),
    /// OpenMLS could not make the Commit.
    NotMade(Error),
    Other(Error),
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self::Other(error)
    }
}

impl MlsMembership<'_> {
    /// Settles the Commits without an answer: sends each again, which changes nothing if the server accepted it before,
    /// and merges or clears it.
    pub async fn settle(&self) -> Result<()> {
        let _turn = self.store.turns.groups().await;
        self.settle_in_turn().await
    }

    /// Settles the Commits without an answer. The caller has the turn.
    pub(super) async fn settle_in_turn(&self) -> Result<()> {
        for PendingCommit { group_id, request, is_external } in self.store.pending_commits()? {
            let request: CommitRequest = serde_json::from_str(&request)
                .map_err(|error| Error::Damaged(format!("a pending Commit cannot be read: {error}")))?;
            match self.send_commit(&group_id, &request).await {
                Ok(answer) => {
                    log_undelivered(&answer.undelivered);
                    if is_external {
                        self.accept_return(&group_id, Vec::new())?;
                    } else {
                        self.accept(&group_id, &request.reservations, answer.receipts).await?;
                    }
                }
                Err(error) if is_final(&error) => {
                    warn!(%error, "a Commit without an answer was refused");
                    if is_external { self.store.delete_pending_commit(&group_id)? } else { self.reject(&group_id)? }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Commits a change, and tries again if another Commit came first. `change` returns the change for the current
    /// state of the group, or `None` if nothing is left to change.
    pub(super) async fn commit<'c>(
        &self,
        group_id: &[u8],
        change: impl Fn(&MlsGroup) -> Option<Change<'c>>,
    ) -> Result<Vec<Undelivered>> {
        let mut attempts = 0;
        loop {
            let Some(change) = change(&self.load_group(group_id)?) else { return Ok(Vec::new()) };
            attempts += 1;
            match self.commit_once(group_id, change).await {
                Err(Refusal::Stale(_)) if attempts < ATTEMPTS => {}
                outcome => return outcome.map_err(Refusal::into_error),
            }
        }
    }

    /// Commits once, in the epoch that this device is in. Returns the devices for which the server could not queue the
    /// Commit.
    pub(super) async fn commit_once(&self, group_id: &[u8], change: Change<'_>) -> Result<Vec<Undelivered>, Refusal> {
        let request = self.stage_request(group_id, &change).map_err(Refusal::NotMade)?;
        let error = match self.send_commit(group_id, &request).await {
            Ok(answer) => {
                self.accept(group_id, &request.reservations, answer.receipts).await?;
                return Ok(answer.undelivered);
            }
            Err(error) => error,
        };
        match (error.problem(), error.reservation_id()) {
            (Some(ProblemType::StaleEpoch), _) => {
                self.reject(group_id)?;
                self.catch_up_with(group_id, error.group_epoch()).await?;
                self.check_writable(group_id)?;
                match self.store.refused_commit(group_id)? {
                    Some(RefusedCommit { by, .. }) => {
                        Err(Refusal::Other(Error::GroupBehind { group: self.group_name(group_id)?, by }))
                    }
                    None => Err(Refusal::Stale(error)),
                }
            }
            (_, Some(id)) => {
                self.reject(group_id)?;
                if error.problem() == Some(ProblemType::ReservationLapsed) {
                    self.log().record_lapse(&id)?;
                }
                Err(Refusal::Lapsed(id, error))
            }
            (Some(ProblemType::Forbidden), _) => {
                self.reject(group_id)?;
                let (group, source) = (self.group_name(group_id)?, Box::new(error));
                Err(Refusal::Other(Error::ProofRefused { group, source }))
            }
            _ if is_final(&error) => {
                self.reject(group_id)?;
                Err(error.into())
            }
            // An earlier attempt may have been accepted: `settle` finds out later.
            _ => Err(error.into()),
        }
    }

    /// Creates the Commit, and stores the request that carries it, in one transaction.
    fn stage_request(&self, group_id: &[u8], change: &Change<'_>) -> Result<CommitRequest> {
        let mut group = self.load_group(group_id)?;
        let (provider, signer) = (self.store.provider(), self.identity.signer_in(self.store, &group)?);
        let recipients = self.others_in(&group);
        let failed = |error| Error::mls("commit to the group")(error);
        let key_packages = match change {
            Change::Add(held) => held.iter().map(|one| self.read_reserved(one)).collect::<Result<Vec<_>>>()?,
            _ => Vec::new(),
        };
        self.store.transaction(|| {
            let proof = self.epoch_proof(&group)?;
            let (commit, welcome, info) = self.make_commit(&mut group, &signer, change, key_packages)?;
            let reservations = match change {
                Change::Add(held) => ids_of(held),
                _ => Vec::new(),
            };
            let binds = self.log().binds(&reservations)?;
            // The proof for the next Commit: only members of the next epoch can derive it.
            let pending = group.pending_commit().ok_or_else(|| Error::Damaged("a Commit is not pending".to_owned()))?;
            let next_proof = pending
                .export_secret(provider.crypto(), PROOF_LABEL, &[], PROOF_LENGTH)
                .map_err(|error| failed(error.into()))?;
            let info = info.filter(|_| self.connection.has_group_info);
            let NextEpoch { group_info, members } = NextEpoch::after(&group, pending, info, &self.own_device())?;
            let request = CommitRequest {
                commit: Base64Bytes(encode(&commit)?),
                welcome: welcome.as_ref().map(|welcome| encode(welcome).map(Base64Bytes)).transpose()?,
                proof: Some(Base64Bytes(proof)),
                next_proof_digest: Some(Base64Bytes(Sha256::digest(next_proof).to_vec())),
                reservations,
                binds,
                recipients: recipients.clone(),
                group_info,
                members,
            };
            let json = serde_json::to_string(&request)
                .map_err(|error| Error::Damaged(format!("a Commit cannot be written: {error}")))?;
            self.store.put_pending_commit(group_id, &json, false)?;
            Ok(request)
        })
    }

    /// Makes the Commit, which replaces the leaves of devices that are added and in the group already.
    fn make_commit(
        &self,
        group: &mut MlsGroup,
        signer: &SignatureKeyPair,
        change: &Change<'_>,
        key_packages: Vec<KeyPackage>,
    ) -> Result<(MlsMessageOut, Option<MlsMessageOut>, Option<GroupInfo>)> {
        let failed = |cause| Error::mls("commit to the group")(cause);
        if group.pending_commit().is_some() {
            return Err(failed(MlsGroupStateError::PendingCommit.into()));
        }
        let (added, removed, admits_devices) = match change {
            Change::Add(held) => (held.iter().map(device_of).collect(), leaves_of(group, held), None),
            Change::Remove(leaves) => (Vec::new(), leaves.clone(), None),
            Change::Update => (Vec::new(), Vec::new(), None),
            Change::Admit(admits) => (Vec::new(), Vec::new(), Some(*admits)),
        };
        let changes = Changes { added: &added, removed: &removed, admits_devices };
        let extensions = self.admission_after(group, changes)?;
        let provider = self.store.provider();
        let mut builder = group.commit_builder().propose_removals(removed).propose_adds(key_packages);
        if matches!(change, Change::Update | Change::Admit(_)) {
            builder = builder.leaf_node_parameters(LeafNodeParameters::default());
        }
        let bundle = builder
            .load_psks(provider.storage())
            .map_err(|error| failed(error.into()))?
            .create_group_info_with_extensions(extensions)
            .map_err(|error| failed(error.into()))?
            .build(provider.rand(), provider.crypto(), signer, |_| true)
            .map_err(|error| failed(error.into()))?
            .stage_commit(&provider)
            .map_err(|error| failed(error.into()))?;
        let welcome = bundle.to_welcome_msg();
        let (commit, _, info) = bundle.into_contents();
        Ok((commit, welcome, info))
    }

    /// Merges the pending Commit, because the server accepted it.
    async fn accept(&self, group_id: &[u8], spent: &[ReservationId], receipts: Vec<SpendReceipt>) -> Result<()> {
        let receipts = self.log().believed(receipts).await?;
        let mut group = self.load_group(group_id)?;
        let (own, sender) = (self.own_device().to_string(), Sender::Member(group.own_leaf_index()));
        let changes = match group.pending_commit() {
            Some(commit) => NewLeaves::of_commit(&group, &sender, commit)?.1,
            None => MemberChanges::default(),
        };
        self.store.transaction(|| {
            group
                .merge_pending_commit(&self.store.provider())
                .map_err(|error| Error::mls("merge the Commit")(error.into()))?;
            self.epoch_proof(&group)?;
            self.record_commit(&group, (self.now(), &own), &changes)?;
            self.log().record_commit(spent, &receipts, group_id)?;
            self.store.delete_pending_commit(group_id)
        })
    }

    pub(super) fn clear_pending(&self, group: &mut MlsGroup) -> Result<()> {
        group.clear_pending_commit(self.store.provider().storage()).map_err(Error::storage("clear the pending Commit"))
    }

    /// Clears the pending Commit, because the server refused it.
    fn reject(&self, group_id: &[u8]) -> Result<()> {
        let mut group = self.load_group(group_id)?;
        self.store.transaction(|| {
            self.clear_pending(&mut group)?;
            self.store.delete_pending_commit(group_id)
        })
    }
}

/// The leaves of the devices that these reservations are of.
pub(super) fn leaves_of(group: &MlsGroup, held: &[Reservation]) -> Vec<LeafNodeIndex> {
    let devices: BTreeSet<_> = held.iter().map(device_of).collect();
    members_of(group).into_iter().filter(|(_, device)| devices.contains(device)).map(|(index, _)| index).collect()
}

/// Whether the server refused this Commit for good. After any other error, for example an invalid token, an earlier
/// attempt may have been accepted.
fn is_final(error: &Error) -> bool {
    use ProblemType as P;
    matches!(
        error.problem(),
        Some(
            P::StaleEpoch
                | P::ReservationLapsed
                | P::QueueFull
                | P::AlreadySpent
                | P::NotYourReservation
                | P::UnknownReservation
                | P::Forbidden
                | P::MalformedRequest
                | P::PayloadTooLarge
        )
    )
}

impl Refusal {
    /// Whether the server can no longer accept the Commit.
    pub(super) fn is_final(&self) -> bool {
        match self {
            Self::Stale(_) | Self::Lapsed(..) | Self::NotMade(_) => true,
            // An error on this side means that the Commit was never sent.
            Self::Other(error) => {
                is_final(error)
                    || !matches!(error, Error::Refused { .. } | Error::Unreachable { .. } | Error::Answer { .. })
            }
        }
    }

    pub(super) fn into_error(self) -> Error {
        match self {
            Self::Stale(error) | Self::Lapsed(_, error) | Self::NotMade(error) | Self::Other(error) => error,
        }
    }
}
