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
    /// is read-only from then on, for its other members as soon as they are in the new one.
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
            if !members.contains(device) {
                let member = identity(&device.user, &device.device);
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

    /// Another group has taken the place of one, says a member of the new one: so it is, if they were in the old one, too.
    pub(super) fn renewed(&self, new: &MlsGroup, by: String, old_group: String) -> Result<What> {
        let ignored = |why: &str| Ok(What::Ignored { why: why.to_owned() });
        let Ok(old_id) = hex::decode(&old_group) else { return ignored("it names no group") };
        let Ok(old) = self.load_group(&old_id) else { return ignored("this device is not in the old group") };
        let is_member = device_of(&by).is_some_and(|by| members_of(&old).iter().any(|(_, member)| *member == by));
        if !is_member || old.group_id() == new.group_id() {
            return ignored("its sender is not a member of the group that it replaces");
        }
        if self.check_writable(&old_id).is_err() {
            return ignored("another group has taken the place of the old one already");
        }
        self.store.note_replacement(&old_id, new.group_id().as_slice())?;
        Ok(What::Renewed { by, old_group })
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
