//! Whether the server lives, and whether it can serve.

use actix_web::{HttpResponse, get, web};
use keypool_openapi::{Problem, ProblemType};

use crate::{pool::Pool, problem::Failure, stop::Stopping};

/// The server lives.
#[utoipa::path(
    tag = "operations",
    security(()),
    responses((status = 200, description = "It answers", body = String, content_type = "text/plain"))
)]
#[get("/healthz")]
pub(crate) async fn healthz() -> HttpResponse {
    HttpResponse::Ok().content_type("text/plain").body("ok\n")
}

/// The server and its database can serve.
#[utoipa::path(
    tag = "operations",
    security(()),
    responses(
        (status = 200, description = "Both answer", body = String, content_type = "text/plain"),
        (status = 503, description = "`unavailable`: one does not, or the server is stopping", body = Problem, content_type = "application/problem+json"),
    )
)]
#[get("/readyz")]
pub(crate) async fn readyz(pool: web::Data<Pool>, stopping: web::Data<Stopping>) -> Result<HttpResponse, Failure> {
    if stopping.has_begun() {
        let detail = "The server is stopping. It answers what it still gets; send further requests to another one.";
        return Err(Failure::new(ProblemType::Unavailable, detail));
    }
    pool.ready().await?;
    Ok(HttpResponse::Ok().content_type("text/plain").body("ready\n"))
}
