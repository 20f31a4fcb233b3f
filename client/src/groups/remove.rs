//! Removes a user from a group.

use keypool_openapi::{DeviceOf, Undelivered, UserName};
use openmls::prelude::MlsGroup;

use super::{commit::Change, group::members_of, membership::MlsMembership};
use crate::error::{Error, Result};

/// The result of removing a user from a group.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Removed {
    /// The devices that were removed.
    pub removed: Vec<DeviceOf>,
    /// The devices for which the server could not queue the Commit.
    pub undelivered: Vec<Undelivered>,
}

impl MlsMembership<'_> {
    /// Removes all devices of a user from a group. Succeeds also if another member does so first.
    pub async fn remove(&self, group_id: &[u8], user: &UserName) -> Result<Removed> {
        let _turn = self.store.turns.groups().await;
        self.catch_up_in_turn().await?;
        self.check_writable(group_id)?;
        let own = self.own_device();
        let of_user = |group: &MlsGroup| -> (Vec<_>, Vec<_>) {
            let members = members_of(group).into_iter();
            members.filter(|(_, device)| device.user == *user && *device != own).unzip()
        };
        let (_, removed) = of_user(&self.load_group(group_id)?);
        if removed.is_empty() {
            return Err(Error::NotAMember { member: user.to_string(), group: self.group_name(group_id)? });
        }
        let undelivered = self
            .commit(group_id, |group| {
                let (leaves, _) = of_user(group);
                (!leaves.is_empty()).then_some(Change::Remove(leaves))
            })
            .await?;
        Ok(Removed { removed, undelivered })
    }
}
