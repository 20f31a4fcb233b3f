//! The GroupInfo that each Commit brings: by it, a member that fell behind comes back while all others are offline.

use std::collections::BTreeSet;

use keypool_openapi::{Base64Bytes, DeviceOf, MAX_MESSAGE_SIZE, MAX_RECIPIENTS};
use openmls::{
    messages::group_info::GroupInfo,
    prelude::{MlsGroup, MlsMessageOut, StagedCommit},
};

use super::{encoding::encode, group::members_of};
use crate::{error::Result, leaf_identity::credential_name};

/// The GroupInfo of an epoch, and the devices in the group then; neither if the server would not keep them.
#[derive(Clone, Debug, Default)]
pub(super) struct NextEpoch {
    pub(super) group_info: Option<Base64Bytes>,
    pub(super) members: Vec<DeviceOf>,
}

impl NextEpoch {
    /// The GroupInfo for these members. The server keeps it only if this device is among them.
    fn of(info: Option<GroupInfo>, members: Vec<DeviceOf>, own: &DeviceOf) -> Result<Self> {
        let Some(info) = info else { return Ok(Self::default()) };
        let bytes = encode(&MlsMessageOut::from(info))?;
        if bytes.len() > MAX_MESSAGE_SIZE || members.len() > MAX_RECIPIENTS || !members.contains(own) {
            return Ok(Self::default());
        }
        Ok(Self { group_info: Some(Base64Bytes(bytes)), members })
    }

    /// The GroupInfo of the epoch that begins with a pending Commit.
    pub(super) fn after(
        group: &MlsGroup,
        commit: &StagedCommit,
        info: Option<GroupInfo>,
        own: &DeviceOf,
    ) -> Result<Self> {
        let removed: BTreeSet<_> = commit.remove_proposals().map(|one| one.remove_proposal().removed()).collect();
        let stay = members_of(group).into_iter().filter(|(index, _)| !removed.contains(index));
        let added = commit
            .add_proposals()
            .filter_map(|one| credential_name(one.add_proposal().key_package().leaf_node().credential()).parse().ok());
        Self::of(info, stay.map(|(_, device)| device).chain(added).collect(), own)
    }

    /// The GroupInfo of the epoch that a group is in.
    pub(super) fn now(group: &MlsGroup, info: Option<GroupInfo>, own: &DeviceOf) -> Result<Self> {
        Self::of(info, members_of(group).into_iter().map(|(_, device)| device).collect(), own)
    }
}
