//! Signs any content with good signatures. Otherwise a mutated input would fail at the first signature, and never reach
//! the later checks.

use openmls::prelude::{
    Ciphersuite,
    tls_codec::{Deserialize, Error, Serialize, VLByteSlice, VLBytes},
};
use openmls_basic_credential::SignatureKeyPair;
use openmls_traits::{signatures::Signer, types::SignatureScheme};

/// The key pair of RFC 8032, section 7.1, test 1.
const ED25519: (&str, &str) = (
    "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
    "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
);

/// The key pair of RFC 6979, appendix A.2.5.
const P256: (&str, &str) = (
    "c9afa9d845ba75166b5c215767b1d6934e50c3db36e89b127b8a622b120f6721",
    "0460fed4ba255a9d31c961eb74c6356d68c049b8923b61fa6ce669622e60f29fb6\
     7903fe1008b8bc99a41ae9e95628bc64f2f1b20c2d7e9f5177a3c294d4462299",
);

/// The key pair that signs KeyPackages of this ciphersuite: the same in every run, so that an input has the same effect
/// in every run. `None` if the server does not accept the ciphersuite.
#[must_use]
pub fn signer(suite: Ciphersuite) -> Option<SignatureKeyPair> {
    let scheme = suite.signature_algorithm();
    let (private, public) = match scheme {
        SignatureScheme::ED25519 => ED25519,
        SignatureScheme::ECDSA_SECP256R1_SHA256 => P256,
        _ => return None,
    };
    Some(SignatureKeyPair::from_raw(scheme, hex::decode(private).ok()?, hex::decode(public).ok()?))
}

/// The same KeyPackage with [`signer`]'s key and good signatures; `None` if the bytes do not have the shape of a
/// KeyPackage.
#[must_use]
pub fn resign(message: &[u8]) -> Option<Vec<u8>> {
    let (wrapping, package) = message.split_at_checked(4)?;
    let suite = u16::from_be_bytes([*package.get(2)?, *package.get(3)?]);
    let signer = signer(Ciphersuite::try_from(suite).ok()?)?;

    let mut rest = package;
    let head = taken(&mut rest, |rest| {
        skip(rest, 4)?; // protocol version, ciphersuite
        skip_vectors(rest, 1) // init key
    })?;
    let encryption_key = taken(&mut rest, |rest| skip_vectors(rest, 1))?;
    skip_vectors(&mut rest, 1)?; // another's signature key
    let leaf_rest = taken(&mut rest, |rest| {
        skip(rest, 2)?; // credential type
        skip_vectors(rest, 1 + 5)?; // credential, capabilities
        skip(rest, 1 + 8 + 8)?; // leaf node source, lifetime
        skip_vectors(rest, 1) // extensions
    })?;
    skip_vectors(&mut rest, 1)?; // another's signature
    let extensions = taken(&mut rest, |rest| skip_vectors(rest, 1))?;

    let leaf = [encryption_key, &vector(signer.public()).ok()?, leaf_rest].concat();
    let signed_leaf = [leaf.as_slice(), &sign(&signer, "LeafNodeTBS", &leaf)?].concat();
    let package = [head, &signed_leaf, extensions].concat();
    Some([wrapping, &package, &sign(&signer, "KeyPackageTBS", &package)?].concat())
}

/// A signature over labelled content (RFC 9420, section 5.1.2), with its length before it.
fn sign(signer: &SignatureKeyPair, label: &str, content: &[u8]) -> Option<Vec<u8>> {
    let label = format!("MLS 1.0 {label}");
    let content = [vector(label.as_bytes()).ok()?, vector(content).ok()?].concat();
    vector(&signer.sign(&content).ok()?).ok()
}

fn vector(content: &[u8]) -> Result<Vec<u8>, Error> {
    VLByteSlice(content).tls_serialize_detached()
}

/// The skipped bytes.
fn taken<'a>(rest: &mut &'a [u8], mut skip: impl FnMut(&mut &'a [u8]) -> Option<()>) -> Option<&'a [u8]> {
    let all = *rest;
    skip(rest)?;
    all.get(..all.len() - rest.len())
}

fn skip(rest: &mut &[u8], bytes: usize) -> Option<()> {
    *rest = rest.get(bytes..)?;
    Some(())
}

fn skip_vectors(rest: &mut &[u8], vectors: usize) -> Option<()> {
    (0..vectors).try_for_each(|_| VLBytes::tls_deserialize(rest).ok().map(drop))
}
