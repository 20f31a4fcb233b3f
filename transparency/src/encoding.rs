//! Strict readers of bytes and text: fixed lengths, one encoding of each value, nothing left over.

use base64::{Engine, engine::general_purpose::STANDARD};
use sha2::{Digest, Sha256};

/// The output of SHA-256.
pub type Hash = [u8; 32];

/// The most hashes of a path: the height of the largest tree.
pub const MAX_PATH: usize = 64;

/// A value that cannot be read: which one, and what is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}: {why}")]
pub struct Malformed {
    what: &'static str,
    why: Flaw,
}

/// What is wrong with a value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Flaw {
    /// The bytes end within a field.
    #[error("it ends within a field")]
    Truncated,
    /// Bytes follow the last field.
    #[error("{0} bytes follow the last field")]
    Trailing(usize),
    /// A value of fixed length has another one.
    #[error("it must have {expected} bytes, not {got}")]
    Length {
        /// The length that it must have.
        expected: usize,
        /// The length that it has.
        got: usize,
    },
    /// It is longer than readers accept.
    #[error("it is longer than {0} bytes")]
    TooLong(usize),
    /// It is not padded standard base64 (RFC 4648, section 4).
    #[error("it is not padded standard base64")]
    Base64,
    /// It is not a decimal number in its shortest form.
    #[error("it is not a decimal number without leading zeroes")]
    Decimal,
    /// It is not UTF-8.
    #[error("it is not UTF-8")]
    Utf8,
    /// Something else.
    #[error("{0}")]
    Other(&'static str),
}

impl Malformed {
    /// An error about the value `what`.
    #[must_use]
    pub fn new(what: &'static str, why: Flaw) -> Self {
        Self { what, why }
    }

    pub(crate) fn other(what: &'static str, why: &'static str) -> Self {
        Self { what, why: Flaw::Other(why) }
    }

    /// What is wrong.
    #[must_use]
    pub fn flaw(&self) -> &Flaw {
        &self.why
    }
}

/// Reads fields from the front of some bytes.
pub(crate) struct Reader<'a> {
    what: &'static str,
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) fn new(what: &'static str, bytes: &'a [u8]) -> Self {
        Self { what, rest: bytes }
    }

    pub(crate) fn error(&self, why: Flaw) -> Malformed {
        Malformed::new(self.what, why)
    }

    pub(crate) fn take(&mut self, length: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.rest.split_at_checked(length).ok_or_else(|| self.error(Flaw::Truncated))?;
        self.rest = rest;
        Ok(taken)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (taken, rest) = self.rest.split_first_chunk().ok_or_else(|| self.error(Flaw::Truncated))?;
        self.rest = rest;
        Ok(*taken)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, Malformed> {
        self.array().map(|[byte]| byte)
    }

    pub(crate) fn u16(&mut self) -> Result<u16, Malformed> {
        self.array().map(u16::from_be_bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_be_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, Malformed> {
        self.array().map(u64::from_be_bytes)
    }

    /// A two-byte length, and the bytes.
    pub(crate) fn v16(&mut self) -> Result<&'a [u8], Malformed> {
        let length = self.u16()?;
        self.take(length.into())
    }

    /// The same with text in it.
    pub(crate) fn text16(&mut self) -> Result<String, Malformed> {
        String::from_utf8(self.v16()?.to_vec()).map_err(|_| self.error(Flaw::Utf8))
    }

    pub(crate) fn remaining(&self) -> usize {
        self.rest.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    pub(crate) fn end(self) -> Result<(), Malformed> {
        if self.rest.is_empty() { Ok(()) } else { Err(self.error(Flaw::Trailing(self.rest.len()))) }
    }
}

/// Appends a two-byte length, and the bytes. What is longer than 65,535 bytes is cut off: callers bound it before.
pub(crate) fn put_v16(bytes: &mut Vec<u8>, value: &[u8]) {
    let length = u16::try_from(value.len()).unwrap_or(u16::MAX);
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(&value[..length.into()]);
}

/// Writes padded standard base64.
#[must_use]
pub fn base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

/// Reads padded standard base64, in its one canonical form.
pub fn from_base64(what: &'static str, text: &str) -> Result<Vec<u8>, Malformed> {
    STANDARD.decode(text).map_err(|_| Malformed::new(what, Flaw::Base64))
}

/// Reads base64 of a fixed number of bytes.
pub fn array_from_base64<const N: usize>(what: &'static str, text: &str) -> Result<[u8; N], Malformed> {
    let bytes = from_base64(what, text)?;
    bytes.try_into().map_err(|bytes: Vec<u8>| Malformed::new(what, Flaw::Length { expected: N, got: bytes.len() }))
}

/// Reads a decimal number without sign and leading zeroes.
pub(crate) fn decimal(what: &'static str, text: &str) -> Result<u64, Malformed> {
    let number = text.parse::<u64>().ok().filter(|number| number.to_string() == text);
    number.ok_or_else(|| Malformed::new(what, Flaw::Decimal))
}

/// The SHA-256 of some parts, one after another.
pub(crate) fn sha256(parts: &[&[u8]]) -> Hash {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update(part);
    }
    hasher.finalize().into()
}

/// Makes a type of fixed length base64 in JSON and in text, and hex in `Debug`.
macro_rules! base64_text {
    ($name:ident, $length:expr, $what:literal) => {
        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(&$crate::encoding::base64(&self.0))
            }
        }

        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, "{}({})", stringify!($name), hex::encode(self.0))
            }
        }

        impl std::str::FromStr for $name {
            type Err = $crate::encoding::Malformed;

            fn from_str(text: &str) -> Result<Self, $crate::encoding::Malformed> {
                $crate::encoding::array_from_base64::<{ $length }>($what, text).map(Self)
            }
        }

        $crate::encoding::json_text!($name);
    };
}

/// Makes a type a string in JSON: written by its `Display`, read by its `FromStr`.
macro_rules! json_text {
    ($name:ident) => {
        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <String as serde::Deserialize>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

pub(crate) use {base64_text, json_text};

/// Reads a JSON file.
///
/// # Errors
/// When it is longer than `max_size`, or is not JSON of this format.
pub fn from_json<'a, T: serde::Deserialize<'a>>(json: &'a [u8], max_size: usize) -> Result<T, serde_json::Error> {
    if json.len() > max_size {
        return Err(serde::de::Error::custom(format!("the file is longer than {max_size} bytes")));
    }
    serde_json::from_slice(json)
}

/// Writes a JSON file.
#[must_use]
pub fn to_json(file: &impl serde::Serialize) -> String {
    // Strings and numbers alone: this cannot fail.
    serde_json::to_string_pretty(file).unwrap_or_default() + "\n"
}

/// Lists of hashes in JSON: an array of base64.
pub(crate) mod hashes {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    use super::{Hash, MAX_PATH, array_from_base64, base64};

    pub(crate) fn serialize<S: Serializer>(hashes: &[Hash], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(hashes.iter().map(|hash| base64(hash)))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Hash>, D::Error> {
        let texts = Vec::<String>::deserialize(deserializer)?;
        if texts.len() > MAX_PATH + 1 {
            return Err(D::Error::custom("a path has more than 65 hashes"));
        }
        texts.iter().map(|text| array_from_base64("hash of a path", text).map_err(D::Error::custom)).collect()
    }
}

/// Bytes in JSON: base64.
pub mod bytes {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    use super::{base64, from_base64};

    /// Writes base64.
    pub fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&base64(bytes))
    }

    /// Reads base64.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(deserializer)?;
        from_base64("bytes", &text).map_err(D::Error::custom)
    }
}
