//! The routes, and the OpenAPI document generated from them.

use actix_web::App;
use utoipa::{
    Modify, OpenApi,
    openapi::security::{Http, HttpAuthScheme, SecurityScheme},
};
use utoipa_actix_web::AppExt;

use crate::routes::{devices, health, keypackages};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Keypool",
        description = "The KeyPackage directory of an MLS (RFC 9420) messenger: devices upload single-use KeyPackages, others \
                       reserve them to add the device to a group, and spend them when the Commit is out. Nothing is handed \
                       out twice.\n\nEvery error is an `application/problem+json` with a stable `type`.",
        license(name = "MIT OR Apache-2.0", identifier = "MIT OR Apache-2.0")
    ),
    modifiers(&Bearer),
    security(("bearer" = [])),
    tags(
        (name = "devices", description = "Who is there"),
        (name = "keypackages", description = "The pool"),
        (name = "operations", description = "Running the service")
    )
)]
struct Document;

struct Bearer;

impl Modify for Bearer {
    fn modify(&self, openapi: &mut utoipa::openapi::OpenApi) {
        let mut bearer = Http::new(HttpAuthScheme::Bearer);
        bearer.description = Some("A device's token, as POST /devices answers it.".to_owned());
        openapi.components.get_or_insert_default().add_security_scheme("bearer", SecurityScheme::Http(bearer));
    }
}

pub(super) fn routes(config: &mut utoipa_actix_web::service_config::ServiceConfig<'_>) {
    config
        .service(devices::register)
        .service(devices::list)
        .service(keypackages::upload)
        .service(keypackages::reserve)
        .service(keypackages::spend)
        .service(keypackages::release)
        .service(keypackages::status)
        .service(health::healthz)
        .service(health::readyz);
}

pub(super) fn document() -> utoipa::openapi::OpenApi {
    App::new().into_utoipa_app().openapi(Document::openapi()).configure(routes).split_for_parts().1
}

/// The OpenAPI document, as the server publishes it, in JSON for people to read.
///
/// # Errors
/// When the document cannot be written as JSON.
pub fn openapi_json() -> anyhow::Result<String> {
    Ok(document().to_pretty_json()? + "\n")
}
