//! The hot statements: each takes one KeyPackage, and no two adders can both win it.

use diesel::{
    pg::Pg,
    prelude::*,
    sql_types::{BigInt, Binary, Integer},
    sqlite::Sqlite,
};

use super::{rows::HandedOut, sql::statement, sweep::LastReservation};

/// Which KeyPackages of a device may be handed out, and to whom.
pub(super) struct Claim<'a> {
    pub owner: i64,
    /// The first and the last ciphersuite.
    pub suites: (i32, i32),
    pub usable_until: i64,
    pub nonce: &'a [u8],
    pub by: i64,
    pub until: i64,
    /// What was handed out may be handed out again where its reservation had ended by then.
    pub returned_by: i64,
}

/// Takes or finds one KeyPackage, in one statement that two adders cannot both win, or in two on SQLite, which has one writer.
/// A row that another transaction holds is passed over, but for the two that wait; one that is found is held until the
/// transaction ends.
pub(super) trait ClaimSql {
    /// Takes a fresh one: the first at or after the nonce, or else the first of all. Refs are hashes, so adders start
    /// anywhere.
    fn claim_fresh(&mut self, claim: &Claim<'_>) -> QueryResult<Option<HandedOut>>;
    /// Finds a fresh KeyPackage, waiting for the transaction that holds its row.
    fn await_fresh(&mut self, claim: &Claim<'_>) -> QueryResult<Option<Found>>;
    /// Finds one whose last reservation is over, the longest first.
    fn find_returned(&mut self, claim: &Claim<'_>) -> QueryResult<Option<Found>>;
    /// The same, waiting for the transaction that holds its row.
    fn await_returned(&mut self, claim: &Claim<'_>) -> QueryResult<Option<Found>>;
}

/// A KeyPackage that may be taken, and whether nobody has noted yet that its last reservation lapsed.
pub(super) type Found = (LastReservation, bool);

/// Reserves what the rest of the statement is about.
macro_rules! push_reserved {
    ($out:ident, $claim:expr) => {
        $out.push_sql("UPDATE key_packages SET state = 'reserved', reservation = ");
        $out.push_bind_param::<Binary, _>($claim.nonce)?;
        $out.push_sql(", reserved_by = ");
        $out.push_bind_param::<BigInt, _>(&$claim.by)?;
        $out.push_sql(", reserved_until = ");
        $out.push_bind_param::<BigInt, _>(&$claim.until)?;
    };
}

/// The column of the fresh KeyPackage that is next, with the row lock that the database needs.
macro_rules! push_next {
    ($out:ident, $claim:expr, $column:literal, $lock:literal) => {
        for (begin, which) in [("coalesce(", " AND c.keypackage_ref >= "), (", ", " AND c.keypackage_ref < ")] {
            $out.push_sql(begin);
            $out.push_sql(concat!("(SELECT c.", $column, " FROM key_packages c WHERE c.fresh AND c.device_id = "));
            $out.push_bind_param::<BigInt, _>(&$claim.owner)?;
            $out.push_sql(" AND c.ciphersuite BETWEEN ");
            $out.push_bind_param::<Integer, _>(&$claim.suites.0)?;
            $out.push_sql(" AND ");
            $out.push_bind_param::<Integer, _>(&$claim.suites.1)?;
            $out.push_sql(" AND c.not_after >= ");
            $out.push_bind_param::<BigInt, _>(&$claim.usable_until)?;
            $out.push_sql(which);
            $out.push_bind_param::<Binary, _>($claim.nonce)?;
            $out.push_sql(concat!(" ORDER BY c.keypackage_ref LIMIT 1", $lock, ")"));
        }
        $out.push_sql(")");
    };
}

/// Takes a fresh KeyPackage on `PostgreSQL`.
struct Fresh<'a>(&'a Claim<'a>);

statement!(Fresh, (Binary, Binary, Integer, BigInt), Pg, PgConnection => |this, out| {
    push_reserved!(out, this.0);
    out.push_sql(" WHERE keypackage_ref = ");
    push_next!(out, this.0, "keypackage_ref", " FOR UPDATE SKIP LOCKED");
    out.push_sql(" RETURNING keypackage_ref, key_package, ciphersuite, not_after");
});

/// Finds a fresh KeyPackage on SQLite, where nobody else can have it before [`Take`] takes it. An `UPDATE` that answers makes
/// a table for its answer, and a journal to take itself back.
struct Find<'a>(&'a Claim<'a>);

statement!(Find, (BigInt, (Binary, Binary, Integer, BigInt)), Sqlite, SqliteConnection => |this, out| {
    out.push_sql("SELECT rowid, keypackage_ref, key_package, ciphersuite, not_after FROM key_packages WHERE rowid = ");
    push_next!(out, this.0, "rowid", "");
});

struct Take<'a> {
    claim: &'a Claim<'a>,
    rowid: i64,
}

statement!(Take, (), Sqlite, SqliteConnection => |this, out| {
    push_reserved!(out, this.claim);
    out.push_sql(" WHERE rowid = ");
    out.push_bind_param::<BigInt, _>(&this.rowid)?;
});

/// [`ClaimSql::claim_fresh`] on `PostgreSQL`.
pub(super) fn fresh_of_postgres(conn: &mut PgConnection, claim: &Claim<'_>) -> QueryResult<Option<HandedOut>> {
    Fresh(claim).get_result(conn).optional()
}

/// [`ClaimSql::claim_fresh`] on SQLite.
pub(super) fn fresh_of_sqlite(conn: &mut SqliteConnection, claim: &Claim<'_>) -> QueryResult<Option<HandedOut>> {
    let found: Option<(i64, HandedOut)> = Find(claim).get_result(conn).optional()?;
    let Some((rowid, handed_out)) = found else { return Ok(None) };
    Take { claim, rowid }.execute(conn)?;
    Ok(Some(handed_out))
}

/// [`ClaimSql`] for a connection: how it takes what is fresh, and the other statements, each written once, with the row lock
/// that the connection's database needs at its end.
macro_rules! claims {
    ($connection:ty, $fresh:path, [$($skip:tt)*], [$($wait:tt)*]) => {
        impl $crate::store::claims::ClaimSql for $connection {
            fn claim_fresh(
                &mut self,
                claim: &$crate::store::claims::Claim<'_>,
            ) -> QueryResult<Option<$crate::store::rows::HandedOut>> {
                $fresh(self, claim)
            }

            $crate::store::claims::claims!(@fn await_fresh, fresh, $($wait)*);
            $crate::store::claims::claims!(@fn find_returned, returned, $($skip)*);
            $crate::store::claims::claims!(@fn await_returned, returned, $($wait)*);
        }
    };
    (@fn $name:ident, $statement:ident, $($lock:tt)*) => {
        fn $name(
            &mut self,
            claim: &$crate::store::claims::Claim<'_>,
        ) -> QueryResult<Option<$crate::store::claims::Found>> {
            $crate::store::claims::claims!(@$statement claim, $($lock)*).get_result(self).optional()
        }
    };
    (@fresh $claim:expr, $($lock:tt)*) => {
        $crate::store::claims::claims!(@find $claim, k::fresh, k::keypackage_ref.asc(), $($lock)*)
    };
    (@returned $claim:expr, $($lock:tt)*) => {
        $crate::store::claims::claims!(@find $claim,
            k::handed_out.and(k::reserved_until.le($claim.returned_by)), k::reserved_until.asc(), $($lock)*)
    };
    (@find $claim:expr, $condition:expr, $order:expr, $($lock:tt)*) => {{
        use $crate::store::{schema::key_packages as k, sweep::LastReservation};
        k::table
            .filter(k::device_id.eq($claim.owner))
            .filter(k::ciphersuite.between($claim.suites.0, $claim.suites.1))
            .filter(k::not_after.ge($claim.usable_until))
            .filter($condition)
            .order($order)
            .select((LastReservation::as_select(), k::held))
            .limit(1)
            $($lock)*
    }};
}
pub(super) use claims;

#[cfg(test)]
mod tests {
    use diesel::debug_query;

    use super::*;

    /// The hot statements as each database gets them: a change here is a change of what was measured.
    #[test]
    fn the_claims_are_the_statements_that_were_measured() {
        let claim =
            Claim { owner: 7, suites: (1, 1), usable_until: 3_600, nonce: &[9; 16], by: 8, until: 60, returned_by: 0 };
        insta::assert_snapshot!("postgres_fresh", debug_query::<Pg, _>(&Fresh(&claim)).to_string());
        insta::assert_snapshot!(
            "postgres_returned",
            debug_query::<Pg, _>(&claims!(@returned claim, .for_update().skip_locked())).to_string()
        );
        insta::assert_snapshot!("sqlite_fresh", debug_query::<Sqlite, _>(&Find(&claim)).to_string());
        insta::assert_snapshot!("sqlite_take", debug_query::<Sqlite, _>(&Take { claim: &claim, rowid: 5 }).to_string());
        insta::assert_snapshot!("sqlite_returned", debug_query::<Sqlite, _>(&claims!(@returned claim,)).to_string());
    }
}
