//! Reserve: how a KeyPackage leaves the pool.

use std::collections::BTreeSet;

use diesel::prelude::*;
use jiff::Timestamp;
use keypool_openapi::{
    Action, Base64Bytes, DeviceName, MissingDevice, MissingReason, Reservation, ReservationId, ReserveResponse, State,
    UserName,
};
use uuid::Uuid;

use super::{
    ANSWER_BYTES, Store, StoreError,
    as_of::AsOf,
    audit::{AuditSql, Event},
    claims::{Claim, ClaimSql, Found},
    connection::{self, Pools, with_conn},
    devices::DeviceSql,
    exhausted::ExhaustedSql,
    holds::{Held, HoldSql},
    idempotency::{IdempotencyKey, IdempotencySql},
    kept_answers::{self, KeptAnswerSql},
    key_packages::HoldDevice,
    postgres,
    rows::{DeviceRow, HandedOut, statements, suite, timestamp},
    schema::key_packages,
    together,
    tokens::{ShownToken, TokenSql},
};

/// How many reservations may be held at the same time, over all servers of the database.
#[derive(Clone, Copy, Debug)]
pub struct HoldLimits {
    /// By one device.
    pub total: u32,
    /// Of the KeyPackages of one device, by one other user.
    pub per_device: u32,
}

/// A wish for one KeyPackage of each device of some users.
#[derive(Clone, Debug)]
pub struct Reserve {
    /// Whose, each user once.
    pub users: BTreeSet<UserName>,
    /// Those who were asked for and are left out: a part of the answer, also when it is given again.
    pub refused: Vec<MissingDevice>,
    /// Of this device alone.
    pub device: Option<DeviceName>,
    /// Of this ciphersuite alone.
    pub ciphersuite: Option<u16>,
    /// The group that they are for.
    pub group_id: Option<Vec<u8>>,
    /// The adder.
    pub by: ShownToken,
    /// The adder's user.
    pub by_user: UserName,
    /// Random: names the reservations, and says where in the pool to look first, so that adders do not collide.
    pub nonce: Uuid,
    /// When the reservations lapse, at a whole second.
    pub until: Timestamp,
    /// Nothing that expires before this is handed out.
    pub usable_until: Timestamp,
    /// How much the caller may hold at the same time; `None` where nothing is limited.
    pub limits: Option<HoldLimits>,
    /// Makes the wish one that may be repeated.
    pub repeat: Option<IdempotencyKey>,
}

/// Why a wish was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReserveError {
    /// The caller's token has ended.
    TokenRevoked,
    /// The `Idempotency-Key` came with another request before.
    IdempotencyMismatch,
    /// The caller would hold more than it may. The first of what it holds lapses then.
    TooManyHeld(Timestamp),
}

statements! {
    pub(super) trait ReservationSql {
        /// Reserves what this transaction holds.
        fn take(conn, claim: &Claim<'_>, keypackage_ref: &[u8]) -> QueryResult<HandedOut> {
            diesel::update(key_packages::table.find(keypackage_ref))
                .set((
                    key_packages::state.eq(State::Reserved.as_ref()),
                    key_packages::reservation.eq(claim.nonce),
                    key_packages::reserved_by.eq(claim.by),
                    key_packages::reserved_until.eq(claim.until),
                ))
                .returning((
                    key_packages::keypackage_ref,
                    key_packages::key_package,
                    key_packages::ciphersuite,
                    key_packages::not_after,
                ))
                .get_result(conn)
        }

        /// Not locked, so that any number of adders get it at once.
        fn last_resort(conn, claim: &Claim<'_>) -> QueryResult<Option<HandedOut>> {
            key_packages::table
                .filter(key_packages::device_id.eq(claim.owner).and(key_packages::state.eq(State::Available.as_ref())))
                .filter(key_packages::last_resort.and(key_packages::not_after.ge(claim.usable_until)))
                .filter(key_packages::ciphersuite.between(claim.suites.0, claim.suites.1))
                .order(key_packages::ciphersuite.asc())
                .select((
                    key_packages::keypackage_ref,
                    key_packages::key_package,
                    key_packages::ciphersuite,
                    key_packages::not_after,
                ))
                .first(conn)
                .optional()
        }

    }
}

