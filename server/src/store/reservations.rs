//! Reserve, spend, release: how a KeyPackage leaves the pool.

use diesel::prelude::*;
use jiff::Timestamp;
use keypool_openapi::{DeviceName, KeyPackageRef, MissingReason, ReservationId, State, UserName};
use uuid::Uuid;

use super::{
    Store, StoreError,
    audit::{Action, AuditSql, Event},
    claims::{Claim, ClaimSql},
    connection::with_conn,
    devices::DeviceSql,
    rows::{DeviceId, DeviceRow, HandedOut, nonce_of, statements, suite, timestamp},
    schema::key_packages,
};

/// A wish for one KeyPackage of each device of a user.
#[derive(Clone, Debug)]
pub struct Reserve {
    /// Whose.
    pub user: UserName,
    /// Of this device alone.
    pub device: Option<DeviceName>,
    /// Of this ciphersuite alone.
    pub ciphersuite: Option<u16>,
    /// The group that it is for.
    pub group_id: Option<Vec<u8>>,
    /// Who asks.
    pub by: DeviceId,
    /// Random: names the reservations, and says where in the pool to look first, so that adders do not collide.
    pub nonce: Uuid,
    /// When the reservation lapses.
    pub until: Timestamp,
    /// Nothing that expires before this is handed out.
    pub usable_until: Timestamp,
}

/// What a wish came to.
#[derive(Clone, Debug)]
pub struct Reserved {
    /// One for each device that had a KeyPackage.
    pub reservations: Vec<ReservedKeyPackage>,
    /// The devices that had none.
    pub missing: Vec<Miss>,
}

/// A KeyPackage that is now held.
#[derive(Clone, Debug)]
pub struct ReservedKeyPackage {
    /// Names the reservation.
    pub id: ReservationId,
    /// The owner's device.
    pub device: DeviceName,
    /// The KeyPackage's ref.
    pub keypackage_ref: KeyPackageRef,
    /// The KeyPackage as it was uploaded.
    pub bytes: Vec<u8>,
    /// Its ciphersuite.
    pub ciphersuite: u16,
    /// When it expires.
    pub not_after: Timestamp,
    /// Whether it is the last resort.
    pub last_resort: bool,
}

/// A device that had nothing to hand out.
#[derive(Clone, Debug)]
pub struct Miss {
    /// The device.
    pub device: DeviceName,
    /// Why.
    pub reason: MissingReason,
    /// The ciphersuites of which it has KeyPackages.
    pub ciphersuites: Vec<u16>,
}

/// Why a wish was for nobody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReserveError {
    /// There is no such user.
    UnknownUser,
    /// The user has no such device, or none at all.
    UnknownDevice,
}

/// A reservation whose KeyPackage is in a Commit.
#[derive(Clone, Debug)]
pub struct Spend {
    /// The reservation.
    pub reservation: ReservationId,
    /// Who says so.
    pub by: DeviceId,
    /// The Commit's group.
    pub group_id: Vec<u8>,
}

/// What a spend came to.
#[derive(Clone, Debug)]
pub struct Spent {
    /// The KeyPackage.
    pub keypackage_ref: KeyPackageRef,
    /// `Spent`, or `Available` for a last resort.
    pub state: State,
    /// When it was spent first.
    pub spent_at: Timestamp,
}

/// Why a reservation was not spent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpendError {
    /// There never was such a reservation.
    Unknown,
    /// Another device made it.
    NotYours,
    /// It was spent for another group.
    AlreadySpent,
    /// It ran out, and the KeyPackage went to another, or was revoked.
    Lapsed,
}

/// A reservation that is not needed.
#[derive(Clone, Debug)]
pub struct Release {
    /// The reservation.
    pub reservation: ReservationId,
    /// Who says so.
    pub by: DeviceId,
}

/// What a release came to.
#[derive(Clone, Debug)]
pub struct Released {
    /// The KeyPackage.
    pub keypackage_ref: KeyPackageRef,
    /// Its state now.
    pub state: State,
}

/// Why a reservation was not released: as for a spend.
pub type ReleaseError = SpendError;

/// The row that carries a reservation.
#[derive(Queryable)]
pub(super) struct Holder {
    keypackage_ref: Vec<u8>,
    state: String,
    reserved_by: Option<i64>,
    ended_at: Option<i64>,
    spent_group: Option<Vec<u8>>,
}

