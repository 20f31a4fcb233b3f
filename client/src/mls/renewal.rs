//! A new group in the place of one that cannot be changed any more.

use std::collections::BTreeSet;

use keypool_openapi::{DeviceOf, MAX_TARGETS, UserName};
use openmls::prelude::MlsGroup;
use tracing::warn;

use super::{
    Group, GroupState, Invited, MlsMembership, What,
    commits::{device_of, members_of, warn_of},
    delivery::Content,
    identity::identity,
    identity_check::name_of,
};
use crate::error::{Error, Result};

/// What came of renewing a group.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Renewed {
    /// The new group.
    pub group: Group,
    /// Who is in it, and who is not.
    #[serde(flatten)]
    pub invited: Invited,
}

impl MlsMembership<'_> {
    /// Makes a new group of the same name, with the devices that are in this one but for those in `without`. The old one
    /// is read-only from then on; for its other members as soon as they are in the new one, if they have refused a Commit
    /// of the old one, too, and nobody but its sender is left out. For anybody else both go on, see
    /// [`What::RenewalClaimed`].
    ///
    /// This is the way on where a Commit was refused: the server has taken it, so nobody who refused it can change the old
    /// group any more.
    pub async fn renew(&self, group_id: &[u8], without: &[DeviceOf]) -> Result<Renewed> {
        self.catch_up().await?;
        let old = self.load_group(group_id)?;
        self.check_writable(group_id)?;
        let members: Vec<_> = members_of(&old).into_iter().map(|(_, device)| device).collect();
        let own = self.own_name();
        for device in without {
            if *device == own {
                return Err(Error::Usage(
                    "this device cannot renew a group without itself: it may leave it".to_owned(),
                ));
            }
            let member = identity(&device.user, &device.device);
            // Who sent a Commit from outside is no member, and is not to be one.
            if !members.contains(device) && self.store.refused_commit(group_id)?.as_ref() != Some(&member) {
                return Err(Error::NotAMember { member, group: self.name_of(group_id)? });
            }
        }
        let others: Vec<_> = members.into_iter().filter(|one| *one != own && !without.contains(one)).collect();
        let new = self.create_group_of(old.ciphersuite(), &self.name_of(group_id)?)?;
        let invited = match self.invite_all(&new.group_id, &others).await {
            Ok(invited) => invited,
            Err(error) => {
                // Nobody but this device is in it.
                let mut new = self.load_group(&new.group_id)?;
                if self.others_in(&new).is_empty() {
                    self.forget_group(&mut new)?;
                }
                return Err(error);
            }
        };
        self.store.note_replacement(group_id, &new.group_id)?;
        match self.send_content(&new.group_id, &Content::Renews(hex::encode(group_id))).await {
            Ok(undelivered) => warn_of(&undelivered),
            Err(error) => warn!(%error, "could not tell the others which group this one takes the place of"),
        }
        Ok(Renewed { group: self.find_group(&new.id)?, invited })
    }

    /// Invites devices, as many as there are, and no others of their users.
    async fn invite_all(&self, group_id: &[u8], devices: &[DeviceOf]) -> Result<Invited> {
        let users: BTreeSet<UserName> = devices.iter().map(|device| device.user.clone()).collect();
        let users: Vec<_> = users.into_iter().collect();
        let mut all = Invited { added: Vec::new(), missing: Vec::new(), undelivered: Vec::new(), notices: Vec::new() };
        for users in users.chunks(MAX_TARGETS) {
            let invited = self.invite_only(group_id, users, Some(devices)).await?;
            all.added.extend(invited.added);
            all.missing.extend(invited.missing);
            all.undelivered.extend(invited.undelivered);
            all.notices.extend(invited.notices);
        }
        Ok(all)
    }

    /// Another group has taken the place of one, says a member of the new one. So it is where that follows from a Commit of
    /// the old one that was refused here: the new group has the same members without the sender of that Commit, and perhaps further
    /// devices of theirs. Else any member could take over the name of a group, with members of their choice.
    pub(super) fn renewed(&self, new: &MlsGroup, by: String, old_group: &str) -> Result<What> {
        let ignored = |why: &str| Ok(What::Ignored { why: why.to_owned() });
        let Ok(old_id) = hex::decode(old_group) else { return ignored("it names no group") };
        let Ok(old) = self.load_group(&old_id) else { return ignored("this device is not in the old group") };
        let names = |group: &MlsGroup| group.members().map(|member| name_of(&member.credential)).collect::<Vec<_>>();
        let (before, after) = (names(&old), names(new));
        if !before.contains(&by) || old.group_id() == new.group_id() {
            return ignored("its sender is not a member of the group that it replaces");
        }
        if self.check_writable(&old_id).is_err() {
            return ignored("another group has taken the place of the old one already");
        }
        let old_group = hex::encode(&old_id);
        let without: Vec<_> = before.iter().filter(|member| !after.contains(member)).cloned().collect();
        let added: Vec<_> = after.iter().filter(|member| !before.contains(member)).cloned().collect();
        let follows_from = |refused: String| {
            let is_theirs = |member: &String| is_same_user(member, &refused);
            !after.contains(&refused) && without.iter().all(is_theirs) && added.is_empty()
        };
        if !self.store.refused_commit(&old_id)?.is_some_and(follows_from) {
            return Ok(What::RenewalClaimed { by, old_group, without, added });
        }
        self.store.note_replacement(&old_id, new.group_id().as_slice())?;
        Ok(What::Renewed { by, old_group, without })
    }

    /// Fails where another group has taken the place of this one.
    pub(super) fn check_writable(&self, group_id: &[u8]) -> Result<()> {
        if self.state_of(group_id)? == GroupState::ReadOnly {
            return Err(Error::ReadOnlyGroup { group: self.name_of(group_id)? });
        }
        Ok(())
    }

    /// What can be done in a group. One that the application delivers for is always active.
    pub(super) fn state_of(&self, group_id: &[u8]) -> Result<GroupState> {
        let row = self.store.groups()?.into_iter().find(|row| row.group_id == group_id);
        Ok(row.as_ref().map_or(GroupState::Active, GroupState::of))
    }
}

/// Whether two members are devices of one user.
fn is_same_user(one: &str, other: &str) -> bool {
    match (device_of(one), device_of(other)) {
        (Some(one), Some(other)) => one.user == other.user,
        _ => one == other,
    }
}
