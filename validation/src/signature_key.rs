//! Signature keys of devices: reads the key of a stored KeyPackage, and verifies a change of keys.

use keypool_openapi::SignatureKeyChangeContent;
use openmls::prelude::Ciphersuite;
use openmls_rust_crypto::RustCrypto;
use openmls_traits::crypto::OpenMlsCrypto;

use crate::wire::Wire;

/// The most bytes of a KeyPackage that [`signature_key_in`] needs, for the ciphersuites of RFC 9420, section 17.1.
pub const HEAD: usize = 1024;

/// The length of the headers of the `MLSMessage` and of the KeyPackage, before the init key.
const FIXED: usize = 8;

/// The signature key in the leaf node of a KeyPackage, from the first [`HEAD`] bytes of its `MLSMessage`. The
/// KeyPackage was validated when it was uploaded; `None` if the bytes are damaged.
#[must_use]
pub fn signature_key_in(head: &[u8]) -> Option<&[u8]> {
    let mut wire = Wire::new(head.get(FIXED..)?);
    // Init key, encryption key, signature key (RFC 9420, sections 10 and 7.2).
    let (_, _, key) = (wire.vector()?, wire.vector()?, wire.vector()?);
    Some(key)
}

/// Whether the old key has signed the change to the new one.
#[must_use]
pub fn is_signed(content: &SignatureKeyChangeContent<'_>, signature: &[u8]) -> bool {
    let Ok(suite) = Ciphersuite::try_from(content.ciphersuite) else { return false };
    let (scheme, signed) = (suite.signature_algorithm(), content.signed_bytes());
    RustCrypto::default().verify_signature(scheme, &signed, content.old_key, signature).is_ok()
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use keypool_openapi::{DeviceName, UserName};
    use openmls::prelude::{
        BasicCredential, CredentialWithKey, KeyPackage, MlsMessageOut, SignatureScheme, tls_codec::Serialize,
    };
    use openmls_basic_credential::SignatureKeyPair;
    use openmls_rust_crypto::OpenMlsRustCrypto;
    use openmls_traits::signatures::Signer;
    use rstest::rstest;

    use super::*;
    use crate::key_package::KNOWN_CIPHERSUITES;

    /// The vectors of docs/writing-a-client.md: the keys of RFC 8032, section 7.1, tests 1 and 2.
    const OLD_SECRET: &str = "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60";
    const OLD: &str = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";
    const NEW: &str = "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c";
    const SIGNATURE: &str = "fbf204838a974a64b385c917e4e9cd2e9947181bf4750d41e3d25b9287b62e1ac97d0e0c50c244849145984ac7be18453e8b21c86d7882b1be3cd850e7cf1a04";

    fn bytes(hex: &str) -> Vec<u8> {
        (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
    }

    #[test]
    fn the_signature_of_the_guide_for_clients_is_the_old_keys() {
        let (user, device): (UserName, DeviceName) = ("alice".parse().unwrap(), "laptop".parse().unwrap());
        let (old, new) = (bytes(OLD), bytes(NEW));
        let content = SignatureKeyChangeContent {
            user: &user,
            device: &device,
            registered_at: Timestamp::from_second(1_796_126_400).unwrap(),
            ciphersuite: 1,
            old_key: &old,
            new_key: &new,
        };
        let signer = SignatureKeyPair::from_raw(SignatureScheme::ED25519, bytes(OLD_SECRET), old.clone());
        let signature = signer.sign(&content.signed_bytes()).unwrap();
        assert_eq!(signature, bytes(SIGNATURE));
        assert!(is_signed(&content, &signature));
        let mallory: UserName = "mallory".parse().unwrap();
        let later = Timestamp::from_second(1_796_126_401).unwrap();
        for other in [
            SignatureKeyChangeContent { user: &mallory, ..content },
            SignatureKeyChangeContent { device: &"phone".parse().unwrap(), ..content },
            SignatureKeyChangeContent { registered_at: later, ..content },
            SignatureKeyChangeContent { ciphersuite: 3, ..content },
            SignatureKeyChangeContent { ciphersuite: 0xfff0, ..content },
            SignatureKeyChangeContent { old_key: &new, ..content },
            SignatureKeyChangeContent { new_key: &old, ..content },
        ] {
            assert!(!is_signed(&other, &signature), "{other:?}");
        }
        assert!(!is_signed(&content, &[]));
        assert!(!is_signed(&content, &[0; 64]));
    }

    #[rstest]
    fn a_key_package_tells_its_signature_key(#[values(0, 1, 2)] suite: usize) {
        let suite = Ciphersuite::try_from(KNOWN_CIPHERSUITES[suite]).unwrap();
        let (signer, provider) =
            (SignatureKeyPair::new(suite.signature_algorithm()).unwrap(), OpenMlsRustCrypto::default());
        let credential = CredentialWithKey {
            credential: BasicCredential::new(b"alice/laptop".to_vec()).into(),
            signature_key: signer.public().into(),
        };
        let bundle = KeyPackage::builder().build(suite, &provider, &signer, credential).unwrap();
        let bytes = MlsMessageOut::from(bundle.into_key_package()).tls_serialize_detached().unwrap();
        let head = &bytes[..bytes.len().min(HEAD)];
        assert_eq!(signature_key_in(head), Some(signer.public()));
        let end = 8 + 3 * (2 + 65);
        for length in 0..end.min(70) {
            assert_eq!(signature_key_in(&bytes[..length]), None, "{length}");
        }
    }
}