statements! {
    pub(super) trait ReservationSql {
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

        /// What stands in the pool but was not to be had: ciphersuites, and whether each lives long enough.
        fn leftovers(conn, claim: &Claim<'_>) -> QueryResult<Vec<(i32, i64)>> {
            key_packages::table
                .filter(key_packages::device_id.eq(claim.owner))
                .filter(key_packages::state.eq_any([State::Available.as_ref(), State::Reserved.as_ref()]))
                .filter(key_packages::reserved_until.is_null().or(key_packages::reserved_until.le(claim.now)))
                .select((key_packages::ciphersuite, key_packages::not_after))
                .distinct()
                .load(conn)
        }

        fn spend_reserved(conn, spend: &Spend, now: i64) -> QueryResult<Option<Vec<u8>>> {
            let held = [State::Reserved, State::Available, State::Expired].map(<&str>::from);
            diesel::update(key_packages::table)
                .filter(key_packages::device_id.eq(spend.reservation.owner))
                .filter(key_packages::reservation.eq(nonce_of(&spend.reservation)))
                .filter(key_packages::reserved_by.eq(spend.by.0).and(key_packages::state.eq_any(held)))
                .set((
                    key_packages::state.eq(State::Spent.as_ref()),
                    key_packages::ended_at.eq(now),
                    key_packages::spent_group.eq(spend.group_id.as_slice()),
                    // What is spent is never handed out again: only its ref stays known.
                    key_packages::key_package.eq(Vec::new()),
                ))
                .returning(key_packages::keypackage_ref)
                .get_result(conn)
                .optional()
        }

        fn release_reserved(conn, release: &Release, now: i64) -> QueryResult<Option<Vec<u8>>> {
            diesel::update(key_packages::table)
                .filter(key_packages::device_id.eq(release.reservation.owner))
                .filter(key_packages::reservation.eq(nonce_of(&release.reservation)))
                .filter(key_packages::reserved_by.eq(release.by.0))
                .filter(key_packages::state.eq(State::Reserved.as_ref()))
                .set((key_packages::state.eq(State::Available.as_ref()), key_packages::reserved_until.eq(now)))
                .returning(key_packages::keypackage_ref)
                .get_result(conn)
                .optional()
        }

        fn holder(conn, reservation: &ReservationId) -> QueryResult<Option<Holder>> {
            key_packages::table
                .filter(key_packages::device_id.eq(reservation.owner))
                .filter(key_packages::reservation.eq(nonce_of(reservation)))
                .select((
                    key_packages::keypackage_ref,
                    key_packages::state,
                    key_packages::reserved_by,
                    key_packages::ended_at,
                    key_packages::spent_group,
                ))
                .first(conn)
                .optional()
        }
    }
}

fn reserve<C>(conn: &mut C, want: &Reserve, now: Timestamp) -> Result<Result<Reserved, ReserveError>, StoreError>
where
    C: ClaimSql + ReservationSql + AuditSql + DeviceSql,
{
    let devices = conn.devices_of(want.user.as_str())?;
    if devices.is_empty() {
        return Ok(Err(ReserveError::UnknownUser));
    }
    let mut reserved = Reserved { reservations: Vec::new(), missing: Vec::new() };
    for columns in devices {
        let owner = DeviceRow::from_columns(columns)?;
        if want.device.as_ref().is_none_or(|device| *device == owner.device) {
            reserve_of(conn, want, &owner, now, &mut reserved)?;
        }
    }
    if reserved.reservations.is_empty() && reserved.missing.is_empty() {
        return Ok(Err(ReserveError::UnknownDevice));
    }
    Ok(Ok(reserved))
}

fn reserve_of<C>(
    conn: &mut C,
    want: &Reserve,
    owner: &DeviceRow,
    now: Timestamp,
    reserved: &mut Reserved,
) -> Result<(), StoreError>
where
    C: ClaimSql + ReservationSql + AuditSql,
{
    let suites = want.ciphersuite.map_or((0, i32::from(u16::MAX)), |suite| (suite.into(), suite.into()));
    let claim = Claim {
        owner: owner.id.0,
        suites,
        usable_until: want.usable_until.as_second(),
        nonce: want.nonce.as_bytes(),
        by: want.by.0,
        until: want.until.as_second(),
        now: now.as_second(),
    };
    let Some((handed_out, last_resort)) = pick(conn, &claim)? else {
        reserved.missing.push(miss(owner, &claim, &conn.leftovers(&claim)?)?);
        return Ok(());
    };
    let (keypackage_ref, bytes, ciphersuite, not_after) = handed_out;
    conn.record(&[Event {
        device_id: owner.id.0,
        keypackage_ref: &keypackage_ref,
        action: Action::Reserve.into(),
        actor: want.by.0,
        reservation: Some(claim.nonce),
        group_id: want.group_id.as_deref(),
        last_resort,
        at: claim.now,
    }])?;
    reserved.reservations.push(ReservedKeyPackage {
        id: ReservationId { owner: owner.id.0, nonce: want.nonce },
        device: owner.device.clone(),
        keypackage_ref: keypackage_ref.into(),
        bytes,
        ciphersuite: suite(ciphersuite)?,
        not_after: timestamp(not_after)?,
        last_resort,
    });
    Ok(())
}

