//! Liveness and readiness.

use actix_web::{HttpResponse, get, web};
use keypool_openapi::{Problem, ProblemType};

use crate::{problem::Failure, service::Service, stop::Stopping};

/// Check that the server lives.
#[utoipa::path(
    tag = "operations",
    security(()),
    responses((status = 200, description = "The server lives", body = String, content_type = "text/plain"))
)]
#[get("/healthz")]
pub(crate) async fn get_health() -> HttpResponse {
    HttpResponse::Ok().content_type("text/plain").body("ok\n")
}

/// Check that the server and its database can serve.
#[utoipa::path(
    tag = "operations",
    security(()),
    responses(
        (status = 200, description = "Both can serve", body = String, content_type = "text/plain"),
        (status = 503, description = "`unavailable`: one of them cannot serve, or the server is stopping", body = Problem, content_type = "application/problem+json"),
    )
)]
#[get("/readyz")]
pub(crate) async fn get_readiness(
    service: web::Data<Service>,
    stopping: web::Data<Stopping>,
) -> Result<HttpResponse, Failure> {
    if stopping.has_begun() {
        let detail = "The server is stopping. Send requests to another server.";
        return Err(Failure::new(ProblemType::Unavailable, detail));
    }
    service.ready().await?;
    Ok(HttpResponse::Ok().content_type("text/plain").body("ready\n"))
}
