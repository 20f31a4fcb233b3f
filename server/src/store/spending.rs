//! Spend and release: how a reservation ends before its time does.

use diesel::{
    prelude::*,
    sql_types::{BigInt, Binary},
};
use jiff::Timestamp;
use keypool_openapi::{Action, KeyPackageRef, ReservationId, State};

use super::{
    Store, StoreError,
    as_of::AsOf,
    audit::{AuditSql, Event},
    connection::{self, Pools, with_conn},
    key_packages::HoldDevice,
    lineage::LineageSql,
    postgres,
    rows::{nonce_of, statements, timestamp},
    schema::key_packages,
    sql::statement,
    together,
    tokens::{ShownToken, TokenSql},
};

/// A reservation whose KeyPackage is in a Commit.
#[derive(Clone, Debug)]
pub struct Spend {
    /// The reservation.
    pub reservation: ReservationId,
    /// The holder.
    pub by: ShownToken,
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
    /// The caller's token has ended.
    TokenRevoked,
    /// There is no such reservation, or its KeyPackage is forgotten.
    Unknown,
    /// Another device made it.
    NotYours,
    /// It was spent for another group, or for something else in this one.
    AlreadySpent,
    /// It ran out, and the KeyPackage went to another, or was revoked.
    Lapsed,
}

/// A reservation that is not needed.
#[derive(Clone, Debug)]
pub struct Release {
    /// The reservation.
    pub reservation: ReservationId,
    /// The holder.
    pub by: ShownToken,
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
    not_after: i64,
    reserved_by: Option<i64>,
    reserved_until: Option<i64>,
    ended_at: Option<i64>,
    spent_group: Option<Vec<u8>>,
}

/// What its holder can spend: a late spend marks what nobody else has reserved since, whatever time has made of it.
pub(super) const SPENDABLE: &str = "state IN ('reserved', 'available', 'expired', 'retired')";

/// Marks a KeyPackage as spent.
struct Mark<'a> {
    spend: &'a Spend,
    now: i64,
}

statement!(Mark, Binary, both => |this, out| {
    out.push_sql("UPDATE key_packages SET state = 'spent', ended_at = ");
    out.push_bind_param::<BigInt, _>(&this.now)?;
    out.push_sql(", key_package = ");
    out.push_bind_param::<Binary, _>(&[][..])?;
    out.push_sql(", spent_group = ");
    out.push_bind_param::<Binary, _>(&this.spend.group_id)?;
    out.push_sql(" WHERE device_id = ");
    out.push_bind_param::<BigInt, _>(&this.spend.reservation.owner)?;
    out.push_sql(" AND reservation = ");
    out.push_bind_param::<Binary, _>(nonce_of(&this.spend.reservation))?;
    out.push_sql(" AND reserved_by = ");
    out.push_bind_param::<BigInt, _>(&this.spend.by.device.0)?;
    out.push_sql(" AND ");
    out.push_sql(SPENDABLE);
    out.push_sql(" RETURNING keypackage_ref");
});

statements! {
    pub(super) trait SpendingSql {
        fn spend_reserved(conn, spend: &Spend, now: i64) -> QueryResult<Option<Vec<u8>>> {
            Mark { spend, now }.get_result(conn).optional()
        }

        /// What has lapsed is released already.
        fn release_reserved(conn, release: &Release, as_of: AsOf) -> QueryResult<Option<Vec<u8>>> {
            let now = as_of.now.as_second();
            diesel::update(key_packages::table)
                .filter(key_packages::device_id.eq(release.reservation.owner))
                .filter(key_packages::reservation.eq(nonce_of(&release.reservation)))
                .filter(key_packages::reserved_by.eq(release.by.device.0))
                .filter(key_packages::held.and(key_packages::reserved_until.gt(now)).and(key_packages::not_after.gt(now)))
                .set((
                    key_packages::state.eq(if as_of.retire { State::Retired } else { State::Available }.as_ref()),
                    key_packages::ended_at.eq(as_of.retire.then_some(now)),
                    key_packages::reserved_until.eq(now),
                ))
                .returning(key_packages::keypackage_ref)
                .get_result(conn)
                .optional()
        }

        /// The ciphersuite of a KeyPackage that was revoked.
        fn suite_of_revoked(conn, keypackage_ref: &[u8]) -> QueryResult<Option<i32>> {
            let package = key_packages::table.find(keypackage_ref);
            let revoked = package.filter(key_packages::state.eq(State::Revoked.as_ref()));
            revoked.select(key_packages::ciphersuite).first(conn).optional()
        }

        /// Whether the owner has a last resort that was not revoked, however old: time withdraws none.
        fn keeps_last_resort(conn, owner: i64, suite: i32) -> QueryResult<bool> {
            let own = key_packages::table.filter(key_packages::device_id.eq(owner).and(key_packages::ciphersuite.eq(suite)));
            let kept = key_packages::last_resort.and(key_packages::state.ne(State::Revoked.as_ref()));
            diesel::select(diesel::dsl::exists(own.filter(kept))).get_result(conn)
        }

        fn holder(conn, reservation: &ReservationId) -> QueryResult<Option<Holder>> {
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
                ))
                .first(conn)
                .optional()
        }
    }
}

