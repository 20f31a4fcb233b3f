//! The hot statements: each takes one KeyPackage, and no two adders can both win it.

use diesel::{
    QueryResult,
    sql_types::{BigInt, Binary, Integer},
};

use super::{by_hand::statement, rows::HandedOut, schema::key_packages, sweep::LapsedRow};

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
/// passed over, but for the two that wait.
pub(super) trait ClaimSql {
    /// A fresh one: the first at or after the nonce, or else the first of all. Refs are hashes, so adders start anywhere.
    fn claim_fresh(&mut self, claim: &Claim<'_>) -> QueryResult<Option<HandedOut>>;
    /// A fresh one, waiting for whoever holds its row.
    fn await_fresh(&mut self, claim: &Claim<'_>) -> QueryResult<Option<HandedOut>>;
    /// Finds one whose last reservation is over, the longest first, and holds it until the transaction ends.
    fn find_returned(&mut self, claim: &Claim<'_>) -> QueryResult<Option<Returned>>;
    /// The same, waiting for whoever holds its row.
    fn await_returned(&mut self, claim: &Claim<'_>) -> QueryResult<Option<Returned>>;
}

/// A KeyPackage that was handed out, and whether nobody has noted yet that its reservation lapsed.
pub(super) type Returned = (LapsedRow, bool);

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

diesel::alias!(pub(super) const CANDIDATE: Alias<Candidate> = key_packages as candidate);

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

            fn await_fresh(
                &mut self,
                claim: &$crate::store::claims::Claim<'_>,
            ) -> QueryResult<Option<$crate::store::rows::HandedOut>> {
                use $crate::store::{claims::CANDIDATE, schema::key_packages as k};
                let chosen = CANDIDATE
                    .filter(CANDIDATE.field(k::device_id).eq(claim.owner).and(CANDIDATE.field(k::fresh)))
                    .filter(CANDIDATE.field(k::ciphersuite).between(claim.suites.0, claim.suites.1))
                    .filter(CANDIDATE.field(k::not_after).ge(claim.usable_until))
                    .order(CANDIDATE.field(k::keypackage_ref).asc())
                    .select(CANDIDATE.field(k::keypackage_ref))
                    .limit(1)
                    $($wait)*;
                $crate::store::claims::take!(claim, chosen.single_value()).get_result(self).optional()
            }

            fn find_returned(
                &mut self,
                claim: &$crate::store::claims::Claim<'_>,
            ) -> QueryResult<Option<$crate::store::claims::Returned>> {
                $crate::store::claims::returned!(claim, $($skip)*).get_result(self).optional()
            }

            fn await_returned(
                &mut self,
                claim: &$crate::store::claims::Claim<'_>,
            ) -> QueryResult<Option<$crate::store::claims::Returned>> {
                $crate::store::claims::returned!(claim, $($wait)*).get_result(self).optional()
            }
        }
    };
}
pub(super) use claims;

/// What was handed out and is over, the longest first, with a row lock.
macro_rules! returned {
    ($claim:expr, $($lock:tt)*) => {{
        use $crate::store::schema::key_packages as k;
        k::table
            .filter(k::device_id.eq($claim.owner))
            .filter(k::ciphersuite.between($claim.suites.0, $claim.suites.1))
            .filter(k::not_after.ge($claim.usable_until))
            .filter(k::handed_out.and(k::reserved_until.le($claim.returned_by)))
            .order(k::reserved_until.asc())
            .select(((k::keypackage_ref, k::device_id, k::reservation, k::reserved_by, k::reserved_until), k::held))
            .limit(1)
            $($lock)*
    }};
}
pub(super) use returned;

/// Reserves the KeyPackage of this ref.
macro_rules! take {
    ($claim:expr, $keypackage_ref:expr) => {{
        use $crate::store::schema::key_packages as k;
        diesel::update(k::table)
            .filter(k::keypackage_ref.nullable().eq($keypackage_ref))
            .set((
                k::state.eq(keypool_openapi::State::Reserved.as_ref()),
                k::reservation.eq($claim.nonce),
                k::reserved_by.eq($claim.by),
                k::reserved_until.eq($claim.until),
            ))
            .returning((k::keypackage_ref, k::key_package, k::ciphersuite, k::not_after))
    }};
}
pub(super) use take;

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
            debug_query::<Pg, _>(&returned!(claim, .for_update().skip_locked())).to_string()
        );
        insta::assert_snapshot!(
            "sqlite_fresh",
            debug_query::<Sqlite, _>(&Fresh { claim: &claim, lock: "" }).to_string()
        );
        insta::assert_snapshot!("sqlite_returned", debug_query::<Sqlite, _>(&returned!(claim,)).to_string());
    }
}
