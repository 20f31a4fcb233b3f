//! Commits through the server's fence: a Commit counts here when the server has said so, and not before.

use std::collections::BTreeSet;

use jiff::Timestamp;
use keypool_openapi::{
    Base64Bytes, CommitRequest, DeviceOf, GroupId, MissingDevice, ProblemType, Reservation, ReservationId,
    ReserveRequest, Undelivered, UserName,
};
use openmls::prelude::{LeafNodeIndex, LeafNodeParameters, MlsGroup, MlsMessageOut, Sender};
use openmls_traits::OpenMlsProvider as _;
use sha2::{Digest, Sha256};
use tracing::{info, warn};

use super::{
    MlsMembership, Notice,
    identity_check::read_key_package,
    membership::{encode, release},
    proofs::{PROOF_LABEL, PROOF_LENGTH},
};
use crate::error::{Error, Result};

/// How often a Commit that lost its epoch to another one is made anew.
const ATTEMPTS: u32 = 16;

/// What a Commit changes.
#[derive(Clone, Debug)]
enum Change<'c> {
    Add(&'c [Reservation]),
    /// The members with these leaves in the current epoch; another Commit may change them.
    Remove(Vec<LeafNodeIndex>),
    /// New keys of this device's, and what others have proposed.
    Update,
}

/// What came of inviting users to a group.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Invited {
    /// The devices that were added.
    pub added: Vec<DeviceOf>,
    /// The devices that were not, and the users who have none.
    pub missing: Vec<MissingDevice>,
    /// The devices that the server could not queue the Commit or the Welcome for.
    pub undelivered: Vec<Undelivered>,
    /// What people should know of the devices, such as that one has a new signature key.
    pub notices: Vec<Notice>,
}

/// What came of removing a user from a group.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Removed {
    /// The devices that were removed.
    pub removed: Vec<DeviceOf>,
    /// The devices that the server could not queue the Commit for.
    pub undelivered: Vec<Undelivered>,
}

/// Why a Commit was given up.
enum Refusal {
    /// Another Commit came first, and is taken in.
    Stale(Error),
    /// A reservation is another's by now.
    Lapsed(ReservationId, Error),
    Other(Error),
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self::Other(error)
    }
}