/// Fresh before returned before the last resort; and whether it is the last resort.
fn pick<C: ClaimSql + ReservationSql>(conn: &mut C, claim: &Claim<'_>) -> QueryResult<Option<(HandedOut, bool)>> {
    if let Some(fresh) = conn.claim_fresh_after(claim)? {
        return Ok(Some((fresh, false)));
    }
    if let Some(fresh) = conn.claim_fresh_before(claim)? {
        return Ok(Some((fresh, false)));
    }
    if let Some(returned) = conn.claim_returned(claim)? {
        return Ok(Some((returned, false)));
    }
    Ok(conn.last_resort(claim)?.map(|last_resort| (last_resort, true)))
}

fn miss(owner: &DeviceRow, claim: &Claim<'_>, leftovers: &[(i32, i64)]) -> Result<Miss, StoreError> {
    let mut matching =
        leftovers.iter().filter(|(number, _)| (claim.suites.0..=claim.suites.1).contains(number)).peekable();
    let reason = if leftovers.is_empty() {
        MissingReason::PoolExhausted
    } else if matching.peek().is_none() {
        MissingReason::NoMatchingCiphersuite
    } else if matching.all(|(_, not_after)| *not_after < claim.usable_until) {
        MissingReason::PoolExpired
    } else {
        // What can be used and was not to be had is another adder's in this very moment.
        MissingReason::PoolExhausted
    };
    let mut ciphersuites = leftovers.iter().map(|(number, _)| suite(*number)).collect::<Result<Vec<_>, _>>()?;
    ciphersuites.sort_unstable();
    ciphersuites.dedup();
    Ok(Miss { device: owner.device.clone(), reason, ciphersuites })
}

fn spend<C: ReservationSql + AuditSql>(
    conn: &mut C,
    want: &Spend,
    now: Timestamp,
) -> Result<Result<Spent, SpendError>, StoreError> {
    let (owner, nonce) = (want.reservation.owner, nonce_of(&want.reservation));
    if let Some(keypackage_ref) = conn.spend_reserved(want, now.as_second())? {
        conn.record(&[spend_event(want, &keypackage_ref, false, now)])?;
        return Ok(Ok(Spent { keypackage_ref: keypackage_ref.into(), state: State::Spent, spent_at: now }));
    }
    if let Some(holder) = conn.holder(&want.reservation)? {
        if holder.reserved_by != Some(want.by.0) {
            return Ok(Err(SpendError::NotYours));
        }
        return match holder.ended_at {
            Some(at) if holder.state == State::Spent.as_ref() => Ok(again(
                holder.spent_group.as_deref() == Some(want.group_id.as_slice()),
                Spent { keypackage_ref: holder.keypackage_ref.into(), state: State::Spent, spent_at: timestamp(at)? },
            )),
            _ => Ok(Err(SpendError::Lapsed)),
        };
    }
    let event = match conn.reserved_event(owner, nonce)? {
        None => return Ok(Err(SpendError::Unknown)),
        Some(event) if event.actor != want.by.0 => return Ok(Err(SpendError::NotYours)),
        Some(event) if !event.last_resort => return Ok(Err(SpendError::Lapsed)),
        Some(event) => event,
    };
    let keypackage_ref = event.keypackage_ref.clone().into();
    if let Some((at, group)) = conn.event_of(owner, nonce, Action::Spend)? {
        let spent = Spent { keypackage_ref, state: State::Available, spent_at: timestamp(at)? };
        return Ok(again(group.as_deref() == Some(want.group_id.as_slice()), spent));
    }
    conn.record(&[spend_event(want, &event.keypackage_ref, true, now)])?;
    Ok(Ok(Spent { keypackage_ref, state: State::Available, spent_at: now }))
}

/// A spend that was done before: the same answer for the same group, and none for another.
fn again(same_group: bool, spent: Spent) -> Result<Spent, SpendError> {
    if same_group { Ok(spent) } else { Err(SpendError::AlreadySpent) }
}

