//! Devices and their users.

use actix_web::{HttpResponse, delete, get, post, web};
use keypool_openapi::{
    DeviceList, DeviceName, DevicesQuery, LookupRequest, LookupResponse, ProblemType, RegisterRequest,
    RegisterResponse, RemovedDevice, TokenResponse, UserName,
};

use crate::{
    auth::{Admin, Authenticator, Content, IdempotencyHeader, MaybeBearer, Params, Signed},
    caller::{Caller, Reader},
    problem::Failure,
    service::Service,
};

/// Register a device.
///
/// The answer has the device's bearer token; no other answer shows it. The operator decides what the first device of a
/// new user needs as the bearer token of this call: nothing, an enrolment token, or a token of the identity provider. A
/// further device needs the token of another device of the user, or an enrolment token.
///
/// With an `Idempotency-Key` of 32 characters or more, the caller may repeat a registration whose answer got lost,
/// until the token is used for the first time. Anybody who knows the key can do so: use a random key, and keep it
/// secret.
#[utoipa::path(
    tag = "devices",
    params(("Idempotency-Key" = Option<String>, Header, description = "Makes a repetition of the call answer the same token", nullable = false, pattern = "^[!-~]{32,255}$")),
    request_body = RegisterRequest,
    security((), ("bearer" = [])),
    responses((status = 201, description = "The device is registered", body = RegisterResponse)),
    extensions(("x-problems" = json!([
        ProblemType::Unauthenticated,
        ProblemType::Forbidden,
        ProblemType::AlreadyRegistered,
        ProblemType::TooManyRequests,
    ])))
)]
#[post("/devices")]
pub(crate) async fn register_device(
    service: web::Data<Service>,
    bearer: MaybeBearer,
    key: IdempotencyHeader,
    request: Content<RegisterRequest>,
) -> Result<HttpResponse, Failure> {
    Ok(HttpResponse::Created().json(service.register(request.0, bearer.0, key.0).await?))
}

/// List a user's devices.
///
/// Any device and the operator may call this. The answer has the current and the previous signature keys of each
/// device; clients compare the leaf nodes of a device with them.
#[utoipa::path(
    tag = "devices",
    params(("user" = UserName, Path, description = "The user"), DevicesQuery),
    responses((status = 200, description = "The devices, sorted by name", body = DeviceList)),
    extensions(("x-problems" = json!([ProblemType::UnknownUser])))
)]
#[get("/users/{user}/devices")]
pub(crate) async fn list_devices(
    service: web::Data<Service>,
    _reader: Reader,
    user: web::Path<UserName>,
    query: Params<DevicesQuery>,
) -> Result<web::Json<DeviceList>, Failure> {
    Ok(web::Json(service.devices(user.into_inner(), query.0).await?))
}

/// Look up the devices of many users.
///
/// Answers the same as `GET /users/{user}/devices` for up to 1000 users at once, such as the members of a group that
/// the caller joins. Every ten users count as one request.
#[utoipa::path(
    tag = "devices",
    request_body = LookupRequest,
    responses((status = 200, description = "The known users with their devices, and the unknown ones", body = LookupResponse))
)]
#[post("/devices/lookup")]
pub(crate) async fn lookup_devices(
    service: web::Data<Service>,
    Signed(caller, request): Signed<LookupRequest>,
) -> Result<web::Json<LookupResponse>, Failure> {
    Ok(web::Json(service.lookup(caller, request).await?))
}

/// Give a device a new bearer token.
///
/// The old token ends: at this server at once, at other servers of the same database within a few seconds. The device
/// is the caller, or another device of the caller's user.
#[utoipa::path(
    tag = "devices",
    params(("device" = DeviceName, Path, description = "One of the caller's own devices")),
    responses((status = 200, description = "The new token; no other answer shows it", body = TokenResponse)),
    extensions(("x-problems" = json!([ProblemType::UnknownDevice])))
)]
#[post("/devices/{device}/token")]
pub(crate) async fn change_device_token(
    service: web::Data<Service>,
    authenticator: web::Data<Authenticator>,
    caller: Caller,
    device: web::Path<DeviceName>,
) -> Result<web::Json<TokenResponse>, Failure> {
    let forget = move |token_hash: &[u8; 32]| authenticator.forget(token_hash);
    Ok(web::Json(service.change_token(caller, device.into_inner(), forget).await?))
}

/// Remove one of the caller's own devices.
///
/// The device's token ends: at this server at once, at other servers of the same database within a few seconds. The
/// server revokes the device's KeyPackages. A device of the same name can be registered again.
#[utoipa::path(
    tag = "devices",
    params(("device" = DeviceName, Path, description = "One of the caller's own devices")),
    responses((status = 200, description = "The device is removed", body = RemovedDevice)),
    extensions(("x-problems" = json!([ProblemType::UnknownDevice])))
)]
#[delete("/devices/{device}")]
pub(crate) async fn remove_device(
    service: web::Data<Service>,
    authenticator: web::Data<Authenticator>,
    caller: Caller,
    device: web::Path<DeviceName>,
) -> Result<web::Json<RemovedDevice>, Failure> {
    let user = caller.device.user.clone();
    let forget = move |token_hash: &[u8; 32]| authenticator.forget(token_hash);
    Ok(web::Json(service.remove(user, device.into_inner(), Some(caller), forget).await?))
}

/// Remove any user's device.
#[utoipa::path(
    tag = "operations",
    params(
        ("user" = UserName, Path, description = "The user"),
        ("device" = DeviceName, Path, description = "One of the user's devices")
    ),
    responses((status = 200, description = "The device is removed", body = RemovedDevice)),
    extensions(("x-problems" = json!([ProblemType::UnknownDevice])))
)]
#[delete("/admin/users/{user}/devices/{device}")]
pub(crate) async fn remove_user_device(
    service: web::Data<Service>,
    authenticator: web::Data<Authenticator>,
    _admin: Admin,
    path: web::Path<(UserName, DeviceName)>,
) -> Result<web::Json<RemovedDevice>, Failure> {
    let (user, device) = path.into_inner();
    let forget = move |token_hash: &[u8; 32]| authenticator.forget(token_hash);
    Ok(web::Json(service.remove(user, device, None, forget).await?))
}
