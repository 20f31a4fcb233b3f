//! Rules of request bodies that depend on several fields or on the configuration.

use serde_json::json;
use utoipa::{
    Modify,
    openapi::{OpenApi, RefOr, Schema, extensions::Extensions, schema::Object},
};

use crate::config::Config;

/// Adds these rules to the document.
pub(super) struct Bodies<'a>(pub &'a Config);

impl Modify for Bodies<'_> {
    fn modify(&self, openapi: &mut OpenApi) {
        if let Some(reserve) = object(openapi, "ReserveRequest") {
            reserve.extensions = Some(either("target_user", "targets"));
            if let Some(RefOr::T(Schema::Object(ttl))) = reserve.properties.get_mut("ttl") {
                let longest = usize::try_from(self.0.max_reservation_ttl.as_secs()).ok();
                ttl.maximum = longest.map(utoipa::Number::UInt);
            }
        }
        if let Some(revoke) = object(openapi, "RevokeRequest") {
            revoke.extensions = Some(either("refs", "all"));
        }
    }
}

/// Requires at least one of two fields, and not as `null`. Generators of clients drop the properties beside an `anyOf`, so
/// the rule is a `not`. An extension holds it, made by `collect`, since the builder would put `x-` before the keyword.
fn either(one: &str, other: &str) -> Extensions {
    let is_given = |field: &str| json!({"required": [field], "properties": {field: {"not": {"type": "null"}}}});
    let lacks = |field: &str| json!({"not": is_given(field)});
    [("not", json!({"allOf": [lacks(one), lacks(other)]}))].into_iter().collect()
}

fn object<'a>(openapi: &'a mut OpenApi, name: &str) -> Option<&'a mut Object> {
    match openapi.components.as_mut()?.schemas.get_mut(name)? {
        RefOr::T(Schema::Object(object)) => Some(object),
        _ => None,
    }
}
