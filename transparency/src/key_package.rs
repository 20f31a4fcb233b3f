//! Reads from a KeyPackage the few fields that the log needs (RFC 9420, sections 6, 7.2 and 10), without an MLS library.

use crate::encoding::{Flaw, Hash, Malformed, Reader, sha256};

/// The most bytes of a KeyPackage that are read.
pub const MAX_SIZE: usize = 65_536;

/// The bytes of the `MLSMessage` before the KeyPackage: version and wire format.
pub const HEADER: usize = 4;

/// The type of the `last_resort` extension (RFC 9420, section 17.3).
const LAST_RESORT: u16 = 0x000a;

/// The type of the `app_data_dictionary` extension, and the component in it that marks a last resort
/// (draft-ietf-mls-extensions).
const APP_DATA_DICTIONARY: u16 = 0x0006;
const LAST_RESORT_COMPONENT: u16 = 0x0004;

/// Fields of a KeyPackage. No signature is checked: an adder's MLS library does that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyPackageFields {
    /// The ciphersuite (RFC 9420, section 17.1).
    pub ciphersuite: u16,
    /// The SHA-256 of `"keypool/v1 package\0"` and of the KeyPackage without its signature, all of which its owner has signed.
    pub signed: Hash,
    /// Where the signature is in the message, with its length.
    pub signature: std::ops::Range<usize>,
    /// When its lifetime begins, in Unix seconds.
    pub not_before: u64,
    /// When its lifetime ends, in Unix seconds.
    pub not_after: u64,
    /// Whether it is a last resort: by the `last_resort` extension, or by that component of an `app_data_dictionary`.
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
        let _keys = (vector(&mut reader)?, vector(&mut reader)?, vector(&mut reader)?);
        let _credential = (reader.u16()?, vector(&mut reader)?);
        for _ in ["versions", "cipher_suites", "extensions", "proposals", "credentials"] {
            vector(&mut reader)?;
        }
        if reader.u8()? != 1 {
            return Err(reader.error(Flaw::Other("its leaf node is not of the source key_package")));
        }
        let (not_before, not_after) = (reader.u64()?, reader.u64()?);
        let _extensions = extensions(vector(&mut reader)?)?;
        let _signature = vector(&mut reader)?;
        let extensions = extensions(vector(&mut reader)?)?;
        let signature = bytes.len() - reader.remaining()..bytes.len();
        let signed = sha256(&[b"keypool/v1 package\0", &bytes[HEADER..signature.start]]);
        let _signature = vector(&mut reader)?;
        reader.end()?;
        let last_resort = is_last_resort(&extensions)?;
        Ok(Self { ciphersuite, signed, signature, not_before, not_after, last_resort })
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

/// The extensions, each with its type and its data.
fn extensions(bytes: &[u8]) -> Result<Vec<(u16, &[u8])>, Malformed> {
    let mut reader = Reader::new("extensions of the KeyPackage", bytes);
    let mut extensions = Vec::new();
    while !reader.is_empty() {
        extensions.push((reader.u16()?, vector(&mut reader)?));
    }
    Ok(extensions)
}

fn is_last_resort(extensions: &[(u16, &[u8])]) -> Result<bool, Malformed> {
    let mut is_marked = false;
    for (kind, data) in extensions {
        is_marked |= match *kind {
            LAST_RESORT => true,
            APP_DATA_DICTIONARY => has_last_resort_component(data)?,
            _ => false,
        };
    }
    Ok(is_marked)
}

/// Reads an `AppDataDictionary`: components with their data, in ascending order, each once.
fn has_last_resort_component(dictionary: &[u8]) -> Result<bool, Malformed> {
    let mut outer = Reader::new("app_data_dictionary of the KeyPackage", dictionary);
    let mut reader = Reader::new("app_data_dictionary of the KeyPackage", vector(&mut outer)?);
    outer.end()?;
    let (mut last, mut is_marked) = (None, false);
    while !reader.is_empty() {
        let (component, data) = (reader.u16()?, vector(&mut reader)?);
        if last.is_some_and(|last| last >= component) {
            return Err(reader.error(Flaw::Other("its components are not in ascending order")));
        }
        if component == LAST_RESORT_COMPONENT {
            if !data.is_empty() {
                return Err(reader.error(Flaw::Other("the component that marks a last resort has data")));
            }
            is_marked = true;
        }
        last = Some(component);
    }
    Ok(is_marked)
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
    #[case("suite-1", 1)]
    #[case("suite-2", 2)]
    #[case("suite-3", 3)]
    #[case("extended", 1)]
    fn reads_ciphersuites(#[case] name: &str, #[case] ciphersuite: u16) {
        let fields = KeyPackageFields::parse(&seed(name)).unwrap();
        assert_eq!(fields.ciphersuite, ciphersuite);
        assert!(!fields.last_resort && fields.not_before < fields.not_after);
    }

    /// Anybody can turn an ECDSA signature into another one of the same content.
    #[test]
    fn what_is_signed_names_it_and_the_signature_does_not() {
        let bytes = seed("suite-2");
        let signed = |place: usize| {
            let mut other = bytes.clone();
            other[place] ^= 1;
            KeyPackageFields::parse(&other).unwrap().signed
        };
        let own = KeyPackageFields::parse(&bytes).unwrap().signed;
        assert_eq!(signed(bytes.len() - 1), own);
        // A byte of the init key.
        assert_ne!(signed(12), own);
    }

    #[test]
    fn reads_the_bytes_at_their_places() {
        let bytes = seed("last-resort");
        let fields = KeyPackageFields::parse(&bytes).unwrap();
        assert_eq!(fields.signed, sha256(&[b"keypool/v1 package\0", &bytes[4..bytes.len() - 66]]));
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
    #[case::marked(&[3, 0, 4, 0], Ok(true))]
    #[case::marked_among_others(&[11, 0, 1, 1, 7, 0, 4, 0, 0x12, 0x34, 1, 9], Ok(true))]
    #[case::not_marked(&[4, 0, 3, 1, 4], Ok(false))]
    #[case::empty(&[0], Ok(false))]
    #[case::with_data(&[4, 0, 4, 1, 1], Err("has data"))]
    #[case::twice(&[6, 0, 4, 0, 0, 4, 0], Err("ascending order"))]
    #[case::out_of_order(&[6, 0, 4, 0, 0, 3, 0], Err("ascending order"))]
    #[case::short(&[5, 0, 4, 0], Err("app_data_dictionary"))]
    #[case::trailing(&[3, 0, 4, 0, 0], Err("1 bytes follow"))]
    fn a_component_marks_a_last_resort(#[case] dictionary: &[u8], #[case] expected: Result<bool, &str>) {
        let found = is_last_resort(&[(0x0a0a, &[]), (APP_DATA_DICTIONARY, dictionary)]);
        match (found, expected) {
            (Ok(found), Ok(expected)) => assert_eq!(found, expected),
            (Err(error), Err(words)) => assert!(error.to_string().contains(words), "{error}"),
            (found, expected) => panic!("{found:?}, {expected:?}"),
        }
        assert_eq!(is_last_resort(&[(LAST_RESORT, &[])]), Ok(true));
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
