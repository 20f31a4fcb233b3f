//! Ids, names and bytes: types that are text on the wire, checked when they are read.

use std::{fmt, str::FromStr};

use base64::{
    Engine,
    display::Base64Display,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use unicode_normalization::is_nfc;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::{MAX_GROUP_ID_SIZE, parsed};

/// Why a text is not a valid id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}: {why}")]
pub struct InvalidId {
    pub(crate) what: &'static str,
    pub(crate) why: &'static str,
}

/// Makes a type a string in JSON: written by its `Display`, read by its `FromStr`.
macro_rules! text {
    ($($id:ident),+) => {$(
        impl Serialize for $id {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $id {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                parsed(deserializer)
            }
        }
    )+};
}

text!(UserName, DeviceName, KeyPackageRef, ReservationId, Base64Bytes, GroupId);

/// The most bytes of a user's name: as OpenID Connect allows for a `sub` (Core 1.0, section 2).
pub const MAX_USER_NAME_SIZE: usize = 255;

/// The most characters of a device's name.
const MAX_DEVICE_NAME: usize = 128;

/// Why a text cannot be a user's name. A name is never rewritten, so that it always is the one that the identity provider
/// gave: a text that would have to be is refused.
fn check_user_name(name: &str) -> Result<(), &'static str> {
    let is_bidi_control = |c: char| matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let is_unseen = |c: char| c.is_control() || matches!(c, '\u{2028}' | '\u{2029}') || is_bidi_control(c);
    match name {
        "" => Err("it is empty"),
        "." | ".." => Err("a URL cannot have it as a part of its path"),
        _ if name.len() > MAX_USER_NAME_SIZE => Err("it has more than 255 bytes in UTF-8"),
        _ if name.chars().any(is_unseen) => Err("it has a control character"),
        _ if name.contains(char::REPLACEMENT_CHARACTER) => Err("it was not UTF-8 where it came from"),
        _ if name.trim() != name => Err("it begins or ends with white space"),
        _ if !is_nfc(name) => Err("it is not in Unicode's form NFC: normalise it before you make credentials with it"),
        _ => Ok(()),
    }
}

fn check_device_name(name: &str) -> Result<(), &'static str> {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-@+:=~".contains(&byte);
    if (1..=MAX_DEVICE_NAME).contains(&name.len()) && name.bytes().all(is_allowed) {
        Ok(())
    } else {
        Err("it has 1 to 128 characters, each an ASCII letter, a digit or one of . _ - @ + : = ~")
    }
}

/// A name type: validated when it is made, so that its users need not validate it again.
macro_rules! name {
    ($(#[$attribute:meta])* $name:ident, $what:literal, $check:ident) => {
        $(#[$attribute])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(String);

        impl $name {
            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidId;

            fn try_from(name: String) -> Result<Self, InvalidId> {
                $check(&name).map_err(|why| InvalidId { what: $what, why })?;
                Ok(Self(name))
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(name: &str) -> Result<Self, InvalidId> {
                name.to_owned().try_into()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name!(
    /// A user, who owns one or more devices: 1 to 255 bytes of UTF-8 in Unicode's form NFC, without control characters,
    /// and without white space at its ends; not `.` or `..`. The first part of a credential's identity, `user/device`,
    /// which is split at its last `/`.
    UserName,
    "invalid user name",
    check_user_name
);
name!(
    /// A device of a user: one MLS client. The second part of a credential's identity, `user/device`.
    #[derive(ToSchema)]
    #[schema(value_type = String, pattern = "^[A-Za-z0-9._@+:=~-]{1,128}$")]
    DeviceName,
    "invalid device name",
    check_device_name
);

/// The identity in a device's credential, `user/device`.
#[must_use]
pub fn device_name(user: &UserName, device: &DeviceName) -> String {
    format!("{user}/{device}")
}

/// The hash that names a KeyPackage (RFC 9420, section 5.2), lower-case hex on the wire.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, ToSchema)]
#[schema(value_type = String, pattern = "^([0-9a-f]{2}){32,64}$")]
pub struct KeyPackageRef(Vec<u8>);

impl KeyPackageRef {
    /// The hash: 32, 48 or 64 bytes, by the ciphersuite's hash function.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl From<Vec<u8>> for KeyPackageRef {
    fn from(hash: Vec<u8>) -> Self {
        Self(hash)
    }
}

impl FromStr for KeyPackageRef {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let invalid = InvalidId { what: "invalid KeyPackageRef", why: "a ref is 32 to 64 bytes in lower-case hex" };
        match hex::decode(text) {
            Ok(hash) if (32..=64).contains(&hash.len()) && !text.bytes().any(|byte| byte.is_ascii_uppercase()) => {
                Ok(Self(hash))
            }
            _ => Err(invalid),
        }
    }
}

impl fmt::Display for KeyPackageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(&self.0))
    }
}

impl fmt::Debug for KeyPackageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyPackageRef({self})")
    }
}

/// Names one reservation. Opaque to clients; it holds the reserved KeyPackage's owner and a random nonce, so that the
/// server finds the row by the owner's key alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ReservationId {
    /// The server's number of the device whose KeyPackage is reserved.
    pub owner: i64,
    /// Random, and different for each reservation of that device.
    pub nonce: Uuid,
}

