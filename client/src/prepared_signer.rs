//! A signer for many signatures by one key pair.

use std::sync::Arc;

use ed25519_dalek::{Signer as _, SigningKey};
use openmls_basic_credential::SignatureKeyPair;
use openmls_traits::{
    signatures::{Signer, SignerError},
    types::SignatureScheme,
};
use secrecy::{ExposeSecret, SecretSlice};
use tls_codec::{Deserialize, Error, SecretVLBytes, Serialize};

/// Signs like OpenMLS's key pair, but derives the Ed25519 public key only once. OpenMLS derives it for each signature,
/// which takes half of the time of signing.
pub(crate) struct PreparedSigner {
    pair: Arc<SignatureKeyPair>,
    /// The private key with its public key, for Ed25519 only.
    ed25519: Option<SigningKey>,
}

impl PreparedSigner {
    /// Fails if the private key does not fit its signature scheme.
    pub(crate) fn new(pair: Arc<SignatureKeyPair>) -> Result<Self, Error> {
        if pair.signature_scheme() != SignatureScheme::ED25519 {
            return Ok(Self { pair, ed25519: None });
        }
        // The key pair gives its private key only in its serialized form, at the beginning.
        let serialized = SecretSlice::from(pair.tls_serialize_detached()?);
        let private = SecretVLBytes::tls_deserialize(&mut serialized.expose_secret())?;
        let key = SigningKey::try_from(private.as_slice()).map_err(|_| Error::InvalidInput)?;
        Ok(Self { pair, ed25519: Some(key) })
    }
}

impl Signer for PreparedSigner {
    fn sign(&self, payload: &[u8]) -> Result<Vec<u8>, SignerError> {
        match &self.ed25519 {
            Some(key) => Ok(key.sign(payload).to_bytes().into()),
            None => self.pair.sign(payload),
        }
    }

    fn signature_scheme(&self) -> SignatureScheme {
        self.pair.signature_scheme()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ed25519 is deterministic, so both signers must produce the same signature.
    #[test]
    fn its_signatures_are_those_of_the_key_pair() {
        let pair = Arc::new(SignatureKeyPair::new(SignatureScheme::ED25519).unwrap());
        let many = PreparedSigner::new(Arc::clone(&pair)).unwrap();
        assert!(many.ed25519.is_some());
        for payload in [b"a KeyPackage".as_slice(), b""] {
            assert_eq!(many.sign(payload).unwrap(), pair.sign(payload).unwrap());
        }
    }

    #[test]
    fn other_schemes_are_left_to_the_key_pair() {
        let pair = Arc::new(SignatureKeyPair::new(SignatureScheme::ECDSA_SECP256R1_SHA256).unwrap());
        let many = PreparedSigner::new(Arc::clone(&pair)).unwrap();
        assert!(many.ed25519.is_none());
        assert_eq!(many.sign(b"a KeyPackage").unwrap(), pair.sign(b"a KeyPackage").unwrap());
    }

    #[test]
    fn a_private_key_of_another_length_is_refused() {
        let pair = SignatureKeyPair::from_raw(SignatureScheme::ED25519, vec![7; 31], vec![7; 32]);
        assert!(PreparedSigner::new(Arc::new(pair)).is_err());
    }
}
