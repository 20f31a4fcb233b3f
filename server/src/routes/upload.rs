//! Upload KeyPackages.

use actix_web::{post, web};
use keypool_openapi::{ProblemType, UploadRequest, UploadResponse};

use crate::{auth::Signed, problem::Failure, service::Service};

/// Upload KeyPackages into the caller's own pool.
///
/// Up to 100 at a time; the server accepts or rejects each on its own. A repeated upload changes nothing, so a client
/// may repeat it if the answer got lost. A last resort replaces the previous one.
#[utoipa::path(
    tag = "keypackages",
    request_body = UploadRequest,
    responses((status = 200, description = "The result for each KeyPackage, and the pool's status", body = UploadResponse)),
    extensions(("x-problems" = json!([ProblemType::PoolFull])))
)]
#[post("/keypackages/upload")]
pub(crate) async fn upload_key_packages(
    service: web::Data<Service>,
    Signed(caller, request): Signed<UploadRequest>,
) -> Result<web::Json<UploadResponse>, Failure> {
    Ok(web::Json(service.upload(caller, request).await?))
}
