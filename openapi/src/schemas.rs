//! Schemas that utoipa cannot derive.

use utoipa::{
    PartialSchema, ToSchema,
    openapi::{
        ObjectBuilder, RefOr, Schema,
        schema::{Object, SchemaFormat, SchemaType, Type},
    },
};

use crate::{Base64Bytes, GroupId, MAX_GROUP_ID_SIZE, MAX_USER_NAME_SIZE, ReservationId, UserName};

impl PartialSchema for ReservationId {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .schema_type(Type::String)
            .pattern(Some("^[1-9a-f][0-9a-f]{0,14}-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$"))
            .description(Some("Names one reservation. Send it exactly as the server answered it."))
            .examples(["1f-67e55044-10b1-426f-9247-bb680e5fe0c8"])
            .into()
    }
}

impl ToSchema for ReservationId {}

impl PartialSchema for UserName {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .schema_type(Type::String)
            .format(Some(SchemaFormat::Custom("user-name".to_owned())))
            .min_length(Some(1))
            .max_length(Some(MAX_USER_NAME_SIZE))
            .description(Some(format!(
                "A user: 1 to {MAX_USER_NAME_SIZE} bytes of UTF-8 in Unicode's form NFC, without control characters, and \
                 without white space at its ends; not `.` or `..`. In a path, it is percent-encoded."
            )))
            .examples(["alice"])
            .into()
    }
}

impl ToSchema for UserName {}

impl PartialSchema for GroupId {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .schema_type(Type::String)
            .pattern(Some("^([A-Za-z0-9_-]{4})*([A-Za-z0-9_-]{2}[AEIMQUYcgkosw048]|[A-Za-z0-9_-][AQgw])?$"))
            .min_length(Some(2))
            .max_length(Some((MAX_GROUP_ID_SIZE * 4).div_ceil(3)))
            .description(Some(format!(
                "A group's id: its 1 to {MAX_GROUP_ID_SIZE} bytes as base64url without padding."
            )))
            .examples(["ZnJpZW5kcw"])
            .into()
    }
}

impl ToSchema for GroupId {}

/// A group's id.
pub(crate) fn group_id_schema() -> Object {
    bytes(1, MAX_GROUP_ID_SIZE, &format!("The group's id, of 1 to {MAX_GROUP_ID_SIZE} bytes."))
}

/// A group's id that may be left out.
pub(crate) fn optional_group_id_schema() -> Object {
    let description = "The group to which the users are added, for the owners' audit trails: an owner sees a digest of the id \
                       until the spend.";
    nullable(bytes(1, MAX_GROUP_ID_SIZE, &format!("{description} An id has 1 to {MAX_GROUP_ID_SIZE} bytes.")))
}

/// `proof` of a Commit.
pub(crate) fn proof_schema() -> Object {
    hash(
        "Shows that the caller is a member: the 32 bytes whose SHA-256 is `next_proof_digest` of the previous Commit. Leave \
         it out if that Commit had none. If `stale-epoch` names an epoch before the Commit's, the server was restored from a \
         backup: send the proof of the named epoch, which lets the Commit skip up to 64 epochs.",
    )
}

/// `bind` of a reserve or a spend.
pub(crate) fn bind_schema() -> Object {
    hash(
        "32 random bytes that the caller draws for each reserve and keeps before it sends them: the server puts them into the \
         transparency log, so that it cannot show one leaf to two adders. Repetitions and the spend bring the same.",
    )
}

/// `next_proof_digest` of a Commit.
pub(crate) fn next_proof_digest_schema() -> Object {
    hash(
        "The SHA-256 of the `proof` that the next Commit has to show: of 32 bytes that only members of the next epoch can \
         know, such as bytes of its exporter (RFC 9420, section 8.5). Without it, anybody who knows the group's id can take \
         its next epoch.",
    )
}

/// 32 bytes that may be left out.
fn hash(description: &str) -> Object {
    let mut schema = nullable(bytes(32, 32, description));
    schema.pattern = Some("^[A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]=$".to_owned());
    schema.example = Some("AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=".into());
    schema
}

/// So many bytes in base64.
fn bytes(least: usize, most: usize, description: &str) -> Object {
    let RefOr::T(Schema::Object(mut schema)) = Base64Bytes::schema() else { return Object::default() };
    (schema.min_length, schema.max_length) = (Some(least.div_ceil(3) * 4), Some(most.div_ceil(3) * 4));
    schema.description = Some(description.to_owned());
    schema
}

fn nullable(mut schema: Object) -> Object {
    schema.schema_type = SchemaType::Array(vec![Type::String, Type::Null]);
    schema
}
