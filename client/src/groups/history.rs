//! The changes of a group's members, as far as this device saw them.

use std::collections::BTreeSet;

use jiff::Timestamp;
use keypool_openapi::DeviceOf;
use openmls::prelude::MlsGroup;
use serde::{Deserialize, Serialize};

use super::{group::members_of, membership::MlsMembership};
use crate::{
    error::{Error, Result},
    identity_check::MemberChanges,
};

/// The number of changes that are kept of each group.
const KEPT: u32 = 1_000;

/// A change of a group's members. Members are named by the credentials in their leaves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct MembershipChange {
    /// When the Commit was sent, by the server's clock; by this device's clock, if it made the change itself.
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
    /// The epoch that began with the change.
    pub epoch: u64,
    /// The member that signed the Commit; `None` if this device was away, and found the change when it came back.
    pub by: Option<String>,
    /// The members that were added.
    pub added: Vec<String>,
    /// The members that were removed or left.
    pub removed: Vec<String>,
    /// The members whose leaf was replaced: they came back after they fell behind, or were installed anew.
    pub updated: Vec<String>,
}

impl MembershipChange {
    fn is_empty(&self) -> bool {
        self.added.is_empty() && self.removed.is_empty() && self.updated.is_empty()
    }
}

impl MlsMembership<'_> {
    /// The changes of a group's members that this device saw, oldest first: the last 1,000. They stay when this device has
    /// left the group.
    pub fn history(&self, group_id: &[u8]) -> Result<Vec<MembershipChange>> {
        let read = |json: String| {
            serde_json::from_str(&json)
                .map_err(|error| Error::Damaged(format!("a change of members cannot be read: {error}")))
        };
        self.store.membership_changes(group_id)?.into_iter().map(read).collect()
    }

    /// Finds the id of a group by its name or the beginning of its id, also of one that this device is not in any more, by its
    /// id.
    pub fn find_history(&self, name: &str) -> Result<Vec<u8>> {
        match self.find_group(name) {
            Ok(group) => Ok(group.group_id),
            Err(error) => {
                let gone = self.store.groups_with_changes()?;
                let named: Vec<_> =
                    gone.into_iter().filter(|id| name.len() >= 4 && hex::encode(id).starts_with(name)).collect();
                if let [one] = named.as_slice() { Ok(one.clone()) } else { Err(error) }
            }
        }
    }

    /// Records a change of a group's members, within the caller's transaction. A device that is in the group now is not to be
    /// brought in any more, and one that was removed does not come in by itself.
    pub(super) fn record_change(&self, group_id: &[u8], change: &MembershipChange) -> Result<()> {
        if change.is_empty() {
            return Ok(());
        }
        for device in change.added.iter().chain(&change.updated) {
            self.store.delete_arriving_device(group_id, device)?;
            self.store.delete_removed_device(group_id, device)?;
        }
        for device in &change.removed {
            self.store.put_removed_device(group_id, device)?;
        }
        let json = serde_json::to_string(change)
            .map_err(|error| Error::Damaged(format!("a change of members cannot be written: {error}")))?;
        self.store.add_membership_change(group_id, &json, KEPT)
    }

    /// Records what a member's Commit changed, within the caller's transaction.
    pub(super) fn record_commit(
        &self,
        group: &MlsGroup,
        (at, by): (Timestamp, &str),
        changes: &MemberChanges,
    ) -> Result<()> {
        let MemberChanges { added, removed, updated } = changes.clone();
        let (epoch, by) = (group.epoch().as_u64(), Some(by.to_owned()));
        self.record_change(group.group_id().as_slice(), &MembershipChange { at, epoch, by, added, removed, updated })
    }

    /// Records that this device came into a group, or back into it, within the caller's transaction: what changed since the
    /// members that it knew `before`, and who brought it in.
    pub(super) fn record_entry(&self, group: &MlsGroup, by: &str, before: Option<&BTreeSet<DeviceOf>>) -> Result<()> {
        let (at, epoch, own) = (self.now(), group.epoch().as_u64(), self.own_device().to_string());
        let group_id = group.group_id().as_slice();
        for (_, device) in members_of(group) {
            self.store.delete_removed_device(group_id, &device.to_string())?;
        }
        let mut entry =
            MembershipChange { at, epoch, by: None, added: Vec::new(), removed: Vec::new(), updated: Vec::new() };
        match before {
            None => entry.added.push(own),
            Some(before) => {
                let now: BTreeSet<_> = members_of(group).into_iter().map(|(_, device)| device).collect();
                let names = |devices: &mut dyn Iterator<Item = &DeviceOf>| devices.map(ToString::to_string).collect();
                let meanwhile = MembershipChange {
                    added: names(&mut now.difference(before)),
                    removed: names(&mut before.difference(&now)),
                    ..entry.clone()
                };
                self.record_change(group_id, &meanwhile)?;
                entry.updated.push(own);
            }
        }
        self.record_change(group_id, &MembershipChange { by: Some(by.to_owned()), ..entry })
    }

    /// Whether a device was removed from a group, or has left it, and nobody has added it since.
    pub(super) fn was_removed(&self, group_id: &[u8], device: &DeviceOf) -> Result<bool> {
        Ok(self.store.removed_devices(group_id)?.contains(&device.to_string()))
    }
}