impl MlsMembership<'_> {
    /// Adds all devices of some users to a group: reserves a KeyPackage of each, and commits. The Commit, the spending
    /// and the Welcome happen together on the server, or not at all.
    ///
    /// Where another Commit came first, it is taken in and the addition is made anew, with the same reservations, but for
    /// those of devices that it has added; one that went to another since is replaced by a fresh one. Where the answer
    /// does not come, the Commit is kept, and the next call on any group finds out what became of it.
    pub async fn invite(&self, group_id: &[u8], users: &[UserName]) -> Result<Invited> {
        self.invite_only(group_id, users, None).await
    }

    /// The same, and where devices are given, only these.
    pub(super) async fn invite_only(
        &self,
        group_id: &[u8],
        users: &[UserName],
        only: Option<&[DeviceOf]>,
    ) -> Result<Invited> {
        self.settle().await?;
        self.check_writable(group_id)?;
        let request = ReserveRequest {
            ciphersuite: Some(self.load_group(group_id)?.ciphersuite().into()),
            group_id: Some(Base64Bytes(group_id.to_vec())),
            ..ReserveRequest::of_all(users.to_vec())
        };
        let (answer, notices) = self.reserve(&request).await?;
        let is_meant = |one: &Reservation| {
            only.is_none_or(|only| only.iter().any(|device| device.user == one.user && device.device == one.device))
        };
        let (mut held, left_out): (Vec<_>, Vec<_>) = answer.reservations.into_iter().partition(is_meant);
        release(self.connection.api(), &left_out).await;
        let is_missed = |one: &MissingDevice| {
            let Some(device) = &one.device else { return true };
            only.is_none_or(|only| only.iter().any(|of| of.user == one.user && of.device == *device))
        };
        let mut missing: Vec<_> = answer.missing.into_iter().filter(is_missed).collect();
        let undelivered = match self.add(group_id, &mut held, &mut missing).await {
            Ok(undelivered) => undelivered,
            Err(refusal) => {
                // What is under way may still be accepted: its reservations are not given back.
                if refusal.is_final() {
                    release(self.connection.api(), &held).await;
                }
                return Err(refusal.into_error());
            }
        };
        let added = held.into_iter().map(|one| DeviceOf { user: one.user, device: one.device }).collect();
        self.tell_name(group_id).await;
        Ok(Invited { added, missing, undelivered, notices })
    }

    /// Commits to adding those whose KeyPackages are held. What is held in the end was added.
    async fn add(
        &self,
        group_id: &[u8],
        held: &mut Vec<Reservation>,
        missing: &mut Vec<MissingDevice>,
    ) -> Result<Vec<Undelivered>, Refusal> {
        let mut attempts = 0;
        loop {
            self.spare_members(group_id, held).await?;
            if held.is_empty() {
                return Ok(Vec::new());
            }
            attempts += 1;
            match self.commit_once(group_id, Change::Add(held)).await {
                Err(Refusal::Stale(_)) if attempts < ATTEMPTS => {}
                Err(Refusal::Lapsed(id, _))
                    if attempts < ATTEMPTS && held.iter().any(|one| one.reservation_id == id) =>
                {
                    missing.extend(self.replacement(group_id, held, id).await?);
                }
                outcome => return outcome,
            }
        }
    }

    /// Reserves a fresh KeyPackage of the device whose reservation went to another. On an error, all is given back.
    async fn replacement(
        &self,
        group_id: &[u8],
        held: &mut Vec<Reservation>,
        lapsed: ReservationId,
    ) -> Result<Vec<MissingDevice>> {
        let Some(at) = held.iter().position(|one| one.reservation_id == lapsed) else { return Ok(Vec::new()) };
        let gone = held.remove(at);
        info!(device = %gone.device, "a reservation went to another; reserving a fresh KeyPackage");
        let user = gone.user;
        let request = ReserveRequest {
            device: Some(gone.device),
            ciphersuite: Some(gone.ciphersuite),
            group_id: Some(Base64Bytes(group_id.to_vec())),
            ..ReserveRequest::of(user)
        };
        match self.reserve(&request).await {
            Ok((answer, _)) => {
                held.extend(answer.reservations);
                Ok(answer.missing)
            }
            Err(error) => {
                release(self.connection.api(), held).await;
                Err(error)
            }
        }
    }

    /// Removes all devices of a user from a group. Where another member does so first, it is done as well.
    pub async fn remove(&self, group_id: &[u8], user: &UserName) -> Result<Removed> {
        self.catch_up().await?;
        self.check_writable(group_id)?;
        let own = self.own_name();
        let of_user = |group: &MlsGroup| -> (Vec<_>, Vec<_>) {
            let members = members_of(group).into_iter();
            members.filter(|(_, device)| device.user == *user && *device != own).unzip()
        };
        let (_, removed) = of_user(&self.load_group(group_id)?);
        if removed.is_empty() {
            return Err(Error::NotAMember { member: user.to_string(), group: self.name_of(group_id)? });
        }
        let undelivered = self
            .commit(group_id, |group| {
                let (leaves, _) = of_user(group);
                (!leaves.is_empty()).then_some(Change::Remove(leaves))
            })
            .await?;
        Ok(Removed { removed, undelivered })
    }

    /// Replaces this device's keys in a group, and commits to what others have proposed. The thief of the old keys cannot read what
    /// follows (RFC 9420, section 16.6).
    pub async fn update_keys(&self, group_id: &[u8]) -> Result<Vec<Undelivered>> {
        self.settle().await?;
        self.check_writable(group_id)?;
        self.commit(group_id, |_| Some(Change::Update)).await
    }

    /// Commits to what others have proposed in a group, so that who wants to leave is out. All members try, and one wins.
    /// A member who has proposed to leave cannot commit to that proposal.
    pub(super) async fn commit_to_proposals(&self, group_id: &[u8]) -> Result<()> {
        let undelivered = self
            .commit(group_id, |group| {
                let own = Sender::Member(group.own_leaf_index());
                let is_leaving = group.pending_proposals().any(|one| *one.sender() == own);
                (group.has_pending_proposals() && !is_leaving).then_some(Change::Update)
            })
            .await?;
        warn_of(&undelivered);
        Ok(())
    }

    /// Settles what is open, and takes in what waits in the queue by now: what is made in an epoch that is over, others
    /// pass over or cannot read.
    pub(super) async fn catch_up(&self) -> Result<()> {
        self.settle().await?;
        self.take_in(0).await
    }

    /// Finds out what became of Commits whose answer did not come: sends each again, which changes nothing where it was
    /// accepted before, and merges or clears it.
    pub async fn settle(&self) -> Result<()> {
        for (group_id, request) in self.store.pending_commits()? {
            let request: CommitRequest = serde_json::from_str(&request)
                .map_err(|error| Error::Damaged(format!("a pending Commit cannot be read: {error}")))?;
            match self.send_commit(&group_id, &request).await {
                Ok(answer) => {
                    self.accept(&group_id)?;
                    warn_of(&answer.undelivered);
                }
                Err(error) if is_final(&error) => {
                    warn!(%error, "a Commit whose answer had not come was refused");
                    self.reject(&group_id)?;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Commits, again where another Commit came first: `change` says each time what to change in the group as it is by
    /// then. With nothing left to change, others have done it.
    async fn commit<'c>(
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

    /// Commits in the epoch that this device knows. Answers whom the Commit could not be queued for.
    async fn commit_once(&self, group_id: &[u8], change: Change<'_>) -> Result<Vec<Undelivered>, Refusal> {
        let request = self.stage_request(group_id, &change)?;
        let error = match self.send_commit(group_id, &request).await {
            Ok(answer) => {
                self.accept(group_id)?;
                return Ok(answer.undelivered);
            }
            Err(error) => error,
        };
        match (error.problem(), error.reservation_id()) {
            (Some(ProblemType::StaleEpoch), _) => {
                self.reject(group_id)?;
                // What came first is in the queue.
                self.take_in(0).await?;
                match self.store.refused_commit(group_id)? {
                    Some(by) => Err(Refusal::Other(Error::GroupBehind { group: self.name_of(group_id)?, by })),
                    None => Err(Refusal::Stale(error)),
                }
            }
            (_, Some(id)) => {
                self.reject(group_id)?;
                Err(Refusal::Lapsed(id, error))
            }
            _ if is_final(&error) => {
                self.reject(group_id)?;
                Err(error.into())
            }
            // A try before this one may have been accepted: it is settled later.
            _ => Err(error.into()),
        }
    }

    /// Makes the Commit, and keeps the request that carries it, in one transaction.
    fn stage_request(&self, group_id: &[u8], change: &Change<'_>) -> Result<CommitRequest> {
        let mut group = self.load_group(group_id)?;
        let (provider, signer) = (self.store.provider(), self.identity.signer_in(self.store, &group)?);
        let recipients = self.others_in(&group);
        let failed = |error| Error::mls("commit to the group")(error);
        let key_packages = match change {
            Change::Add(held) => held.iter().map(|one| read_key_package(one, &provider)).collect::<Result<Vec<_>>>()?,
            _ => Vec::new(),
        };
        self.store.transaction(|| {
            let proof = self.proof(&group)?;
            let (commit, welcome): (MlsMessageOut, Option<MlsMessageOut>) = match change {
                Change::Add(_) => {
                    let (commit, welcome, _) =
                        group.add_members(&provider, &signer, &key_packages).map_err(|error| failed(error.into()))?;
                    (commit, Some(welcome))
                }
                Change::Remove(leaves) => {
                    let (commit, welcome, _) =
                        group.remove_members(&provider, &signer, leaves).map_err(|error| failed(error.into()))?;
                    (commit, welcome)
                }
                Change::Update => {
                    let bundle = group
                        .self_update(&provider, &signer, LeafNodeParameters::default())
                        .map_err(|error| failed(error.into()))?;
                    (bundle.into_commit(), None)
                }
            };
            let reservations = match change {
                Change::Add(held) => held.iter().map(|one| one.reservation_id).collect(),
                _ => Vec::new(),
            };
            // What the next Commit has to show: only members of the next epoch can derive it.
            let pending = group.pending_commit().ok_or_else(|| Error::Damaged("a Commit is not pending".to_owned()))?;
            let next_proof = pending
                .export_secret(provider.crypto(), PROOF_LABEL, &[], PROOF_LENGTH)
                .map_err(|error| failed(error.into()))?;
            let request = CommitRequest {
                commit: Base64Bytes(encode(&commit)?),
                welcome: welcome.as_ref().map(|welcome| encode(welcome).map(Base64Bytes)).transpose()?,
                proof: Some(Base64Bytes(proof)),
                next_proof_digest: Some(Base64Bytes(Sha256::digest(next_proof).to_vec())),
                reservations,
                recipients: recipients.clone(),
            };
            let json = serde_json::to_string(&request)
                .map_err(|error| Error::Damaged(format!("a Commit cannot be written: {error}")))?;
            self.store.put_pending_commit(group_id, &json)?;
            Ok(request)
        })
    }

    /// The pending Commit counts.
    fn accept(&self, group_id: &[u8]) -> Result<()> {
        let mut group = self.load_group(group_id)?;
        self.store.transaction(|| {
            group
                .merge_pending_commit(&self.store.provider())
                .map_err(|error| Error::mls("merge the Commit")(error.into()))?;
            self.proof(&group)?;
            self.store.delete_pending_commit(group_id)
        })
    }

    /// The pending Commit does not count.
    fn reject(&self, group_id: &[u8]) -> Result<()> {
        let mut group = self.load_group(group_id)?;
        self.store.transaction(|| {
            self.clear(&mut group)?;
            self.store.delete_pending_commit(group_id)
        })
    }

    /// Gives back what was reserved of devices that are in the group already.
    async fn spare_members(&self, group_id: &[u8], held: &mut Vec<Reservation>) -> Result<()> {
        let members: BTreeSet<_> =
            members_of(&self.load_group(group_id)?).into_iter().map(|(_, device)| device).collect();
        let is_member =
            |one: &Reservation| members.contains(&DeviceOf { user: one.user.clone(), device: one.device.clone() });
        let (spared, rest): (Vec<_>, Vec<_>) = std::mem::take(held).into_iter().partition(is_member);
        *held = rest;
        release(self.connection.api(), &spared).await;
        Ok(())
    }

    /// The devices in a group, but for this one.
    pub(super) fn others_in(&self, group: &MlsGroup) -> Vec<DeviceOf> {
        let own = self.own_name();
        members_of(group).into_iter().map(|(_, device)| device).filter(|device| *device != own).collect()
    }

    pub(super) fn own_name(&self) -> DeviceOf {
        DeviceOf { user: self.identity.user().clone(), device: self.identity.device().clone() }
    }

    pub(super) fn clock(&self) -> Timestamp {
        self.connection.now()
    }
}

/// Tells whom something could not be queued for, where no caller waits for the answer.
pub(super) fn warn_of(undelivered: &[Undelivered]) {
    for missed in undelivered {
        warn!(user = %missed.user, device = %missed.device, reason = %missed.reason, "not delivered");
    }
}

/// Whether the server has said that it will never take this Commit. Of anything else, such as a token that is no longer
/// valid, nobody knows whether an earlier try was accepted.
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
    /// Whether nothing of the Commit is under way any more.
    fn is_final(&self) -> bool {
        match self {
            Self::Stale(_) | Self::Lapsed(..) => true,
            // What failed here was never sent.
            Self::Other(error) => {
                is_final(error)
                    || !matches!(error, Error::Refused { .. } | Error::Unreachable { .. } | Error::Answer { .. })
            }
        }
    }

    fn into_error(self) -> Error {
        match self {
            Self::Stale(error) | Self::Lapsed(_, error) | Self::Other(error) => error,
        }
    }
}

/// The devices in a group, by their leaves. A member whose credential is no `user/device` gets nothing from here.
pub(super) fn members_of(group: &MlsGroup) -> Vec<(LeafNodeIndex, DeviceOf)> {
    let member = |member: openmls::prelude::Member| {
        let name = String::from_utf8(member.credential.serialized_content().to_vec()).ok()?;
        Some((member.index, device_of(&name)?))
    };
    group.members().filter_map(member).collect()
}

/// The device that a credential names.
pub(super) fn device_of(identity: &str) -> Option<DeviceOf> {
    let (user, device) = identity.split_once('/')?;
    Some(DeviceOf { user: user.parse().ok()?, device: device.parse().ok()? })
}

pub(super) fn group_path(group_id: &[u8]) -> Result<GroupId> {
    GroupId::new(group_id.to_vec()).map_err(|error| Error::Damaged(error.to_string()))
}
