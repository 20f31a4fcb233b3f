//! Many reservations, or many spends, in one statement each, on `PostgreSQL`.
//!
//! They do what is plain: take fresh KeyPackages that nobody holds, and spend what its holder holds. Nothing here waits for
//! another transaction, so two batches never wait for each other. What is not plain is left undone, as if it had not been
//! asked for, to be done alone.

use std::collections::{BTreeMap, HashMap, HashSet};

use diesel::{
    pg::Pg,
    prelude::*,
    sql_types::{BigInt, Binary, Integer, Nullable, Text},
};
use jiff::Timestamp;
use keypool_openapi::{Base64Bytes, Reservation, ReservationId, ReserveResponse, State};

use super::{
    StoreError,
    by_hand::{columns, statement},
    idempotency::{IdempotencyKey, IdempotencySql},
    reservations::{ReservationSql, Reserve},
    rows::{nonce_of, suite, timestamp},
    spending::{SPENDABLE, Spend, Spent},
};

/// A device that may hold so few more reservations for each user that it names is counted exactly, alone.
const NEAR: i64 = 16;

/// One row for each user of each wish: a column each.
#[derive(Debug, Default)]
struct Wishes<'a> {
    wish: Vec<i64>,
    user: Vec<&'a str>,
    device: Vec<Option<&'a str>>,
    first_suite: Vec<i32>,
    last_suite: Vec<i32>,
    nonce: Vec<&'a [u8]>,
    actor: Vec<i64>,
    until: Vec<i64>,
    usable_until: Vec<i64>,
    group_id: Vec<Option<&'a [u8]>>,
    now: i64,
}

/// The wish, the owner, its user, its device; ref, bytes, ciphersuite, `not_after`.
type Taken = (i64, i64, String, String, Vec<u8>, Vec<u8>, i32, i64);