impl FromStr for ReservationId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let invalid = || InvalidId {
            what: "invalid reservation id",
            why: "send it exactly as POST /keypackages/reserve answered it",
        };
        let (owner, nonce) = text.split_once('-').ok_or_else(invalid)?;
        let id = Self {
            owner: i64::from_str_radix(owner, 16).map_err(|_| invalid())?,
            nonce: Uuid::try_parse(nonce).map_err(|_| invalid())?,
        };
        if id.owner > 0 && id.to_string() == text { Ok(id) } else { Err(invalid()) }
    }
}

impl fmt::Display for ReservationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}-{}", self.owner, self.nonce)
    }
}

/// Bytes that are standard base64 (RFC 4648, section 4, padded) on the wire.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, ToSchema)]
#[schema(
    value_type = String,
    format = Byte,
    pattern = "^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/][AQgw]==|[A-Za-z0-9+/]{2}[AEIMQUYcgkosw048]=)?$",
    example = "Z3JvdXA="
)]
pub struct Base64Bytes(pub Vec<u8>);

impl Base64Bytes {
    /// Reads base64.
    pub fn decode(text: &str) -> Result<Self, InvalidId> {
        match STANDARD.decode(text) {
            Ok(bytes) => Ok(Self(bytes)),
            Err(_) => Err(InvalidId { what: "invalid base64", why: "bytes travel as padded standard base64" }),
        }
    }

    /// Writes base64.
    #[must_use]
    pub fn encode(&self) -> String {
        STANDARD.encode(&self.0)
    }
}

impl FromStr for Base64Bytes {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        Self::decode(text)
    }
}

impl fmt::Display for Base64Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Base64Display::new(&self.0, &STANDARD).fmt(f)
    }
}

/// A group's id in a path: its 1 to 256 bytes as base64url without padding (RFC 4648, section 5).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupId(Vec<u8>);

impl GroupId {
    /// A group id of these bytes.
    ///
    /// # Errors
    /// When there are none, or more than [`MAX_GROUP_ID_SIZE`].
    pub fn new(bytes: Vec<u8>) -> Result<Self, InvalidId> {
        if bytes.is_empty() || bytes.len() > MAX_GROUP_ID_SIZE {
            return Err(InvalidId { what: "invalid group id", why: "a group id has 1 to 256 bytes" });
        }
        Ok(Self(bytes))
    }

    /// The id's bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl FromStr for GroupId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let why = "in a path, its bytes are base64url without padding";
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| InvalidId { what: "invalid group id", why })?;
        Self::new(bytes)
    }
}

