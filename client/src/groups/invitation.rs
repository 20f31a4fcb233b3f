//! Adds a user to a group whose messages the application delivers.

use keypool_openapi::{
    Base64Bytes, DeviceOf, MissingDevice, ProblemType, Reservation, ReservationId, ReserveRequest, SpendResponse,
    UserName,
};
use openmls::prelude::{GroupEpoch, MlsGroup, StagedCommit};
use openmls_traits::OpenMlsProvider as _;
use sha2::{Digest, Sha256};

use super::{
    encoding::encode,
    membership::MlsMembership,
    reserve::{Reserved, device_of, release},
    unfit::UnfitDevice,
};
use crate::error::{Error, Result};

/// The messages that add a user to a group, and what the Commit uses.
#[derive(Clone, Debug)]
pub struct Invitation {
    /// The `MLSMessage` with the Commit, for every member of the group before it.
    pub commit: Vec<u8>,
    /// The `MLSMessage` with the Welcome, for every device that the Commit adds.
    pub welcome: Vec<u8>,
    /// The reservations: one for each device that the Commit adds.
    pub added: Vec<Reservation>,
    /// The user's devices that are not added, because no KeyPackage of theirs was left.
    pub missing: Vec<MissingDevice>,
    /// The user's devices that are not added, because OpenMLS cannot read their KeyPackages.
    pub unfit: Vec<UnfitDevice>,
    /// The epoch in which the Commit was made.
    epoch: GroupEpoch,
    /// A digest of a secret of the epoch after the Commit, by which the Commit is known while it is pending.
    next_epoch: [u8; 32],
}

impl MlsMembership<'_> {
    /// Makes the Commit that adds all devices of a user to a group whose messages the application delivers, with a
    /// reserved KeyPackage of each. The Commit is pending in the group, and nothing is spent.
    ///
    /// The application sends the Commit to its delivery service, which orders the group's Commits. If it accepts this
    /// one, call [`Self::confirm_invitation`] and send the Welcome; if another came first, call
    /// [`Self::withdraw_invitation`]. Do so before the reservations lapse. On an error, the group is unchanged and nothing
    /// stays reserved.
    ///
    /// If the server delivers, use [`MlsMembership::invite`].
    pub async fn prepare_invitation(&self, group: &mut MlsGroup, user: &UserName) -> Result<Invitation> {
        let _turn = self.store.turns.groups().await;
        let request = ReserveRequest {
            ciphersuite: Some(group.ciphersuite().into()),
            group_id: Some(Base64Bytes(group.group_id().to_vec())),
            ..ReserveRequest::of(user.clone())
        };
        let Reserved { reservations, missing, unfit, .. } = self.reserve(&request).await?;
        let epoch = group.epoch();
        match self.stage(group, &reservations) {
            Ok((commit, welcome, next_epoch)) => {
                Ok(Invitation { commit, welcome, added: reservations, missing, unfit, epoch, next_epoch })
            }
            Err(error) => {
                release(self.connection.api(), &reservations).await;
                Err(error)
            }
        }
    }

    /// Merges the Commit of an invitation that the delivery service has accepted, and spends its KeyPackages. May be
    /// repeated after an error. Fails if the Commit was withdrawn.
    ///
    /// Returns the devices whose reservations had lapsed and gone to another adder. Two groups use their KeyPackages:
    /// remove these devices from the group, and invite them again.
    pub async fn confirm_invitation(&self, group: &mut MlsGroup, invitation: &Invitation) -> Result<Vec<DeviceOf>> {
        let _turn = self.store.turns.groups().await;
        if self.is_pending(group, invitation)? {
            self.merge(group)?;
        } else if group.epoch() == invitation.epoch {
            return Err(Error::mls("confirm the invitation")("its Commit is not pending any more".into()));
        }
        let (mut lapsed, mut spent) = (Vec::new(), Vec::new());
        for reservation in &invitation.added {
            match self.spend(reservation.reservation_id, group.group_id().as_slice()).await {
                Err(error) if error.problem() == Some(ProblemType::ReservationLapsed) => {
                    lapsed.push(device_of(reservation));
                }
                outcome => spent.push(outcome.map(|_| reservation.reservation_id)?),
            }
        }
        // The application sends the Welcome after this.
        self.log().wait_for(&spent).await?;
        Ok(lapsed)
    }

    /// Spends a reservation, and keeps what the log has to show of it.
    pub(crate) async fn spend(&self, reservation_id: ReservationId, group_id: &[u8]) -> Result<SpendResponse> {
        let log = self.log();
        let request = log.spend_request(reservation_id, group_id.to_vec())?;
        match self.connection.api().spend_key_package(&request).await {
            Ok(answer) => {
                log.record_spend(&request, &answer).await?;
                Ok(answer)
            }
            Err(error) => {
                if error.problem() == Some(ProblemType::ReservationLapsed) {
                    log.record_lapse(&reservation_id)?;
                }
                Err(error)
            }
        }
    }

    /// Clears the Commit of an invitation that the delivery service has refused, and releases its reservations.
    pub async fn withdraw_invitation(&self, group: &mut MlsGroup, invitation: &Invitation) -> Result<()> {
        let _turn = self.store.turns.groups().await;
        if self.is_pending(group, invitation)? {
            self.clear_pending(group)?;
        }
        release(self.connection.api(), &invitation.added).await;
        Ok(())
    }

    /// Whether the group's pending Commit is that of the invitation, and not of a later one.
    fn is_pending(&self, group: &MlsGroup, invitation: &Invitation) -> Result<bool> {
        let pending = group.pending_commit();
        Ok(pending.map(|commit| self.next_epoch(commit)).transpose()? == Some(invitation.next_epoch))
    }

    fn next_epoch(&self, commit: &StagedCommit) -> Result<[u8; 32]> {
        let secret = commit
            .export_secret(self.store.provider().crypto(), "keypool invitation", &[], 32)
            .map_err(|error| Error::mls("identify the Commit")(error.into()))?;
        Ok(Sha256::digest(secret).into())
    }

    /// Creates the Commit that adds the devices, and leaves it pending. Returns the encoded Commit and Welcome, and what the
    /// Commit is known by.
    pub(super) fn stage(
        &self,
        group: &mut MlsGroup,
        reservations: &[Reservation],
    ) -> Result<(Vec<u8>, Vec<u8>, [u8; 32])> {
        let provider = self.store.provider();
        let key_packages =
            reservations.iter().map(|reservation| self.read_reserved(reservation)).collect::<Result<Vec<_>>>()?;
        let signer = self.identity.signer_in(self.store, group)?;
        self.store.transaction(|| {
            let (commit, welcome, _) = group
                .add_members(&provider, &signer, &key_packages)
                .map_err(|error| Error::mls("add the devices to the group")(error.into()))?;
            let pending = group.pending_commit().ok_or_else(|| Error::Damaged("a Commit is not pending".to_owned()))?;
            Ok((encode(&commit)?, encode(&welcome)?, self.next_epoch(pending)?))
        })
    }

    pub(super) fn merge(&self, group: &mut MlsGroup) -> Result<()> {
        self.store.transaction(|| {
            group
                .merge_pending_commit(&self.store.provider())
                .map_err(|error| Error::mls("merge the Commit")(error.into()))
        })
    }
}