/// Reserves, or answers again what the same request was answered before.
fn reserve<C>(conn: &mut C, want: &Reserve, as_of: AsOf) -> Result<Result<ReserveResponse, ReserveError>, StoreError>
where
    C: ClaimSql
        + ReservationSql
        + HoldSql
        + HoldDevice
        + ExhaustedSql
        + AuditSql
        + DeviceSql
        + IdempotencySql
        + KeptAnswerSql
        + TokenSql,
{
    if !conn.has_token(&want.by)? {
        return Ok(Err(ReserveError::TokenRevoked));
    }
    if want.limits.is_some() {
        // Before the Idempotency-Key: a batch has the two in this order.
        conn.hold_adders(want.by_user.as_str())?;
    }
    let Some(repeat) = &want.repeat else { return reserve_anew(conn, want, as_of) };
    if !conn.begin_answer(want.by.device.0, repeat, as_of.now.as_second())? {
        let (request, answer) = conn.answer_of(want.by.device.0, &repeat.key)?;
        return if request == repeat.request {
            kept_answers::again(conn, want.by.device, &answer, as_of.now).map(Ok)
        } else {
            Ok(Err(ReserveError::IdempotencyMismatch))
        };
    }
    let outcome = reserve_anew(conn, want, as_of)?;
    match &outcome {
        Ok(reserved) if !reserved.reservations.is_empty() => {
            conn.keep_answer(want.by.device.0, &repeat.key, &kept_answers::keep(reserved)?)?;
        }
        // Nothing was reserved that a repetition could get twice: it may try anew.
        _ => drop(conn.drop_answer(want.by.device.0, &repeat.key)?),
    }
    Ok(outcome)
}

fn reserve_anew<C>(
    conn: &mut C,
    want: &Reserve,
    as_of: AsOf,
) -> Result<Result<ReserveResponse, ReserveError>, StoreError>
where
    C: ClaimSql + ReservationSql + HoldSql + HoldDevice + ExhaustedSql + AuditSql + DeviceSql,
{
    let names: Vec<_> = want.users.iter().map(UserName::as_str).collect();
    let mut owners = Vec::new();
    for columns in conn.devices_of(&names)? {
        let owner = DeviceRow::from_columns(columns)?;
        if want.device.as_ref().is_none_or(|device| *device == owner.device) {
            owners.push(owner);
        }
    }
    let held = Held::by(conn, want, as_of.now)?;
    if let Some(until) = held.over_the_limit(want, owners.len())? {
        return Ok(Err(ReserveError::TooManyHeld(until)));
    }
    let mut reserved = ReserveResponse { reservations: Vec::new(), missing: absent(conn, want, &owners)? };
    reserved.missing.extend_from_slice(&want.refused);
    // In the order of their numbers, as every request does it: two that wait for rows never wait for each other.
    owners.sort_unstable_by_key(|owner| owner.id.0);
    let mut bytes = 0;
    for owner in &owners {
        if bytes < ANSWER_BYTES && held.allows_another_of(owner.id) {
            bytes += reserve_of(conn, want, owner, as_of, &mut reserved)?;
        } else {
            let (device, reason) = (Some(owner.device.clone()), MissingReason::TooManyRequests);
            reserved.missing.push(MissingDevice { user: owner.user.clone(), device, reason, ciphersuites: Vec::new() });
        }
    }
    Ok(Ok(in_order(reserved)))
}

/// An answer as it is given, also when it is given again: by user and device.
pub(super) fn in_order(mut answer: ReserveResponse) -> ReserveResponse {
    answer.reservations.sort_by(|one, other| (&one.user, &one.device).cmp(&(&other.user, &other.device)));
    answer.missing.sort_by(|one, other| (&one.user, &one.device).cmp(&(&other.user, &other.device)));
    answer
}

/// The users of a wish who have no device that it is for.
fn absent<C: DeviceSql>(conn: &mut C, want: &Reserve, owners: &[DeviceRow]) -> Result<Vec<MissingDevice>, StoreError> {
    let without: Vec<_> = want.users.iter().filter(|user| owners.iter().all(|owner| owner.user != **user)).collect();
    if without.is_empty() {
        return Ok(Vec::new());
    }
    let known = conn.known_users(&without.iter().map(|user| user.as_str()).collect::<Vec<_>>())?;
    let missing = |user: &UserName| {
        let known = known.iter().any(|name| name == user.as_str());
        MissingDevice {
            user: user.clone(),
            device: want.device.clone().filter(|_| known),
            reason: if known { MissingReason::UnknownDevice } else { MissingReason::UnknownUser },
            ciphersuites: Vec::new(),
        }
    };
    Ok(without.into_iter().map(missing).collect())
}

/// Answers how many bytes the KeyPackage has that is reserved, if one is.
fn reserve_of<C>(
    conn: &mut C,
    want: &Reserve,
    owner: &DeviceRow,
    as_of: AsOf,
    reserved: &mut ReserveResponse,
) -> Result<usize, StoreError>
where
    C: ClaimSql + ReservationSql + ExhaustedSql + AuditSql,
{
    let suites = want.ciphersuite.map_or((0, i32::from(u16::MAX)), |suite| (suite.into(), suite.into()));
    let claim = Claim {
        owner: owner.id.0,
        suites,
        usable_until: want.usable_until.as_second(),
        nonce: want.nonce.as_bytes(),
        by: want.by.device.0,
        until: want.until.as_second(),
        returned_by: as_of.returned_by(),
    };
    let Some((handed_out, last_resort)) = pick(conn, &claim)? else {
        reserved.missing.push(miss(owner, &claim, &conn.remaining(&claim, as_of.now.as_second())?)?);
        return Ok(0);
    };
    let (keypackage_ref, bytes, ciphersuite, not_after) = handed_out;
    let size = bytes.len();
    conn.record(&[Event {
        reservation: Some(claim.nonce),
        group_id: want.group_id.as_deref(),
        until: Some(claim.until),
        ..Event::plain(
            (owner.id.0, &keypackage_ref),
            Action::Reserve,
            Some(want.by.device.0),
            last_resort,
            as_of.now.as_second(),
        )
    }])?;
    reserved.reservations.push(Reservation {
        reservation_id: ReservationId { owner: owner.id.0, nonce: want.nonce },
        user: owner.user.clone(),
        device: owner.device.clone(),
        keypackage_ref: keypackage_ref.into(),
        keypackage: Base64Bytes(bytes),
        ciphersuite: suite(ciphersuite)?,
        not_after: timestamp(not_after)?,
        expires_at: want.until,
        last_resort,
    });
    Ok(size)
}

