use std::{
    collections::HashMap,
    sync::{Arc, LazyLock, Mutex},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use jiff::{SignedDuration, Timestamp};
use keypool_openapi::SignatureKeyChangeContent;
use openmls::prelude::{
    Capabilities, Ciphersuite, Credential, CredentialType, CredentialWithKey, Extension, ExtensionType, Extensions,
    KeyPackage, Lifetime, MlsMessageOut, UnknownExtension,
};
use openmls_basic_credential::SignatureKeyPair;
use openmls_rust_crypto::OpenMlsRustCrypto;
use openmls_traits::signatures::Signer;
use serde_json::{Value, json};
use tls_codec::{Deserialize, Serialize};

use super::server::now;

/// The bytes of the signature field of a KeyPackage: its length, and 64 bytes of Ed25519.
const SIGNATURE: usize = 66;
/// The bytes before the KeyPackage in its `MLSMessage`: version and wire format.
const HEADER: usize = 4;

/// The type of an extension that no RFC knows.
const PRIVATE_EXTENSION: u16 = 0xf001;

/// A KeyPackage as it travels: an `MLSMessage`.
pub type Made = Vec<u8>;

/// A device that makes KeyPackages with OpenMLS, in memory.
pub struct Device {
    identity: String,
    pub(super) provider: OpenMlsRustCrypto,
    pub(super) signer: Arc<SignatureKeyPair>,
    pub(super) suite: Ciphersuite,
    lifetime: (Timestamp, Timestamp),
    credentials: Vec<CredentialType>,
    credential_type: CredentialType,
    listed_extensions: Vec<ExtensionType>,
    extensions: Vec<Extension>,
    leaf_extensions: Vec<Extension>,
}

/// By identity and ciphersuite.
type Keys = HashMap<(String, u16), Arc<SignatureKeyPair>>;

/// The key of a device in a ciphersuite: the same whenever a test makes the device, as servers hold it to that.
fn key_of(identity: &str, suite: Ciphersuite) -> Arc<SignatureKeyPair> {
    static KEYS: LazyLock<Mutex<Keys>> = LazyLock::new(Mutex::default);
    let slot = (identity.to_owned(), u16::from(suite));
    Arc::clone(KEYS.lock().unwrap().entry(slot).or_insert_with(|| new_key(suite)))
}

fn new_key(suite: Ciphersuite) -> Arc<SignatureKeyPair> {
    Arc::new(SignatureKeyPair::new(suite.signature_algorithm()).unwrap())
}

impl Device {
    /// A device whose KeyPackages are valid from an hour ago for two weeks.
    pub fn new(user: &str, device: &str) -> Self {
        Self::of_identity(&format!("{user}/{device}"))
    }

    /// The same with a credential of any form.
    pub fn of_identity(identity: &str) -> Self {
        let suite = Ciphersuite::MLS_128_DHKEMX25519_AES128GCM_SHA256_Ed25519;
        Self {
            signer: key_of(identity, suite),
            identity: identity.to_owned(),
            provider: OpenMlsRustCrypto::default(),
            suite,
            lifetime: (now() - SignedDuration::from_hours(1), now() + SignedDuration::from_hours(14 * 24)),
            credentials: vec![CredentialType::Basic],
            credential_type: CredentialType::Basic,
            listed_extensions: vec![ExtensionType::LastResort],
            extensions: Vec::new(),
            leaf_extensions: Vec::new(),
        }
    }

    /// The same device, with KeyPackages of another ciphersuite.
    pub fn of_suite(mut self, suite: Ciphersuite) -> Self {
        self.suite = suite;
        self.signer = key_of(&self.identity, suite);
        self
    }

    /// The same device with a signature key that no other has.
    pub fn with_new_key(mut self) -> Self {
        self.signer = new_key(self.suite);
        self
    }

    /// The same device with the signature key that a client has for it.
    pub fn with_key_of(mut self, pair: &SignatureKeyPair) -> Self {
        let serialized = pair.tls_serialize_detached().unwrap();
        self.signer = Arc::new(SignatureKeyPair::tls_deserialize(&mut serialized.as_slice()).unwrap());
        self
    }

    /// Its public signature key.
    pub fn signature_key(&self) -> &[u8] {
        self.signer.public()
    }

    /// The change to another device's signature key, as an upload has it, signed by this one's key.
    pub fn change_to(&self, new: &Self, registered_at: Timestamp) -> Value {
        let (user, device) = self.identity.split_once('/').unwrap();
        let content = SignatureKeyChangeContent {
            user: &user.parse().unwrap(),
            device: &device.parse().unwrap(),
            registered_at,
            ciphersuite: self.suite.into(),
            old_key: self.signature_key(),
            new_key: new.signature_key(),
        };
        let signature = self.signer.sign(&content.signed_bytes()).unwrap();
        json!({"ciphersuite": u16::from(self.suite), "signature_key": encode(new.signature_key()),
            "signature": encode(&signature)})
    }

    /// The same device, with KeyPackages that end so long from now.
    pub fn valid_for(self, span: SignedDuration) -> Self {
        self.valid_until(now() + span)
    }

    /// The same device, with KeyPackages that end at this time.
    pub fn valid_until(self, not_after: Timestamp) -> Self {
        let not_before = self.lifetime.0;
        self.valid_between(not_before, not_after)
    }

    /// The same device, with KeyPackages of this lifetime.
    pub fn valid_between(mut self, not_before: Timestamp, not_after: Timestamp) -> Self {
        self.lifetime = (not_before, not_after);
        self
    }

    /// The same device, whose leaf nodes list a credential type that is not its own.
    pub fn listing_another_credential(mut self) -> Self {
        self.credentials = vec![CredentialType::X509];
        self
    }

    /// The same device with an X.509 credential, whose content nobody here reads.
    pub fn with_x509(mut self) -> Self {
        self.credentials = vec![CredentialType::Basic, CredentialType::X509];
        self.credential_type = CredentialType::X509;
        self
    }

    /// The same device, with KeyPackages that carry an extension of so many bytes, which the leaf node lists or not.
    pub fn with_extension(mut self, bytes: usize, listed: bool) -> Self {
        self.extensions.push(Extension::Unknown(PRIVATE_EXTENSION, UnknownExtension(vec![7; bytes])));
        if listed {
            self.listed_extensions.push(ExtensionType::Unknown(PRIVATE_EXTENSION));
        }
        self
    }

    /// The same device, with KeyPackages that carry this GREASE extension (RFC 9420, section 13.5), which the leaf node
    /// lists or not.
    pub fn with_grease(mut self, code: u16, listed: bool) -> Self {
        self.extensions.push(Extension::Unknown(code, UnknownExtension(vec![1])));
        self.listed_extensions.extend(listed.then_some(ExtensionType::Grease(code)));
        self
    }

    /// The same device, with leaf nodes that carry this GREASE extension, and list it.
    pub fn with_grease_in_leaf(mut self, code: u16) -> Self {
        self.leaf_extensions.push(Extension::Unknown(code, UnknownExtension(vec![1])));
        self.listed_extensions.push(ExtensionType::Grease(code));
        self
    }

    /// Marks its KeyPackages as last resorts by a component of `app_data_dictionary` (draft-ietf-mls-extensions).
    pub fn marking_by_a_component(mut self) -> Self {
        self.listed_extensions.push(ExtensionType::Unknown(6));
        self.extensions.push(Extension::Unknown(6, UnknownExtension(vec![3, 0, 4, 0])));
        self
    }

    pub fn key_packages(&self, n: usize) -> Vec<Made> {
        (0..n).map(|_| self.key_package()).collect()
    }

    pub fn key_package(&self) -> Made {
        self.make(false)
    }

    pub fn last_resort(&self) -> Made {
        self.make(true)
    }

    pub(super) fn credential(&self) -> CredentialWithKey {
        CredentialWithKey {
            credential: Credential::new(self.credential_type, self.identity.clone().into_bytes()),
            signature_key: self.signer.to_public_vec().into(),
        }
    }

    fn make(&self, last_resort: bool) -> Made {
        let second = |time: Timestamp| u64::try_from(time.as_second()).unwrap();
        let (extensions, credentials) = (&self.listed_extensions, &self.credentials);
        let capabilities =
            Capabilities::new(None, Some(&[self.suite]), Some(extensions), None, Some(credentials.as_slice()));
        let mut builder = KeyPackage::builder()
            .leaf_node_capabilities(capabilities)
            .key_package_extensions(Extensions::from_vec(self.extensions.clone()).unwrap())
            .leaf_node_extensions(Extensions::from_vec(self.leaf_extensions.clone()).unwrap())
            .key_package_lifetime(Lifetime::init(second(self.lifetime.0), second(self.lifetime.1)));
        if last_resort {
            builder = builder.mark_as_last_resort();
        }
        let bundle = builder.build(self.suite, &self.provider, &*self.signer, self.credential()).unwrap();
        MlsMessageOut::from(bundle.into_key_package()).tls_serialize_detached().unwrap()
    }
}

/// A valid KeyPackage of the same device with the very keys of another one: the same, with the last-resort extension
/// added and signed anew.
pub fn with_the_keys_of(package: &[u8], device: &Device) -> Made {
    let signed = package.len() - SIGNATURE;
    assert_eq!(package[signed - 1], 0, "the KeyPackage has extensions already");
    let mut changed = package[..signed - 1].to_vec();
    // One extension of three bytes: its type, 0x000a, and no data.
    changed.extend([3, 0x00, 0x0a, 0]);
    let content = [vector(b"MLS 1.0 KeyPackageTBS"), vector(&changed[HEADER..])].concat();
    changed.extend(vector(&device.signer.sign(&content).unwrap()));
    changed
}

/// A vector with its length before it (RFC 9420, section 2.1.2).
fn vector(bytes: &[u8]) -> Vec<u8> {
    let length = u16::try_from(bytes.len()).unwrap();
    let mut encoded =
        if length < 64 { vec![length.to_be_bytes()[1]] } else { (length | 0x4000).to_be_bytes().to_vec() };
    encoded.extend(bytes);
    encoded
}

/// The same bytes with one bit changed.
pub fn tampered(package: &[u8], at: usize) -> Made {
    let mut changed = package.to_vec();
    changed[at] ^= 1;
    changed
}

/// Bytes as they travel.
pub fn encode(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

/// Bytes as they came.
pub fn decode(text: &str) -> Vec<u8> {
    STANDARD.decode(text).unwrap()
}
