//! Many reservations, or many spends, in one statement each, on `PostgreSQL`.
//!
//! They do what is plain: take fresh KeyPackages that nobody holds, and spend what its holder holds. Nothing here waits for
//! another transaction, so two batches never wait for each other. What is not plain is left undone, as if it had not been
//! asked for, to be done alone.

use std::collections::{BTreeMap, HashMap, HashSet};

use diesel::{
    pg::Pg,
    prelude::*,
    sql_types::{BigInt, Binary},
};
use jiff::Timestamp;
use keypool_openapi::{Base64Bytes, DeviceName, Reservation, ReservationId, ReserveResponse, State};

use super::{
    StoreError,
    by_hand::{columns, statement},
    idempotency::{IdempotencyKey, IdempotencySql},
    reservations::Reserve,
    rows::{nonce_of, suite, timestamp},
    spending::{SPENDABLE, Spend, Spent},
    wishes::{self, Taken, Target},
};

/// A device that may hold so few more reservations for each user that it names is counted exactly, alone.
const NEAR: i64 = 16;

/// Keys of wishes that may be repeated, a column each.
#[derive(Debug, Default)]
struct Keys<'a> {
    caller: Vec<i64>,
    key: Vec<&'a [u8]>,
    request: Vec<&'a [u8]>,
    until: Vec<i64>,
    now: i64,
}

statement!(Keys, (BigInt, Binary), Pg, PgConnection => |this, out| {
    out.push_sql(
        "INSERT INTO idempotency_keys (device_id, key, request, answer, expires_at) \
         SELECT caller, key, request, '', until FROM unnest(",
    );
    columns!(
        out,
        BigInt => this.caller,
        Binary => this.key,
        Binary => this.request,
        BigInt => this.until,
    );
    out.push_sql(
        ") AS w (caller, key, request, until) ON CONFLICT (device_id, key) DO UPDATE \
         SET request = excluded.request, expires_at = excluded.expires_at WHERE idempotency_keys.expires_at <= ",
    );
    out.push_bind_param::<BigInt, _>(&this.now)?;
    out.push_sql(" RETURNING device_id, key");
});

/// Answers that are kept for repetitions, a column each.
#[derive(Debug, Default)]
struct Answers<'a> {
    caller: Vec<i64>,
    key: Vec<&'a [u8]>,
    answer: Vec<Vec<u8>>,
}

statement!(Answers, (BigInt,), Pg, PgConnection => |this, out| {
    out.push_sql("UPDATE idempotency_keys k SET answer = w.answer FROM unnest(");
    columns!(
        out,
        BigInt => this.caller,
        Binary => this.key,
        Binary => this.answer,
    );
    out.push_sql(") AS w (caller, key, answer) WHERE k.device_id = w.caller AND k.key = w.key");
});

/// What is spent, a column each.
#[derive(Debug, Default)]
struct Spends<'a> {
    spend: Vec<i64>,
    owner: Vec<i64>,
    nonce: Vec<&'a [u8]>,
    actor: Vec<i64>,
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
        Binary => this.group_id,
    );
    out.push_sql(
        ") AS w (spend, owner, nonce, actor, group_id) CROSS JOIN LATERAL (SELECT k.ctid AS place FROM key_packages k \
         WHERE k.device_id = w.owner AND k.reservation = w.nonce AND k.reserved_by = w.actor AND ",
    );
    out.push_sql(SPENDABLE);
    out.push_sql(
        " FOR UPDATE SKIP LOCKED) k), \
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
    let second = now.as_second();
    let begun = begin_answers(conn, wants, second)?;
    let is_plain = |want: &Reserve| want.repeat.as_ref().is_none_or(|key| begun.contains(&(want.by.0, key.key)));
    let rooms = rooms(wants);
    let mut targets = Vec::new();
    for (number, want) in (0_i64..).zip(wants).filter(|(_, want)| is_plain(want)) {
        let suites = want.ciphersuite.map_or((0, i32::from(u16::MAX)), |suite| (suite.into(), suite.into()));
        let mut room = rooms.get(&want.by.0).copied();
        for user in &want.users {
            targets.push(Target {
                wish: number,
                user: user.as_str(),
                device: want.device.as_ref().map(DeviceName::as_str),
                suites,
                nonce: want.nonce.as_bytes(),
                actor: want.by.0,
                until: want.until.as_second(),
                usable_until: want.usable_until.as_second(),
                group_id: want.group_id.as_deref(),
                // It is looked at once for each wish.
                room: room.take(),
            });
        }
    }
    let taken = wishes::take(conn, &targets, second)?;
    let mut fulfilled = answers(wants, taken)?;
    keep_answers(conn, wants, &fulfilled, &begun)?;
    Ok((0_i64..).take(wants.len()).map(|number| fulfilled.remove(&number)).collect())
}