/// Fresh before returned before the last resort; and whether it is the last resort.
fn pick<C: ClaimSql + ReservationSql + ExhaustedSql + AuditSql>(
    conn: &mut C,
    claim: &Claim<'_>,
) -> QueryResult<Option<(HandedOut, bool)>> {
    if let Some(fresh) = conn.claim_fresh(claim)? {
        return Ok(Some((fresh, false)));
    }
    if let Some(returned) = conn.find_returned(claim)? {
        return Ok(Some((take(conn, claim, &returned)?, false)));
    }
    // Skipped rows are locked by transactions that may still roll back, so wait for them before answering `pool-exhausted`. Each
    // round ends when one of them has committed.
    while conn.is_contended(claim)? {
        if let Some(fresh) = conn.await_fresh(claim)? {
            return Ok(Some((take(conn, claim, &fresh)?, false)));
        }
        if let Some(returned) = conn.await_returned(claim)? {
            return Ok(Some((take(conn, claim, &returned)?, false)));
        }
    }
    Ok(conn.last_resort(claim)?.map(|last_resort| (last_resort, true)))
}

/// Takes what was found. Where another had it, how that ended is noted first: nothing else will tell of it.
fn take<C: ReservationSql + AuditSql>(
    conn: &mut C,
    claim: &Claim<'_>,
    (last, is_held): &Found,
) -> QueryResult<HandedOut> {
    if *is_held {
        conn.record(&[last.lapse(claim.returned_by)])?;
    }
    conn.take(claim, &last.keypackage_ref)
}

fn miss(owner: &DeviceRow, claim: &Claim<'_>, remaining: &[(i32, i64)]) -> Result<MissingDevice, StoreError> {
    let is_usable = |(_, not_after): &&(i32, i64)| *not_after >= claim.usable_until;
    let matches = |(number, _): &&(i32, i64)| (claim.suites.0..=claim.suites.1).contains(number);
    let matching: Vec<_> = remaining.iter().filter(matches).collect();
    let reason = if remaining.is_empty() || matching.iter().copied().any(|one| is_usable(&one)) {
        // A usable KeyPackage that the claim did not find was uploaded in between.
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
    /// Reserves one KeyPackage of each device, for each wish in turn, in one transaction. What could not be reserved is
    /// in the answer; an answer without a reservation is not kept for repetitions.
    ///
    /// # Errors
    /// When the database fails. Nothing is reserved then.
    pub fn reserve(
        &self,
        wants: &[Reserve],
        as_of: AsOf,
    ) -> Result<Vec<Result<ReserveResponse, ReserveError>>, StoreError> {
        with_conn!(self, write "reserve", |conn| wants.iter().map(|want| reserve(conn, want, as_of)).collect())
    }

    /// The same for wishes of different callers, as fast as it goes; `None` for those that have to be fulfilled alone.
    ///
    /// # Errors
    /// When the database fails. Nothing is reserved then.
    pub fn reserve_together(
        &self,
        wants: &[Reserve],
        as_of: AsOf,
    ) -> Result<Vec<Option<Result<ReserveResponse, ReserveError>>>, StoreError> {
        match &self.pools {
            // It has one writer: nobody is waited for.
            Pools::Sqlite { .. } => Ok(self.reserve(wants, as_of)?.into_iter().map(Some).collect()),
            Pools::Postgres(pool) => {
                let body = |conn: &mut _| together::reserve(conn, wants, as_of.now);
                let fulfilled = connection::write(pool, &self.metrics, "reserve", postgres::statement, body)?;
                Ok(fulfilled.into_iter().map(|one| one.map(Ok)).collect())
            }
        }
    }
}

#[cfg(test)]
mod tests {
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
            assert_eq!(miss(&owner, &claim, &remaining).unwrap().reason, reason, "{remaining:?}");
        }
        assert_eq!(miss(&owner, &claim, &[(4, 1), (3, 9_000), (2, 9_000), (2, 9_001)]).unwrap().ciphersuites, [2, 3]);
    }
}
