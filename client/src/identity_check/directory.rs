//! The identity check by the Keypool server's directory of signature keys.

use std::collections::{BTreeSet, HashMap};

use jiff::Timestamp;
use keypool_openapi::{
    Device, DeviceOf, LookupRequest, MAX_LOOKUP_USERS, PreviousSignatureKey, SignatureKey, UserName,
};

use super::{Checking, IdentityCheck, Standing};
use crate::{api::ApiClient, error::Result, leaf_identity::LeafIdentity};

/// Compares leaves with the signature keys that the server keeps of each device. If the server keeps none even of this
/// device (`KEYPOOL_CREDENTIAL_BINDING=off`), leaves are [`Standing::Unverified`].
#[derive(Clone, Debug)]
pub(crate) struct DirectoryCheck<'a> {
    api: &'a ApiClient,
    own: DeviceOf,
}

impl<'a> DirectoryCheck<'a> {
    pub(crate) fn new(api: &'a ApiClient, own: DeviceOf) -> Self {
        Self { api, own }
    }

    async fn look_up(&self, leaves: &[LeafIdentity]) -> Result<Vec<Standing>> {
        let named: BTreeSet<_> = leaves.iter().filter_map(LeafIdentity::device).chain([self.own.clone()]).collect();
        let directory = self.devices_of(&named, leaves).await?;
        let own = directory.get(&self.own);
        let own = own.ok_or_else(|| self.api.unexpected("the look-up of devices leaves out this device itself"))?;
        let standing = |leaf: &LeafIdentity| {
            if own.has_keys { standing(leaf, &directory) } else { Standing::Unverified }
        };
        Ok(leaves.iter().map(standing).collect())
    }

    /// The devices that are named, removed ones included. One request covers up to a thousand users.
    async fn devices_of(
        &self,
        named: &BTreeSet<DeviceOf>,
        leaves: &[LeafIdentity],
    ) -> Result<HashMap<DeviceOf, Entry>> {
        let users: BTreeSet<_> = named.iter().map(|device| device.user.clone()).collect();
        let (mut directory, mut users) = (HashMap::new(), users.into_iter().collect::<Vec<UserName>>());
        while !users.is_empty() {
            let rest = users.split_off(users.len().min(MAX_LOOKUP_USERS));
            let request = LookupRequest { users, removed: true };
            let answer = self.api.look_up_devices(&request).await?;
            let asked: BTreeSet<_> = request.users.into_iter().collect();
            let told: BTreeSet<_> = answer.users.iter().map(|list| &list.user).chain(&answer.unknown).collect();
            // Ask again about users that the answer leaves out: only a definite answer makes a device unknown.
            users = asked.iter().filter(|user| !told.contains(user)).cloned().collect();
            if users.len() >= asked.len() {
                return Err(self.api.unexpected("the look-up of devices leaves out all users that were requested"));
            }
            users.extend(rest);
            for list in answer.users.into_iter().filter(|list| asked.contains(&list.user)) {
                for device in list.devices {
                    let name = DeviceOf { user: list.user.clone(), device: device.device.clone() };
                    if named.contains(&name) {
                        directory.insert(name, Entry::of(device, leaves));
                    }
                }
            }
        }
        Ok(directory)
    }
}

/// A device of the directory, with its keys that the leaves have. A lying server can list any number of devices and keys;
/// what is kept of them is bounded by the leaves.
struct Entry {
    removed_at: Option<Timestamp>,
    /// Whether the server keeps any current key of it.
    has_keys: bool,
    current: Vec<SignatureKey>,
    previous: Vec<PreviousSignatureKey>,
}

impl Entry {
    fn of(device: Device, leaves: &[LeafIdentity]) -> Self {
        let is_asked = |ciphersuite: u16, key: &[u8]| {
            leaves.iter().any(|leaf| u16::from(leaf.ciphersuite) == ciphersuite && leaf.signature_key == key)
        };
        let (current, previous) = (device.signature_keys, device.previous_signature_keys);
        Self {
            removed_at: device.removed_at,
            has_keys: !current.is_empty(),
            current: {
                let asked = current.into_iter().filter(|one| is_asked(one.ciphersuite, &one.signature_key.0));
                asked.take(leaves.len()).collect()
            },
            previous: {
                let asked = previous.into_iter().filter(|one| is_asked(one.ciphersuite, &one.signature_key.0));
                asked.take(leaves.len()).collect()
            },
        }
    }
}

impl IdentityCheck for DirectoryCheck<'_> {
    fn check<'a>(&'a self, leaves: &'a [LeafIdentity]) -> Checking<'a> {
        Box::pin(self.look_up(leaves))
    }
}

