//! Finds out why a pool has no KeyPackage to hand out. Each query uses partial indexes, since most rows of a device are
//! spent.

use diesel::{
    dsl::{auto_type, exists, select, sql},
    expression::SqlLiteral,
    prelude::*,
    sql_types::Bool,
};

use super::claim::Claim;
use crate::store::database::{schema::key_packages, sql::statements};

statements! {
    /// Returns whether another transaction has locked a usable KeyPackage of the pool.
    pub(super) fn is_contended(conn, claim: &Claim<'_>) -> QueryResult<bool> {
        contended(claim.owner, claim.suites.0, claim.suites.1, claim.usable_until, claim.returned_by).get_result(conn)
    }

    /// Returns ciphersuite and `not_after` of the KeyPackages that are in the pool but could not be handed out, or that
    /// expired in it.
    pub(super) fn remaining(conn, owner: i64, returned_by: i64, now: i64) -> QueryResult<Vec<(i32, i64)>> {
        left(owner, returned_by, now).load(conn)
    }
}

#[auto_type(no_type_alias)]
fn contended(owner: i64, first_suite: i32, last_suite: i32, usable_until: i64, returned_by: i64) -> _ {
    let usable =
        key_packages::not_after.ge(usable_until).and(key_packages::ciphersuite.between(first_suite, last_suite));
    let returned = key_packages::handed_out.and(key_packages::reserved_until.le(returned_by));
    let fresh = key_packages::table.filter(key_packages::device_id.eq(owner).and(key_packages::fresh)).filter(usable);
    let returned = key_packages::table.filter(key_packages::device_id.eq(owner).and(returned)).filter(usable);
    select(exists(fresh).or(exists(returned)))
}

#[auto_type(no_type_alias)]
fn left(owner: i64, returned_by: i64, now: i64) -> _ {
    let idle = key_packages::reserved_until.le(returned_by);
    // A KeyPackage that expired before its reservation ended, or in the same second, counts as expired and not as
    // retired.
    let ended =
        key_packages::not_after.le(now).and(key_packages::reserved_until.ge(key_packages::not_after.nullable()));
    // A literal, so that the planner can use the partial index on this state.
    let is_expired: SqlLiteral<Bool> = sql("state = 'expired'");
    let (fresh, last_resort, handed_out, expired): (Of, Of, Of, Of) = (of(owner), of(owner), of(owner), of(owner));
    let fresh = fresh.filter(key_packages::fresh);
    let last_resort = last_resort.filter(key_packages::last_resort.and(key_packages::live));
    let handed_out = handed_out.filter(key_packages::handed_out.and(idle.or(ended)));
    let expired = expired.filter(is_expired);
    fresh.union(last_resort).union(handed_out).union(expired)
}

/// Ciphersuite and `not_after` of a device's KeyPackages.
#[auto_type(type_name = "Of")]
fn of(owner: i64) -> _ {
    let columns = (key_packages::ciphersuite, key_packages::not_after);
    key_packages::table.filter(key_packages::device_id.eq(owner)).select(columns)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::database::plans::plan;

    /// The integration tests check the plans of `PostgreSQL`.
    #[test]
    fn sqlite_finds_each_part_by_the_index_that_is_for_it() {
        let searches =
            |plan: Vec<String>| -> Vec<_> { plan.into_iter().filter(|step| step.contains("INDEX")).collect() };
        let names = ["fresh", "last_resort", "handed_out", "expired"];
        for (plan, names) in
            [(plan(&left(7, 0, 0)), &names[..]), (plan(&contended(7, 1, 1, 0, 0)), &["fresh", "handed_out"])]
        {
            let found = searches(plan);
            assert_eq!(found.len(), names.len(), "{found:?}");
            for (search, name) in found.iter().zip(names) {
                assert!(search.contains(&format!("INDEX key_packages_{name} (device_id=?")), "{name}: {search}");
            }
        }
    }
}
