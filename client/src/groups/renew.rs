//! Renews a group: a new group replaces one that cannot be changed any more.

use std::collections::BTreeSet;

use keypool_openapi::{DeviceOf, UserName};
use openmls::prelude::MlsGroup;
use tracing::warn;

use super::{
    content::Content,
    group::{Group, members_of},
    incoming::Event,
    invite::{Invited, Invitees},
    membership::MlsMembership,
    messages::log_undelivered,
};
use crate::{
    error::{Error, Result},
    leaf_identity::credential_name,
    storage::RefusedCommit,
};

/// The result of renewing a group.
#[derive(Clone, Debug, serde::Serialize, utoipa::ToSchema)]
pub struct Renewed {
    /// The new group.
    pub group: Group,
    /// The devices that were invited to it.
    #[serde(flatten)]
    pub invited: Invited,
}

impl MlsMembership<'_> {
    /// Creates a new group of the same name with the devices of this one, except those in `without`. The old group
    /// becomes read-only here at once. For another member, it becomes read-only when that member is in the new group,
    /// if the member also refused a Commit of the old group and only devices of its sender's user are left out.
    /// Otherwise the member keeps both, see [`Event::RenewalClaimed`].
    ///
    /// Use it after a refused Commit: the server accepted that Commit, so the members who refused it cannot change the
    /// old group any more.
    pub async fn renew(&self, group_id: &[u8], without: &[DeviceOf]) -> Result<Renewed> {
        let _turn = self.store.turns.groups().await;
        self.catch_up_in_turn().await?;
        let old = self.load_group(group_id)?;
        self.check_in_use(group_id)?;
        let refused = self.store.refused_commit(group_id)?;
        let members: Vec<_> = members_of(&old).into_iter().map(|(_, device)| device).collect();
        let own = self.own_device();
        for device in without {
            if *device == own {
                return Err(Error::OwnDevice);
            }
            let member = device.to_string();
            // The sender of a refused external Commit is not a member, but may be named here.
            if !members.contains(device) && refused.as_ref().is_none_or(|refused| refused.by != member) {
                return Err(Error::NotAMember { member, group: self.group_name(group_id)? });
            }
        }
        let others: Vec<_> = members.into_iter().filter(|one| *one != own && !without.contains(one)).collect();
        let new = self.create_group_of(old.ciphersuite(), &self.group_name(group_id)?)?;
        let users: BTreeSet<UserName> = others.iter().map(|device| device.user.clone()).collect();
        let users: Vec<_> = users.into_iter().collect();
        // With no other devices of these users.
        let invited = match self.invite_those(&new.group_id, &users, Invitees::Devices(&others)).await {
            Ok(invited) => invited,
            Err(error) => {
                // No other device is in the new group.
                let mut new = self.load_group(&new.group_id)?;
                if self.others_in(&new).is_empty() {
                    self.forget_group(&mut new)?;
                }
                return Err(error);
            }
        };
        self.store.record_replacement(group_id, &new.group_id)?;
        match self.send_content(&new.group_id, &Content::Renews(hex::encode(group_id))).await {
            Ok(undelivered) => log_undelivered(&undelivered),
            Err(error) => warn!(%error, "could not tell the other members which group this one replaces"),
        }
        Ok(Renewed { group: self.find_group(&new.id)?, invited })
    }

    /// Processes a member's claim that the group `new` replaces another one. Accepts it only if this device refused a
    /// Commit of the old group, and the new group has the same members without the sender of that Commit (and possibly
    /// without other devices of the sender's user). Otherwise any member could take over the name of a group with
    /// members of their choice.
    pub(super) fn process_renewal(&self, new: &MlsGroup, by: String, old_group: &str) -> Result<Event> {
        let ignored = |why: &str| Ok(Event::Ignored { why: why.to_owned() });
        let Ok(old_id) = hex::decode(old_group) else { return ignored("it names no group") };
        let Ok(old) = self.load_group(&old_id) else { return ignored("this device is not in the old group") };
        let names =
            |group: &MlsGroup| group.members().map(|member| credential_name(&member.credential)).collect::<Vec<_>>();
        let (before, after) = (names(&old), names(new));
        if !before.contains(&by) || old.group_id() == new.group_id() {
            return ignored("its sender is not a member of the group that it replaces");
        }
        if self.check_in_use(&old_id).is_err() {
            return ignored("another group has already replaced the old one");
        }
        let old_group = hex::encode(&old_id);
        let without: Vec<_> = before.iter().filter(|member| !after.contains(member)).cloned().collect();
        let added: Vec<_> = after.iter().filter(|member| !before.contains(member)).cloned().collect();
        let follows_from = |RefusedCommit { by, .. }: RefusedCommit| {
            let is_theirs = |member: &String| is_same_user(member, &by);
            !after.contains(&by) && without.iter().all(is_theirs) && added.is_empty()
        };
        if !self.store.refused_commit(&old_id)?.is_some_and(follows_from) {
            return Ok(Event::RenewalClaimed { by, old_group, without, added });
        }
        self.store.record_replacement(&old_id, new.group_id().as_slice())?;
        Ok(Event::Renewed { by, old_group, without })
    }
}

/// Whether two members are devices of the same user.
fn is_same_user(one: &str, other: &str) -> bool {
    match (one.parse::<DeviceOf>(), other.parse::<DeviceOf>()) {
        (Ok(one), Ok(other)) => one.user == other.user,
        _ => one == other,
    }
}
