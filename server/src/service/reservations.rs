//! Shared by reserve, spend and release: group ids, and errors of lost reservations.

use keypool_openapi::{Base64Bytes, MAX_GROUP_ID_SIZE, ProblemType, Proof, ReservationId};

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

/// The `bind` of a reserve or a spend.
pub(super) fn bind(bind: Option<Base64Bytes>, proof: Proof) -> Result<Option<[u8; 32]>, Failure> {
    let malformed = |detail: String| Failure::new(ProblemType::MalformedRequest, detail);
    let Some(bind) = bind else {
        return if proof.is_none() {
            Ok(None)
        } else {
            Err(malformed("A receipt proves nothing without `bind`. Send 32 random bytes in it.".to_owned()))
        };
    };
    let wrong = |bytes: Vec<u8>| malformed(format!("`bind` has {} bytes; it must have 32 random ones.", bytes.len()));
    bind.0.try_into().map(Some).map_err(wrong)
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
