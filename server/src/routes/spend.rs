//! Spend a reservation.

use actix_web::{post, web};
use keypool_openapi::{ProblemType, SpendRequest, SpendResponse};

use crate::{auth::Signed, problem::Failure, service::Service};

/// Spend a reservation whose KeyPackage is in a Commit.
///
/// Only the device that made the reservation can spend it. A repetition for the same group gets the same answer. A
/// spend after the reservation's end succeeds while no other adder has reserved the KeyPackage.
#[utoipa::path(
    tag = "keypackages",
    request_body = SpendRequest,
    responses((status = 200, description = "The KeyPackage is spent", body = SpendResponse)),
    extensions(("x-problems" = json!([
        ProblemType::NotYourReservation,
        ProblemType::UnknownReservation,
        ProblemType::AlreadySpent,
        ProblemType::ReservationLapsed,
    ])))
)]
#[post("/keypackages/spend")]
pub(crate) async fn spend_reservation(
    service: web::Data<Service>,
    Signed(caller, request): Signed<SpendRequest>,
) -> Result<web::Json<SpendResponse>, Failure> {
    Ok(web::Json(service.spend(caller, request).await?))
}
