//! The groups that this device is in: created, found, listed and deleted.

use keypool_openapi::{DeviceOf, RefusalReason};
use openmls::prelude::{
    Capabilities, Ciphersuite, GroupId, LeafNodeIndex, Lifetime, MIXED_CIPHERTEXT_WIRE_FORMAT_POLICY, Member, MlsGroup,
    MlsGroupCreateConfig, MlsGroupJoinConfig,
};
use openmls_traits::OpenMlsProvider as _;

use super::membership::MlsMembership;
use crate::{
    error::{Error, Result},
    pool::CIPHERSUITE,
    storage::{GroupRow, RefusedCommit},
    text::clean,
};

/// The number of past epochs whose messages can still be decrypted: a Commit may overtake an earlier message.
const PAST_EPOCHS: usize = 3;

/// The lifetime of the creator's leaf in seconds: 84 days, OpenMLS's maximum.
const LEAF_LIFETIME: u64 = 84 * 24 * 60 * 60;

/// The length of a complete group id in hex. Shorter ids, chosen by other clients, could imitate the name of another
/// group.
const WHOLE_ID: usize = 32;

/// A group that this device is in.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, utoipa::ToSchema)]
pub struct Group {
    /// Its id, in hex.
    pub id: String,
    /// Its name, without control characters; its id until the name has arrived.
    pub name: String,
    /// Its epoch.
    pub epoch: u64,
    /// The number of devices in it.
    pub members: usize,
    /// Its state.
    pub state: GroupState,
    /// Its id.
    #[serde(skip)]
    pub group_id: Vec<u8>,
}

/// The state of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum GroupState {
    /// Members can talk in it and change it.
    Active,
    /// The server accepted a Commit that this device refused, because a leaf in it does not belong to the device that it
    /// names. The members who refused it can talk, but cannot change the group any more. [`MlsMembership::renew`] makes
    /// a new one.
    Behind,
    /// The server accepted a Commit that this device missed or could not apply. Others have it, so this device can neither
    /// read nor write in the group. It comes back by itself, with [`MlsMembership::come_back`], if the group's newest Commit
    /// brought a GroupInfo; otherwise a member invites it again, or makes a new group.
    FellBehind,
    /// Another group has replaced it: members can neither talk in it nor change it.
    ReadOnly,
}

impl GroupState {
    pub(super) fn of(row: &GroupRow) -> Self {
        match (&row.replaced_by, &row.refused_commit) {
            (Some(_), _) => Self::ReadOnly,
            (None, Some(RefusedCommit { reason: RefusalReason::NotTrusted, .. })) => Self::Behind,
            (None, Some(_)) => Self::FellBehind,
            (None, None) => Self::Active,
        }
    }
}

