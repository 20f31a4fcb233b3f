//! Many signatures by one key pair.

use ed25519_dalek::{Signer as _, SigningKey};
use openmls_basic_credential::SignatureKeyPair;
use openmls_traits::{
    signatures::{Signer, SignerError},
    types::SignatureScheme,
};
use secrecy::{ExposeSecret, SecretSlice};
use tls_codec::{Deserialize, Error, SecretVLBytes, Serialize};

/// Signs as a key pair of OpenMLS. That derives an Ed25519 public key anew for each signature, which takes half of its time:
/// this derives it once.
pub(crate) enum ManySignatures<'k> {
    /// With the public key.
    Ed25519(SigningKey),
    /// Of another scheme.
    Other(&'k SignatureKeyPair),
}

impl<'k> ManySignatures<'k> {
    /// Fails where the private key is none of its scheme.
    pub(crate) fn by(pair: &'k SignatureKeyPair) -> Result<Self, Error> {
        if pair.signature_scheme() != SignatureScheme::ED25519 {
            return Ok(Self::Other(pair));
        }
        // Its serialized form begins with the private key, and is the only one that has it.
        let serialized = SecretSlice::from(pair.tls_serialize_detached()?);
        let private = SecretVLBytes::tls_deserialize(&mut serialized.expose_secret())?;
        SigningKey::try_from(private.as_slice()).map(Self::Ed25519).map_err(|_| Error::InvalidInput)
    }
}

impl Signer for ManySignatures<'_> {
    fn sign(&self, payload: &[u8]) -> Result<Vec<u8>, SignerError> {
        match self {
            Self::Ed25519(key) => Ok(key.sign(payload).to_bytes().into()),
            Self::Other(pair) => pair.sign(payload),
        }
    }

    fn signature_scheme(&self) -> SignatureScheme {
        match self {
            Self::Ed25519(_) => SignatureScheme::ED25519,
            Self::Other(pair) => pair.signature_scheme(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ed25519 signs the same in the same way, so that nobody can tell the two apart.
    #[test]
    fn its_signatures_are_those_of_the_key_pair() {
        let pair = SignatureKeyPair::new(SignatureScheme::ED25519).unwrap();
        let many = ManySignatures::by(&pair).unwrap();
        assert!(matches!(many, ManySignatures::Ed25519(_)));
        for payload in [b"a KeyPackage".as_slice(), b""] {
            assert_eq!(many.sign(payload).unwrap(), pair.sign(payload).unwrap());
        }
        assert_eq!(Signer::signature_scheme(&many), pair.signature_scheme());
    }

    #[test]
    fn other_schemes_are_left_to_the_key_pair() {
        let pair = SignatureKeyPair::new(SignatureScheme::ECDSA_SECP256R1_SHA256).unwrap();
        let many = ManySignatures::by(&pair).unwrap();
        assert!(matches!(many, ManySignatures::Other(_)));
        assert_eq!(many.sign(b"a KeyPackage").unwrap(), pair.sign(b"a KeyPackage").unwrap());
        assert_eq!(Signer::signature_scheme(&many), pair.signature_scheme());
    }

    #[test]
    fn a_private_key_of_another_length_is_refused() {
        let pair = SignatureKeyPair::from_raw(SignatureScheme::ED25519, vec![7; 31], vec![7; 32]);
        assert!(ManySignatures::by(&pair).is_err());
    }
}
