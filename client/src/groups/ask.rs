//! Asks the members of groups to bring this device in: it is new, was installed anew, or was restored from a backup that is
//! older than the group.

use std::collections::BTreeSet;

use keypool_openapi::{DeviceOf, GroupInfoResponse, GroupsQuery, ProblemType, QueuedMessage};
use openmls::prelude::{
    Ciphersuite, GroupEpoch, GroupId, JoinProposal, KeyPackage, MlsGroup, Proposal, QueuedProposal,
};
use openmls_traits::OpenMlsProvider;
use tracing::{info, warn};

use super::{
    come_back::read_group_info,
    encoding::{encode, group_path, is_join_proposal},
    group::{GroupState, members_of},
    incoming::{Event, Outcome},
    membership::{ATTEMPTS, MlsMembership},
    messages::log_undelivered,
};
use crate::{
    cause::Cause,
    error::{Error, Result},
    leaf_identity::credential_name,
    storage::{Ask, Provider},
};

impl MlsMembership<'_> {
    /// Finds the groups of the user that this device is not in, once after its registration, and asks their members to bring it
    /// in. Errors are only logged: the next call tries again. The pool is refreshed, so an invitation can be used.
    pub(crate) async fn look_for_groups(&self) {
        let _turn = self.store.turns.groups().await;
        if let Err(error) = self.store.want_late_groups() {
            warn!(error = error.with_causes(), "cannot find the groups of this device's user");
        }
        self.look_for_groups_in_turn().await;
    }

    /// See [`Self::look_for_groups`]. The caller has the turn.
    pub(super) async fn look_for_groups_in_turn(&self) {
        if let Err(error) = self.find_groups().await {
            warn!(error = error.with_causes(), "cannot find the groups of this device's user");
        }
        for (group_id, if_listed) in self.store.wanted_groups().unwrap_or_default() {
            match self.ask_to_come_in(&group_id, if_listed).await {
                Err(error) if error.is_retryable() => {
                    warn!(error = error.with_causes(), "cannot ask the members of a group now");
                }
                outcome => {
                    if let Err(error) = outcome.and_then(|()| self.store.delete_wanted_group(&group_id)) {
                        warn!(error = error.with_causes(), "cannot ask the members of a group");
                        let _ = self.store.delete_wanted_group(&group_id);
                    }
                }
            }
        }
    }

    async fn find_groups(&self) -> Result<()> {
        if !self.store.looks_for_groups()? {
            return Ok(());
        }
        let mut query = GroupsQuery::default();
        loop {
            let page = self.connection.api().groups(&query).await?;
            for group in &page.groups {
                self.store.want_group(&group.group_id.0, (false, false))?;
            }
            match page.next {
                Some(next) if query.after.as_ref().is_none_or(|after| after.as_bytes() < next.as_bytes()) => {
                    query.after = Some(next);
                }
                _ => return self.store.set_looks_for_groups(false),
            }
        }
    }

    /// Asks the members of a group to bring this device in, by an external Add proposal (RFC 9420, section 12.1.8). Does nothing
    /// if this device can use the group, or the server keeps no GroupInfo of it.
    ///
    /// If this device fell behind in the group, asks only the members that it knows: it would refuse a Welcome of another one.
    async fn ask_to_come_in(&self, group_id: &[u8], if_listed: bool) -> Result<()> {
        if self.load_group(group_id).is_ok() && self.state_of(group_id)? != GroupState::FellBehind {
            return Ok(());
        }
        let path = group_path(group_id)?;
        for _ in 0..ATTEMPTS {
            let kept = match self.connection.api().group_info(&path).await {
                Err(error) if error.problem() == Some(ProblemType::UnknownGroup) => return Ok(()),
                kept => kept?,
            };
            let own = self.own_device();
            if if_listed && !kept.members.contains(&own) {
                return Ok(());
            }
            let proposal = self.join_proposal(group_id, &kept)?;
            let known = self.known_members(group_id, &kept)?;
            let is_asked = |device: &DeviceOf| known.as_ref().is_none_or(|known| known.contains(&device.to_string()));
            let others: Vec<_> = kept.members.into_iter().filter(|device| *device != own && is_asked(device)).collect();
            if others.is_empty() {
                return Ok(());
            }
            match self.post(group_id, (&proposal, others), Some(kept.epoch)).await {
                Err(error) if error.problem() == Some(ProblemType::StaleEpoch) => {}
                outcome => {
                    log_undelivered(&outcome?);
                    info!("asked the members of a group to bring this device in");
                    break;
                }
            }
        }
        Ok(())
    }

    /// The names of the devices in a GroupInfo whose keys are those of members in the last epoch that this device knows. `None` if
    /// it has no epoch of the group. The GroupInfo is not checked: a false one only has the wrong devices asked.
    fn known_members(&self, group_id: &[u8], kept: &GroupInfoResponse) -> Result<Option<BTreeSet<String>>> {
        let Ok(group) = self.load_group(group_id) else { return Ok(None) };
        let keys: BTreeSet<_> = group.members().map(|member| member.signature_key).collect();
        let info = read_group_info(&kept.group_info.0)?;
        let Some(tree) = info.extensions().ratchet_tree() else { return Ok(Some(BTreeSet::new())) };
        let known = tree.ratchet_tree().leaves().filter(|leaf| keys.contains(leaf.signature_key().as_slice()));
        Ok(Some(known.map(|leaf| credential_name(leaf.credential())).collect()))
    }

    /// The proposal to add this device. Its KeyPackage only says which key the device has now: a member adds one that it
    /// reserves. So its private keys are not stored.
    fn join_proposal(&self, group_id: &[u8], kept: &GroupInfoResponse) -> Result<Vec<u8>> {
        let failed = |cause: Cause| Error::mls("ask to be brought into the group")(cause);
        let ciphersuite: Ciphersuite = read_group_info(&kept.group_info.0)?.ciphersuite();
        let signer = self.identity.signer(ciphersuite)?;
        self.store.dry_run(|| {
            let bundle = KeyPackage::builder()
                .build(ciphersuite, &self.store.provider(), &*signer, self.identity.credential(ciphersuite)?)
                .map_err(|error| failed(error.into()))?;
            let (group_id, epoch) = (GroupId::from_slice(group_id), GroupEpoch::from(kept.epoch));
            let proposal = JoinProposal::new::<<Provider<'_> as OpenMlsProvider>::StorageProvider>(
                bundle.key_package().clone(),
                group_id,
                epoch,
                &*signer,
            );
            encode(&proposal.map_err(|error| failed(error.into()))?)
        })
    }

    /// Processes the proposal of a device that asks to be brought in.
    pub(super) fn process_ask(
        &self,
        group: &MlsGroup,
        proposal: &QueuedProposal,
        message: &QueuedMessage,
    ) -> Result<Outcome> {
        let ignored = |why: &str| Ok((Event::Ignored { why: why.to_owned() }, Vec::new()));
        let Proposal::Add(add) = proposal.proposal() else { return ignored("it is a proposal from outside the group") };
        let leaf = add.key_package().leaf_node();
        if credential_name(leaf.credential()) != message.from.to_string() {
            return ignored("a device asks for another one to be brought in");
        }
        let key = leaf.signature_key().as_slice();
        let has_key = group.members().any(|member| {
            credential_name(&member.credential) == message.from.to_string() && member.signature_key == key
        });
        self.note_ask(group, &message.from, Ask { has_asked: true, has_key })
    }

    /// Processes such a proposal that was made in a past epoch, so that nobody can verify it. The server's word for its sender is
    /// enough: the KeyPackage by which a member brings the device in is checked.
    pub(super) fn process_late_ask(&self, group: &MlsGroup, message: &QueuedMessage) -> Result<Option<Outcome>> {
        if !is_join_proposal(&message.message.0) {
            return Ok(None);
        }
        self.note_ask(group, &message.from, Ask::default()).map(Some)
    }

    fn note_ask(&self, group: &MlsGroup, device: &DeviceOf, ask: Ask) -> Result<Outcome> {
        let group_id = group.group_id().as_slice();
        let is_admitted = self.admits(group_id, device, ask)?;
        if !is_admitted && !members_of(group).iter().any(|(_, member)| member.user == device.user) {
            let why = "a device asks to be brought in, and no device of its user is in the group".to_owned();
            return Ok((Event::Ignored { why }, Vec::new()));
        }
        if *device != self.own_device() {
            // Also where it waits for an invitation, which then replaces a leaf whose key it has.
            self.store.put_arriving_device(group_id, device, ask)?;
        }
        Ok((Event::Asks { device: device.clone(), is_admitted }, Vec::new()))
    }
}
