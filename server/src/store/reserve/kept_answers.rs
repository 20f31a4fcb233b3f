//! Kept answers of `reserve` requests with an `Idempotency-Key`.
//!
//! A kept answer names KeyPackages by their refs only, so that a small request does not write megabytes. A repetition
//! reads the bytes of the KeyPackages that the caller still holds. Its answer lists the others as missing.

use std::collections::HashMap;

use diesel::prelude::*;
use jiff::Timestamp;
use keypool_openapi::{
    Base64Bytes, DeviceName, KeyPackageRef, MissingDevice, MissingReason, Reservation, ReservationId, ReserveResponse,
    State, UserName,
};
use serde::{Deserialize, Serialize};

use super::request::in_order;
use crate::store::database::{
    Conn, StoreError,
    rows::{DeviceId, nonce_of},
    schema::key_packages,
    sql::statements,
};

/// A [`ReserveResponse`] without KeyPackages. The hand-written statements for `PostgreSQL` write the same JSON.
#[derive(Serialize, Deserialize)]
struct KeptAnswer {
    reservations: Vec<KeptReservation>,
    missing: Vec<MissingDevice>,
}

#[derive(Serialize, Deserialize)]
struct KeptReservation {
    reservation_id: ReservationId,
    user: UserName,
    device: DeviceName,
    keypackage_ref: KeyPackageRef,
    ciphersuite: u16,
    not_after: Timestamp,
    expires_at: Timestamp,
    last_resort: bool,
    /// Answers of the version before have none.
    #[serde(default)]
    handout: Option<u32>,
}

statements! {
    /// Returns ref and bytes of the KeyPackages that the device still holds by this reservation. Last resorts count as
    /// held while they are available.
    pub(super) fn still_held(conn, by: DeviceId, nonce: &[u8], refs: &[&[u8]], now: i64) -> QueryResult<Vec<(Vec<u8>, Vec<u8>)>> {
        use key_packages as k;
        let reserved = k::reserved_by.eq(by.0).and(k::reservation.eq(nonce)).and(k::reserved_until.gt(now));
        let is_held = k::held.nullable().and(reserved.assume_not_null());
        let is_offered = k::last_resort.and(k::state.eq(State::Available.as_ref()));
        k::table
            .filter(k::keypackage_ref.eq_any(refs).and(k::not_after.gt(now)))
            .filter(is_held.assume_not_null().or(is_offered))
            .select((k::keypackage_ref, k::key_package))
            .load(conn)
    }
}

/// Serialises an answer as JSON, without the bytes of the KeyPackages.
pub(super) fn keep(answer: &ReserveResponse) -> Result<Vec<u8>, StoreError> {
    let kept = |one: &Reservation| KeptReservation {
        reservation_id: one.reservation_id,
        user: one.user.clone(),
        device: one.device.clone(),
        keypackage_ref: one.keypackage_ref.clone(),
        ciphersuite: one.ciphersuite,
        not_after: one.not_after,
        expires_at: one.expires_at,
        last_resort: one.last_resort,
        handout: one.handout,
    };
    let reservations = answer.reservations.iter().map(kept).collect();
    serde_json::to_vec(&KeptAnswer { reservations, missing: answer.missing.clone() }).map_err(StoreError::fatal)
}

/// Builds the answer to a repeated request.
pub(super) fn again(
    conn: &mut Conn<'_>,
    by: DeviceId,
    kept: &[u8],
    now: Timestamp,
) -> Result<ReserveResponse, StoreError> {
    let KeptAnswer { reservations, missing } = serde_json::from_slice(kept).map_err(StoreError::fatal)?;
    let mut answer = ReserveResponse { reservations: Vec::new(), missing };
    // All reservations of one answer have the same nonce.
    let Some(nonce) = reservations.first().map(|one| nonce_of(&one.reservation_id).to_vec()) else { return Ok(answer) };
    let refs: Vec<_> = reservations.iter().map(|one| one.keypackage_ref.as_bytes()).collect();
    let mut held: HashMap<_, _> = still_held(conn, by, &nonce, &refs, now.as_second())?.into_iter().collect();
    for one in reservations {
        let KeptReservation { user, device, ciphersuite, not_after, expires_at, last_resort, handout, .. } = one;
        if let Some(bytes) = held.remove(one.keypackage_ref.as_bytes()) {
            answer.reservations.push(Reservation {
                reservation_id: one.reservation_id,
                user,
                device,
                keypackage_ref: one.keypackage_ref,
                keypackage: Base64Bytes(bytes),
                ciphersuite,
                not_after,
                expires_at,
                last_resort,
                handout,
                receipt: None,
            });
        } else {
            let (device, reason) = (Some(device), MissingReason::ReservationLapsed);
            answer.missing.push(MissingDevice { user, device, reason, ciphersuites: Vec::new() });
        }
    }
    Ok(in_order(answer))
}
