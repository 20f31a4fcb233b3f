//! Parses a JWK Set (RFC 7517), and selects the keys that can verify a token.

use anyhow::Context;
use jsonwebtoken::{
    Algorithm, DecodingKey, DecodingKeyKind,
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyOperations, PublicKeyUse},
};
use serde::Deserialize;

/// The accepted algorithms. None is symmetric: with a symmetric one, every verifier could sign.
pub(super) const ALGORITHMS: [Algorithm; 9] = [
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::PS256,
    Algorithm::PS384,
    Algorithm::PS512,
    Algorithm::ES256,
    Algorithm::ES384,
    Algorithm::EdDSA,
];

/// Allowed bytes of an RSA modulus: RFC 7518, section 3.3 forbids shorter ones, and the library refuses longer ones.
const RSA_MODULUS: std::ops::RangeInclusive<usize> = 256..=512;
const ED25519_KEY: usize = 32;

/// The keys of a JWK Set that can verify tokens.
pub(super) struct KeySet(Vec<Key>);

/// A key that verifies tokens.
pub(super) struct Key {
    kid: Option<String>,
    algorithms: Vec<Algorithm>,
    decoding: DecodingKey,
}

impl KeySet {
    /// Parses a JWK Set. Skips keys of unknown kinds and keys for other purposes than signatures, since providers
    /// publish them in the same set.
    pub(super) fn parse(json: &[u8]) -> anyhow::Result<Self> {
        #[derive(Deserialize)]
        struct JwkSet {
            keys: Vec<serde_json::Value>,
        }
        let JwkSet { keys } = serde_json::from_slice(json).context("it is not a JWK Set (RFC 7517)")?;
        Ok(Self(keys.into_iter().filter_map(Key::from_json).collect()))
    }

    /// Whether the set has no key, so that no token can be verified.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the keys with this `kid`, or all keys if the token names none.
    pub(super) fn named(&self, kid: Option<&str>) -> impl Iterator<Item = &Key> {
        self.0.iter().filter(move |key| kid.is_none() || key.kid.as_deref() == kid)
    }
}

impl Key {
    /// Whether the key may verify a token with this algorithm.
    pub(super) fn fits(&self, algorithm: Algorithm) -> bool {
        self.algorithms.contains(&algorithm)
    }

    /// The key in the library's format.
    pub(super) fn decoding(&self) -> &DecodingKey {
        &self.decoding
    }

    fn from_json(json: serde_json::Value) -> Option<Self> {
        let jwk: Jwk = serde_json::from_value(json).ok()?;
        let decoding = DecodingKey::from_jwk(&jwk).ok()?;
        let algorithms = algorithms(&jwk);
        let usable = verifies(&jwk) && sound(&decoding, *algorithms.first()?);
        usable.then_some(Self { kid: jwk.common.key_id, algorithms, decoding })
    }
}

/// Whether the key's `use` and `key_ops` allow it to verify signatures.
fn verifies(jwk: &Jwk) -> bool {
    let (key_use, operations) = (&jwk.common.public_key_use, &jwk.common.key_operations);
    key_use.as_ref().is_none_or(|key_use| *key_use == PublicKeyUse::Signature)
        && operations.as_ref().is_none_or(|operations| operations.contains(&KeyOperations::Verify))
}

/// Returns the algorithms of the key's type, or only the one that its `alg` names.
fn algorithms(jwk: &Jwk) -> Vec<Algorithm> {
    use Algorithm::{ES256, ES384, EdDSA, PS256, PS384, PS512, RS256, RS384, RS512};
    let of_type: &[_] = match &jwk.algorithm {
        AlgorithmParameters::RSA(_) => &[RS256, RS384, RS512, PS256, PS384, PS512],
        AlgorithmParameters::EllipticCurve(key) if key.curve == EllipticCurve::P256 => &[ES256],
        AlgorithmParameters::EllipticCurve(key) if key.curve == EllipticCurve::P384 => &[ES384],
        AlgorithmParameters::OctetKeyPair(key) if key.curve == EllipticCurve::Ed25519 => &[EdDSA],
        _ => &[],
    };
    let named = jwk.common.key_algorithm;
    of_type.iter().copied().filter(|algorithm| named.is_none_or(|named| named == (*algorithm).into())).collect()
}

/// Whether the library can use the key.
fn sound(key: &DecodingKey, algorithm: Algorithm) -> bool {
    let sized = match key.kind() {
        DecodingKeyKind::RsaModulusExponent { n, .. } => {
            RSA_MODULUS.contains(&n.iter().skip_while(|byte| **byte == 0).count())
        }
        // The library panics on an Ed25519 key that is too short.
        DecodingKeyKind::SecretOrDer(bytes) => algorithm != Algorithm::EdDSA || bytes.len() == ED25519_KEY,
    };
    // The library reports an empty signature as invalid, but a point off the curve as an invalid key.
    sized && jsonwebtoken::crypto::verify("", &[], key, algorithm).is_ok()
}