fn standing(leaf: &LeafIdentity, directory: &HashMap<DeviceOf, Entry>) -> Standing {
    let unknown = |why: &str| Standing::Unknown { why: why.to_owned() };
    let Some(device) = leaf.device() else { return unknown("its credential is not the user/device of a device") };
    let Some(entry) = directory.get(&device) else { return unknown("the server knows no such device") };
    let ciphersuite = u16::from(leaf.ciphersuite);
    let is_key = |of: u16, key: &[u8]| of == ciphersuite && key == leaf.signature_key;
    if let Some(key) = entry.current.iter().find(|key| is_key(key.ciphersuite, &key.signature_key.0)) {
        return Standing::Current { since: Some(key.since) };
    }
    let previous = entry.previous.iter().filter(|key| is_key(key.ciphersuite, &key.signature_key.0));
    match (previous.map(|key| key.until).max(), entry.removed_at) {
        (Some(_), Some(at)) => Standing::Removed { at },
        (Some(until), None) => Standing::Previous { until },
        (None, _) => unknown("its signature key is not one of that device"),
    }
}

#[cfg(test)]
mod tests {
    use keypool_openapi::Base64Bytes;
    use openmls::prelude::BasicCredential;

    use super::*;
    use crate::pool::CIPHERSUITE;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap()
    }

    fn leaf(identity: &str, key: u8) -> LeafIdentity {
        let credential = BasicCredential::new(identity.as_bytes().to_vec()).into();
        LeafIdentity { credential, signature_key: vec![key], ciphersuite: CIPHERSUITE, reserved_for: None }
    }

    #[test]
    fn a_key_is_what_the_directory_has_of_the_device_in_the_ciphersuite() {
        let entry = |removed_at, current: &[u8]| Device {
            device: "laptop".parse().unwrap(),
            registered_at: at(0),
            removed_at,
            signature_keys: current
                .iter()
                .map(|key| SignatureKey { ciphersuite: 1, signature_key: Base64Bytes(vec![*key]), since: at(5) })
                .collect(),
            previous_signature_keys: [(1, 2), (1, 3), (2, 4)]
                .map(|(ciphersuite, key)| PreviousSignatureKey {
                    ciphersuite,
                    signature_key: Base64Bytes(vec![key]),
                    since: at(0),
                    until: at(i64::from(key)),
                })
                .into(),
        };
        let of = |user: &str| DeviceOf { user: user.parse().unwrap(), device: "laptop".parse().unwrap() };
        let leaves = [1, 3, 4, 9].map(|key| leaf("alice/laptop", key));
        let entry = |removed_at, current: &[u8]| Entry::of(entry(removed_at, current), &leaves);
        let directory = HashMap::from([(of("alice"), entry(None, &[1])), (of("bob"), entry(Some(at(9)), &[]))]);
        let is = |identity, key| standing(&leaf(identity, key), &directory);
        assert_eq!(is("alice/laptop", 1), Standing::Current { since: Some(at(5)) });
        assert_eq!(is("alice/laptop", 3), Standing::Previous { until: at(3) });
        assert_eq!(is("bob/laptop", 3), Standing::Removed { at: at(9) });
        for (identity, key) in [
            ("alice/laptop", 4),
            ("alice/laptop", 9),
            ("bob/laptop", 1),
            ("alice/d1", 1),
            ("eve/laptop", 1),
            ("alice", 1),
        ] {
            assert!(matches!(is(identity, key), Standing::Unknown { .. }), "{identity} {key}");
        }
    }

    #[test]
    fn what_is_kept_of_an_endless_list_is_bounded_by_the_leaves() {
        let key = |number: u32| {
            let key = if number.is_multiple_of(2) { vec![1] } else { number.to_be_bytes().to_vec() };
            SignatureKey { ciphersuite: 1, signature_key: Base64Bytes(key), since: at(0) }
        };
        let previous = |number: u32| {
            let SignatureKey { ciphersuite, signature_key, since } = key(number);
            PreviousSignatureKey { ciphersuite, signature_key, since, until: at(1) }
        };
        let device = Device {
            device: "laptop".parse().unwrap(),
            registered_at: at(0),
            removed_at: None,
            signature_keys: (0..10_000).map(key).collect(),
            previous_signature_keys: (0..10_000).map(previous).collect(),
        };
        let kept = Entry::of(device, &[leaf("alice/laptop", 1), leaf("bob/laptop", 2)]);
        assert_eq!((kept.has_keys, kept.current.len(), kept.previous.len()), (true, 2, 2));
    }
}
