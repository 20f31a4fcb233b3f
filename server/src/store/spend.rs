//! Spend: marks the KeyPackage of a reservation as used in a Commit.

mod batch;
mod request;

use diesel::{
    prelude::*,
    sql_types::{BigInt, Binary, Integer, Nullable},
};
use jiff::Timestamp;
use keypool_openapi::{Action, KeyPackageRef, State};

use self::request::{SPENDABLE, Used};
use super::{
    audit::{self, Event},
    database::{
        Conn, Store, StoreError,
        rows::{nonce_of, timestamp},
        schema::key_packages,
        sql::{push, statement, statements},
    },
    locks,
    reservations::{ReservationError, holder, unknown},
    steps, tokens,
};
pub use request::{Spend, SpendStep, Spent};

/// Statement that marks a KeyPackage as spent.
struct Mark<'a> {
    spend: &'a Spend,
    now: i64,
}

statement!(Mark, (Binary, Nullable<Binary>, Integer, Nullable<BigInt>), both => |this, out| {
    push!(out, r"UPDATE key_packages
SET state = 'spent', ended_at = {now}, key_package = {nothing}, spent_group = {group_id}, step = ",
        now: BigInt = &this.now,
        nothing: Binary = &[][..],
        group_id: Binary = &this.spend.group_id,
    );
    push!(out, steps::ENDED);
    push!(out, r"
WHERE device_id = {owner} AND reservation = {nonce} AND reserved_by = {actor} AND ",
        owner: BigInt = &this.spend.reservation.owner,
        nonce: Binary = nonce_of(&this.spend.reservation),
        actor: BigInt = &this.spend.by.device.0,
    );
    push!(out, SPENDABLE);
    push!(out, " RETURNING keypackage_ref, package_id, step, opened");
});

statements! {
    pub(super) fn spend_reserved(conn, spend: &Spend, now: i64) -> QueryResult<Option<Used>> {
        Mark { spend, now }.get_result(conn).optional()
    }

    /// Returns the ciphersuite of a KeyPackage if it was revoked.
    pub(super) fn suite_of_revoked(conn, keypackage_ref: &[u8]) -> QueryResult<Option<i32>> {
        let package = key_packages::table.find(keypackage_ref);
        let revoked = package.filter(key_packages::state.eq(State::Revoked.as_ref()));
        revoked.select(key_packages::ciphersuite).first(conn).optional()
    }

    /// Returns whether the owner has a last resort that was not revoked. Its age does not matter: a last resort stays
    /// until its owner revokes it.
    pub(super) fn keeps_last_resort(conn, owner: i64, suite: i32) -> QueryResult<bool> {
        let own = key_packages::table.filter(key_packages::device_id.eq(owner).and(key_packages::ciphersuite.eq(suite)));
        let kept = key_packages::last_resort.and(key_packages::state.ne(State::Revoked.as_ref()));
        diesel::select(diesel::dsl::exists(own.filter(kept))).get_result(conn)
    }
}

/// Spends a reservation, or returns the earlier answer if the same request spent it before.
fn spend(conn: &mut Conn<'_>, request: &Spend, now: Timestamp) -> Result<Result<Spent, ReservationError>, StoreError> {
    if !tokens::has_token(conn, &request.by)? {
        return Ok(Err(ReservationError::TokenRevoked));
    }
    Ok(spend_or_find(conn, request, now)?.map(|(spent, _)| spent))
}

/// Spends a reservation for a new use, for example another Commit. A KeyPackage is used once, even within one group.
/// The caller must hold the row of the spending device.
pub(super) fn spend_first(
    conn: &mut Conn<'_>,
    request: &Spend,
    now: Timestamp,
) -> Result<Result<Spent, ReservationError>, StoreError> {
    let spent = spend_or_find(conn, request, now)?;
    Ok(spent.and_then(|(spent, is_first)| if is_first { Ok(spent) } else { Err(ReservationError::AlreadySpent) }))
}

