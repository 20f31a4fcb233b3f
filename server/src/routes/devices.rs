//! Devices and their users.

use actix_web::{HttpResponse, get, post, web};
use keypool_openapi::{DeviceList, Problem, RegisterRequest, RegisterResponse, UserName};

use crate::{
    auth::{Caller, MaybeCaller},
    pool::Pool,
    problem::Failure,
};

/// Register a device.
///
/// Answers its bearer token, this once. The first device of a new user needs no token; a further one needs the token
/// of a device that the user has.
#[utoipa::path(
    tag = "devices",
    request_body = RegisterRequest,
    security((), ("bearer" = [])),
    responses(
        (status = 201, description = "The device is registered", body = RegisterResponse),
        (status = 400, description = "`malformed-request`", body = Problem, content_type = "application/problem+json"),
        (status = 401, description = "`unauthenticated`: the user is known, and no token came, or a wrong one", body = Problem, content_type = "application/problem+json"),
        (status = 403, description = "`forbidden`: the token is another user's", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "`already-registered`", body = Problem, content_type = "application/problem+json"),
    )
)]
#[post("/devices")]
pub(crate) async fn register(
    pool: web::Data<Pool>,
    caller: MaybeCaller,
    request: web::Json<RegisterRequest>,
) -> Result<HttpResponse, Failure> {
    Ok(HttpResponse::Created().json(pool.register(request.into_inner(), caller.0).await?))
}

/// List a user's devices.
#[utoipa::path(
    tag = "devices",
    params(("user" = UserName, Path, description = "The user")),
    responses(
        (status = 200, description = "The devices, by name", body = DeviceList),
        (status = 400, description = "`malformed-request`: no user can have this name", body = Problem, content_type = "application/problem+json"),
        (status = 401, description = "`unauthenticated`", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "`unknown-user`", body = Problem, content_type = "application/problem+json"),
    )
)]
#[get("/users/{user}/devices")]
pub(crate) async fn list(
    pool: web::Data<Pool>,
    _caller: Caller,
    user: web::Path<UserName>,
) -> Result<web::Json<DeviceList>, Failure> {
    Ok(web::Json(pool.devices(user.into_inner()).await?))
}
