//! Reserve: hands out one KeyPackage of each requested device.

mod batch;
mod claim;
mod exhausted;
mod held;
mod kept_answers;
mod request;
mod take;

use diesel::prelude::*;
use keypool_openapi::{
    Action, Base64Bytes, MissingDevice, MissingReason, Reservation, ReservationId, ReserveResponse, UserName,
};

use self::{
    claim::{Claim, Claimed, Found},
    held::Held,
    request::in_order,
};
use super::{
    ANSWER_BYTES,
    as_of::AsOf,
    audit::{self, Event},
    database::{
        Conn, Store, StoreError,
        rows::{DeviceRow, HandedOut, suite, timestamp},
    },
    devices, idempotency, locks, steps, tokens,
};
pub use request::{HoldLimits, Reserve, ReserveError, Reserved, Wanted};

/// Reserves KeyPackages, or returns the kept answer if the same request was answered before.
fn reserve(conn: &mut Conn<'_>, request: &Reserve, as_of: AsOf) -> Result<Result<Reserved, ReserveError>, StoreError> {
    if !tokens::has_token(conn, &request.by)? {
        return Ok(Err(ReserveError::TokenRevoked));
    }
    if request.limits.is_some() {
        // Takes this lock before the Idempotency-Key's row. A batch uses the same order.
        locks::hold_adders(conn, request.by_user.as_str())?;
    }
    let Some(repeat) = &request.repeat else { return Ok(reserve_anew(conn, request, as_of)?.map(Reserved::first)) };
    if !idempotency::begin_answer(conn, request.by.device.0, repeat, as_of.now.as_second())? {
        let (first, answer) = idempotency::answer_of(conn, request.by.device.0, &repeat.key)?;
        return if first == repeat.request {
            let answer = kept_answers::again(conn, request.by.device, &answer, as_of.now)?;
            Ok(Ok(Reserved { answer, is_repeated: true }))
        } else {
            Ok(Err(ReserveError::IdempotencyMismatch))
        };
    }
    let outcome = reserve_anew(conn, request, as_of)?;
    match &outcome {
        Ok(reserved) if !reserved.reservations.is_empty() => {
            idempotency::keep_answer(conn, request.by.device.0, &repeat.key, &kept_answers::keep(reserved)?)?;
        }
        // The request reserved nothing, so its repetition may run as a new request.
        _ => drop(idempotency::drop_answer(conn, request.by.device.0, &repeat.key)?),
    }
    Ok(outcome.map(Reserved::first))
}

fn reserve_anew(
    conn: &mut Conn<'_>,
    request: &Reserve,
    as_of: AsOf,
) -> Result<Result<ReserveResponse, ReserveError>, StoreError> {
    let names: Vec<_> = request.users.iter().map(UserName::as_str).collect();
    let mut owners = Vec::new();
    for columns in devices::devices_of(conn, &names)? {
        let owner = DeviceRow::from_columns(columns)?;
        if request.device.as_ref().is_none_or(|device| *device == owner.device) {
            owners.push(owner);
        }
    }
    let held = Held::by(conn, request, as_of.now)?;
    if let Some(until) = held.over_the_limit(request, owners.len())? {
        return Ok(Err(ReserveError::TooManyHeld(until)));
    }
    let mut reserved = ReserveResponse { reservations: Vec::new(), missing: absent(conn, request, &owners)? };
    reserved.missing.extend_from_slice(&request.refused);
    // Every request works in ascending order of device id, so two requests that wait for rows cannot deadlock.
    owners.sort_unstable_by_key(|owner| owner.id.0);
    let mut bytes = 0;
    for owner in &owners {
        if bytes < ANSWER_BYTES && held.allows_another_of(owner.id) {
            bytes += reserve_of(conn, request, owner, as_of, &mut reserved)?;
        } else {
            let (device, reason) = (Some(owner.device.clone()), MissingReason::TooManyRequests);
            reserved.missing.push(MissingDevice { user: owner.user.clone(), device, reason, ciphersuites: Vec::new() });
        }
    }
    Ok(Ok(in_order(reserved)))
}

