//! Brings devices of a group's users in: new ones, and those that were installed anew. Nobody has to invite them.

use std::collections::BTreeSet;

use keypool_openapi::{DeviceOf, Undelivered};
use tracing::{info, warn};

use super::{
    commit::Change,
    content::Content,
    group::{GroupState, members_of},
    incoming::Event,
    invite::Invitees,
    membership::MlsMembership,
    messages::log_undelivered,
};
use crate::{
    error::Result,
    storage::{Arrival, Ask},
};

impl MlsMembership<'_> {
    /// Sets whether members bring new devices of the group's users in by themselves, and tells the other members. They do by
    /// default. Commits an update, too: its GroupInfo tells the members that come in, or come back, later.
    ///
    /// Returns the devices for which the server could not queue the message.
    pub async fn set_admits_devices(&self, group_id: &[u8], admits: bool) -> Result<Vec<Undelivered>> {
        let _turn = self.store.turns.groups().await;
        self.catch_up_in_turn().await?;
        self.check_writable(group_id)?;
        self.commit_to_proposals(group_id).await?;
        log_undelivered(&self.commit(group_id, |_| Some(Change::Admit(admits))).await?);
        let since = self.load_group(group_id)?.epoch().as_u64();
        self.store.set_admits_devices(group_id, admits, since)?;
        self.send_content(group_id, &Content::AdmitsDevices(admits)).await
    }

    /// Brings in the devices that are to be brought into groups. Errors are only logged: another member may bring them in.
    pub(super) async fn bring_in_arrivals(&self) -> Result<()> {
        for Arrival { group_id, device, ask } in self.store.arriving_devices()? {
            // The group says no: the device waits until somebody invites its user.
            if ask.has_asked && !self.is_open_to(&group_id, ask)? {
                continue;
            }
            if let Err(error) = self.bring_in(&group_id, &device).await {
                warn!(device, error = error.with_causes(), "cannot bring a device into a group");
                if error.is_retryable() {
                    continue;
                }
            }
            self.store.delete_arriving_device(&group_id, &device)?;
        }
        Ok(())
    }

    async fn bring_in(&self, group_id: &[u8], name: &str) -> Result<()> {
        let Ok(device) = name.parse::<DeviceOf>() else { return Ok(()) };
        if !self.admits(group_id, &device, self.store.ask_of(group_id, &device)?)? {
            return Ok(());
        }
        let was_member = members_of(&self.load_group(group_id)?).iter().any(|(_, member)| *member == device);
        let arriving = Invitees::Arriving(std::slice::from_ref(&device));
        let invited = self.invite_those(group_id, std::slice::from_ref(&device.user), arriving).await?;
        if invited.added.is_empty() {
            return Ok(());
        }
        info!(%device, "a device of a member was brought into a group");
        // Nobody asked this device for it, so its user sees it, too.
        let (added, updated) =
            if was_member { (vec![], vec![name.to_owned()]) } else { (vec![name.to_owned()], vec![]) };
        let event = Event::Members { by: self.own_device().to_string(), added, removed: Vec::new(), updated };
        self.store.transaction(|| self.tell(group_id, event, invited.notices))
    }

    /// Whether a device may come into a group by itself: a device of its user is in it, the group allows it, and nobody has
    /// removed the device.
    pub(super) fn admits(&self, group_id: &[u8], device: &DeviceOf, ask: Ask) -> Result<bool> {
        if *device == self.own_device() || self.was_removed(group_id, device)? {
            return Ok(false);
        }
        if !self.is_open_to(group_id, ask)? {
            return Ok(false);
        }
        let users: BTreeSet<_> =
            members_of(&self.load_group(group_id)?).into_iter().map(|(_, member)| member.user).collect();
        Ok(users.contains(&device.user))
    }

    /// Whether members bring a device into a group by themselves, as far as this device can. A device with the key of its leaf
    /// is a member already: that the group admits no devices does not keep it out.
    fn is_open_to(&self, group_id: &[u8], ask: Ask) -> Result<bool> {
        let row = self.store.groups()?.into_iter().find(|row| row.group_id == group_id);
        Ok(row.is_some_and(|row| GroupState::of(&row) == GroupState::Active && (row.admits_devices || ask.has_key)))
    }

    /// Whether a reserved KeyPackage may bring its device into a group that nobody invited it to. By then, another member may
    /// have removed the device, or said that the group admits none.
    pub(super) fn admits_reserved(&self, group_id: &[u8], device: &DeviceOf, has_key: bool) -> Result<bool> {
        let ask = self.store.ask_of(group_id, device)?;
        self.admits(group_id, device, Ask { has_key: ask.has_key && has_key, ..ask })
    }
}
