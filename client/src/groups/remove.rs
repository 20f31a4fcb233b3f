//! Removes users and devices from a group.

use keypool_openapi::{DeviceOf, Undelivered, UserName};
use openmls::prelude::MlsGroup;

use super::{commit::Change, group::members_of, membership::MlsMembership};
use crate::error::{Error, Result};

/// The result of removing members from a group.
#[derive(Clone, Debug, serde::Serialize, utoipa::ToSchema)]
pub struct Removed {
    /// The devices that were removed.
    pub removed: Vec<DeviceOf>,
    /// The devices for which the server could not queue the Commit.
    pub undelivered: Vec<Undelivered>,
}

impl MlsMembership<'_> {
    /// Removes all devices of a user from a group. Succeeds also if another member does so first. Of this device's own
    /// user, removes the other devices.
    pub async fn remove(&self, group_id: &[u8], user: &UserName) -> Result<Removed> {
        let own = self.own_device();
        let is_gone = |device: &DeviceOf| device.user == *user && *device != own;
        let removed = self.remove_those(group_id, is_gone).await?;
        match removed {
            Some(removed) => Ok(removed),
            None if *user == own.user => Err(Error::OwnLeaf { device: own }),
            None => Err(Error::NotAMember { member: user.to_string(), group: self.group_name(group_id)? }),
        }
    }

    /// Removes one device from a group. Succeeds also if another member does so first.
    pub async fn remove_device(&self, group_id: &[u8], device: &DeviceOf) -> Result<Removed> {
        if *device == self.own_device() {
            return Err(Error::OwnLeaf { device: device.clone() });
        }
        let removed = self.remove_those(group_id, |one| one == device).await?;
        removed.ok_or_else(|| Error::NotAMember {
            member: device.to_string(),
            group: self.group_name(group_id).unwrap_or_default(),
        })
    }

    /// Removes the devices that are gone by this rule. `None` if there are none in the group.
    async fn remove_those(&self, group_id: &[u8], is_gone: impl Fn(&DeviceOf) -> bool) -> Result<Option<Removed>> {
        let _turn = self.store.turns.groups().await;
        self.catch_up_in_turn().await?;
        self.check_writable(group_id)?;
        self.check_stays(group_id)?;
        let gone = |group: &MlsGroup| -> (Vec<_>, Vec<_>) {
            members_of(group).into_iter().filter(|(_, device)| is_gone(device)).unzip()
        };
        let (_, removed) = gone(&self.load_group(group_id)?);
        if removed.is_empty() {
            return Ok(None);
        }
        let undelivered = self
            .commit(group_id, |group| {
                let (leaves, _) = gone(group);
                (!leaves.is_empty()).then_some(Change::Remove(leaves))
            })
            .await?;
        Ok(Some(Removed { removed, undelivered }))
    }
}