impl MlsMembership<'_> {
    /// Creates a group with a random id and a name that only its members will know.
    pub fn create_named_group(&self, name: &str) -> Result<Group> {
        // The device's first ciphersuite: number 1, which every client supports, unless the device was created without
        // it.
        self.create_group_of(self.identity.ciphersuites().first().copied().unwrap_or(CIPHERSUITE), name)
    }

    /// Creates a group in a given ciphersuite.
    pub(super) fn create_group_of(&self, ciphersuite: Ciphersuite, name: &str) -> Result<Group> {
        let group_id = uuid::Uuid::new_v4().into_bytes();
        self.create_group_in(ciphersuite, &group_id)?;
        self.store.put_group(&group_id, Some(name), self.now())?;
        self.find_group(&hex::encode(group_id))
    }

    /// The groups that this device is in, in the order of joining.
    pub fn groups(&self) -> Result<Vec<Group>> {
        let group = |row: GroupRow| {
            let group = self.load_group(&row.group_id)?;
            let (id, state) = (hex::encode(&row.group_id), GroupState::of(&row));
            // Any member may have chosen the name, and terminals show it.
            let name = row.name.map(|name| clean(&name)).filter(|name| !name.is_empty());
            Ok(Group {
                name: name.unwrap_or_else(|| id.clone()),
                id,
                epoch: group.epoch().as_u64(),
                members: group.members().count(),
                state,
                group_id: row.group_id,
            })
        };
        self.store.groups()?.into_iter().map(group).collect()
    }

    /// Finds a group by its name, or by the beginning of its id in hex. Other people choose names and ids, so a text
    /// may match the name of one group and the id of another: then only a complete id is unambiguous.
    pub fn find_group(&self, name: &str) -> Result<Group> {
        let mut groups = self.groups()?;
        if let Some(whole) = groups.iter().find(|group| group.id == name && name.len() >= WHOLE_ID) {
            return Ok(whole.clone());
        }
        groups.retain(|group| group.name == name || name.len() >= 4 && group.id.starts_with(name));
        // A renewed group has the same name as the group that replaced it.
        if groups.iter().any(|group| group.state != GroupState::ReadOnly) {
            groups.retain(|group| group.state != GroupState::ReadOnly);
        }
        match groups.as_slice() {
            [] => Err(Error::UnknownGroup(name.to_owned())),
            [one] => Ok(one.clone()),
            several => Err(Error::AmbiguousGroup {
                name: name.to_owned(),
                ids: several.iter().map(|group| group.id.clone()).collect(),
            }),
        }
    }

    /// Creates a group with this device as its only member.
    pub fn create_group(&self, group_id: &[u8]) -> Result<MlsGroup> {
        self.create_group_in(self.identity.ciphersuites().first().copied().unwrap_or(CIPHERSUITE), group_id)
    }

    fn create_group_in(&self, ciphersuite: Ciphersuite, group_id: &[u8]) -> Result<MlsGroup> {
        let now = u64::try_from(self.connection.now().as_second()).unwrap_or(0);
        let config = MlsGroupCreateConfig::builder()
            .ciphersuite(ciphersuite)
            .wire_format_policy(MIXED_CIPHERTEXT_WIRE_FORMAT_POLICY)
            .max_past_epochs(PAST_EPOCHS)
            .use_ratchet_tree_extension(true)
            .capabilities(Capabilities::default().with_grease(self.store.provider().rand()))
            .lifetime(Lifetime::init(now.saturating_sub(60 * 60), now.saturating_add(LEAF_LIFETIME)))
            .build();
        self.store.transaction(|| {
            let group = MlsGroup::new_with_group_id(
                &self.store.provider(),
                &*self.identity.signer(ciphersuite)?,
                &config,
                GroupId::from_slice(group_id),
                self.identity.credential(ciphersuite)?,
            )
            .map_err(|error| Error::mls("create the group")(error.into()))?;
            self.epoch_proof(&group)?;
            self.record_entry(&group, &self.own_device().to_string(), None)?;
            Ok(group)
        })
    }

    /// Loads a group that this device created or joined.
    pub fn load_group(&self, group_id: &[u8]) -> Result<MlsGroup> {
        let provider = self.store.provider();
        let mut group = MlsGroup::load(provider.storage(), &GroupId::from_slice(group_id))
            .map_err(Error::storage("read the group"))?
            .ok_or_else(|| {
                // Show an id that an application chose as text, if it is text.
                let name = String::from_utf8(group_id.to_vec());
                Error::UnknownGroup(name.unwrap_or_else(|_| hex::encode(group_id)))
            })?;
        // Versions before 0.2 refused Commits and proposals that were sent as a PublicMessage.
        if group.configuration().wire_format_policy() != MIXED_CIPHERTEXT_WIRE_FORMAT_POLICY {
            group
                .set_configuration(provider.storage(), &join_config())
                .map_err(Error::storage("change the group's configuration"))?;
        }
        Ok(group)
    }

    /// The devices in a group.
    pub fn members(&self, group_id: &[u8]) -> Result<Vec<DeviceOf>> {
        Ok(members_of(&self.load_group(group_id)?).into_iter().map(|(_, device)| device).collect())
    }

    /// The devices in a group, except this one.
    pub(super) fn others_in(&self, group: &MlsGroup) -> Vec<DeviceOf> {
        let own = self.own_device();
        members_of(group).into_iter().map(|(_, device)| device).filter(|device| *device != own).collect()
    }

    /// The name of a group, or its id in hex if it has none.
    pub(super) fn group_name(&self, group_id: &[u8]) -> Result<String> {
        let row = self.store.groups()?.into_iter().find(|row| row.group_id == group_id);
        Ok(row.and_then(|row| row.name).unwrap_or_else(|| hex::encode(group_id)))
    }

    /// The state of a group. A group whose messages the application delivers is always active.
    pub(super) fn state_of(&self, group_id: &[u8]) -> Result<GroupState> {
        let row = self.store.groups()?.into_iter().find(|row| row.group_id == group_id);
        Ok(row.as_ref().map_or(GroupState::Active, GroupState::of))
    }

    /// Fails if another group has replaced this one.
    pub(super) fn check_in_use(&self, group_id: &[u8]) -> Result<()> {
        if self.state_of(group_id)? == GroupState::ReadOnly {
            return Err(Error::ReadOnlyGroup { group: self.group_name(group_id)? });
        }
        Ok(())
    }

    /// Fails if another group has replaced this one, or if the group has left the epoch that this device is in.
    pub(super) fn check_writable(&self, group_id: &[u8]) -> Result<()> {
        self.check_in_use(group_id)?;
        match self.store.refused_commit(group_id)? {
            Some(RefusedCommit { by, reason }) if reason != RefusalReason::NotTrusted => {
                let by = Some(by).filter(|by| !by.is_empty());
                Err(Error::FellBehind { group: self.group_name(group_id)?, by })
            }
            _ => Ok(()),
        }
    }

    /// Deletes a group of which this device is a member.
    pub(super) fn forget_group(&self, group: &mut MlsGroup) -> Result<()> {
        self.store.transaction(|| {
            self.store.set_left(group.group_id().as_slice(), true)?;
            self.forget_within(group)
        })
    }

    pub(super) fn forget_within(&self, group: &mut MlsGroup) -> Result<()> {
        let group_id = group.group_id().to_vec();
        group.delete(self.store.provider().storage()).map_err(Error::storage("delete the group's keys"))?;
        self.store.delete_group(&group_id)
    }
}

/// The configuration of a group that this device has joined. It sends PrivateMessages, and reads Commits and proposals in
/// both forms (RFC 9420, section 6): some clients send them as a PublicMessage only.
pub(super) fn join_config() -> MlsGroupJoinConfig {
    MlsGroupJoinConfig::builder()
        .wire_format_policy(MIXED_CIPHERTEXT_WIRE_FORMAT_POLICY)
        .use_ratchet_tree_extension(true)
        .max_past_epochs(PAST_EPOCHS)
        .build()
}

/// The devices in a group, with their leaf indexes. Leaves out members whose credential is not a `user/device`: the
/// server cannot deliver to them.
pub(super) fn members_of(group: &MlsGroup) -> Vec<(LeafNodeIndex, DeviceOf)> {
    let member = |member: Member| {
        let name = String::from_utf8(member.credential.serialized_content().to_vec()).ok()?;
        Some((member.index, name.parse().ok()?))
    };
    group.members().filter_map(member).collect()
}
