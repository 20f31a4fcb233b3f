use std::{fmt, str::FromStr};

use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use utoipa::ToSchema;
use uuid::Uuid;

/// Why a text is no id of the kind that was asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}: {why}")]
pub struct InvalidId {
    what: &'static str,
    why: &'static str,
}

const NAME_LIMIT: usize = 128;
const NAME_RULE: &str = "a name has 1 to 128 characters, each an ASCII letter, a digit or one of . _ - @ + : = ~";

fn valid_name(name: &str) -> bool {
    (1..=NAME_LIMIT).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-@+:=~".contains(&byte))
}

/// A name type: validated when it is made, so that its users need not validate it again.
macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
        #[serde(try_from = "String", into = "String")]
        #[schema(value_type = String, pattern = "^[A-Za-z0-9._@+:=~-]{1,128}$")]
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
                if valid_name(&name) { Ok(Self(name)) } else { Err(InvalidId { what: $what, why: NAME_RULE }) }
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(name: &str) -> Result<Self, InvalidId> {
                name.to_owned().try_into()
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0
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
    /// A user, who owns one or more devices. The first part of a credential's identity, `user/device`.
    UserName,
    "invalid user name"
);
name!(
    /// A device of a user: one MLS client. The second part of a credential's identity, `user/device`.
    DeviceName,
    "invalid device name"
);

/// The hash that names a KeyPackage (RFC 9420, section 5.2), lower-case hex on the wire.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(try_from = "String", into = "String")]
#[schema(value_type = String, pattern = "^([0-9a-f]{2}){32,64}$")]
pub struct KeyPackageRef(Vec<u8>);

impl KeyPackageRef {
    /// The hash itself: 32, 48 or 64 bytes, as the ciphersuite's hash function has it.
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

impl TryFrom<String> for KeyPackageRef {
    type Error = InvalidId;

    fn try_from(text: String) -> Result<Self, InvalidId> {
        text.parse()
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

impl From<KeyPackageRef> for String {
    fn from(keypackage_ref: KeyPackageRef) -> Self {
        hex::encode(keypackage_ref.0)
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

/// Names one reservation. Opaque to clients; inside, the reserved KeyPackage's owner and a random nonce, so that the
/// server finds the row by the owner's key alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ReservationId {
    /// The server's number of the device whose KeyPackage is reserved.
    pub owner: i64,
    /// What tells this reservation from all others of that device.
    pub nonce: Uuid,
}

impl utoipa::PartialSchema for ReservationId {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
        utoipa::openapi::ObjectBuilder::new()
            .schema_type(utoipa::openapi::schema::Type::String)
            .pattern(Some("^[1-9a-f][0-9a-f]{0,14}-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$"))
            .description(Some("Names one reservation; to be given back exactly as it was answered."))
            .examples(["1f-67e55044-10b1-426f-9247-bb680e5fe0c8"])
            .into()
    }
}

impl ToSchema for ReservationId {}

impl TryFrom<String> for ReservationId {
    type Error = InvalidId;

    fn try_from(text: String) -> Result<Self, InvalidId> {
        text.parse()
    }
}

impl FromStr for ReservationId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let invalid = || InvalidId {
            what: "invalid reservation id",
            why: "it is to be given back exactly as POST /keypackages/reserve answered it",
        };
        let (owner, nonce) = text.split_once('-').ok_or_else(invalid)?;
        let id = Self {
            owner: i64::from_str_radix(owner, 16).map_err(|_| invalid())?,
            nonce: Uuid::try_parse(nonce).map_err(|_| invalid())?,
        };
        if id.owner > 0 && id.to_string() == text { Ok(id) } else { Err(invalid()) }
    }
}

impl From<ReservationId> for String {
    fn from(id: ReservationId) -> Self {
        id.to_string()
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

/// The most bytes that a group id may have.
const MAX_GROUP_ID: usize = 256;

/// A group's id in a path: its 1 to 256 bytes as base64url without padding (RFC 4648, section 5).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct GroupId(Vec<u8>);

impl GroupId {
    /// The id of these bytes.
    pub fn new(bytes: Vec<u8>) -> Result<Self, InvalidId> {
        if bytes.is_empty() || bytes.len() > MAX_GROUP_ID {
            return Err(InvalidId { what: "invalid group id", why: "a group id has 1 to 256 bytes" });
        }
        Ok(Self(bytes))
    }

    /// Its bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl TryFrom<String> for GroupId {
    type Error = InvalidId;

    fn try_from(text: String) -> Result<Self, InvalidId> {
        text.parse()
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

impl From<GroupId> for String {
    fn from(id: GroupId) -> Self {
        id.to_string()
    }
}

impl fmt::Display for GroupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&URL_SAFE_NO_PAD.encode(&self.0))
    }
}

impl utoipa::PartialSchema for GroupId {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
        utoipa::openapi::ObjectBuilder::new()
            .schema_type(utoipa::openapi::schema::Type::String)
            .pattern(Some("^([A-Za-z0-9_-]{4})*([A-Za-z0-9_-]{2}[AEIMQUYcgkosw048]|[A-Za-z0-9_-][AQgw])?$"))
            .min_length(Some(2))
            .max_length(Some(342))
            .description(Some("A group's id: its 1 to 256 bytes as base64url without padding."))
            .examples(["ZnJpZW5kcw"])
            .into()
    }
}

impl ToSchema for GroupId {}

/// The schema of a group id: 1 to 256 bytes.
pub(crate) fn group_id_schema() -> utoipa::openapi::schema::Object {
    let schema = <Base64Bytes as utoipa::PartialSchema>::schema();
    let utoipa::openapi::RefOr::T(utoipa::openapi::Schema::Object(mut schema)) = schema else {
        return utoipa::openapi::schema::Object::default();
    };
    (schema.min_length, schema.max_length) = (Some(4), Some(344));
    schema.description = Some("The group's id, of 1 to 256 bytes.".to_owned());
    schema
}

/// The schema of 32 bytes that may be left out.
pub(crate) fn proof_schema() -> utoipa::openapi::schema::Object {
    let mut schema = optional_group_id_schema();
    schema.pattern = Some("^[A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]=$".to_owned());
    (schema.min_length, schema.max_length) = (Some(44), Some(44));
    schema.description = Some("32 bytes, or none where the call can do without.".to_owned());
    schema.example = Some("AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=".into());
    schema
}

/// The same, where it may be left out.
pub(crate) fn optional_group_id_schema() -> utoipa::openapi::schema::Object {
    use utoipa::openapi::schema::{SchemaType, Type};
    let mut schema = group_id_schema();
    schema.schema_type = SchemaType::Array(vec![Type::String, Type::Null]);
    schema
}

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

impl Serialize for Base64Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.encode())
    }
}

impl<'de> Deserialize<'de> for Base64Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::decode(&text).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_keep_out_what_would_blur_an_identity() {
        assert!("alice@example.org".parse::<UserName>().is_ok());
        for bad in ["", "alice/laptop", "al ice", "älice", &"a".repeat(129)] {
            assert!(bad.parse::<UserName>().is_err(), "{bad:?} was taken");
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
    }
}
