//! Watches the user's other devices. The thief of a token could register or remove a device, so the user sees each
//! change.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use keypool_openapi::{Device, DeviceName, DeviceOf};
use openmls::prelude::Ciphersuite;
use tracing::warn;

use super::{
    incoming::{DeviceChange, Event, Incoming},
    membership::MlsMembership,
};
use crate::{
    error::{Error, Result},
    storage::Ask,
};

/// The first inbox id of a device change. Ids of the server's queue are far smaller.
const FIRST_ID: u64 = 1 << 52;

/// The largest number of changes per version. A user has fewer devices.
const MAX_CHANGES: u64 = 1 << 10;

impl MlsMembership<'_> {
    /// Puts changes of the user's devices into the inbox, if the server's version of the list has changed. After an
    /// error, the next page of the queue tries again.
    pub(super) async fn watch_own_devices(&self, version: u64) {
        if let Err(error) = self.compare_own_devices(version).await {
            warn!(error = error.with_causes(), "could not find out which devices of this user have changed");
        }
    }

    async fn compare_own_devices(&self, version: u64) -> Result<()> {
        let known = self.store.own_devices()?;
        if known.as_ref().is_some_and(|(known, _)| *known == version) {
            return Ok(());
        }
        let list = self.connection.api().devices_with_removed(self.identity.user()).await?;
        let json = serde_json::to_string(&list.devices)
            .map_err(|error| Error::Damaged(format!("the devices cannot be written: {error}")))?;
        let changes = match known {
            // The first list: there is nothing to compare.
            None => Vec::new(),
            Some((_, before)) => {
                let before: Vec<Device> = serde_json::from_str(&before)
                    .map_err(|error| Error::Damaged(format!("the devices cannot be read: {error}")))?;
                self.changes(&before, &list.devices)
            }
        };
        self.store.transaction(|| {
            self.expect_new_devices(&changes)?;
            let first = FIRST_ID.saturating_add(version.saturating_mul(MAX_CHANGES));
            for (id, (device, change, at)) in (first..first + MAX_CHANGES).zip(changes) {
                let device = DeviceOf { user: self.identity.user().clone(), device };
                let event = Event::Device { device, change };
                let incoming = Incoming { id, group: String::new(), sent_at: at, event, notices: Vec::new() };
                if !self.store.is_in_inbox(id)? {
                    self.put_in_inbox(&incoming)?;
                }
            }
            self.store.set_own_devices(version, &json)
        })
    }

    /// Records that new devices of the user are to be brought into this device's groups.
    fn expect_new_devices(&self, changes: &[(DeviceName, DeviceChange, Timestamp)]) -> Result<()> {
        for (device, ..) in changes.iter().filter(|(_, change, _)| *change == DeviceChange::Registered) {
            let device = DeviceOf { user: self.identity.user().clone(), device: device.clone() };
            for row in self.store.groups()? {
                self.store.put_arriving_device(&row.group_id, &device, Ask::default())?;
            }
        }
        Ok(())
    }

    /// The changes, except those that this device made itself.
    fn changes(&self, before: &[Device], after: &[Device]) -> Vec<(DeviceName, DeviceChange, Timestamp)> {
        let before: BTreeMap<_, _> = before.iter().map(|device| (&device.device, device)).collect();
        let mut changes = Vec::new();
        for now in after {
            let known = before.get(&now.device);
            let mut tell = |change, at| changes.push((now.device.clone(), change, at));
            if let Some(at) = now.removed_at {
                if known.is_none_or(|known| known.removed_at != now.removed_at) {
                    tell(DeviceChange::Removed, at);
                }
                continue;
            }
            if known.is_none_or(|known| known.removed_at.is_some() || known.registered_at != now.registered_at) {
                tell(DeviceChange::Registered, now.registered_at);
                continue;
            }
            let known: BTreeSet<_> = known
                .into_iter()
                .flat_map(|known| &known.signature_keys)
                .map(|key| (key.ciphersuite, &key.signature_key.0))
                .collect();
            let suites: BTreeSet<_> = known.iter().map(|(suite, _)| *suite).collect();
            for key in &now.signature_keys {
                // The first key in a ciphersuite is not a change.
                let is_new = suites.contains(&key.ciphersuite)
                    && !known.contains(&(key.ciphersuite, &key.signature_key.0))
                    && !self.is_own_key(&now.device, key.ciphersuite, &key.signature_key.0);
                if is_new {
                    tell(DeviceChange::NewSignatureKey, key.since);
                }
            }
        }
        changes
    }

    fn is_own_key(&self, device: &DeviceName, ciphersuite: u16, key: &[u8]) -> bool {
        let signer = |suite| self.identity.key_package_key(suite).is_ok_and(|signer| signer.public() == key);
        device == self.identity.device() && Ciphersuite::try_from(ciphersuite).is_ok_and(signer)
    }
}
