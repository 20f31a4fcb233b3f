//! Signature keys of devices: the entries of the directory, and the content that a device signs to change its key.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use utoipa::ToSchema;

use crate::{Base64Bytes, DeviceName, UserName, whole_number};

/// The label under which a device signs the change of its signature key (RFC 9420, section 5.1.2).
pub const SIGNATURE_KEY_CHANGE_LABEL: &str = "KeypoolSignatureKeyChange";

/// The prefix of each label (RFC 9420, section 5.1.2).
const LABEL_PREFIX: &str = "MLS 1.0 ";

/// A device's current signature key in one ciphersuite.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SignatureKey {
    /// The ciphersuite (RFC 9420, section 17.1).
    #[schema(example = 1)]
    pub ciphersuite: u16,
    /// The public key, as in the leaf node of a KeyPackage.
    pub signature_key: Base64Bytes,
    /// Since when this is the key of the device.
    #[schema(value_type = String, format = DateTime)]
    pub since: Timestamp,
}

/// A previous signature key of a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PreviousSignatureKey {
    /// The ciphersuite (RFC 9420, section 17.1).
    #[schema(example = 1)]
    pub ciphersuite: u16,
    /// The public key, as in the leaf node of a KeyPackage.
    pub signature_key: Base64Bytes,
    /// Since when this was the key of the device.
    #[schema(value_type = String, format = DateTime)]
    pub since: Timestamp,
    /// When another key replaced it, or the device was removed.
    #[schema(value_type = String, format = DateTime)]
    pub until: Timestamp,
}

/// A new signature key of the caller, signed by the key that it replaces.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SignatureKeyChange {
    /// The ciphersuite whose key changes (RFC 9420, section 17.1).
    #[serde(deserialize_with = "whole_number")]
    #[schema(maximum = 65535, example = 1)]
    pub ciphersuite: u16,
    /// The new public key, as in the leaf nodes of the new KeyPackages.
    pub signature_key: Base64Bytes,
    /// The signature by the old key over a `KeypoolSignatureKeyChange`: `SignWithLabel` of RFC 9420, section 5.1.2.
    pub signature: Base64Bytes,
}

/// The content that the old signature key signs to be replaced by the new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SignatureKeyChangeContent<'a> {
    /// The device's user.
    pub user: &'a UserName,
    /// The device.
    pub device: &'a DeviceName,
    /// When the device was registered: `registered_at` of `GET /users/{user}/devices`.
    pub registered_at: Timestamp,
    /// The ciphersuite whose key changes.
    pub ciphersuite: u16,
    /// The old public key, which signs.
    pub old_key: &'a [u8],
    /// The new public key.
    pub new_key: &'a [u8],
}

impl SignatureKeyChangeContent<'_> {
    /// Encodes the content in the presentation language of TLS, with the variable-size vectors of RFC 9420, section
    /// 2.1.2:
    ///
    /// ```text
    /// struct {
    ///   opaque user<V>;
    ///   opaque device<V>;
    ///   uint64 registered_at;      // seconds since the Unix epoch
    ///   CipherSuite cipher_suite;  // uint16
    ///   opaque old_signature_key<V>;
    ///   opaque new_signature_key<V>;
    /// } KeypoolSignatureKeyChange;
    /// ```
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut content = Vec::new();
        put(&mut content, self.user.as_str().as_bytes());
        put(&mut content, self.device.as_str().as_bytes());
        content.extend(self.registered_at.as_second().to_be_bytes());
        content.extend(self.ciphersuite.to_be_bytes());
        put(&mut content, self.old_key);
        put(&mut content, self.new_key);
        content
    }

    /// The bytes that the signature algorithm signs: the `SignContent` of RFC 9420, section 5.1.2, with the label
    /// [`SIGNATURE_KEY_CHANGE_LABEL`].
    #[must_use]
    pub fn signed_bytes(&self) -> Vec<u8> {
        let mut signed = Vec::new();
        put(&mut signed, format!("{LABEL_PREFIX}{SIGNATURE_KEY_CHANGE_LABEL}").as_bytes());
        put(&mut signed, &self.encode());
        signed
    }
}

/// Appends a vector with its length before it (RFC 9420, section 2.1.2). A length has 30 bits at most; names and keys
/// are much shorter.
fn put(out: &mut Vec<u8>, bytes: &[u8]) {
    let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    let [_, _, high, low] = length.to_be_bytes();
    match length {
        0..64 => out.push(low),
        64..16_384 => out.extend([0x40 | high, low]),
        _ => out.extend((0x8000_0000 | length).to_be_bytes()),
    }
    out.extend(bytes);
}

/// The fingerprint by which people and messages name a signature key: its SHA-256, in lower-case hex.
#[must_use]
pub fn signature_key_fingerprint(signature_key: &[u8]) -> String {
    hex::encode(Sha256::digest(signature_key))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The vectors of docs/writing-a-client.md. The keys are those of RFC 8032, section 7.1, tests 1 and 2.
    const OLD: &str = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";
    const NEW: &str = "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c";

    #[test]
    fn a_change_is_encoded_as_the_guide_for_clients_has_it() {
        let (old_key, new_key) = (hex::decode(OLD).unwrap(), hex::decode(NEW).unwrap());
        let content = SignatureKeyChangeContent {
            user: &"alice".parse().unwrap(),
            device: &"laptop".parse().unwrap(),
            registered_at: Timestamp::from_second(1_796_126_400).unwrap(),
            ciphersuite: 1,
            old_key: &old_key,
            new_key: &new_key,
        };
        let encoded = format!("05616c696365066c6170746f70000000006b0eb6c0000120{OLD}20{NEW}");
        assert_eq!(hex::encode(content.encode()), encoded);
        let label = hex::encode("MLS 1.0 KeypoolSignatureKeyChange");
        assert_eq!(hex::encode(content.signed_bytes()), format!("21{label}4059{encoded}"));
        assert_eq!(
            signature_key_fingerprint(&old_key),
            "21fe31dfa154a261626bf854046fd2271b7bed4b6abe45aa58877ef47f9721b9"
        );
    }

    #[test]
    fn a_long_key_has_a_longer_length() {
        let mut out = Vec::new();
        put(&mut out, &[7; 65]);
        assert_eq!(out[..3], [0x40, 65, 7]);
        put(&mut out, &[]);
        assert_eq!(out.len(), 2 + 65 + 1);
    }
}
