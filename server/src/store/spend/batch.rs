//! Many spends in one statement, on `PostgreSQL`. It spends reservations that their holders still hold, and waits for
//! no lock. Every other spend changes nothing here and runs alone.

use std::collections::HashMap;

use diesel::{
    pg::Pg,
    prelude::*,
    sql_types::{Array, BigInt, Binary, Integer, Nullable},
};
use jiff::Timestamp;

use super::request::{SPENDABLE, Spend, Spent, Used};
use crate::store::{
    database::{
        StoreError,
        rows::nonce_of,
        sql::{push, statement},
    },
    steps,
};

/// The reservations to spend, one column for each field.
#[derive(Debug, Default)]
struct Spends<'a> {
    spend: Vec<i64>,
    owner: Vec<i64>,
    nonce: Vec<&'a [u8]>,
    actor: Vec<i64>,
    token: Vec<&'a [u8]>,
    group_id: Vec<&'a [u8]>,
    bind: Vec<Option<&'a [u8]>>,
    now: i64,
}

// Skips a row that another transaction has locked, or has changed since the statement began. The token is compared with
// a scalar subquery, since for EXISTS the planner may read the whole table.
statement!(Spends, (BigInt, Binary, Nullable<Binary>, Integer), Pg, PgConnection => |this, out| {
    push!(out, r"WITH held AS MATERIALIZED (
    SELECT w.*, k.place
    FROM unnest({spend}, {owner}, {nonce}, {actor}, {token}, {group_id}, {bind})
        AS w (spend, owner, nonce, actor, token, group_id, bind)
    CROSS JOIN LATERAL (
        SELECT k.ctid AS place FROM key_packages k
        WHERE k.device_id = w.owner AND k.reservation = w.nonce AND k.reserved_by = w.actor AND ",
        spend: Array<BigInt> = &this.spend,
        owner: Array<BigInt> = &this.owner,
        nonce: Array<Binary> = &this.nonce,
        actor: Array<BigInt> = &this.actor,
        token: Array<Binary> = &this.token,
        group_id: Array<Binary> = &this.group_id,
        bind: Array<Nullable<Binary>> = &this.bind,
    );
    push!(out, SPENDABLE);
    push!(out, r"
            AND (SELECT c.token_hash FROM devices c WHERE c.id = w.actor AND c.removed_at IS NULL) = w.token
        FOR UPDATE SKIP LOCKED) k),
taken AS (
    UPDATE key_packages k
    SET state = 'spent', ended_at = {now}, key_package = '', spent_group = h.group_id,
        step = ",
        now: BigInt = &this.now,
    );
    push!(out, steps::ENDED);
    push!(out, r"
    FROM held h WHERE k.ctid = h.place
    RETURNING h.spend, h.owner, h.nonce, h.actor, h.group_id, h.bind, k.keypackage_ref, k.package_id, k.step, k.opened),
noted AS (
    INSERT INTO audit_events (device_id, keypackage_ref, action, actor, reservation, group_id, last_resort, at, package_id,
        step, bind, opened)
    SELECT owner, keypackage_ref, 'spend', actor, nonce, group_id, false, {now}, package_id, step, bind, opened FROM taken
    RETURNING id),
logged AS (
    INSERT INTO log_outbox (events) SELECT array_agg(id) FROM noted
    HAVING count(*) > 0 AND EXISTS (SELECT 1 FROM log_origins))
SELECT spend, keypackage_ref, package_id, step FROM taken",
        now: BigInt = &this.now,
    );
});

/// The number of the spend, and the KeyPackage's ref, name in the log, and step.
type SpentColumns = (i64, Vec<u8>, Option<Vec<u8>>, i32);

/// Spends reservations. An element is `None` if its reservation must be spent alone.
pub(super) fn spend(
    conn: &mut PgConnection,
    spends: &[Spend],
    now: Timestamp,
) -> Result<Vec<Option<Spent>>, StoreError> {
    let mut wanted = Spends { now: now.as_second(), ..Spends::default() };
    for (number, one) in (0_i64..).zip(spends) {
        wanted.spend.push(number);
        wanted.owner.push(one.reservation.owner);
        wanted.nonce.push(nonce_of(&one.reservation));
        wanted.actor.push(one.by.device.0);
        wanted.token.push(&one.by.token_hash);
        wanted.group_id.push(&one.group_id);
        wanted.bind.push(one.bind.as_ref().map(<[u8; 32]>::as_slice));
    }
    let rows: Vec<SpentColumns> = wanted.load(conn)?;
    let spent = |(number, keypackage_ref, package_id, step): SpentColumns| {
        let used = Used { keypackage_ref, package_id, step, opened: None };
        (number, used.spent(now))
    };
    let mut taken: HashMap<_, _> = rows.into_iter().map(spent).collect();
    Ok((0_i64..).take(spends.len()).map(|number| taken.remove(&number)).collect())
}

#[cfg(test)]
mod tests {
    use diesel::debug_query;

    use super::*;

    /// The hot statements as `PostgreSQL` gets them. A changed snapshot means that performance must be measured again.
    #[test]
    fn the_statements_are_those_that_were_measured() {
        insta::assert_snapshot!("spend_batch", debug_query::<Pg, _>(&Spends::default()).to_string());
    }
}
