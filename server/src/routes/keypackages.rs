//! The pool: upload, reserve, spend, release, revoke, and what shows how it is doing.

use actix_web::{get, post, web};
use keypool_openapi::{
    AuditPage, AuditQuery, InventoryPage, InventoryQuery, LowPools, LowPoolsQuery, PoolStatus, ReleaseRequest,
    ReleaseResponse, ReserveRequest, ReserveResponse, RevokeRequest, RevokeResponse, SpendRequest, SpendResponse,
    UploadRequest, UploadResponse,
};

use crate::{
    auth::{Admin, Caller, IdempotencyHeader, Params, Reader, Signed},
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
    responses((status = 200, description = "What became of each, and the pool's status", body = UploadResponse)),
    extensions(("x-problems" = json!(["pool-full"])))
)]
#[post("/keypackages/upload")]
pub(crate) async fn upload(
    pool: web::Data<Pool>,
    Signed(caller, request): Signed<UploadRequest>,
) -> Result<web::Json<UploadResponse>, Failure> {
    Ok(web::Json(pool.upload(caller, request).await?))
}

/// Reserve one KeyPackage of each device of a user, or of many users.
///
/// Held for the caller alone until `expires_at`; then it returns to the pool, unless it was spent. Never handed out
/// before come first, then those that returned, then the last resort, which is never used up. What could not be
/// reserved is in `missing`; where nothing at all could be, the call is answered with a problem that has it. An answer has
/// 4 MiB of KeyPackages, about: the devices that are left are in `missing` as `too-many-requests`, for another call.
///
/// With an `Idempotency-Key`, the call can be repeated when its answer got lost: it answers the very same reservations. Those
/// that are no longer held are in `missing` as `reservation-lapsed`.
#[utoipa::path(
    tag = "keypackages",
    params(("Idempotency-Key" = Option<String>, Header, description = "Makes the call one that may be repeated", nullable = false, pattern = "^[!-~]{1,255}$")),
    request_body = ReserveRequest,
    responses((status = 200, description = "What is held, and which devices had nothing", body = ReserveResponse)),
    extensions(("x-problems" = json!(["unknown-user", "unknown-device", "pool-exhausted", "pool-expired", "no-matching-ciphersuite", "idempotency-mismatch", "reservation-lapsed"])))
)]
#[post("/keypackages/reserve")]
pub(crate) async fn reserve(
    pool: web::Data<Pool>,
    key: IdempotencyHeader,
    Signed(caller, request): Signed<ReserveRequest>,
) -> Result<web::Json<ReserveResponse>, Failure> {
    Ok(web::Json(pool.reserve(caller, request, key.0.map(|(hash, _)| hash)).await?))
}

/// Spend a reservation: its KeyPackage is in a Commit.
///
/// Only the device that reserved it can. Repeating it for the same group is answered the same. After the reservation's
/// end it still works while nobody else has reserved the KeyPackage.
#[utoipa::path(
    tag = "keypackages",
    request_body = SpendRequest,
    responses((status = 200, description = "It is spent", body = SpendResponse)),
    extensions(("x-problems" = json!(["not-your-reservation", "unknown-reservation", "already-spent", "reservation-lapsed"])))
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
    responses((status = 200, description = "It is held no longer", body = ReleaseResponse)),
    extensions(("x-problems" = json!(["not-your-reservation", "unknown-reservation", "already-spent", "reservation-lapsed"])))
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
    responses((status = 200, description = "Counts, health and advice", body = PoolStatus))
)]
#[get("/keypackages/status")]
pub(crate) async fn status(pool: web::Data<Pool>, caller: Caller) -> Result<web::Json<PoolStatus>, Failure> {
    Ok(web::Json(pool.status(caller.device).await?))
}

/// Revoke KeyPackages of the caller's own pool.
///
/// They are never handed out again, and their reservations can no longer be spent. A spent KeyPackage stays spent.
#[utoipa::path(
    tag = "keypackages",
    request_body = RevokeRequest,
    responses((status = 200, description = "What became of each, and the pool's status", body = RevokeResponse))
)]
#[post("/keypackages/revoke")]
pub(crate) async fn revoke(
    pool: web::Data<Pool>,
    Signed(caller, request): Signed<RevokeRequest>,
) -> Result<web::Json<RevokeResponse>, Failure> {
    Ok(web::Json(pool.revoke(caller, request).await?))
}

/// List what the server knows of the caller's own pool.
///
/// A client whose own digest differs from the status's `inventory_digest` finds here what to reconcile.
#[utoipa::path(
    tag = "keypackages",
    params(InventoryQuery),
    responses((status = 200, description = "A page, in the order of the refs", body = InventoryPage))
)]
#[get("/keypackages/inventory")]
pub(crate) async fn inventory(
    pool: web::Data<Pool>,
    caller: Caller,
    query: Params<InventoryQuery>,
) -> Result<web::Json<InventoryPage>, Failure> {
    Ok(web::Json(pool.inventory(caller.device, query.0).await?))
}

/// Read who did what with the caller's own KeyPackages.
///
/// The newest first. With the admin token, and `user`, those of all devices that a user has or had.
#[utoipa::path(
    tag = "keypackages",
    params(AuditQuery),
    responses((status = 200, description = "A page, the newest first", body = AuditPage)),
    extensions(("x-problems" = json!(["unknown-user"])))
)]
#[get("/keypackages/audit")]
pub(crate) async fn audit(
    pool: web::Data<Pool>,
    reader: Reader,
    query: Params<AuditQuery>,
) -> Result<web::Json<AuditPage>, Failure> {
    Ok(web::Json(pool.audit(reader, query.0).await?))
}

/// List the pools that are low or empty, the worst first.
#[utoipa::path(
    tag = "operations",
    params(LowPoolsQuery),
    responses((status = 200, description = "The pools", body = LowPools))
)]
#[get("/admin/pools")]
pub(crate) async fn low_pools(
    pool: web::Data<Pool>,
    _admin: Admin,
    query: Params<LowPoolsQuery>,
) -> Result<web::Json<LowPools>, Failure> {
    Ok(web::Json(pool.low_pools(query.0).await?))
}
