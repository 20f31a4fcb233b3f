//! The pool: upload, reserve, spend, release, status.

use actix_web::{get, post, web};
use keypool_openapi::{
    PoolStatus, Problem, ReleaseRequest, ReleaseResponse, ReserveRequest, ReserveResponse, SpendRequest, SpendResponse,
    UploadRequest, UploadResponse,
};

use crate::{
    auth::{Caller, Signed},
    pool::Pool,
    problem::Failure,
};

/// Upload KeyPackages into the caller's own pool.
///
/// Up to 100 at a time, each accepted or rejected on its own. Repeating an upload changes nothing, so a lost answer is
/// no loss. A last resort replaces the one before it.
#[utoipa::path(
    tag = "keypackages",
    request_body = UploadRequest,
    responses(
        (status = 200, description = "What became of each, and the pool's status", body = UploadResponse),
        (status = 400, description = "`malformed-request`", body = Problem, content_type = "application/problem+json"),
        (status = 401, description = "`unauthenticated`", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "`pool-full`: not one of them fits in", body = Problem, content_type = "application/problem+json"),
        (status = 413, description = "`payload-too-large`", body = Problem, content_type = "application/problem+json"),
    )
)]
#[post("/keypackages/upload")]
pub(crate) async fn upload(
    pool: web::Data<Pool>,
    Signed(caller, request): Signed<UploadRequest>,
) -> Result<web::Json<UploadResponse>, Failure> {
    Ok(web::Json(pool.upload(caller, request).await?))
}

/// Reserve one KeyPackage of each device of a user.
///
/// Held for the caller alone until `expires_at`; then it returns to the pool, unless it was spent. Never handed out
/// before come first, then those that returned, then the last resort, which is never used up.
#[utoipa::path(
    tag = "keypackages",
    request_body = ReserveRequest,
    responses(
        (status = 200, description = "What is held, and which devices had nothing", body = ReserveResponse),
        (status = 400, description = "`malformed-request`", body = Problem, content_type = "application/problem+json"),
        (status = 401, description = "`unauthenticated`", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "`unknown-user`, `unknown-device`, or nothing at all to reserve: `pool-exhausted`, `pool-expired`, `no-matching-ciphersuite`", body = Problem, content_type = "application/problem+json"),
    )
)]
#[post("/keypackages/reserve")]
pub(crate) async fn reserve(
    pool: web::Data<Pool>,
    Signed(caller, request): Signed<ReserveRequest>,
) -> Result<web::Json<ReserveResponse>, Failure> {
    Ok(web::Json(pool.reserve(caller, request).await?))
}

/// Spend a reservation: its KeyPackage is in a Commit.
///
/// Only the device that reserved it can. Repeating it for the same group is answered the same. After the reservation's
/// end it still works while nobody else has reserved the KeyPackage.
#[utoipa::path(
    tag = "keypackages",
    request_body = SpendRequest,
    responses(
        (status = 200, description = "It is spent", body = SpendResponse),
        (status = 400, description = "`malformed-request`", body = Problem, content_type = "application/problem+json"),
        (status = 401, description = "`unauthenticated`", body = Problem, content_type = "application/problem+json"),
        (status = 403, description = "`not-your-reservation`", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "`unknown-reservation`", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "`already-spent`, `reservation-lapsed`", body = Problem, content_type = "application/problem+json"),
    )
)]
#[post("/keypackages/spend")]
pub(crate) async fn spend(
    pool: web::Data<Pool>,
    Signed(caller, request): Signed<SpendRequest>,
) -> Result<web::Json<SpendResponse>, Failure> {
    Ok(web::Json(pool.spend(caller, request).await?))
}

/// Release a reservation that is not needed.
///
/// The KeyPackage is available again. Repeating it is answered the same.
#[utoipa::path(
    tag = "keypackages",
    request_body = ReleaseRequest,
    responses(
        (status = 200, description = "It is held no longer", body = ReleaseResponse),
        (status = 400, description = "`malformed-request`", body = Problem, content_type = "application/problem+json"),
        (status = 401, description = "`unauthenticated`", body = Problem, content_type = "application/problem+json"),
        (status = 403, description = "`not-your-reservation`", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "`unknown-reservation`", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "`already-spent`, `reservation-lapsed`", body = Problem, content_type = "application/problem+json"),
    )
)]
#[post("/keypackages/release")]
pub(crate) async fn release(
    pool: web::Data<Pool>,
    Signed(caller, request): Signed<ReleaseRequest>,
) -> Result<web::Json<ReleaseResponse>, Failure> {
    Ok(web::Json(pool.release(caller, request).await?))
}

/// How the caller's own pool is doing.
#[utoipa::path(
    tag = "keypackages",
    responses(
        (status = 200, description = "Counts, health and advice", body = PoolStatus),
        (status = 401, description = "`unauthenticated`", body = Problem, content_type = "application/problem+json"),
    )
)]
#[get("/keypackages/status")]
pub(crate) async fn status(pool: web::Data<Pool>, caller: Caller) -> Result<web::Json<PoolStatus>, Failure> {
    Ok(web::Json(pool.status(caller.0).await?))
}
