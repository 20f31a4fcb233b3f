//! Release a reservation.

use actix_web::{post, web};
use keypool_openapi::{ProblemType, ReleaseRequest, ReleaseResponse};

use crate::{auth::Signed, problem::Failure, service::Service};

/// Release a reservation that the caller does not need.
///
/// The KeyPackage is available again. A repetition gets the same answer.
#[utoipa::path(
    tag = "keypackages",
    request_body = ReleaseRequest,
    responses((status = 200, description = "The KeyPackage is released", body = ReleaseResponse)),
    extensions(("x-problems" = json!([
        ProblemType::NotYourReservation,
        ProblemType::UnknownReservation,
        ProblemType::AlreadySpent,
        ProblemType::ReservationLapsed,
    ])))
)]
#[post("/keypackages/release")]
pub(crate) async fn release_reservation(
    service: web::Data<Service>,
    Signed(caller, request): Signed<ReleaseRequest>,
) -> Result<web::Json<ReleaseResponse>, Failure> {
    Ok(web::Json(service.release(caller, request).await?))
}
