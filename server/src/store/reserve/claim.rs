//! Statements that take or find one KeyPackage, so that two adders never get the same one. SQLite, which has one
//! writer, needs two statements. A row that another transaction has locked is skipped or waited for. A row that is
//! found stays locked until the transaction ends.

use diesel::{
    pg::Pg,
    prelude::*,
    sql_types::{BigInt, Binary, Integer, Nullable},
    sqlite::Sqlite,
};
use keypool_openapi::State;

use crate::store::{
    audit::{LastReservation, SQLITE_NEXT_ID, next_id},
    database::{
        Conn,
        rows::HandedOut,
        schema::key_packages,
        sql::{push, statement, statements},
    },
    steps,
};

/// Selects the KeyPackages of a device that a request may take, and names the adder.
pub(super) struct Claim<'a> {
    pub owner: i64,
    /// The first and the last ciphersuite of the range.
    pub suites: (i32, i32),
    pub usable_until: i64,
    pub nonce: &'a [u8],
    pub by: i64,
    pub until: i64,
    /// A KeyPackage whose reservation ended at or before this second may be handed out again.
    pub returned_by: i64,
}

/// A KeyPackage that was taken.
pub(super) struct Claimed {
    pub handed_out: HandedOut,
    /// The number of the step.
    pub step: i32,
    /// The id of its event; `None` if the row does not name it.
    pub event: Option<i64>,
    /// The event that began the hand-out before this one.
    pub before: Option<i64>,
    pub last_resort: bool,
}

type HandedOutColumns = (Binary, Binary, Integer, BigInt, Nullable<Binary>);

/// A KeyPackage that may be taken, and whether the lapse of its last reservation is not yet recorded.
pub(super) type Found = (LastReservation, bool);

