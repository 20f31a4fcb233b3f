//! Many reservations, or many spends, in one statement each, on `PostgreSQL`.
//!
//! They do what is plain: take fresh KeyPackages that nobody holds, and spend what its holder holds. Nothing here waits for
//! another transaction, but for one with the same `Idempotency-Key`, so two batches never wait for each other. What is not
//! plain is left undone, as if it had not been asked for, to be done alone.

use std::collections::{HashMap, HashSet};

use diesel::{
    pg::Pg,
    prelude::*,
    result::{DatabaseErrorKind, Error},
    sql_types::{BigInt, Binary},
};
use jiff::Timestamp;
use keypool_openapi::{Base64Bytes, DeviceName, Reservation, ReservationId, ReserveResponse, State, UserName};

use super::{
    StoreError,
    reservations::{Reserve, in_order},
    rows::{DeviceId, nonce_of, suite, timestamp},
    spending::{SPENDABLE, Spend, Spent},
    sql::{columns, statement},
    wishes::{self, Repeat, Taken, Target},
};

/// A device that may hold so few more reservations for each user that it names is counted exactly, alone.
const NEAR: i64 = 16;

/// What is spent, a column each.
#[derive(Debug, Default)]
struct Spends<'a> {
    spend: Vec<i64>,
    owner: Vec<i64>,
    nonce: Vec<&'a [u8]>,
    actor: Vec<i64>,
    token: Vec<&'a [u8]>,
    group_id: Vec<&'a [u8]>,
    now: i64,
}

// What another transaction holds, or has changed since the statement began, is passed over.
statement!(Spends, (BigInt, Binary), Pg, PgConnection => |this, out| {
    out.push_sql("WITH held AS MATERIALIZED (SELECT w.*, k.place FROM unnest(");
    columns!(
        out,
        BigInt => this.spend,
        BigInt => this.owner,
        Binary => this.nonce,
        BigInt => this.actor,
        Binary => this.token,
        Binary => this.group_id,
    );
    out.push_sql(
        ") AS w (spend, owner, nonce, actor, token, group_id) CROSS JOIN LATERAL (SELECT k.ctid AS place FROM key_packages k \
         WHERE k.device_id = w.owner AND k.reservation = w.nonce AND k.reserved_by = w.actor AND ",
    );
    out.push_sql(SPENDABLE);
    // A scalar subquery, since the planner may answer EXISTS by reading the whole table.
    out.push_sql(
        " AND (SELECT c.token_hash FROM devices c WHERE c.id = w.actor AND c.removed_at IS NULL) = w.token \
         FOR UPDATE SKIP LOCKED) k), \
         taken AS (UPDATE key_packages k SET state = 'spent', ended_at = ",
    );
    out.push_bind_param::<BigInt, _>(&this.now)?;
    out.push_sql(
        ", key_package = '', spent_group = h.group_id FROM held h WHERE k.ctid = h.place \
         RETURNING h.spend, h.owner, h.nonce, h.actor, h.group_id, k.keypackage_ref), \
         noted AS (INSERT INTO audit_events (device_id, keypackage_ref, action, actor, reservation, group_id, last_resort, \
         at) SELECT owner, keypackage_ref, 'spend', actor, nonce, group_id, false, ",
    );
    out.push_bind_param::<BigInt, _>(&this.now)?;
    out.push_sql(" FROM taken) SELECT spend, keypackage_ref FROM taken");
});

/// Fulfils wishes, each as a whole; `None` for those that have to be fulfilled alone.
pub(super) fn reserve(
    conn: &mut PgConnection,
    wants: &[Reserve],
    now: Timestamp,
) -> Result<Vec<Option<ReserveResponse>>, StoreError> {
    let shared = shared_keys(wants);
    let is_plain = |want: &Reserve| {
        i64::try_from(want.users.len()).is_ok_and(|users| users <= wishes::MOST_DEVICES)
            && want.repeat.as_ref().is_none_or(|key| !shared.contains(&(want.by.device, key.key)))
    };
    let missing = wants.iter().map(|want| serde_json::to_string(&want.refused).map_err(StoreError::fatal));
    let missing = missing.collect::<Result<Vec<_>, _>>()?;
    let rooms = rooms(wants);
    let mut targets = Vec::new();
    for ((number, want), missing) in (0_i64..).zip(wants).zip(&missing).filter(|((_, want), _)| is_plain(want)) {
        let suites = want.ciphersuite.map_or((0, i32::from(u16::MAX)), |suite| (suite.into(), suite.into()));
        let mut room = rooms.get(&want.by_user).copied();
        let mut token = Some(want.by.token_hash.as_slice());
        for user in &want.users {
            targets.push(Target {
                wish: number,
                user: user.as_str(),
                device: want.device.as_ref().map(DeviceName::as_str),
                suites,
                nonce: want.nonce.as_bytes(),
                actor: want.by.device.0,
                until: want.until.as_second(),
                usable_until: want.usable_until.as_second(),
                group_id: want.group_id.as_deref(),
                // Once for each wish.
                token: token.take(),
                room: room.take(),
                repeat: want.repeat.as_ref().map(|key| Repeat { key, missing }),
            });
        }
    }
    let mut fulfilled = answers(wants, take(conn, &targets, now.as_second())?)?;
    Ok((0_i64..).take(wants.len()).map(|number| fulfilled.remove(&number)).collect())
}

