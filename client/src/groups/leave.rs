//! Leaves a group: the other members have to remove this device.

use keypool_openapi::Undelivered;
use openmls::prelude::Sender;

use super::{encoding::encode, group::GroupState, membership::MlsMembership};
use crate::error::{Error, Result};

impl MlsMembership<'_> {
    /// Asks the other members to remove this device from a group: a device cannot remove itself (RFC 9420, section
    /// 12.2). It has left when one of them has committed the removal. Deletes the group at once if it has no other
    /// members, if it cannot be changed any more, or if this device asked before.
    ///
    /// Returns the devices for which the server could not queue the proposal.
    pub async fn leave(&self, group_id: &[u8]) -> Result<Vec<Undelivered>> {
        let _turn = self.store.turns.groups().await;
        self.catch_up_in_turn().await?;
        let mut group = self.load_group(group_id)?;
        let recipients = self.others_in(&group);
        // In a group that cannot be changed, nobody could remove this device.
        if recipients.is_empty() || self.state_of(group_id)? != GroupState::Active {
            self.forget_group(&mut group)?;
            return Ok(Vec::new());
        }
        let signer = self.identity.signer_in(self.store, &group)?;
        let own = Sender::Member(group.own_leaf_index());
        let has_asked = group.pending_proposals().any(|one| *one.sender() == own);
        let message = self.store.transaction(|| {
            let proposal = group
                .leave_group(&self.store.provider(), &signer)
                .map_err(|error| Error::mls("propose to leave the group")(error.into()))?;
            encode(&proposal)
        })?;
        let undelivered = self.post(group_id, message, recipients).await?;
        if has_asked {
            self.forget_group(&mut group)?;
        }
        Ok(undelivered)
    }
}
