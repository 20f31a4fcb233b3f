//! Codes by which a device lets a further device of its user in.

use actix_web::{HttpResponse, get, post, web};
use keypool_openapi::{DeviceLinks, NewDeviceLink};

use crate::{caller::Caller, problem::Failure, service::Service};

/// Make a code for a further device.
///
/// The code registers one device of the caller's user, within ten minutes: the new device sends `keypool_link_` and the code as
/// the bearer token of `POST /devices`. People can type it: capital and small letters are the same, hyphens and spaces do not count, and O, I
/// and L stand for 0 and 1. It is the caller's only one: an earlier code ends. It ends with the caller's token, too, and after 100 wrong codes for the
/// user. The server stores only its hash.
#[utoipa::path(
    tag = "devices",
    responses((status = 201, description = "The code; no other answer shows it", body = NewDeviceLink))
)]
#[post("/devices/links")]
pub(crate) async fn make_device_link(service: web::Data<Service>, caller: Caller) -> Result<HttpResponse, Failure> {
    Ok(HttpResponse::Created().json(service.make_link(caller).await?))
}

/// List the codes for further devices.
///
/// Lists the codes that the devices of the caller's user made, and the devices that used them. Codes are forgotten some time after
/// they end.
#[utoipa::path(
    tag = "devices",
    responses((status = 200, description = "The codes, by the names of the devices that made them", body = DeviceLinks))
)]
#[get("/devices/links")]
pub(crate) async fn list_device_links(
    service: web::Data<Service>,
    caller: Caller,
) -> Result<web::Json<DeviceLinks>, Failure> {
    Ok(web::Json(service.links(caller).await?))
}
