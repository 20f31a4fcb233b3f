//! Which devices come into a group by themselves, as the GroupInfo of each epoch says it. A device that comes in, or comes
//! back, learns from it what was said while it was away.

use std::collections::BTreeSet;

use keypool_openapi::{DeviceOf, UserName};
use openmls::{
    extensions::{Extension, Extensions, UnknownExtension},
    messages::group_info::GroupInfo,
    prelude::{LeafNodeIndex, MlsGroup, Proposal},
};
use serde::{Deserialize, Serialize};

use super::{group::members_of, membership::MlsMembership};
use crate::error::{Error, Result};

/// The type of the GroupInfo extension, in the range for private use (RFC 9420, section 17.3).
const EXTENSION: u16 = 0xf4d1;

/// The most removed devices that an extension names.
const NAMED: usize = 256;

/// The content of the extension, in JSON.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Admission {
    /// Whether members bring new devices of the group's users in by themselves; `None` if nobody has said it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    admits_devices: Option<bool>,
    /// The epoch in which that was said.
    #[serde(default)]
    since: u64,
    /// The devices that were removed from the group, or left it, and whose users are in it. They do not come in by themselves.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    removed: Vec<DeviceOf>,
}

impl Admission {
    /// The extension of a GroupInfo; nothing if there is none, or it cannot be read.
    pub(super) fn of(extensions: &Extensions<GroupInfo>) -> Self {
        let content = extensions.unknown(EXTENSION);
        content.and_then(|UnknownExtension(json)| serde_json::from_slice(json).ok()).unwrap_or_default()
    }

    /// The extension that says it; none if it says nothing.
    pub(super) fn extensions(&self) -> Result<Vec<Extension>> {
        if *self == Self::default() {
            return Ok(Vec::new());
        }
        let json = serde_json::to_vec(self)
            .map_err(|error| Error::Damaged(format!("an extension cannot be written: {error}")))?;
        Ok(vec![Extension::Unknown(EXTENSION, UnknownExtension(json))])
    }
}

/// What a Commit changes in a group, for the extension of the GroupInfo after it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Changes<'c> {
    pub(super) added: &'c [DeviceOf],
    pub(super) removed: &'c [LeafNodeIndex],
    /// Whether members bring devices in from then on, if that changes.
    pub(super) admits_devices: Option<bool>,
}

impl MlsMembership<'_> {
    /// The extension of the GroupInfo after a Commit; none if there is nothing to say.
    pub(super) fn admission_after(&self, group: &MlsGroup, changes: Changes<'_>) -> Result<Vec<Extension>> {
        let group_id = group.group_id().as_slice();
        let proposed = group.pending_proposals().filter_map(|one| match one.proposal() {
            Proposal::Remove(remove) => Some(remove.removed()),
            _ => None,
        });
        let gone: BTreeSet<_> = changes.removed.iter().copied().chain(proposed).collect();
        let (gone, stay): (Vec<_>, Vec<_>) = members_of(group).into_iter().partition(|(index, _)| gone.contains(index));
        let members: BTreeSet<_> = stay.iter().map(|(_, device)| device).chain(changes.added).collect();
        let users: BTreeSet<&UserName> = members.iter().map(|device| &device.user).collect();
        let before = self.store.removed_devices(group_id)?.into_iter().filter_map(|name| name.parse().ok());
        let removed: Vec<DeviceOf> = gone
            .into_iter()
            .map(|(_, device)| device)
            .chain(before)
            .filter(|device| users.contains(&device.user) && !members.contains(device))
            .take(NAMED)
            .collect();
        let said = self.store.groups()?.into_iter().find(|row| row.group_id == group_id);
        let said = said.and_then(|row| row.admits_since.map(|since| (row.admits_devices, since)));
        let said = changes.admits_devices.map(|admits| (admits, group.epoch().as_u64() + 1)).or(said);
        let (admits_devices, since) = (said.map(|(admits, _)| admits), said.map_or(0, |(_, since)| since));
        Admission { admits_devices, since, removed }.extensions()
    }

    /// Stores what the GroupInfo said by which this device came into a group, or back into it, within the caller's transaction.
    /// A member has signed it.
    pub(super) fn learn_admission(&self, group: &MlsGroup, admission: &Admission) -> Result<()> {
        let group_id = group.group_id().as_slice();
        if let Some(admits) = admission.admits_devices
            && admission.since <= group.epoch().as_u64()
        {
            self.store.set_admits_devices(group_id, admits, admission.since)?;
        }
        let members: BTreeSet<_> = members_of(group).into_iter().map(|(_, device)| device).collect();
        for device in admission.removed.iter().take(NAMED).filter(|device| !members.contains(device)) {
            self.store.put_removed_device(group_id, &device.to_string())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_extension_is_read_as_documented() {
        let read = |json: &str| {
            let extension = Extension::Unknown(EXTENSION, UnknownExtension(json.as_bytes().to_vec()));
            Admission::of(&Extensions::single(extension).unwrap())
        };
        let said = Admission {
            admits_devices: Some(false),
            since: 7,
            removed: vec![DeviceOf { user: "bob".parse().unwrap(), device: "phone".parse().unwrap() }],
        };
        let json = r#"{"admits_devices":false,"since":7,"removed":[{"user":"bob","device":"phone"}]}"#;
        assert_eq!((serde_json::to_string(&said).unwrap().as_str(), read(json)), (json, said));
        for nothing in ["{}", "", "[]", r#"{"removed":["bob"]}"#] {
            assert_eq!(read(nothing), Admission::default(), "{nothing}");
        }
    }
}
