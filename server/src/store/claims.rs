//! The hot statements: each takes one KeyPackage, and no two adders can both win it.

use diesel::{
    QueryResult,
    sql_types::{BigInt, Binary, Integer},
};

use super::{by_hand::statement, rows::HandedOut, sweep::LastReservation};

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

/// Takes or finds one KeyPackage, in one statement that two adders cannot both win. A row that another transaction holds is
/// passed over, but for the two that wait; one that is found is held until the transaction ends.
pub(super) trait ClaimSql {
    /// Takes a fresh one: the first at or after the nonce, or else the first of all. Refs are hashes, so adders start
    /// anywhere.
    fn claim_fresh(&mut self, claim: &Claim<'_>) -> QueryResult<Option<HandedOut>>;
    /// Finds a fresh one, waiting for whoever holds its row.
    fn await_fresh(&mut self, claim: &Claim<'_>) -> QueryResult<Option<Found>>;
    /// Finds one whose last reservation is over, the longest first.
    fn find_returned(&mut self, claim: &Claim<'_>) -> QueryResult<Option<Found>>;
    /// The same, waiting for whoever holds its row.
    fn await_returned(&mut self, claim: &Claim<'_>) -> QueryResult<Option<Found>>;
}

/// A KeyPackage that may be taken, and whether nobody has noted yet that its last reservation lapsed.
pub(super) type Found = (LastReservation, bool);

/// Takes a fresh KeyPackage, with the row lock that the database needs.
pub(super) struct Fresh<'a> {
    pub claim: &'a Claim<'a>,
    pub lock: &'static str,
}

const CANDIDATES: &str = "(SELECT c.keypackage_ref FROM key_packages c WHERE c.fresh AND c.device_id = ";

statement!(Fresh, (Binary, Binary, Integer, BigInt), both => |this, out| {
    let claim = this.claim;
    out.push_sql("UPDATE key_packages SET state = 'reserved', reservation = ");
    out.push_bind_param::<Binary, _>(claim.nonce)?;
    out.push_sql(", reserved_by = ");
    out.push_bind_param::<BigInt, _>(&claim.by)?;
    out.push_sql(", reserved_until = ");
    out.push_bind_param::<BigInt, _>(&claim.until)?;
    out.push_sql(" WHERE keypackage_ref = coalesce(");
    for (which, end) in [(" AND c.keypackage_ref >= ", ", "), (" AND c.keypackage_ref < ", "")] {
        out.push_sql(CANDIDATES);
        out.push_bind_param::<BigInt, _>(&claim.owner)?;
        out.push_sql(" AND c.ciphersuite BETWEEN ");
        out.push_bind_param::<Integer, _>(&claim.suites.0)?;
        out.push_sql(" AND ");
        out.push_bind_param::<Integer, _>(&claim.suites.1)?;
        out.push_sql(" AND c.not_after >= ");
        out.push_bind_param::<BigInt, _>(&claim.usable_until)?;
        out.push_sql(which);
        out.push_bind_param::<Binary, _>(claim.nonce)?;
        out.push_sql(" ORDER BY c.keypackage_ref LIMIT 1");
        out.push_sql(this.lock);
        out.push_sql(")");
        out.push_sql(end);
    }
    out.push_sql(") RETURNING keypackage_ref, key_package, ciphersuite, not_after");
});

/// [`ClaimSql`] for a connection: each statement is written once, with the row lock that the connection's database needs at
/// its end.
macro_rules! claims {
    ($connection:ty, $lock:literal, [$($skip:tt)*], [$($wait:tt)*]) => {
        impl $crate::store::claims::ClaimSql for $connection {
            fn claim_fresh(
                &mut self,
                claim: &$crate::store::claims::Claim<'_>,
            ) -> QueryResult<Option<$crate::store::rows::HandedOut>> {
                $crate::store::claims::Fresh { claim, lock: $lock }.get_result(self).optional()
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
    use diesel::{debug_query, pg::Pg, prelude::*, sqlite::Sqlite};

    use super::*;

    /// The hot statements as each database gets them: a change here is a change of what was measured.
    #[test]
    fn the_claims_are_the_statements_that_were_measured() {
        let claim =
            Claim { owner: 7, suites: (1, 1), usable_until: 3_600, nonce: &[9; 16], by: 8, until: 60, returned_by: 0 };
        insta::assert_snapshot!(
            "postgres_fresh",
            debug_query::<Pg, _>(&Fresh { claim: &claim, lock: " FOR UPDATE SKIP LOCKED" }).to_string()
        );
        insta::assert_snapshot!(
            "postgres_returned",
            debug_query::<Pg, _>(&claims!(@returned claim, .for_update().skip_locked())).to_string()
        );
        insta::assert_snapshot!(
            "sqlite_fresh",
            debug_query::<Sqlite, _>(&Fresh { claim: &claim, lock: "" }).to_string()
        );
        insta::assert_snapshot!("sqlite_returned", debug_query::<Sqlite, _>(&claims!(@returned claim,)).to_string());
    }
}
