//! Revoke KeyPackages.

use actix_web::{post, web};
use keypool_openapi::{RevokeRequest, RevokeResponse};

use crate::{auth::Signed, problem::Failure, service::Service};

/// Revoke KeyPackages of the caller's own pool.
///
/// Revoked KeyPackages are never handed out again, and their reservations can no longer be spent. A spent KeyPackage
/// stays spent.
#[utoipa::path(
    tag = "keypackages",
    request_body = RevokeRequest,
    responses((status = 200, description = "The result for each KeyPackage, and the pool's status", body = RevokeResponse))
)]
#[post("/keypackages/revoke")]
pub(crate) async fn revoke_key_packages(
    service: web::Data<Service>,
    Signed(caller, request): Signed<RevokeRequest>,
) -> Result<web::Json<RevokeResponse>, Failure> {
    Ok(web::Json(service.revoke(caller, request).await?))
}