impl fmt::Display for GroupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Base64Display::new(&self.0, &URL_SAFE_NO_PAD).fmt(f)
    }
}

/// Reads an optional group id in an answer. A longer one is refused, so that a list of them takes little memory.
pub(crate) fn bounded_group_id<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Base64Bytes>, D::Error> {
    let id: Option<Base64Bytes> = Option::deserialize(deserializer)?;
    match id {
        Some(id) if id.0.len() > MAX_GROUP_ID_SIZE => {
            Err(D::Error::custom(format_args!("a group id has more than {MAX_GROUP_ID_SIZE} bytes")))
        }
        id => Ok(id),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_called_as_identity_providers_call_it() {
        for good in [
            "alice@example.org",
            "auth0|5f7c8ec7c33c6c004bbafe82",
            "https://id.example/users/7",
            "a b",
            "100%",
            "...",
            "Zo\u{eb}",
            "\u{65e5}\u{672c}",
            "\u{1f469}\u{200d}\u{1f4bb}",
            &"a".repeat(255),
        ] {
            assert_eq!(good.parse::<UserName>().unwrap().as_str(), good);
        }
        for bad in [
            "",
            ".",
            "..",
            " alice",
            "alice\u{a0}",
            "a\tb",
            "a\u{0}b",
            "a\u{85}b",
            "a\u{202e}b",
            "a\u{2028}b",
            "Zoe\u{308}",
            "\u{212b}",
            "a\u{fffd}",
            &"a".repeat(256),
            &"\u{eb}".repeat(128),
        ] {
            assert!(bad.parse::<UserName>().is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn a_device_name_has_no_slash() {
        assert!("Alice's".parse::<DeviceName>().is_err());
        for bad in ["", "a/b", "la ptop", "l\u{e4}ptop", &"a".repeat(129)] {
            assert!(bad.parse::<DeviceName>().is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn ids_have_one_spelling() {
        let id = ReservationId { owner: 31, nonce: Uuid::from_u128(7) };
        assert_eq!(id.to_string().parse(), Ok(id));
        assert!(id.to_string().to_uppercase().parse::<ReservationId>().is_err());
        assert!(format!("0{id}").parse::<ReservationId>().is_err());
        let hash = KeyPackageRef::from(vec![0xab; 32]);
        assert_eq!(hash.to_string().parse(), Ok(hash.clone()));
        assert!(hash.to_string().to_uppercase().parse::<KeyPackageRef>().is_err());
        assert!("abcd".parse::<KeyPackageRef>().is_err());
    }

    #[test]
    fn bytes_are_padded_base64() {
        let json = serde_json::to_string(&Base64Bytes(b"group".to_vec())).unwrap();
        assert_eq!(json, r#""Z3JvdXA=""#);
        assert_eq!(serde_json::from_str::<Base64Bytes>(&json).unwrap().0, b"group");
        assert!(serde_json::from_str::<Base64Bytes>(r#""Z3JvdXA""#).is_err());
        let long = Base64Bytes((0..=255).cycle().take(5_000).collect());
        assert_eq!(serde_json::to_string(&long).unwrap(), format!("\"{}\"", long.encode()));
    }

    #[test]
    fn a_group_id_has_bounds() {
        assert!(GroupId::new(vec![7; MAX_GROUP_ID_SIZE]).is_ok());
        assert!(GroupId::new(vec![7; MAX_GROUP_ID_SIZE + 1]).is_err());
        assert!(serde_json::from_str::<GroupId>(r#""""#).is_err());
        assert_eq!(serde_json::to_string(&GroupId::new(b"friends".to_vec()).unwrap()).unwrap(), r#""ZnJpZW5kcw""#);
    }

    #[test]
    fn an_id_that_is_no_string_is_refused_by_that() {
        let error = serde_json::from_str::<UserName>("5").unwrap_err();
        assert!(error.to_string().starts_with("invalid type: integer `5`, expected a string"), "{error}");
    }
}