/// Returns the requested users that have no matching device.
fn absent(conn: &mut Conn<'_>, request: &Reserve, owners: &[DeviceRow]) -> Result<Vec<MissingDevice>, StoreError> {
    let without: Vec<_> = request.users.iter().filter(|user| owners.iter().all(|owner| owner.user != **user)).collect();
    if without.is_empty() {
        return Ok(Vec::new());
    }
    let known = devices::known_users(conn, &without.iter().map(|user| user.as_str()).collect::<Vec<_>>())?;
    let missing = |user: &UserName| {
        let known = known.iter().any(|name| name == user.as_str());
        MissingDevice {
            user: user.clone(),
            device: request.device.clone().filter(|_| known),
            reason: if known { MissingReason::UnknownDevice } else { MissingReason::UnknownUser },
            ciphersuites: Vec::new(),
        }
    };
    Ok(without.into_iter().map(missing).collect())
}

/// Reserves one KeyPackage of a device. Returns its size in bytes, or `None` if nothing was reserved.
fn reserve_of(
    conn: &mut Conn<'_>,
    request: &Reserve,
    owner: &DeviceRow,
    as_of: AsOf,
    reserved: &mut ReserveResponse,
) -> Result<usize, StoreError> {
    let claim = |suites| Claim {
        owner: owner.id.0,
        suites,
        usable_until: request.wanted.usable_until(as_of),
        nonce: request.nonce.as_bytes(),
        by: request.by.device.0,
        until: request.until.as_second(),
        returned_by: as_of.returned_by(),
    };
    let claims: Vec<_> = request.wanted.suites().into_iter().map(claim).collect();
    let Some(claimed) = pick(conn, &claims, request.wanted.last_resort)? else {
        let remaining = exhausted::remaining(conn, owner.id.0, as_of.returned_by(), as_of.now.as_second())?;
        reserved.missing.push(miss(owner, &claims, &remaining)?);
        return Ok(0);
    };
    let Claimed { handed_out, step, event, before, last_resort } = claimed;
    let HandedOut { keypackage_ref, bytes, ciphersuite, not_after, package_id } = handed_out;
    let size = bytes.len();
    audit::record(
        conn,
        &[Event {
            reservation: Some(request.nonce.as_bytes()),
            group_id: request.group_id.as_deref(),
            until: Some(request.until.as_second()),
            id: event,
            package_id: package_id.as_deref(),
            step: Some(step),
            bind: request.bind.as_ref().map(<[u8; 32]>::as_slice),
            opened: before,
            ..Event::plain(
                (owner.id.0, &keypackage_ref),
                Action::Reserve,
                Some(request.by.device.0),
                last_resort,
                as_of.now.as_second(),
            )
        }],
    )?;
    reserved.reservations.push(Reservation {
        reservation_id: ReservationId { owner: owner.id.0, nonce: request.nonce },
        user: owner.user.clone(),
        device: owner.device.clone(),
        keypackage_ref: keypackage_ref.into(),
        keypackage: Base64Bytes(bytes),
        ciphersuite: suite(ciphersuite)?,
        not_after: timestamp(not_after)?,
        expires_at: request.until,
        last_resort,
        handout: steps::handout(step, last_resort),
        receipt: None,
    });
    Ok(size)
}

/// Prefers fresh to returned KeyPackages, and both to the last resort; among each, the ciphersuite of the first claims.
fn pick(conn: &mut Conn<'_>, claims: &[Claim<'_>], takes_last_resort: bool) -> QueryResult<Option<Claimed>> {
    for claim in claims {
        if let Some(fresh) = claim::claim_fresh(conn, claim)? {
            return Ok(Some(fresh));
        }
    }
    for claim in claims {
        if let Some(returned) = claim::find_returned(conn, claim)? {
            return take(conn, claim, &returned).map(Some);
        }
    }
    for claim in claims {
        if let Some(awaited) = pick_contended(conn, claim)? {
            return Ok(Some(awaited));
        }
    }
    for claim in claims.iter().filter(|_| takes_last_resort) {
        if let Some(handed_out) = claim::last_resort(conn, claim)? {
            let (step, last_resort) = (steps::FIRST, true);
            return Ok(Some(Claimed { handed_out, step, event: None, before: None, last_resort }));
        }
    }
    Ok(None)
}

/// Takes a KeyPackage whose row another transaction holds. It may still roll back, so this waits before the pool is called
/// exhausted. Each round ends when a transaction has committed.
fn pick_contended(conn: &mut Conn<'_>, claim: &Claim<'_>) -> QueryResult<Option<Claimed>> {
    while exhausted::is_contended(conn, claim)? {
        if let Some(fresh) = claim::await_fresh(conn, claim)? {
            return take(conn, claim, &fresh).map(Some);
        }
        if let Some(returned) = claim::await_returned(conn, claim)? {
            return take(conn, claim, &returned).map(Some);
        }
    }
    Ok(None)
}