fn spend_event<'a>(spend: &'a Spend, keypackage_ref: &'a [u8], last_resort: bool, now: Timestamp) -> Event<'a> {
    Event {
        device_id: spend.reservation.owner,
        keypackage_ref,
        action: Action::Spend.into(),
        actor: spend.by.0,
        reservation: Some(nonce_of(&spend.reservation)),
        group_id: Some(&spend.group_id),
        last_resort,
        at: now.as_second(),
    }
}

fn release<C: ReservationSql + AuditSql>(
    conn: &mut C,
    release: &Release,
    now: Timestamp,
) -> Result<Result<Released, ReleaseError>, StoreError> {
    let (owner, nonce) = (release.reservation.owner, nonce_of(&release.reservation));
    if let Some(keypackage_ref) = conn.release_reserved(release, now.as_second())? {
        conn.record(&[Event {
            device_id: owner,
            keypackage_ref: &keypackage_ref,
            action: Action::Release.into(),
            actor: release.by.0,
            reservation: Some(nonce),
            group_id: None,
            last_resort: false,
            at: now.as_second(),
        }])?;
        return Ok(Ok(Released { keypackage_ref: keypackage_ref.into(), state: State::Available }));
    }
    if let Some(holder) = conn.holder(&release.reservation)? {
        if holder.reserved_by != Some(release.by.0) {
            return Ok(Err(ReleaseError::NotYours));
        }
        let state: State = holder.state.parse().map_err(StoreError::fatal)?;
        return Ok(match state {
            State::Spent => Err(ReleaseError::AlreadySpent),
            state => Ok(Released { keypackage_ref: holder.keypackage_ref.into(), state }),
        });
    }
    Ok(match conn.reserved_event(owner, nonce)? {
        None => Err(ReleaseError::Unknown),
        Some(event) if event.actor != release.by.0 => Err(ReleaseError::NotYours),
        // A last resort is never held; what was released once may be another's by now, and stays released.
        Some(event) if event.last_resort || conn.event_of(owner, nonce, Action::Release)?.is_some() => {
            Ok(Released { keypackage_ref: event.keypackage_ref.into(), state: State::Available })
        }
        Some(_) => Err(ReleaseError::Lapsed),
    })
}

impl Store {
    /// Reserves one KeyPackage of each device, for each wish in turn, in one transaction.
    ///
    /// # Errors
    /// When the database fails. Nothing is reserved then.
    pub fn reserve(
        &self,
        wants: &[Reserve],
        now: Timestamp,
    ) -> Result<Vec<Result<Reserved, ReserveError>>, StoreError> {
        with_conn!(self, write "reserve", |conn| wants.iter().map(|want| reserve(conn, want, now)).collect())
    }

    /// Spends reservations, each on its own, in one transaction.
    ///
    /// # Errors
    /// When the database fails. Nothing is spent then.
    pub fn spend(&self, spends: &[Spend], now: Timestamp) -> Result<Vec<Result<Spent, SpendError>>, StoreError> {
        with_conn!(self, write "spend", |conn| spends.iter().map(|one| spend(conn, one, now)).collect())
    }

    /// Releases reservations, each on its own, in one transaction.
    ///
    /// # Errors
    /// When the database fails. Nothing is released then.
    pub fn release(
        &self,
        releases: &[Release],
        now: Timestamp,
    ) -> Result<Vec<Result<Released, ReleaseError>>, StoreError> {
        with_conn!(self, write "release", |conn| releases.iter().map(|one| release(conn, one, now)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_miss_says_why() {
        let owner = DeviceRow {
            id: DeviceId(7),
            user: "alice".parse().unwrap(),
            device: "laptop".parse().unwrap(),
            registered_at: Timestamp::UNIX_EPOCH,
        };
        let claim = Claim { owner: 7, suites: (1, 1), usable_until: 3_600, nonce: &[9; 16], by: 8, until: 60, now: 0 };
        for (leftovers, reason) in [
            (vec![], MissingReason::PoolExhausted),
            (vec![(2, 9_000)], MissingReason::NoMatchingCiphersuite),
            (vec![(1, 3_599), (2, 9_000)], MissingReason::PoolExpired),
            (vec![(1, 3_599), (1, 3_600)], MissingReason::PoolExhausted),
        ] {
            assert_eq!(miss(&owner, &claim, &leftovers).unwrap().reason, reason, "{leftovers:?}");
        }
        assert_eq!(miss(&owner, &claim, &[(3, 1), (2, 1), (2, 2)]).unwrap().ciphersuites, [2, 3]);
    }
}
