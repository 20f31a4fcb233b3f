//! Adds a user to a group whose messages the application delivers.

use keypool_openapi::{Base64Bytes, MissingDevice, Reservation, ReserveRequest, SpendRequest, UserName};
use openmls::prelude::MlsGroup;

use super::{
    encoding::encode,
    membership::MlsMembership,
    reserve::{Reserved, UnfitDevice, release},
};
use crate::{
    api::ApiClient,
    error::{Error, Result},
};

/// The messages that add a user to a group.
#[derive(Clone, Debug)]
pub struct Invitation {
    /// The `MLSMessage` with the Welcome, for every device that was added.
    pub welcome: Vec<u8>,
    /// The `MLSMessage` with the Commit, for every member of the group before it.
    pub commit: Vec<u8>,
    /// The spent reservations: one for each device that was added.
    pub added: Vec<Reservation>,
    /// The user's devices that were not added, because no KeyPackage of theirs was left.
    pub missing: Vec<MissingDevice>,
    /// The user's devices that were not added, because OpenMLS cannot read their KeyPackages.
    pub unfit: Vec<UnfitDevice>,
}

impl MlsMembership<'_> {
    /// Adds all devices of a user to a group whose messages the application delivers: reserves a KeyPackage of each,
    /// commits, and spends them. On an error, the group is unchanged, and the reservations that were not spent are
    /// released.
    ///
    /// Merges the Commit once the KeyPackages are spent, so the application has to order the group's Commits. If the
    /// server delivers, use [`MlsMembership::invite`].
    pub async fn prepare_invitation(&self, group: &mut MlsGroup, user: &UserName) -> Result<Invitation> {
        let _turn = self.store.turns.groups().await;
        let api = self.connection.api();
        let group_id = Base64Bytes(group.group_id().to_vec());
        let request = ReserveRequest {
            ciphersuite: Some(group.ciphersuite().into()),
            group_id: Some(group_id.clone()),
            ..ReserveRequest::of(user.clone())
        };
        let Reserved { reservations, missing, unfit, .. } = self.reserve(&request).await?;
        let outcome = match self.stage(group, &reservations) {
            Ok(messages) => spend(api, &reservations, &group_id).await.map(|()| messages),
            Err(error) => Err(error),
        };
        match outcome {
            Ok((commit, welcome)) => {
                self.merge(group)?;
                Ok(Invitation { welcome, commit, added: reservations, missing, unfit })
            }
            Err(error) => {
                release(api, &reservations).await;
                self.clear_pending(group)?;
                Err(error)
            }
        }
    }

    /// Creates the Commit that adds the devices, and leaves it pending. Returns the encoded Commit and Welcome.
    pub(super) fn stage(&self, group: &mut MlsGroup, reservations: &[Reservation]) -> Result<(Vec<u8>, Vec<u8>)> {
        let provider = self.store.provider();
        let key_packages =
            reservations.iter().map(|reservation| self.read_reserved(reservation)).collect::<Result<Vec<_>>>()?;
        let signer = self.identity.signer_in(self.store, group)?;
        self.store.transaction(|| {
            let (commit, welcome, _) = group
                .add_members(&provider, &signer, &key_packages)
                .map_err(|error| Error::mls("add the devices to the group")(error.into()))?;
            Ok((encode(&commit)?, encode(&welcome)?))
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

async fn spend(api: &ApiClient, reservations: &[Reservation], group_id: &Base64Bytes) -> Result<()> {
    for reservation in reservations {
        let request = SpendRequest { reservation_id: reservation.reservation_id, group_id: group_id.clone() };
        api.spend_key_package(&request).await?;
    }
    Ok(())
}
