//! Shared by reserve, spend and release: group ids, and errors of lost reservations.

use keypool_openapi::{Base64Bytes, MAX_GROUP_ID_SIZE, ProblemType, ReservationId};

use crate::{
    problem::{Failure, unknown_token},
    store::ReservationError,
};

pub(super) fn lost_reservation(error: ReservationError, id: &ReservationId) -> Failure {
    match error {
        ReservationError::TokenRevoked => unknown_token(),
        ReservationError::Unknown => Failure::new(
            ProblemType::UnknownReservation,
            format!(
                "There is no reservation {id}, or its KeyPackage expired so long ago that it is forgotten. Give the id back \
                 exactly as reserve answered it."
            ),
        ),
        ReservationError::NotYours => Failure::new(
            ProblemType::NotYourReservation,
            format!("Reservation {id} was made by another device, which alone can spend or release it."),
        ),
        ReservationError::AlreadySpent => Failure::new(
            ProblemType::AlreadySpent,
            format!("Reservation {id} is spent already, and a KeyPackage is used once. Reserve another one."),
        ),
        ReservationError::Lapsed => Failure::new(
            ProblemType::ReservationLapsed,
            format!("Reservation {id} lapsed, and its KeyPackage is no longer held for you. Reserve another one."),
        ),
    }
}

pub(super) fn group_id(id: Base64Bytes) -> Result<Vec<u8>, Failure> {
    if id.0.is_empty() || id.0.len() > MAX_GROUP_ID_SIZE {
        return Err(Failure::new(
            ProblemType::MalformedRequest,
            format!("The group_id has {} bytes; a group id has 1 to {MAX_GROUP_ID_SIZE}.", id.0.len()),
        ));
    }
    Ok(id.0)
}