/// Takes the KeyPackage that was found. If its last reservation has lapsed, notes that first: nothing else would record
/// it.
fn take(conn: &mut Conn<'_>, claim: &Claim<'_>, found: &Found) -> QueryResult<Claimed> {
    if let (last, true) = found {
        audit::record(conn, &[last.lapse(claim.returned_by)])?;
    }
    claim::take(conn, claim, found)
}

fn miss(owner: &DeviceRow, claims: &[Claim<'_>], remaining: &[(i32, i64)]) -> Result<MissingDevice, StoreError> {
    let is_usable = |(_, not_after): &&(i32, i64)| claims.iter().any(|claim| *not_after >= claim.usable_until);
    let matches =
        |(number, _): &&(i32, i64)| claims.iter().any(|claim| (claim.suites.0..=claim.suites.1).contains(number));
    let matching: Vec<_> = remaining.iter().filter(matches).collect();
    let reason = if remaining.is_empty() || matching.iter().copied().any(|one| is_usable(&one)) {
        // Another transaction uploaded the usable KeyPackage after the claim ran.
        MissingReason::PoolExhausted
    } else if matching.is_empty() && remaining.iter().any(|one| is_usable(&one)) {
        MissingReason::NoMatchingCiphersuite
    } else {
        MissingReason::PoolExpired
    };
    let usable = remaining.iter().filter(is_usable);
    let mut ciphersuites = usable.map(|(number, _)| suite(*number)).collect::<Result<Vec<_>, _>>()?;
    ciphersuites.sort_unstable();
    ciphersuites.dedup();
    Ok(MissingDevice { user: owner.user.clone(), device: Some(owner.device.clone()), reason, ciphersuites })
}

impl Store {
    /// Reserves one KeyPackage of each device. The answer lists the devices that have none. An answer without any
    /// reservation is not kept for repetitions.
    ///
    /// # Errors
    /// When the database fails. Nothing is reserved then.
    pub fn reserve(&self, request: &Reserve, as_of: AsOf) -> Result<Result<Reserved, ReserveError>, StoreError> {
        self.write("reserve", |conn| reserve(conn, request, as_of))
    }

    /// Reserves for requests of different callers, in one statement. An element is `None` if its request must be served
    /// alone.
    ///
    /// # Errors
    /// When the database fails. Nothing is reserved then.
    pub fn reserve_batch(
        &self,
        requests: &[Reserve],
        as_of: AsOf,
    ) -> Result<Vec<Option<Result<Reserved, ReserveError>>>, StoreError> {
        match self.write_on_postgres("reserve", |conn| batch::reserve(conn, requests, as_of))? {
            Some(served) => Ok(served.into_iter().map(|one| one.map(Reserved::first).map(Ok)).collect()),
            // SQLite has one writer, so no request waits for another.
            None => self.write("reserve", |conn| {
                requests.iter().map(|request| reserve(conn, request, as_of).map(Some)).collect()
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::store::DeviceId;

    #[test]
    fn a_miss_says_why() {
        let owner = DeviceRow {
            id: DeviceId(7),
            user: "alice".parse().unwrap(),
            device: "laptop".parse().unwrap(),
            registered_at: Timestamp::UNIX_EPOCH,
        };
        let claim =
            Claim { owner: 7, suites: (1, 1), usable_until: 3_600, nonce: &[9; 16], by: 8, until: 60, returned_by: 0 };
        for (remaining, reason) in [
            (vec![], MissingReason::PoolExhausted),
            (vec![(2, 9_000)], MissingReason::NoMatchingCiphersuite),
            (vec![(1, 3_599), (2, 9_000)], MissingReason::PoolExpired),
            (vec![(1, 3_599), (1, 3_600)], MissingReason::PoolExhausted),
            (vec![(2, 3_599)], MissingReason::PoolExpired),
        ] {
            assert_eq!(miss(&owner, std::slice::from_ref(&claim), &remaining).unwrap().reason, reason, "{remaining:?}");
        }
        assert_eq!(
            miss(&owner, std::slice::from_ref(&claim), &[(4, 1), (3, 9_000), (2, 9_000), (2, 9_001)])
                .unwrap()
                .ciphersuites,
            [2, 3]
        );
    }
}
