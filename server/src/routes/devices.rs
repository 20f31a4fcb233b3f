//! Devices and their users.

use actix_web::{HttpResponse, delete, get, post, web};
use keypool_openapi::{
    DeviceList, DeviceName, DevicesQuery, LookupRequest, LookupResponse, RegisterRequest, RegisterResponse,
    RemovedDevice, TokenResponse, UserName,
};

use crate::{
    auth::{Admin, Caller, Content, IdempotencyHeader, MaybeBearer, Params, Reader, Signed},
    pool::Pool,
    problem::Failure,
};

/// Register a device.
///
/// Answers its bearer token, this once. What the first device of a new user needs is the operator's choice: nothing, an
/// enrolment token, or a token of the identity provider, as the bearer token of this call. A further device needs the
/// token of a device that the user has, or an enrolment token.
///
/// With an `Idempotency-Key` of 32 characters or more, a registration whose answer got lost can be repeated until the
/// token is used for the first time. Everybody who knows the key can do so: use a random one, and keep it secret.
#[utoipa::path(
    tag = "devices",
    params(("Idempotency-Key" = Option<String>, Header, description = "Makes the call one that may be repeated", nullable = false, pattern = "^[!-~]{32,255}$")),
    request_body = RegisterRequest,
    security((), ("bearer" = [])),
    responses((status = 201, description = "The device is registered", body = RegisterResponse)),
    extensions(("x-problems" = json!(["unauthenticated", "forbidden", "already-registered", "too-many-requests"])))
)]
#[post("/devices")]
pub(crate) async fn register(
    pool: web::Data<Pool>,
    bearer: MaybeBearer,
    key: IdempotencyHeader,
    request: Content<RegisterRequest>,
) -> Result<HttpResponse, Failure> {
    Ok(HttpResponse::Created().json(pool.register(request.0, bearer.0, key.0).await?))
}

/// List a user's devices.
///
/// For every device, and for the operator. Each device comes with the signature keys that the server holds it to, and those
/// that it had before: what a leaf node of the device is compared with.
#[utoipa::path(
    tag = "devices",
    params(("user" = UserName, Path, description = "The user"), DevicesQuery),
    responses((status = 200, description = "The devices, by name", body = DeviceList)),
    extensions(("x-problems" = json!(["unknown-user"])))
)]
#[get("/users/{user}/devices")]
pub(crate) async fn list(
    pool: web::Data<Pool>,
    _reader: Reader,
    user: web::Path<UserName>,
    query: Params<DevicesQuery>,
) -> Result<web::Json<DeviceList>, Failure> {
    Ok(web::Json(pool.devices(user.into_inner(), query.0).await?))
}

/// Look up the devices of many users.
///
/// What `GET /users/{user}/devices` answers, for up to 1000 users at once: the members of a group that the caller joins.
/// Every ten users count as one request.
#[utoipa::path(
    tag = "devices",
    request_body = LookupRequest,
    responses((status = 200, description = "The known users with their devices, and the unknown ones", body = LookupResponse))
)]
#[post("/devices/lookup")]
pub(crate) async fn lookup(
    pool: web::Data<Pool>,
    Signed(caller, request): Signed<LookupRequest>,
) -> Result<web::Json<LookupResponse>, Failure> {
    Ok(web::Json(pool.lookup(caller, request).await?))
}

/// Give a device a new bearer token.
///
/// The old one is no longer valid: here at once, at other servers of the same database within a few seconds. The device
/// is the caller, or another of the same user.
#[utoipa::path(
    tag = "devices",
    params(("device" = DeviceName, Path, description = "One of the caller's own devices")),
    responses((status = 200, description = "The new token, this once", body = TokenResponse)),
    extensions(("x-problems" = json!(["unknown-device"])))
)]
#[post("/devices/{device}/token")]
pub(crate) async fn change_token(
    pool: web::Data<Pool>,
    caller: Caller,
    device: web::Path<DeviceName>,
) -> Result<web::Json<TokenResponse>, Failure> {
    Ok(web::Json(pool.change_token(caller, device.into_inner()).await?))
}

/// Remove one of the caller's own devices.
///
/// Its token is no longer valid: here at once, at other servers of the same database within a few seconds. All that is
/// in its pool is revoked. A device of the same name can be registered again.
#[utoipa::path(
    tag = "devices",
    params(("device" = DeviceName, Path, description = "One of the caller's own devices")),
    responses((status = 200, description = "The device is removed", body = RemovedDevice)),
    extensions(("x-problems" = json!(["unknown-device"])))
)]
#[delete("/devices/{device}")]
pub(crate) async fn remove(
    pool: web::Data<Pool>,
    caller: Caller,
    device: web::Path<DeviceName>,
) -> Result<web::Json<RemovedDevice>, Failure> {
    Ok(web::Json(pool.remove(caller.device.user.clone(), device.into_inner(), Some(caller)).await?))
}

/// Remove any user's device.
#[utoipa::path(
    tag = "operations",
    params(
        ("user" = UserName, Path, description = "The user"),
        ("device" = DeviceName, Path, description = "One of the user's devices")
    ),
    responses((status = 200, description = "The device is removed", body = RemovedDevice)),
    extensions(("x-problems" = json!(["unknown-device"])))
)]
#[delete("/admin/users/{user}/devices/{device}")]
pub(crate) async fn remove_any(
    pool: web::Data<Pool>,
    _admin: Admin,
    path: web::Path<(UserName, DeviceName)>,
) -> Result<web::Json<RemovedDevice>, Failure> {
    let (user, device) = path.into_inner();
    Ok(web::Json(pool.remove(user, device, None).await?))
}