/// Spends a reservation, or answers again where the same request did so before.
fn spend<C: SpendingSql + AuditSql + LineageSql + TokenSql>(
    conn: &mut C,
    want: &Spend,
    now: Timestamp,
) -> Result<Result<Spent, SpendError>, StoreError> {
    if !conn.has_token(&want.by)? {
        return Ok(Err(SpendError::TokenRevoked));
    }
    Ok(spend_or_find(conn, want, now)?.map(|(spent, _)| spent))
}

/// Spends a reservation for something new, such as another Commit. A KeyPackage is used once, for the same group, too. The
/// caller's row is held.
pub(super) fn spend_first<C: SpendingSql + AuditSql + LineageSql>(
    conn: &mut C,
    want: &Spend,
    now: Timestamp,
) -> Result<Result<Spent, SpendError>, StoreError> {
    let spent = spend_or_find(conn, want, now)?;
    Ok(spent.and_then(|(spent, is_first)| if is_first { Ok(spent) } else { Err(SpendError::AlreadySpent) }))
}

/// What is spent, and whether it was not before.
fn spend_or_find<C: SpendingSql + AuditSql + LineageSql>(
    conn: &mut C,
    want: &Spend,
    now: Timestamp,
) -> Result<Result<(Spent, bool), SpendError>, StoreError> {
    let (owner, nonce) = (want.reservation.owner, nonce_of(&want.reservation));
    if let Some(keypackage_ref) = conn.spend_reserved(want, now.as_second())? {
        conn.record(&[spend_event(want, &keypackage_ref, false, now)])?;
        return Ok(Ok((Spent { keypackage_ref: keypackage_ref.into(), state: State::Spent, spent_at: now }, true)));
    }
    if let Some(holder) = conn.holder(&want.reservation)? {
        if holder.reserved_by != Some(want.by.device.0) {
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
    let traces = conn.traces(owner, nonce)?;
    let first = match traces.first() {
        None => return Ok(Err(unknown(conn)?)),
        Some(trace) if trace.actor != Some(want.by.device.0) => return Ok(Err(SpendError::NotYours)),
        Some(trace) if !trace.last_resort => return Ok(Err(SpendError::Lapsed)),
        Some(trace) => trace,
    };
    let keypackage_ref = first.keypackage_ref.clone().into();
    if let Some(spent) = traces.iter().find(|trace| trace.is(Action::Spend)) {
        let same_group = spent.group_id.as_deref() == Some(want.group_id.as_slice());
        return Ok(again(
            same_group,
            Spent { keypackage_ref, state: State::Available, spent_at: timestamp(spent.at)? },
        ));
    }
    // Nobody holds a last resort, so nothing else ends its reservations when its owner withdraws it. One that was replaced may
    // be in a Commit already.
    if let Some(suite) = conn.suite_of_revoked(&first.keypackage_ref)?
        && !conn.keeps_last_resort(owner, suite)?
    {
        return Ok(Err(SpendError::Lapsed));
    }
    conn.record(&[spend_event(want, &first.keypackage_ref, true, now)])?;
    Ok(Ok((Spent { keypackage_ref, state: State::Available, spent_at: now }, true)))
}

/// Why there is no trace of a reservation. A backup has none of those that were made after it.
fn unknown<C: LineageSql>(conn: &mut C) -> QueryResult<SpendError> {
    Ok(if conn.fenced_at()?.is_some() { SpendError::Lapsed } else { SpendError::Unknown })
}

/// A spend that was done before: the same answer for the same group, and none for another.
fn again(same_group: bool, spent: Spent) -> Result<(Spent, bool), SpendError> {
    if same_group { Ok((spent, false)) } else { Err(SpendError::AlreadySpent) }
}

fn spend_event<'a>(spend: &'a Spend, keypackage_ref: &'a [u8], last_resort: bool, now: Timestamp) -> Event<'a> {
    Event {
        reservation: Some(nonce_of(&spend.reservation)),
        group_id: Some(&spend.group_id),
        ..Event::plain(
            (spend.reservation.owner, keypackage_ref),
            Action::Spend,
            Some(spend.by.device.0),
            last_resort,
            now.as_second(),
        )
    }
}

fn release<C: SpendingSql + AuditSql + LineageSql + HoldDevice>(
    conn: &mut C,
    release: &Release,
    as_of: AsOf,
) -> Result<Result<Released, ReleaseError>, StoreError> {
    if !conn.hold_caller(&release.by)? {
        return Ok(Err(ReleaseError::TokenRevoked));
    }
    let (owner, nonce) = (release.reservation.owner, nonce_of(&release.reservation));
    if let Some(keypackage_ref) = conn.release_reserved(release, as_of)? {
        conn.record(&[Event {
            reservation: Some(nonce),
            ..Event::plain(
                (owner, &keypackage_ref),
                Action::Release,
                Some(release.by.device.0),
                false,
                as_of.now.as_second(),
            )
        }])?;
        let state = if as_of.retire { State::Retired } else { State::Available };
        return Ok(Ok(Released { keypackage_ref: keypackage_ref.into(), state }));
    }
    if let Some(holder) = conn.holder(&release.reservation)? {
        if holder.reserved_by != Some(release.by.device.0) {
            return Ok(Err(ReleaseError::NotYours));
        }
        let state = holder.state.parse().map_err(StoreError::fatal)?;
        return Ok(match as_of.state(state, holder.not_after, holder.reserved_until) {
            State::Spent => Err(ReleaseError::AlreadySpent),
            state => Ok(Released { keypackage_ref: holder.keypackage_ref.into(), state }),
        });
    }
    let traces = conn.traces(owner, nonce)?;
    Ok(match traces.first() {
        None => Err(unknown(conn)?),
        Some(trace) if trace.actor != Some(release.by.device.0) => Err(ReleaseError::NotYours),
        // A last resort is never held; what was released once may be another's by now, and stays released.
        Some(trace) if trace.last_resort || traces.iter().any(|trace| trace.is(Action::Release)) => {
            Ok(Released { keypackage_ref: trace.keypackage_ref.clone().into(), state: State::Available })
        }
        Some(_) => Err(ReleaseError::Lapsed),
    })
}

impl Store {
    /// Spends reservations, each on its own, in one transaction.
    ///
    /// # Errors
    /// When the database fails. Nothing is spent then.
    pub fn spend(&self, spends: &[Spend], now: Timestamp) -> Result<Vec<Result<Spent, SpendError>>, StoreError> {
        with_conn!(self, write "spend", |conn| spends.iter().map(|one| spend(conn, one, now)).collect())
    }

    /// The same for reservations of different holders, as fast as it goes; `None` for those that have to be spent alone.
    ///
    /// # Errors
    /// When the database fails. Nothing is spent then.
    pub fn spend_together(
        &self,
        spends: &[Spend],
        now: Timestamp,
    ) -> Result<Vec<Option<Result<Spent, SpendError>>>, StoreError> {
        match &self.pools {
            Pools::Sqlite { .. } => Ok(self.spend(spends, now)?.into_iter().map(Some).collect()),
            Pools::Postgres(pool) => {
                let body = |conn: &mut _| together::spend(conn, spends, now);
                let spent = connection::write(pool, &self.metrics, "spend", postgres::statement, body)?;
                Ok(spent.into_iter().map(|one| one.map(Ok)).collect())
            }
        }
    }

    /// Releases reservations, each on its own, in one transaction.
    ///
    /// # Errors
    /// When the database fails. Nothing is released then.
    pub fn release(
        &self,
        releases: &[Release],
        as_of: AsOf,
    ) -> Result<Vec<Result<Released, ReleaseError>>, StoreError> {
        with_conn!(self, write "release", |conn| releases.iter().map(|one| release(conn, one, as_of)).collect())
    }
}
