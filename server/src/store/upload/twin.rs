//! The other ref of the same content. Anybody can turn an ECDSA signature (r, s) into (r, -s), which verifies, too: one
//! KeyPackage, two refs.

use keypool_openapi::KeyPackageRef;
use keypool_transparency::key_package::{HEADER, KeyPackageFields};
use keypool_validation::key_package::ValidatedKeyPackage;
use p256::ecdsa::Signature;
use sha2::{Digest, Sha256};

/// The ciphersuite with ECDSA: `MLS_128_DHKEMP256_AES128GCM_SHA256_P256`.
const P256: u16 = 2;

/// The label of refs (RFC 9420, section 5.2).
const LABEL: &[u8] = b"MLS 1.0 KeyPackage Reference";

/// The ref that the KeyPackage has under its other signature; `None` if its signature has no other form.
pub(super) fn twin(package: &ValidatedKeyPackage) -> Option<KeyPackageRef> {
    if package.ciphersuite != P256 {
        return None;
    }
    let fields = KeyPackageFields::parse(&package.bytes).ok()?;
    let (content, signature) = package.bytes.get(HEADER..)?.split_at_checked(fields.signature.start - HEADER)?;
    let (r, s) = Signature::from_der(without_length(signature)?).ok()?.split_scalars();
    let other = Signature::from_scalars(r, -s).ok()?;
    Some(key_package_ref(content, other.to_der().as_bytes()))
}

/// A vector's bytes.
fn without_length(vector: &[u8]) -> Option<&[u8]> {
    vector.get(1 << (vector.first()? >> 6)..)
}

/// The ref of a KeyPackage with this content and signature.
fn key_package_ref(content: &[u8], signature: &[u8]) -> KeyPackageRef {
    let signature = with_length(signature);
    let length = length(content.len() + signature.len());
    let mut hash = Sha256::new();
    for part in [&with_length(LABEL), &length, content, &signature] {
        hash.update(part);
    }
    hash.finalize().to_vec().into()
}

fn with_length(bytes: &[u8]) -> Vec<u8> {
    [length(bytes.len()).as_slice(), bytes].concat()
}

/// The length of a vector (RFC 9420, section 2.1.2). A KeyPackage has at most 64 KiB.
fn length(bytes: usize) -> Vec<u8> {
    let bytes = u32::try_from(bytes).unwrap_or(u32::MAX >> 2);
    match bytes {
        0..0x40 => vec![bytes.to_be_bytes()[3]],
        0x40..0x4000 => (0x4000 | bytes).to_be_bytes()[2..].to_vec(),
        _ => (0x8000_0000 | bytes).to_be_bytes().to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(keypackage_ref: &KeyPackageRef, bytes: &[u8]) -> ValidatedKeyPackage {
        ValidatedKeyPackage {
            bytes: bytes.to_vec(),
            keypackage_ref: keypackage_ref.clone(),
            ciphersuite: P256,
            init_key: Vec::new(),
            encryption_key: Vec::new(),
            signature_key: Vec::new(),
            not_after: jiff::Timestamp::UNIX_EPOCH,
            last_resort: false,
        }
    }

    #[test]
    fn a_twin_of_a_twin_is_the_package() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/seeds/key_package/suite-2");
        let bytes = std::fs::read(path).unwrap();
        let start = KeyPackageFields::parse(&bytes).unwrap().signature.start;
        let (content, signature) = (&bytes[HEADER..start], without_length(&bytes[start..]).unwrap());
        let own = key_package_ref(content, signature);
        let (r, s) = Signature::from_der(signature).unwrap().split_scalars();
        let other = Signature::from_scalars(r, -s).unwrap();
        let twin_bytes = [&bytes[..start], &with_length(other.to_der().as_bytes())].concat();
        let its = twin(&package(&own, &bytes)).unwrap();
        assert_ne!(its, own);
        assert_eq!(twin(&package(&its, &twin_bytes)), Some(own));
    }
}