/// Takes what wishes are for. Where a key came with another request at the same moment, it is seen the second time, and its
/// wish is left for alone.
fn take(conn: &mut PgConnection, targets: &[Target<'_>], now: i64) -> QueryResult<Vec<Taken>> {
    match wishes::take(conn, targets, now) {
        Err(Error::DatabaseError(DatabaseErrorKind::UniqueViolation, _)) => wishes::take(conn, targets, now),
        taken => taken,
    }
}

/// The keys that come more than once here, by caller: each is one wish's alone.
fn shared_keys(wants: &[Reserve]) -> HashSet<(DeviceId, [u8; 32])> {
    let mut seen = HashSet::new();
    let keys = wants.iter().filter_map(|want| Some((want.by.device, want.repeat.as_ref()?.key)));
    keys.filter(|key| !seen.insert(*key)).collect()
}

/// How many reservations each limited user may hold before these wishes, so that they bring none of the user's devices near its
/// limit, and the user to no other device's limit: a wish takes one KeyPackage of a device.
fn rooms(wants: &[Reserve]) -> HashMap<&UserName, i64> {
    let mut rooms = HashMap::new();
    for want in wants {
        let Some(limits) = want.limits else { continue };
        let users = i64::try_from(want.users.len()).unwrap_or(i64::MAX);
        let (total, of_one): &mut (i64, i64) =
            rooms.entry(&want.by_user).or_insert((limits.total.into(), limits.per_device.into()));
        *total = total.saturating_sub(users.saturating_mul(NEAR));
        *of_one -= 1;
    }
    rooms.into_iter().map(|(user, (total, of_one))| (user, total.min(of_one))).collect()
}

/// What was taken, by the number of its wish.
fn answers(wants: &[Reserve], taken: Vec<Taken>) -> Result<HashMap<i64, ReserveResponse>, StoreError> {
    let mut fulfilled: HashMap<i64, ReserveResponse> = HashMap::new();
    for (number, owner, user, device, keypackage_ref, bytes, ciphersuite, not_after) in taken {
        let want = usize::try_from(number).ok().and_then(|number| wants.get(number));
        let want = want.ok_or_else(|| StoreError::fatal(anyhow::anyhow!("nobody wished for what was taken")))?;
        let answer = fulfilled
            .entry(number)
            .or_insert_with(|| ReserveResponse { reservations: Vec::new(), missing: want.refused.clone() });
        answer.reservations.push(Reservation {
            reservation_id: ReservationId { owner, nonce: want.nonce },
            user: user.try_into().map_err(StoreError::fatal)?,
            device: device.try_into().map_err(StoreError::fatal)?,
            keypackage_ref: keypackage_ref.into(),
            keypackage: Base64Bytes(bytes),
            ciphersuite: suite(ciphersuite)?,
            not_after: timestamp(not_after)?,
            expires_at: want.until,
            last_resort: false,
        });
    }
    Ok(fulfilled.into_iter().map(|(number, answer)| (number, in_order(answer))).collect())
}

/// Spends reservations; `None` for those that have to be spent alone.
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
    }
    let rows: Vec<(i64, Vec<u8>)> = wanted.load(conn)?;
    let mut taken: HashMap<_, _> = rows.into_iter().collect();
    let spent =
        |keypackage_ref: Vec<u8>| Spent { keypackage_ref: keypackage_ref.into(), state: State::Spent, spent_at: now };
    Ok((0_i64..).take(spends.len()).map(|number| taken.remove(&number).map(spent)).collect())
}

#[cfg(test)]
mod tests {
    use diesel::debug_query;

    use super::*;

    /// The hot statements as `PostgreSQL` gets them: a change here is a change of what was measured.
    #[test]
    fn the_statements_are_those_that_were_measured() {
        insta::assert_snapshot!("together_spend", debug_query::<Pg, _>(&Spends::default()).to_string());
    }
}
