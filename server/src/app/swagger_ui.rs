//! Swagger UI's own script, which makes the examples work as they are.

use actix_web::{get, web};
use keypool_openapi::UploadRequest;

use super::document::examples::{KEY_PACKAGE, reservation_id};
use crate::{caller::Caller, problem::Failure, service::Service};

/// The script that starts Swagger UI.
pub(super) fn initializer() -> String {
    include_str!("swagger-initializer.js")
        .replace("EXAMPLE_KEY_PACKAGE", KEY_PACKAGE)
        .replace("EXAMPLE_RESERVATION", &reservation_id().to_string())
}

/// Answers KeyPackages of the signed-in device, for the example of an upload.
#[get("/swagger-ui/example-upload")]
pub(super) async fn example_upload(
    service: web::Data<Service>,
    caller: Caller,
) -> Result<web::Json<UploadRequest>, Failure> {
    Ok(web::Json(service.example_upload(caller).await?))
}
