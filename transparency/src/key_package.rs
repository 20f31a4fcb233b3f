//! Reads from a KeyPackage the few fields that the log needs (RFC 9420, sections 6, 7.2 and 10), without an MLS library.

use crate::encoding::{Flaw, Malformed, Reader};

/// The most bytes of a KeyPackage that are read.
pub const MAX_SIZE: usize = 65_536;

/// The type of the `last_resort` extension (RFC 9420, section 17.3).
const LAST_RESORT: u16 = 0x000a;

/// Fields of a KeyPackage. No signature is checked: an adder's MLS library does that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyPackageFields {
    /// The ciphersuite (RFC 9420, section 17.1).
    pub ciphersuite: u16,
    /// The init key: the public key's bytes, without their length.
    pub init_key: Vec<u8>,
    /// The signature key of the leaf node: the public key's bytes, without their length.
    pub signature_key: Vec<u8>,
    /// When its lifetime begins, in Unix seconds.
    pub not_before: u64,
    /// When its lifetime ends, in Unix seconds.
    pub not_after: u64,
    /// Whether it has the `last_resort` extension.
    pub last_resort: bool,
}

impl KeyPackageFields {
    /// Reads an `MLSMessage` that wraps a KeyPackage.
    pub fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new("KeyPackage", bytes);
        if bytes.len() > MAX_SIZE {
            return Err(reader.error(Flaw::TooLong(MAX_SIZE)));
        }
        if reader.array()? != [0x00, 0x01, 0x00, 0x05] {
            return Err(reader.error(Flaw::Other("it is no MLSMessage of version mls10 that wraps a KeyPackage")));
        }
        if reader.u16()? != 1 {
            return Err(reader.error(Flaw::Other("its protocol version is not mls10")));
        }
        let ciphersuite = reader.u16()?;
        let init_key = vector(&mut reader)?.to_vec();
        let _encryption_key = vector(&mut reader)?;
        let signature_key = vector(&mut reader)?.to_vec();
        let _credential = (reader.u16()?, vector(&mut reader)?);
        for _ in ["versions", "cipher_suites", "extensions", "proposals", "credentials"] {
            vector(&mut reader)?;
        }
        if reader.u8()? != 1 {
            return Err(reader.error(Flaw::Other("its leaf node is not of the source key_package")));
        }
        let (not_before, not_after) = (reader.u64()?, reader.u64()?);
        let _extensions = extension_types(vector(&mut reader)?)?;
        let _signature = vector(&mut reader)?;
        let extensions = extension_types(vector(&mut reader)?)?;
        let _signature = vector(&mut reader)?;
        reader.end()?;
        let last_resort = extensions.contains(&LAST_RESORT);
        Ok(Self { ciphersuite, init_key, signature_key, not_before, not_after, last_resort })
    }
}

/// A vector with a length of 1, 2 or 4 bytes, in the shortest form (RFC 9420, section 2.1.2).
fn vector<'a>(reader: &mut Reader<'a>) -> Result<&'a [u8], Malformed> {
    let first = reader.u8()?;
    let low = u32::from(first & 0x3f);
    let (length, least) = match first >> 6 {
        0 => (low, 0),
        1 => (low << 8 | u32::from(reader.u8()?), 1 << 6),
        2 => {
            let [a, b, c] = reader.array()?;
            (low << 24 | u32::from_be_bytes([0, a, b, c]), 1 << 14)
        }
        _ => return Err(reader.error(Flaw::Other("the length of a vector begins with the bits 11"))),
    };
    if length < least {
        return Err(reader.error(Flaw::Other("the length of a vector is not in its shortest form")));
    }
    reader.take(usize::try_from(length).unwrap_or(usize::MAX))
}

fn extension_types(bytes: &[u8]) -> Result<Vec<u16>, Malformed> {
    let mut reader = Reader::new("extensions of the KeyPackage", bytes);
    let mut types = Vec::new();
    while !reader.is_empty() {
        types.push(reader.u16()?);
        vector(&mut reader)?;
    }
    Ok(types)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn seed(name: &str) -> Vec<u8> {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/seeds/key_package/");
        std::fs::read(format!("{path}{name}")).unwrap()
    }

    #[rstest]
    #[case("suite-1", 1, 32, 32)]
    #[case("suite-2", 2, 65, 65)]
    #[case("suite-3", 3, 32, 32)]
    #[case("extended", 1, 32, 32)]
    fn reads_keys(#[case] name: &str, #[case] ciphersuite: u16, #[case] init: usize, #[case] signature: usize) {
        let fields = KeyPackageFields::parse(&seed(name)).unwrap();
        assert_eq!(fields.ciphersuite, ciphersuite);
        assert_eq!((fields.init_key.len(), fields.signature_key.len()), (init, signature));
        assert!(!fields.last_resort && fields.not_before < fields.not_after);
    }

    #[test]
    fn reads_the_bytes_at_their_places() {
        let bytes = seed("last-resort");
        let fields = KeyPackageFields::parse(&bytes).unwrap();
        assert_eq!(fields.init_key, bytes[9..41]);
        assert_eq!(fields.signature_key, bytes[75..107]);
        assert_eq!((fields.not_before, fields.not_after), (0x5e0b_e100, 0xf486_5700));
        assert!(fields.last_resort);
    }

    #[test]
    fn refuses_other_messages_versions_and_sources() {
        let bytes = seed("last-resort");
        let source = bytes.windows(8).position(|bytes| bytes == 0x5e0b_e100_u64.to_be_bytes()).unwrap() - 1;
        for (place, why) in [
            (1, "no MLSMessage of version mls10"),
            (3, "no MLSMessage of version mls10"),
            (5, "its protocol version is not mls10"),
            (source, "its leaf node is not of the source key_package"),
        ] {
            let mut other = bytes.clone();
            other[place] ^= 2;
            let error = KeyPackageFields::parse(&other).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }

    #[rstest]
    #[case("trailing", Flaw::Trailing(1))]
    #[case("truncated-in-leaf", Flaw::Truncated)]
    #[case("truncated-in-signature", Flaw::Truncated)]
    fn refuses_other_lengths(#[case] name: &str, #[case] flaw: Flaw) {
        assert_eq!(*KeyPackageFields::parse(&seed(name)).unwrap_err().flaw(), flaw);
    }

    #[test]
    fn refuses_every_prefix_and_a_length_that_is_not_the_shortest() {
        let bytes = seed("suite-1");
        for length in 0..bytes.len() {
            assert!(KeyPackageFields::parse(&bytes[..length]).is_err(), "{length}");
        }
        let mut long = bytes[..8].to_vec();
        long.extend([0x40, 32]);
        long.extend(&bytes[9..]);
        let error = KeyPackageFields::parse(&long).unwrap_err();
        assert_eq!(error.to_string(), "KeyPackage: the length of a vector is not in its shortest form");
    }
}
