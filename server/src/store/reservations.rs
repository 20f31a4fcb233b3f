//! Rows and traces of reservations, for spend and release.

use diesel::prelude::*;
use keypool_openapi::ReservationId;

use super::{
    database::{Conn, rows::nonce_of, schema::key_packages, sql::statements},
    restore,
};

/// The reason why a reservation was neither spent nor released.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReservationError {
    /// The caller's token has been revoked.
    TokenRevoked,
    /// The reservation does not exist, or its KeyPackage's row has been deleted.
    Unknown,
    /// Another device made the reservation.
    NotYours,
    /// The reservation was spent for another group, or for another use in this group.
    AlreadySpent,
    /// The reservation lapsed, and the KeyPackage was reserved by another adder or revoked.
    Lapsed,
}

/// The row of the KeyPackage that has a reservation.
#[derive(Queryable)]
pub(super) struct Holder {
    pub keypackage_ref: Vec<u8>,
    pub state: String,
    pub not_after: i64,
    pub reserved_by: Option<i64>,
    pub reserved_until: Option<i64>,
    pub ended_at: Option<i64>,
    pub spent_group: Option<Vec<u8>>,
    pub step: i32,
}

statements! {
    pub(super) fn holder(conn, reservation: &ReservationId) -> QueryResult<Option<Holder>> {
        key_packages::table
            .filter(key_packages::device_id.eq(reservation.owner))
            .filter(key_packages::reservation.eq(nonce_of(reservation)))
            .select((
                key_packages::keypackage_ref,
                key_packages::state,
                key_packages::not_after,
                key_packages::reserved_by,
                key_packages::reserved_until,
                key_packages::ended_at,
                key_packages::spent_group,
                key_packages::step,
            ))
            .first(conn)
            .optional()
    }
}

/// Returns the error for a reservation without a trace. A restored backup has no trace of reservations that were made
/// after it, so the error is then `Lapsed`.
pub(super) fn unknown(conn: &mut Conn<'_>) -> QueryResult<ReservationError> {
    Ok(if restore::fenced_at(conn)?.is_some() { ReservationError::Lapsed } else { ReservationError::Unknown })
}
