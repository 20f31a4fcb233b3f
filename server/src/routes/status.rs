//! The status of one pool, and the list of low pools.

use actix_web::{get, web};
use keypool_openapi::{DeviceName, LowPools, LowPoolsQuery, PoolStatus, ProblemType, StatusQuery, UserName};

use crate::{
    auth::{Admin, Params},
    caller::Caller,
    problem::Failure,
    service::Service,
};

/// Get the status of the caller's own pool.
///
/// Also the newest checkpoint of the transparency log, and how it continues the one that the caller names.
#[utoipa::path(
    tag = "keypackages",
    params(StatusQuery),
    responses((status = 200, description = "The pool's counts and health, and how many KeyPackages to upload", body = PoolStatus))
)]
#[get("/keypackages/status")]
pub(crate) async fn get_pool_status(
    service: web::Data<Service>,
    caller: Caller,
    query: Params<StatusQuery>,
) -> Result<web::Json<PoolStatus>, Failure> {
    Ok(web::Json(service.status(caller.device, query.0).await?))
}

/// Get the status of any device's pool.
#[utoipa::path(
    tag = "operations",
    params(
        ("user" = UserName, Path, description = "The user"),
        ("device" = DeviceName, Path, description = "One of the user's devices")
    ),
    responses((status = 200, description = "What the device itself gets at /keypackages/status, without `log`", body = PoolStatus)),
    extensions(("x-problems" = json!([ProblemType::UnknownDevice])))
)]
#[get("/admin/users/{user}/devices/{device}/status")]
pub(crate) async fn get_user_pool_status(
    service: web::Data<Service>,
    _admin: Admin,
    path: web::Path<(UserName, DeviceName)>,
) -> Result<web::Json<PoolStatus>, Failure> {
    let (user, device) = path.into_inner();
    Ok(web::Json(service.status_of(user, device).await?))
}

/// List the pools that are low or empty, the worst first.
#[utoipa::path(
    tag = "operations",
    params(LowPoolsQuery),
    responses((status = 200, description = "The pools", body = LowPools))
)]
#[get("/admin/pools")]
pub(crate) async fn list_low_pools(
    service: web::Data<Service>,
    _admin: Admin,
    query: Params<LowPoolsQuery>,
) -> Result<web::Json<LowPools>, Failure> {
    Ok(web::Json(service.low_pools(query.0).await?))
}
