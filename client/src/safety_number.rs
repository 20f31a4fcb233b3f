//! Safety numbers: two people compare them to know that the server gave both the right keys.

use keypool_openapi::{Device, DeviceName, DeviceOf, SignatureKey, UserName, signature_key_fingerprint};
use openmls::prelude::Ciphersuite;
use serde::Serialize;
use sha2::{Digest, Sha512};
use utoipa::ToSchema;

use crate::{
    error::{Error, Result},
    groups::MlsMembership,
};

/// The prefix of the hash. Another way to compute the number needs another label.
const LABEL: &[u8] = b"Keypool safety number 1";

/// A number computed from two users' signature keys. Both see the same number, unless the server gave one of them wrong
/// keys.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct SafetyNumber {
    /// The other user.
    pub user: UserName,
    /// 60 digits in groups of five. It changes whenever one of the two changes a key or adds or removes a device.
    pub number: String,
    /// The other user's keys.
    pub keys: Vec<KeyOfDevice>,
}

/// A signature key of a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct KeyOfDevice {
    /// The device.
    #[serde(flatten)]
    pub device: DeviceOf,
    /// The key, and the start of its use.
    #[serde(flatten)]
    pub key: SignatureKey,
    /// The SHA-256 of the key, in hex.
    pub fingerprint: String,
}

impl MlsMembership<'_> {
    /// The number for this device's user and another user. They compare it without using this server. Fails if the
    /// server keeps no keys of the other user, or has a wrong key of this device.
    pub async fn safety_number(&self, user: &UserName) -> Result<SafetyNumber> {
        let api = self.connection.api();
        let own_user = self.identity.user();
        let own = api.devices(own_user).await?.devices;
        self.check_own_keys(&own)?;
        let theirs = api.devices(user).await?.devices;
        let keys = keys_of(user, &theirs);
        if keys.is_empty() {
            return Err(Error::NoSignatureKeys { user: user.clone() });
        }
        let mut halves = [digits(own_user, &own), digits(user, &theirs)];
        halves.sort_unstable();
        Ok(SafetyNumber { user: user.clone(), number: halves.join(" "), keys })
    }

    fn check_own_keys(&self, own: &[Device]) -> Result<()> {
        let device = own.iter().find(|one| one.device == *self.identity.device());
        for key in device.into_iter().flat_map(|device| &device.signature_keys) {
            let signer = Ciphersuite::try_from(key.ciphersuite).ok().and_then(|suite| self.identity.signer(suite).ok());
            if signer.is_some_and(|signer| signer.public() != key.signature_key.0) {
                return Err(Error::WrongOwnKey { ciphersuite: key.ciphersuite });
            }
        }
        Ok(())
    }
}

fn keys_of(user: &UserName, devices: &[Device]) -> Vec<KeyOfDevice> {
    let keys = devices.iter().flat_map(|device| device.signature_keys.iter().map(move |key| (&device.device, key)));
    let key = |(device, key): (&DeviceName, &SignatureKey)| KeyOfDevice {
        device: DeviceOf { user: user.clone(), device: device.clone() },
        key: key.clone(),
        fingerprint: signature_key_fingerprint(&key.signature_key.0),
    };
    keys.map(key).collect()
}

/// 30 digits of a user's keys: SHA-512 of the label, the user, and each device with its ciphersuite and key, sorted.
fn digits(user: &UserName, devices: &[Device]) -> String {
    let mut keys: Vec<_> = devices
        .iter()
        .flat_map(|device| device.signature_keys.iter().map(|key| (device.device.as_str(), key)))
        .map(|(device, key)| (device, key.ciphersuite, key.signature_key.0.as_slice()))
        .collect();
    keys.sort_unstable();
    let mut hash = Sha512::new_with_prefix(LABEL);
    let mut put = |bytes: &[u8]| {
        hash.update(u64::try_from(bytes.len()).unwrap_or(u64::MAX).to_be_bytes());
        hash.update(bytes);
    };
    put(user.as_str().as_bytes());
    for (device, ciphersuite, key) in keys {
        put(device.as_bytes());
        put(&ciphersuite.to_be_bytes());
        put(key);
    }
    let hash = hash.finalize();
    // With 40 bits, the bias of a digit is below one in ten million.
    let group = |bytes: &[u8]| bytes.iter().fold(0_u64, |number, byte| (number << 8) | u64::from(*byte)) % 100_000;
    let groups: Vec<_> = hash.chunks_exact(5).take(6).map(|bytes| format!("{:05}", group(bytes))).collect();
    groups.join(" ")
}
