//! Checks changes of signature keys before the database makes them.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use keypool_openapi::{
    ProblemType, SignatureKeyChange, SignatureKeyChangeContent, signature_key_fingerprint as fingerprint,
};
use keypool_validation::{key_package::ValidatedKeyPackage, signature_key::is_signed};

use crate::{
    problem::Failure,
    store::{DeviceRow, KeptKey, KeyChange, Registration},
};

/// The most keys that a device may use in a ciphersuite, one after the other. The server keeps all of them, since
/// groups may still have old leaves.
const MAX_KEYS: usize = 250;

/// The requested changes of signature keys in an upload.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    asked: Vec<SignatureKeyChange>,
    /// The changes that the current key has signed.
    pub proven: Vec<KeyChange>,
    /// The ciphersuites that already have the new key, for example in a repeated upload.
    done: Vec<u16>,
    /// The errors of the other changes, by ciphersuite.
    faults: BTreeMap<u16, String>,
}

pub(super) fn registration(device: &DeviceRow) -> Registration {
    Registration { device: device.id, at: device.registered_at.as_second() }
}

impl Changes {
    /// Checks changes against the device's current and previous keys.
    pub(super) fn check(asked: Vec<SignatureKeyChange>, device: &DeviceRow, keys: &[KeptKey]) -> Self {
        let mut changes = Self::default();
        for change in &asked {
            let suite = change.ciphersuite;
            let own = || keys.iter().filter(|key| key.registration == registration(device) && key.ciphersuite == suite);
            // If the device has no key yet, its first KeyPackage records one, so no change is needed.
            let Some(current) = own().find(|key| key.until.is_none()) else { continue };
            let (old_key, new_key) = (&current.signature_key, &change.signature_key.0);
            if new_key == old_key {
                changes.done.push(suite);
                continue;
            }
            let content = SignatureKeyChangeContent {
                user: &device.user,
                device: &device.device,
                registered_at: device.registered_at,
                ciphersuite: suite,
                old_key,
                new_key,
            };
            let fault = if own().any(|key| key.signature_key == *new_key) {
                Some("the device had this key before. Make a new one".to_owned())
            } else if own().count() >= MAX_KEYS {
                Some(format!("the device has changed it {MAX_KEYS} times. Remove the device, and register it anew"))
            } else if is_signed(&content, &change.signature.0) {
                None
            } else {
                Some(wrong_signature(device.registered_at, old_key))
            };
            match fault {
                None => {
                    let (old_key, new_key) = (old_key.clone(), new_key.clone());
                    changes.proven.push(KeyChange { ciphersuite: suite, old_key, new_key });
                }
                Some(fault) => drop(changes.faults.insert(suite, fault)),
            }
        }
        Self { asked, ..changes }
    }

    /// Returns the ciphersuites that now have the new key. `stored` are the ciphersuites and keys of the stored
    /// KeyPackages.
    pub(super) fn made(&self, stored: &BTreeSet<(u16, &[u8])>) -> Vec<u16> {
        let is_made = |change: &&SignatureKeyChange| {
            let key = change.signature_key.0.as_slice();
            self.done.contains(&change.ciphersuite) || stored.contains(&(change.ciphersuite, key))
        };
        self.asked.iter().filter(is_made).map(|change| change.ciphersuite).collect()
    }

    /// Explains why a KeyPackage with another key than the current one is refused, and what to do next.
    pub(super) fn refusal(&self, package: &ValidatedKeyPackage, current: &[u8]) -> String {
        let (name, suite, key) = (&package.keypackage_ref, package.ciphersuite, &package.signature_key);
        let is_asked = |change: &SignatureKeyChange| change.ciphersuite == suite && change.signature_key.0 == *key;
        let way_out = match self.faults.get(&suite) {
            Some(fault) if self.asked.iter().any(is_asked) => format!("The change to it is refused: {fault}."),
            _ => "Make all KeyPackages of a ciphersuite with one signature key pair (OpenMLS: one `SignatureKeyPair` for \
                  every `KeyPackage::builder()`; docs/writing-a-client.md names the calls of others). To change the key, send \
                  `signature_key_changes`, signed by the old one. Where that is lost, remove the device, and register it \
                  anew."
                .to_owned(),
        };
        format!(
            "KeyPackage {name} has the signature key {}, and the device has {} in ciphersuite {suite} (SHA-256 of each). \
             {way_out}",
            fingerprint(key),
            fingerprint(current)
        )
    }
}

/// Checks that no ciphersuite has two changes.
pub(super) fn check_form(changes: &[SignatureKeyChange]) -> Result<(), Failure> {
    let mut suites = BTreeSet::new();
    match changes.iter().find(|change| !suites.insert(change.ciphersuite)) {
        None => Ok(()),
        Some(change) => Err(Failure::new(
            ProblemType::MalformedRequest,
            format!(
                "`signature_key_changes` has two changes for ciphersuite {}. Send one of each ciphersuite.",
                change.ciphersuite
            ),
        )),
    }
}

fn wrong_signature(registered_at: Timestamp, old_key: &[u8]) -> String {
    format!(
        "its signature is not by the old key, {}, over a KeypoolSignatureKeyChange of this device with `registered_at` {}. \
         Sign it as docs/writing-a-client.md has it",
        fingerprint(old_key),
        registered_at.as_second()
    )
}

#[cfg(test)]
mod tests {
    use keypool_openapi::Base64Bytes;

    use super::*;
    use crate::store::DeviceId;

    #[test]
    fn keys_of_a_registration_are_so_many_and_no_more() {
        let registered_at = Timestamp::from_second(1_800_000_000).unwrap();
        let device = DeviceRow {
            id: DeviceId(7),
            user: "alice".parse().unwrap(),
            device: "laptop".parse().unwrap(),
            registered_at,
        };
        let kept = |number: usize, ciphersuite, at| KeptKey {
            registration: Registration { device: device.id, at },
            ciphersuite,
            signature_key: number.to_be_bytes().to_vec(),
            since: registered_at,
            until: (number > 0).then_some(registered_at),
        };
        let asked = || SignatureKeyChange {
            ciphersuite: 1,
            signature_key: Base64Bytes(vec![9; 32]),
            signature: Base64Bytes(vec![0; 64]),
        };
        let fault = |keys: &[KeptKey]| Changes::check(vec![asked()], &device, keys).faults[&1].clone();
        let at = registered_at.as_second();
        let mut keys: Vec<_> = (0..MAX_KEYS).map(|number| kept(number, 1, at)).collect();
        assert!(fault(&keys).contains("Remove the device"), "{}", fault(&keys));
        // Keys of other ciphersuites and of earlier registrations do not count.
        keys[1] = kept(1, 3, at);
        assert!(fault(&keys).contains("signature is not by the old key"), "{}", fault(&keys));
        keys[1] = kept(1, 1, at - 1);
        assert!(fault(&keys).contains("signature is not by the old key"), "{}", fault(&keys));
    }
}
