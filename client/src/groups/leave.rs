//! Leaves a group: the other members have to remove this device.

use std::collections::BTreeSet;

use keypool_openapi::Undelivered;
use openmls::prelude::{MlsGroup, Proposal, Sender};

use super::{encoding::encode, group::GroupState, membership::MlsMembership};
use crate::error::{Error, Result};

impl MlsMembership<'_> {
    /// Asks the other members to remove this device from a group: a device cannot remove itself (RFC 9420, section
    /// 12.2). It has left when one of them has committed the removal. Commits the proposals of other members first, so that
    /// two who leave at the same time do not wait for each other. Deletes the group at once if all others leave, too, if it
    /// cannot be changed any more, or if this device asked before.
    ///
    /// Returns the devices for which the server could not queue the proposal.
    pub async fn leave(&self, group_id: &[u8]) -> Result<Vec<Undelivered>> {
        let _turn = self.store.turns.groups().await;
        self.catch_up_in_turn().await?;
        if self.state_of(group_id)? == GroupState::Active {
            self.commit_to_proposals(group_id).await?;
        }
        let Some(mut group) = self.load_if_member(group_id)? else { return Ok(Vec::new()) };
        // In a group that cannot be changed, nobody could remove this device.
        if self.others_in(&group).is_empty() || self.state_of(group_id)? != GroupState::Active {
            self.forget_group(&mut group)?;
            return Ok(Vec::new());
        }
        let has_asked = is_leaving(&group);
        let asked = self
            .post_in_epoch(group_id, |group| {
                let signer = self.identity.signer_in(self.store, group)?;
                let proposal = group
                    .leave_group(&self.store.provider(), &signer)
                    .map_err(|error| Error::mls("propose to leave the group")(error.into()))?;
                encode(&proposal)
            })
            .await;
        // If this device fell behind for good, nobody would read what it asks for.
        let is_alone = matches!(asked, Err(Error::FellBehind { .. }));
        if has_asked || is_alone {
            self.forget_group(&mut group)?;
        }
        if is_alone { Ok(Vec::new()) } else { asked }
    }

    /// Deletes a group from this device without asking anybody. The other members still have this device's leaf.
    pub async fn forget(&self, group_id: &[u8]) -> Result<()> {
        let _turn = self.store.turns.groups().await;
        let mut group = self.load_group(group_id)?;
        self.forget_group(&mut group)
    }

    /// Deletes a group that this device and all other members want to leave: nobody is left to let anybody go. Returns
    /// whether it did.
    pub(super) fn forget_if_all_leave(&self, group_id: &[u8]) -> Result<bool> {
        let mut group = self.load_group(group_id)?;
        if !is_leaving(&group) {
            return Ok(false);
        }
        let leaving: BTreeSet<_> = group
            .pending_proposals()
            .filter_map(|one| match (one.proposal(), one.sender()) {
                (Proposal::Remove(remove), Sender::Member(sender)) if remove.removed() == *sender => Some(*sender),
                _ => None,
            })
            .collect();
        let all = group.members().all(|member| leaving.contains(&member.index));
        if all {
            self.forget_group(&mut group)?;
        }
        Ok(all)
    }

    /// Loads a group; `None` if this device is not in it any more.
    fn load_if_member(&self, group_id: &[u8]) -> Result<Option<MlsGroup>> {
        match self.load_group(group_id) {
            Ok(group) => Ok(Some(group)),
            Err(Error::UnknownGroup(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Fails if this device has asked to leave the group.
    pub(super) fn check_stays(&self, group_id: &[u8]) -> Result<()> {
        if is_leaving(&self.load_group(group_id)?) {
            return Err(Error::Leaving { group: self.group_name(group_id)? });
        }
        Ok(())
    }
}

/// Whether this device has proposed to leave.
pub(super) fn is_leaving(group: &MlsGroup) -> bool {
    let own = Sender::Member(group.own_leaf_index());
    group.pending_proposals().any(|one| *one.sender() == own)
}