/// Writes a subquery for one column of the next fresh KeyPackage, with the row lock that the database needs. The search
/// starts at the nonce and wraps around.
macro_rules! push_next {
    ($out:ident, $claim:expr, $column:literal, $lock:literal) => {
        push!($out, concat!("coalesce(", push_next!(@from $column, ">=", $lock), ",", push_next!(@from $column, "<", $lock), ")"),
            owner: BigInt = &$claim.owner,
            first_suite: Integer = &$claim.suites.0,
            last_suite: Integer = &$claim.suites.1,
            usable_until: BigInt = &$claim.usable_until,
            nonce: Binary = $claim.nonce,
            owner: BigInt = &$claim.owner,
            first_suite: Integer = &$claim.suites.0,
            last_suite: Integer = &$claim.suites.1,
            usable_until: BigInt = &$claim.usable_until,
            nonce: Binary = $claim.nonce,
        );
    };
    (@from $column:literal, $side:literal, $lock:literal) => {
        concat!("
    (SELECT c.", $column, " FROM key_packages c
     WHERE c.fresh AND c.device_id = {owner} AND c.ciphersuite BETWEEN {first_suite} AND {last_suite}
        AND c.not_after >= {usable_until} AND c.keypackage_ref ", $side, " {nonce}
     ORDER BY c.keypackage_ref LIMIT 1", $lock, ")")
    };
}

/// Takes a fresh KeyPackage on `PostgreSQL`.
struct Fresh<'a>(&'a Claim<'a>);

statement!(Fresh, (HandedOutColumns, BigInt), Pg, PgConnection => |this, out| {
    push!(out, r"UPDATE key_packages
SET state = 'reserved', reservation = {nonce}, reserved_by = {by}, reserved_until = {until}, step = 1,
    opened = nextval('audit_events_id_seq')
WHERE keypackage_ref = ",
        nonce: Binary = this.0.nonce,
        by: BigInt = &this.0.by,
        until: BigInt = &this.0.until,
    );
    push_next!(out, this.0, "keypackage_ref", " FOR UPDATE SKIP LOCKED");
    push!(out, r"
RETURNING keypackage_ref, key_package, ciphersuite, not_after, package_id, opened");
});

/// Finds a fresh KeyPackage on SQLite. [`Take`] takes it then, and no other transaction can come between the two. A
/// single `UPDATE` with `RETURNING` would need a temporary table and a statement journal.
struct Find<'a>(&'a Claim<'a>);

statement!(Find, (BigInt, HandedOutColumns, BigInt), Sqlite, SqliteConnection => |this, out| {
    push!(out, "SELECT rowid, keypackage_ref, key_package, ciphersuite, not_after, package_id, ");
    push!(out, SQLITE_NEXT_ID);
    push!(out, r"
FROM key_packages WHERE rowid = ");
    push_next!(out, this.0, "rowid", "");
});

struct Take<'a> {
    claim: &'a Claim<'a>,
    rowid: i64,
    event: i64,
}

statement!(Take, (), Sqlite, SqliteConnection => |this, out| {
    push!(out, r"UPDATE key_packages
SET state = 'reserved', reservation = {nonce}, reserved_by = {by}, reserved_until = {until}, step = 1, opened = {event}
WHERE rowid = {rowid}",
        nonce: Binary = this.claim.nonce,
        by: BigInt = &this.claim.by,
        until: BigInt = &this.claim.until,
        event: BigInt = &this.event,
        rowid: BigInt = &this.rowid,
    );
});

/// Takes a fresh KeyPackage: the first at or after the nonce, or else the first of all. Refs are hashes, so a random
/// nonce spreads adders over the pool. Skips rows that another transaction has locked.
pub(super) fn claim_fresh(conn: &mut Conn<'_>, claim: &Claim<'_>) -> QueryResult<Option<Claimed>> {
    let (handed_out, event) = match conn {
        Conn::Postgres(conn) => match Fresh(claim).get_result(*conn).optional()? {
            Some(found) => found,
            None => return Ok(None),
        },
        Conn::Sqlite(conn) => {
            let found: Option<(i64, HandedOut, i64)> = Find(claim).get_result(*conn).optional()?;
            let Some((rowid, handed_out, event)) = found else { return Ok(None) };
            Take { claim, rowid, event }.execute(*conn)?;
            (handed_out, event)
        }
    };
    Ok(Some(Claimed { handed_out, step: steps::FIRST, event: Some(event), before: None, last_resort: false }))
}

/// Reserves a KeyPackage whose row this transaction has locked. The last time that it may be handed out, it expires with the
/// reservation.
pub(super) fn take(conn: &mut Conn<'_>, claim: &Claim<'_>, (last, is_held): &Found) -> QueryResult<Claimed> {
    let at_rest = if *is_held { steps::ended(last.step) } else { last.step };
    let (event, step) = (next_id(conn)?, steps::opened(at_rest));
    let handed_out = reserve_again(conn, claim, &last.keypackage_ref, step, event)?;
    if steps::is_last(step) && claim.until < handed_out.not_after {
        expire_with_reservation(conn, &last.keypackage_ref, claim.until)?;
    }
    Ok(Claimed { handed_out, step, event: Some(event), before: last.opened, last_resort: false })
}

#[diesel::dsl::auto_type(no_type_alias)]
fn usable(owner: i64, first_suite: i32, last_suite: i32, usable_until: i64) -> _ {
    key_packages::table
        .filter(key_packages::device_id.eq(owner))
        .filter(key_packages::ciphersuite.between(first_suite, last_suite))
        .filter(key_packages::not_after.ge(usable_until))
}

/// Condition: the KeyPackage is fresh and matches the claim.
macro_rules! fresh {
    ($claim:expr) => {
        usable($claim.owner, $claim.suites.0, $claim.suites.1, $claim.usable_until)
            .filter(key_packages::fresh)
            .order(key_packages::keypackage_ref.asc())
            .select((LastReservation::as_select(), key_packages::held))
            .limit(1)
    };
}

/// Query: matching KeyPackages whose last reservation has ended, the earliest end first.
macro_rules! returned {
    ($claim:expr) => {
        usable($claim.owner, $claim.suites.0, $claim.suites.1, $claim.usable_until)
            .filter(key_packages::handed_out.and(key_packages::reserved_until.le($claim.returned_by)))
            .order(key_packages::reserved_until.asc())
            .select((LastReservation::as_select(), key_packages::held))
            .limit(1)
    };
}

/// Finds a fresh KeyPackage. Waits for the transaction that holds its row.
pub(super) fn await_fresh(conn: &mut Conn<'_>, claim: &Claim<'_>) -> QueryResult<Option<Found>> {
    match conn {
        Conn::Postgres(conn) => fresh!(claim).for_update().get_result(*conn),
        Conn::Sqlite(conn) => fresh!(claim).get_result(*conn),
    }
    .optional()
}

/// Finds a KeyPackage whose last reservation has ended. Skips rows that another transaction has locked.
pub(super) fn find_returned(conn: &mut Conn<'_>, claim: &Claim<'_>) -> QueryResult<Option<Found>> {
    match conn {
        Conn::Postgres(conn) => returned!(claim).for_update().skip_locked().get_result(*conn),
        Conn::Sqlite(conn) => returned!(claim).get_result(*conn),
    }
    .optional()
}

/// Finds a KeyPackage whose last reservation has ended. Waits for the transaction that holds its row.
pub(super) fn await_returned(conn: &mut Conn<'_>, claim: &Claim<'_>) -> QueryResult<Option<Found>> {
    match conn {
        Conn::Postgres(conn) => returned!(claim).for_update().get_result(*conn),
        Conn::Sqlite(conn) => returned!(claim).get_result(*conn),
    }
    .optional()
}

statements! {
    fn reserve_again(
        conn,
        claim: &Claim<'_>,
        keypackage_ref: &[u8],
        step: i32,
        event: i64
    ) -> QueryResult<HandedOut> {
        diesel::update(key_packages::table.find(keypackage_ref))
            .set((
                key_packages::state.eq(State::Reserved.as_ref()),
                key_packages::reservation.eq(claim.nonce),
                key_packages::reserved_by.eq(claim.by),
                key_packages::reserved_until.eq(claim.until),
                key_packages::step.eq(step),
                key_packages::opened.eq(event),
            ))
            .returning((
                key_packages::keypackage_ref,
                key_packages::key_package,
                key_packages::ciphersuite,
                key_packages::not_after,
                key_packages::package_id,
            ))
            .get_result(conn)
    }

    fn expire_with_reservation(conn, keypackage_ref: &[u8], until: i64) -> QueryResult<usize> {
        diesel::update(key_packages::table.find(keypackage_ref)).set(key_packages::not_after.eq(until)).execute(conn)
    }

    /// Finds the last resort. It is not locked, so that any number of adders can get it at once.
    pub(super) fn last_resort(conn, claim: &Claim<'_>) -> QueryResult<Option<HandedOut>> {
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
                key_packages::package_id,
            ))
            .first(conn)
            .optional()
    }
}

#[cfg(test)]
mod tests {
    use diesel::debug_query;

    use super::*;

    /// The hot statements as each database gets them. A changed snapshot means that performance must be measured again.
    #[test]
    fn the_claims_are_the_statements_that_were_measured() {
        let claim =
            Claim { owner: 7, suites: (1, 1), usable_until: 3_600, nonce: &[9; 16], by: 8, until: 60, returned_by: 0 };
        insta::assert_snapshot!("postgres_fresh", debug_query::<Pg, _>(&Fresh(&claim)).to_string());
        insta::assert_snapshot!(
            "postgres_returned",
            debug_query::<Pg, _>(&returned!(claim).for_update().skip_locked()).to_string()
        );
        insta::assert_snapshot!("sqlite_fresh", debug_query::<Sqlite, _>(&Find(&claim)).to_string());
        insta::assert_snapshot!(
            "sqlite_take",
            debug_query::<Sqlite, _>(&Take { claim: &claim, rowid: 5, event: 6 }).to_string()
        );
        insta::assert_snapshot!("sqlite_returned", debug_query::<Sqlite, _>(&returned!(claim)).to_string());
    }
}
