//! The audit trail.

use actix_web::{get, web};
use keypool_openapi::{AuditPage, AuditQuery, ProblemType};

use crate::{auth::Params, caller::Reader, problem::Failure, service::Service};

/// List the audit events of the caller's own KeyPackages.
///
/// Newest first. With the admin token and `user`, list those of all devices that the user has or had.
#[utoipa::path(
    tag = "keypackages",
    params(AuditQuery),
    responses((status = 200, description = "A page, newest first", body = AuditPage)),
    extensions(("x-problems" = json!([ProblemType::UnknownUser])))
)]
#[get("/keypackages/audit")]
pub(crate) async fn list_audit_events(
    service: web::Data<Service>,
    reader: Reader,
    query: Params<AuditQuery>,
) -> Result<web::Json<AuditPage>, Failure> {
    Ok(web::Json(service.audit(reader, query.0).await?))
}
