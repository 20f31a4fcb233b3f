//! Reserve KeyPackages.

use actix_web::{post, web};
use keypool_openapi::{ProblemType, ReserveRequest, ReserveResponse};

use crate::{
    auth::{IdempotencyHeader, Signed},
    problem::Failure,
    service::Service,
};

/// Reserve one KeyPackage for each device of a user, or of many users.
///
/// Only the caller can spend a reserved KeyPackage until `expires_at`; then it returns to the pool, unless it was
/// spent. The server hands out fresh KeyPackages first, then those that returned, then the last resort, which is never
/// used up. Devices without a reservation are in `missing`. If nothing could be reserved, the answer is a problem that
/// has `missing`. An answer has about 4 MiB of KeyPackages at most: the remaining devices are in `missing` as
/// `too-many-requests`, for another call.
///
/// With an `Idempotency-Key`, the caller may repeat the call if the answer got lost, and gets the same reservations.
/// Those that no longer hold are in `missing` as `reservation-lapsed`.
#[utoipa::path(
    tag = "keypackages",
    params(("Idempotency-Key" = Option<String>, Header, description = "Makes a repetition of the call answer the same reservations", nullable = false, pattern = "^[!-~]{1,255}$")),
    request_body = ReserveRequest,
    responses((status = 200, description = "The reservations, and the devices without one", body = ReserveResponse)),
    extensions(("x-problems" = json!([
        ProblemType::UnknownUser,
        ProblemType::UnknownDevice,
        ProblemType::PoolExhausted,
        ProblemType::PoolExpired,
        ProblemType::NoMatchingCiphersuite,
        ProblemType::IdempotencyMismatch,
        ProblemType::ReservationLapsed,
    ])))
)]
#[post("/keypackages/reserve")]
pub(crate) async fn reserve_key_packages(
    service: web::Data<Service>,
    key: IdempotencyHeader,
    Signed(caller, request): Signed<ReserveRequest>,
) -> Result<web::Json<ReserveResponse>, Failure> {
    Ok(web::Json(service.reserve(caller, request, key.0.map(|key| key.hash())).await?))
}