// A wish is fulfilled as a whole or not at all: where one of its users has no device, or one of its devices nothing fresh
// that is not held, or two wishes met at the same KeyPackage, nothing is taken for it. The search begins at the nonce and
// goes around, as it does for one alone. Nearly everything has the right ciphersuite and lives long enough, which the
// planner cannot know: CASE keeps it from reading and sorting all that an owner has, for fear of having to.
//
// What is found is locked, and stays where it is: the update goes to its place and not through the index. Who changes what is
// fresh ends that it is: what was changed since the statement began is passed over, and never half of a wish is missed.
statement!(Wishes, (BigInt, BigInt, Text, Text, Binary, Binary, Integer, BigInt), Pg, PgConnection => |this, out| {
    out.push_sql("WITH want AS MATERIALIZED (SELECT w.*, d.id AS owner, d.device_name AS owned FROM unnest(");
    columns!(
        out,
        BigInt => this.wish,
        Text => this.user,
        Nullable<Text> => this.device,
        Integer => this.first_suite,
        Integer => this.last_suite,
        Binary => this.nonce,
        BigInt => this.actor,
        BigInt => this.until,
        BigInt => this.usable_until,
        Nullable<Binary> => this.group_id,
    );
    out.push_sql(
        ") AS w (wish, user_name, device_name, first_suite, last_suite, nonce, actor, until, usable_until, group_id) \
         LEFT JOIN devices d ON d.user_name = w.user_name AND d.removed_at IS NULL \
         AND (w.device_name IS NULL OR d.device_name = w.device_name)), \
         pick AS MATERIALIZED (SELECT want.*, coalesce(after.place, before.place) AS place, \
         coalesce(after.keypackage_ref, before.keypackage_ref) AS ref FROM want \
         LEFT JOIN LATERAL (SELECT k.ctid AS place, k.keypackage_ref FROM key_packages k \
         WHERE k.device_id = want.owner AND k.fresh \
         AND CASE WHEN k.ciphersuite BETWEEN want.first_suite AND want.last_suite AND k.not_after >= want.usable_until \
         THEN true ELSE false END AND k.keypackage_ref >= want.nonce ORDER BY k.keypackage_ref LIMIT 1 \
         FOR UPDATE SKIP LOCKED) after ON true \
         LEFT JOIN LATERAL (SELECT k.ctid AS place, k.keypackage_ref FROM key_packages k \
         WHERE after.keypackage_ref IS NULL AND k.device_id = want.owner AND k.fresh \
         AND CASE WHEN k.ciphersuite BETWEEN want.first_suite AND want.last_suite AND k.not_after >= want.usable_until \
         THEN true ELSE false END AND k.keypackage_ref < want.nonce ORDER BY k.keypackage_ref LIMIT 1 \
         FOR UPDATE SKIP LOCKED) before ON true), \
         ranked AS (SELECT pick.*, row_number() OVER (PARTITION BY ref ORDER BY wish) AS rank FROM pick), \
         whole AS (SELECT wish FROM ranked GROUP BY wish HAVING bool_and(ref IS NOT NULL AND rank = 1)), \
         taken AS (UPDATE key_packages k SET state = 'reserved', reservation = r.nonce, reserved_by = r.actor, \
         reserved_until = r.until FROM ranked r JOIN whole USING (wish) WHERE k.ctid = r.place \
         RETURNING r.wish, r.owner, r.user_name, r.owned, k.keypackage_ref, k.key_package, k.ciphersuite, k.not_after, \
         r.actor, r.nonce, r.group_id, r.until), \
         noted AS (INSERT INTO audit_events (device_id, keypackage_ref, action, actor, reservation, group_id, last_resort, \
         at, until) SELECT owner, keypackage_ref, 'reserve', actor, nonce, group_id, false, ",
    );
    out.push_bind_param::<BigInt, _>(&this.now)?;
    out.push_sql(
        ", until FROM taken) \
         SELECT wish, owner, user_name, owned, keypackage_ref, key_package, ciphersuite, not_after FROM taken",
    );
});

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
    let near = near_the_cap(conn, wants, second)?;
    let is_plain = |want: &Reserve| {
        !near.contains(&want.by.0) && want.repeat.as_ref().is_none_or(|key| begun.contains(&(want.by.0, key.key)))
    };
    let mut wishes = Wishes { now: second, ..Wishes::default() };
    for (number, want) in (0_i64..).zip(wants).filter(|(_, want)| is_plain(want)) {
        let suites = want.ciphersuite.map_or((0, i32::from(u16::MAX)), |suite| (suite.into(), suite.into()));
        for user in &want.users {
            wishes.wish.push(number);
            wishes.user.push(user.as_str());
            wishes.device.push(want.device.as_ref().map(keypool_openapi::DeviceName::as_str));
            wishes.first_suite.push(suites.0);
            wishes.last_suite.push(suites.1);
            wishes.nonce.push(want.nonce.as_bytes());
            wishes.actor.push(want.by.0);
            wishes.until.push(want.until.as_second());
            wishes.usable_until.push(want.usable_until.as_second());
            wishes.group_id.push(want.group_id.as_deref());
        }
    }
    let taken: Vec<Taken> = if wishes.wish.is_empty() { Vec::new() } else { wishes.load(conn)? };
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

/// The devices that may be about to hold more than they may.
fn near_the_cap(conn: &mut PgConnection, wants: &[Reserve], now: i64) -> Result<HashSet<i64>, StoreError> {
    let mut room: HashMap<i64, i64> = HashMap::new();
    for want in wants {
        let Some(most) = want.most_held else { continue };
        let users = i64::try_from(want.users.len()).unwrap_or(i64::MAX);
        *room.entry(want.by.0).or_insert(most.into()) -= users.saturating_mul(NEAR);
    }
    if room.is_empty() {
        return Ok(HashSet::new());
    }
    let devices: Vec<_> = room.keys().copied().collect();
    for (device, held) in conn.held_by_each(&devices, now)? {
        if let Some(room) = device.and_then(|device| room.get_mut(&device)) {
            *room -= held;
        }
    }
    Ok(room.into_iter().filter(|(_, room)| *room < 0).map(|(device, _)| device).collect())
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
        insta::assert_snapshot!("together_reserve", debug_query::<Pg, _>(&Wishes::default()).to_string());
        insta::assert_snapshot!("together_spend", debug_query::<Pg, _>(&Spends::default()).to_string());
        insta::assert_snapshot!("together_keys", debug_query::<Pg, _>(&Keys::default()).to_string());
        insta::assert_snapshot!("together_answers", debug_query::<Pg, _>(&Answers::default()).to_string());
    }
}