/// Takes the keys of wishes that may be repeated, and answers which are new: a key is one wish's alone, and whoever comes
/// with one that is taken is answered alone.
fn begin_answers(conn: &mut PgConnection, wants: &[Reserve], now: i64) -> Result<HashSet<(i64, [u8; 32])>, StoreError> {
    let mut keyed: BTreeMap<(i64, [u8; 32]), Option<&IdempotencyKey>> = BTreeMap::new();
    for want in wants {
        let Some(repeat) = &want.repeat else { continue };
        // One that comes twice here is for nobody here.
        keyed.entry((want.by.0, repeat.key)).and_modify(|one| *one = None).or_insert(Some(repeat));
    }
    // In their order, so that two batches with the same keys never wait for each other.
    let mut keys = Keys { now, ..Keys::default() };
    for ((caller, _), repeat) in &keyed {
        let Some(repeat) = repeat else { continue };
        keys.caller.push(*caller);
        keys.key.push(&repeat.key);
        keys.request.push(&repeat.request);
        keys.until.push(repeat.until.as_second());
    }
    let begun: Vec<(i64, Vec<u8>)> = if keys.caller.is_empty() { Vec::new() } else { keys.load(conn)? };
    let whole = |key: Vec<u8>| key.try_into().map_err(|_| StoreError::fatal(anyhow::anyhow!("a key has not 32 bytes")));
    begun.into_iter().map(|(caller, key)| Ok((caller, whole(key)?))).collect()
}

/// How many reservations each device that has a cap may hold before these wishes, so that they do not bring it near its cap.
fn rooms(wants: &[Reserve]) -> HashMap<i64, i64> {
    let mut rooms = HashMap::new();
    for want in wants {
        let Some(most) = want.most_held else { continue };
        let users = i64::try_from(want.users.len()).unwrap_or(i64::MAX);
        let room: &mut i64 = rooms.entry(want.by.0).or_insert(most.into());
        *room = room.saturating_sub(users.saturating_mul(NEAR));
    }
    rooms
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
    for answer in fulfilled.values_mut() {
        answer.reservations.sort_by(|one, other| (&one.user, &one.device).cmp(&(&other.user, &other.device)));
        answer.missing.sort_by(|one, other| (&one.user, &one.device).cmp(&(&other.user, &other.device)));
    }
    Ok(fulfilled)
}

/// Keeps the answers of what may be repeated, and gives the keys back of what has to be done alone.
fn keep_answers(
    conn: &mut PgConnection,
    wants: &[Reserve],
    fulfilled: &HashMap<i64, ReserveResponse>,
    begun: &HashSet<(i64, [u8; 32])>,
) -> Result<(), StoreError> {
    let mut answers = Answers::default();
    for (number, want) in (0_i64..).zip(wants) {
        let Some(repeat) = want.repeat.as_ref().filter(|repeat| begun.contains(&(want.by.0, repeat.key))) else {
            continue;
        };
        if let Some(reserved) = fulfilled.get(&number) {
            answers.caller.push(want.by.0);
            answers.key.push(&repeat.key);
            answers.answer.push(serde_json::to_vec(reserved).map_err(StoreError::fatal)?);
        } else {
            conn.drop_answer(want.by.0, &repeat.key)?;
        }
    }
    if !answers.caller.is_empty() {
        answers.execute(conn)?;
    }
    Ok(())
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
        wanted.actor.push(one.by.0);
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
        insta::assert_snapshot!("together_keys", debug_query::<Pg, _>(&Keys::default()).to_string());
        insta::assert_snapshot!("together_answers", debug_query::<Pg, _>(&Answers::default()).to_string());
    }
}