/// Returns the result, and whether the reservation was not spent before.
fn spend_or_find(
    conn: &mut Conn<'_>,
    request: &Spend,
    now: Timestamp,
) -> Result<Result<(Spent, bool), ReservationError>, StoreError> {
    let (owner, nonce) = (request.reservation.owner, nonce_of(&request.reservation));
    if let Some(used) = spend_reserved(conn, request, now.as_second())? {
        audit::record(conn, &[spend_event(request, &used, false, now)])?;
        return Ok(Ok((used.spent(now), true)));
    }
    if let Some(holder) = holder(conn, &request.reservation)? {
        if holder.reserved_by != Some(request.by.device.0) {
            return Ok(Err(ReservationError::NotYours));
        }
        return match holder.ended_at {
            Some(at) if holder.state == State::Spent.as_ref() => Ok(again(
                holder.spent_group.as_deref() == Some(request.group_id.as_slice()),
                Spent {
                    keypackage_ref: holder.keypackage_ref.into(),
                    state: State::Spent,
                    spent_at: timestamp(at)?,
                    handout: steps::handout(holder.step, false),
                    logged: None,
                },
            )),
            _ => Ok(Err(ReservationError::Lapsed)),
        };
    }
    let keypackage_ref = match audit::traces(conn, owner, nonce)?.first() {
        None => return Ok(Err(unknown(conn)?)),
        Some(trace) if trace.actor != Some(request.by.device.0) => return Ok(Err(ReservationError::NotYours)),
        Some(trace) if !trace.last_resort => return Ok(Err(ReservationError::Lapsed)),
        Some(trace) => trace.keypackage_ref.clone(),
    };
    spend_last_resort(conn, request, &keypackage_ref, now)
}

/// Spends a reservation of a last resort, of which only the trail knows.
fn spend_last_resort(
    conn: &mut Conn<'_>,
    request: &Spend,
    keypackage_ref: &[u8],
    now: Timestamp,
) -> Result<Result<(Spent, bool), ReservationError>, StoreError> {
    let owner = request.reservation.owner;
    // Of two repetitions at once, one waits here, and then finds that the other has spent it.
    let package_id = locks::hold_package(conn, keypackage_ref)?;
    let traces = audit::traces(conn, owner, nonce_of(&request.reservation))?;
    let opened = traces.iter().find(|trace| trace.is(Action::Reserve)).map(|trace| trace.id);
    let used = Used { keypackage_ref: keypackage_ref.to_vec(), package_id, step: steps::USED, opened };
    let keypackage_ref = KeyPackageRef::from(used.keypackage_ref.clone());
    if let Some(spent) = traces.iter().find(|trace| trace.is(Action::Spend)) {
        let same_group = spent.group_id.as_deref() == Some(request.group_id.as_slice());
        return Ok(again(
            same_group,
            Spent {
                keypackage_ref,
                state: State::Available,
                spent_at: timestamp(spent.at)?,
                handout: None,
                logged: None,
            },
        ));
    }
    // No row holds the reservations of a last resort, so they end here if its owner has revoked it. A last resort that
    // was merely replaced may already be in a Commit, so it can still be spent.
    if let Some(suite) = suite_of_revoked(conn, &used.keypackage_ref)?
        && !keeps_last_resort(conn, owner, suite)?
    {
        return Ok(Err(ReservationError::Lapsed));
    }
    audit::record(conn, &[spend_event(request, &used, true, now)])?;
    Ok(Ok((Spent { state: State::Available, handout: None, ..used.spent(now) }, true)))
}

/// Answers a repeated spend: the same answer for the same group, an error for another group.
fn again(same_group: bool, spent: Spent) -> Result<(Spent, bool), ReservationError> {
    if same_group { Ok((spent, false)) } else { Err(ReservationError::AlreadySpent) }
}

fn spend_event<'a>(spend: &'a Spend, used: &'a Used, last_resort: bool, now: Timestamp) -> Event<'a> {
    Event {
        reservation: Some(nonce_of(&spend.reservation)),
        group_id: Some(&spend.group_id),
        package_id: used.package_id.as_deref(),
        step: Some(used.step),
        bind: spend.bind.as_ref().map(<[u8; 32]>::as_slice),
        opened: used.opened,
        ..Event::plain(
            (spend.reservation.owner, &used.keypackage_ref),
            Action::Spend,
            Some(spend.by.device.0),
            last_resort,
            now.as_second(),
        )
    }
}

impl Store {
    /// Spends a reservation.
    ///
    /// # Errors
    /// When the database fails. Nothing is spent then.
    pub fn spend(&self, request: &Spend, now: Timestamp) -> Result<Result<Spent, ReservationError>, StoreError> {
        self.write("spend", |conn| spend(conn, request, now))
    }

    /// Spends reservations of different holders in one statement. An element is `None` if its reservation must be spent
    /// alone.
    ///
    /// # Errors
    /// When the database fails. Nothing is spent then.
    pub fn spend_batch(
        &self,
        spends: &[Spend],
        now: Timestamp,
    ) -> Result<Vec<Option<Result<Spent, ReservationError>>>, StoreError> {
        match self.write_on_postgres("spend", |conn| batch::spend(conn, spends, now))? {
            Some(spent) => Ok(spent.into_iter().map(|one| one.map(Ok)).collect()),
            None => self.write("spend", |conn| spends.iter().map(|one| spend(conn, one, now).map(Some)).collect()),
        }
    }
}
