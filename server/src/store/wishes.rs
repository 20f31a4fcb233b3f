//! The statement that takes what is fresh, on `PostgreSQL`: for one wish, or for many at once.
//!
//! A wish is fulfilled as a whole or not at all: where one of its users has no device, or one of its devices nothing fresh
//! that is not held, or two wishes met at the same KeyPackage, nothing is taken for it. Nor where it is for very many devices,
//! where its caller may be near the most that it may hold, its token has ended, or its key came before.

use diesel::{
    pg::Pg,
    prelude::*,
    query_builder::AstPass,
    sql_types::{BigInt, Binary, Integer, Nullable, Text},
};

use super::{
    idempotency::IdempotencyKey,
    postgres::HOLDS,
    sql::{columns, statement},
};

/// The most devices of a wish, which is left for alone where it is for more: the largest KeyPackages of so many are
/// [`super::ANSWER_BYTES`].
pub(super) const MOST_DEVICES: i64 = 64;

/// A user of a wish, of whose devices each is to give a KeyPackage.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Target<'a> {
    /// The number of the wish.
    pub wish: i64,
    pub user: &'a str,
    pub device: Option<&'a str>,
    /// The first and the last ciphersuite.
    pub suites: (i32, i32),
    /// Where in the pool the search begins, and what the reservation is named by.
    pub nonce: &'a [u8],
    pub actor: i64,
    pub until: i64,
    pub usable_until: i64,
    pub group_id: Option<&'a [u8]>,
    /// The SHA-256 of the actor's token; once in each wish is enough.
    pub token: Option<&'a [u8]>,
    /// With how many reservations the actor's user is not near a limit; once in each wish, beside the token.
    pub room: Option<i64>,
    /// What is kept, so that the wish may be repeated.
    pub repeat: Option<Repeat<'a>>,
}

/// What is kept of a wish beside what was taken for it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Repeat<'a> {
    pub key: &'a IdempotencyKey,
    /// The part of the answer that is known before, as JSON.
    pub missing: &'a str,
}

/// The number of the wish, the owner, its user, its device; ref, bytes, ciphersuite, `not_after`.
pub(super) type Taken = (i64, i64, String, String, Vec<u8>, Vec<u8>, i32, i64);

type TakenColumns = (BigInt, BigInt, Text, Text, Binary, Binary, Integer, BigInt);

/// The one user of the one wish that there is, as is usual where little is asked for: what many need would cost a tenth more.
///
/// Where nobody's answer is to be kept, it is another statement: what is there to keep answers costs a tenth, used or not.
struct One<'a> {
    target: Target<'a>,
    kept: Kept<'a>,
    now: i64,
}

/// The same with an answer to be kept.
struct OneRepeatable<'a>(One<'a>);

impl<'a> One<'a> {
    fn of(target: Target<'a>, now: i64) -> Self {
        Self { kept: Kept::of(target.repeat), target, now }
    }
}

/// The columns of what is kept: the key, the request, until when, and what is missing.
#[derive(Default)]
struct Kept<'a> {
    key: Option<&'a [u8]>,
    request: Option<&'a [u8]>,
    until: Option<i64>,
    missing: Option<&'a str>,
}

impl<'a> Kept<'a> {
    fn of(repeat: Option<Repeat<'a>>) -> Self {
        repeat.map_or_else(Self::default, |Repeat { key, missing }| Self {
            key: Some(&key.key),
            request: Some(&key.request),
            until: Some(key.until.as_second()),
            missing: Some(missing),
        })
    }
}

/// Users of wishes, a column each.
#[derive(Default)]
struct Many<'a> {
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
    token: Vec<Option<&'a [u8]>>,
    room: Vec<Option<i64>>,
    key: Vec<Option<&'a [u8]>>,
    request: Vec<Option<&'a [u8]>>,
    kept_until: Vec<Option<i64>>,
    missing: Vec<Option<&'a str>>,
    now: i64,
}

/// The same with answers to be kept, if not of all.
struct ManyRepeatable<'a>(Many<'a>);

impl<'a> Many<'a> {
    fn of(targets: &[Target<'a>], now: i64) -> Self {
        let mut many = Self { now, ..Self::default() };
        for target in targets {
            many.wish.push(target.wish);
            many.user.push(target.user);
            many.device.push(target.device);
            many.first_suite.push(target.suites.0);
            many.last_suite.push(target.suites.1);
            many.nonce.push(target.nonce);
            many.actor.push(target.actor);
            many.until.push(target.until);
            many.usable_until.push(target.usable_until);
            many.group_id.push(target.group_id);
            many.token.push(target.token);
            many.room.push(target.room);
            let kept = Kept::of(target.repeat);
            many.key.push(kept.key);
            many.request.push(kept.request);
            many.kept_until.push(kept.until);
            many.missing.push(kept.missing);
        }
        many
    }
}

statement!(One, TakenColumns, Pg, PgConnection => |this, out| { one(&mut out, this, false)?; });
statement!(OneRepeatable, TakenColumns, Pg, PgConnection => |this, out| { one(&mut out, &this.0, true)?; });
statement!(Many, TakenColumns, Pg, PgConnection => |this, out| { many(&mut out, this, false)?; });
statement!(ManyRepeatable, TakenColumns, Pg, PgConnection => |this, out| { many(&mut out, &this.0, true)?; });

fn one<'b>(out: &mut AstPass<'_, 'b, Pg>, one: &'b One<'_>, is_kept: bool) -> QueryResult<()> {
    let (target, kept) = (&one.target, &one.kept);
    pick(out, &one.now, is_kept)?;
    out.push_sql("(SELECT ");
    out.push_bind_param::<BigInt, _>(&target.wish)?;
    out.push_sql(" AS wish, ");
    out.push_bind_param::<Text, _>(target.user)?;
    out.push_sql(" AS user_name, ");
    out.push_bind_param::<Nullable<Text>, _>(&target.device)?;
    out.push_sql(" AS device_name, ");
    out.push_bind_param::<Integer, _>(&target.suites.0)?;
    out.push_sql(" AS first_suite, ");
    out.push_bind_param::<Integer, _>(&target.suites.1)?;
    out.push_sql(" AS last_suite, ");
    out.push_bind_param::<Binary, _>(target.nonce)?;
    out.push_sql(" AS nonce, ");
    out.push_bind_param::<BigInt, _>(&target.actor)?;
    out.push_sql(" AS actor, ");
    out.push_bind_param::<BigInt, _>(&target.until)?;
    out.push_sql(" AS until, ");
    out.push_bind_param::<BigInt, _>(&target.usable_until)?;
    out.push_sql(" AS usable_until, ");
    out.push_bind_param::<Nullable<Binary>, _>(&target.group_id)?;
    out.push_sql(" AS group_id, ");
    out.push_bind_param::<Nullable<Binary>, _>(&target.token)?;
    out.push_sql(" AS token, ");
    out.push_bind_param::<Nullable<BigInt>, _>(&target.room)?;
    if is_kept {
        out.push_sql(" AS room, ");
        out.push_bind_param::<Nullable<Binary>, _>(&kept.key)?;
        out.push_sql(" AS key, ");
        out.push_bind_param::<Nullable<Binary>, _>(&kept.request)?;
        out.push_sql(" AS request, ");
        out.push_bind_param::<Nullable<BigInt>, _>(&kept.until)?;
        out.push_sql(" AS kept_until, ");
        out.push_bind_param::<Nullable<Text>, _>(&kept.missing)?;
        out.push_sql(" AS missing) AS w");
    } else {
        out.push_sql(" AS room) AS w");
    }
    take_if(out, "(SELECT count(*) = count(place) AND count(*) <= ", " FROM pick)", &one.now, is_kept)
}

fn many<'b>(out: &mut AstPass<'_, 'b, Pg>, many: &'b Many<'_>, is_kept: bool) -> QueryResult<()> {
    pick(out, &many.now, is_kept)?;
    out.push_sql("unnest(");
    columns!(
        out,
        BigInt => many.wish,
        Text => many.user,
        Nullable<Text> => many.device,
        Integer => many.first_suite,
        Integer => many.last_suite,
        Binary => many.nonce,
        BigInt => many.actor,
        BigInt => many.until,
        BigInt => many.usable_until,
        Nullable<Binary> => many.group_id,
        Nullable<Binary> => many.token,
        Nullable<BigInt> => many.room,
    );
    if is_kept {
        out.push_sql(", ");
        columns!(
            out,
            Nullable<Binary> => many.key,
            Nullable<Binary> => many.request,
            Nullable<BigInt> => many.kept_until,
            Nullable<Text> => many.missing,
        );
    }
    out.push_sql(
        ") AS w (wish, user_name, device_name, first_suite, last_suite, nonce, actor, until, usable_until, group_id, \
         token, room",
    );
    out.push_sql(if is_kept { ", key, request, kept_until, missing)" } else { ")" });
    let whole = "r.wish NOT IN (SELECT wish FROM (SELECT wish, place, \
                 row_number() OVER (PARTITION BY place ORDER BY wish) AS rank, \
                 count(*) OVER (PARTITION BY wish) AS devices FROM pick) met \
                 WHERE place IS NULL OR rank > 1 OR devices > ";
    take_if(out, whole, ")", &many.now, is_kept)
}

/// Finds and locks a KeyPackage for each device of each user. The search starts at the nonce and wraps around, as in the statement
/// for a single request. CASE hides the conditions on ciphersuite and lifetime from the planner, which overrates their selectivity
/// and would sort the whole pool. Repeated keys are found by a join: with EXISTS, the planner would read all keys.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "what is bound has to live until the statement is sent")]
fn pick<'b>(out: &mut AstPass<'_, 'b, Pg>, now: &'b i64, is_kept: bool) -> QueryResult<()> {
    out.push_sql(
        "WITH pick AS MATERIALIZED (SELECT w.*, d.id AS owner, d.device_name AS owned, \
         CASE WHEN (w.token IS NULL OR (SELECT c.token_hash = w.token AND (w.room IS NULL OR pg_try_advisory_xact_lock(",
    );
    out.push_sql(HOLDS);
    out.push_sql(
        ", hashtext(c.user_name))) FROM devices c WHERE c.id = w.actor AND c.removed_at IS NULL)) \
         AND (w.room IS NULL OR w.room >= (SELECT count(*) FROM devices c JOIN devices o ON o.user_name = c.user_name \
         JOIN key_packages k ON k.reserved_by = o.id WHERE c.id = w.actor AND k.held AND k.reserved_until > ",
    );
    out.push_bind_param::<BigInt, _>(now)?;
    out.push_sql(if is_kept {
        ")) AND (w.key IS NULL OR (SELECT i.expires_at FROM idempotency_keys i WHERE i.device_id = w.actor \
         AND i.key = w.key) IS NULL) THEN coalesce("
    } else {
        ")) THEN coalesce("
    });
    for (from, end) in [(">= w.nonce", ", "), ("< w.nonce", "")] {
        out.push_sql(
            "(SELECT k.ctid FROM key_packages k WHERE k.device_id = d.id AND k.fresh \
             AND CASE WHEN k.ciphersuite BETWEEN w.first_suite AND w.last_suite AND k.not_after >= w.usable_until \
             THEN true ELSE false END AND k.keypackage_ref ",
        );
        out.push_sql(from);
        out.push_sql(" ORDER BY k.keypackage_ref LIMIT 1 FOR UPDATE SKIP LOCKED)");
        out.push_sql(end);
    }
    out.push_sql(") END AS place FROM ");
    Ok(())
}

/// Keeps the answers of wishes that may be repeated, as the JSON of [`super::kept_answers`]. In the order of their
/// keys, so that two that come with the same ones never wait for each other.
const KEEP: &str = ", kept AS (INSERT INTO idempotency_keys (device_id, key, request, answer, expires_at) \
    SELECT actor, key, request, convert_to(json_build_object('missing', missing::json, 'reservations', \
    json_agg(json_build_object('reservation_id', to_hex(owner) || '-' || encode(nonce, 'hex')::uuid, \
    'user', user_name, 'device', owned, 'keypackage_ref', encode(keypackage_ref, 'hex'), \
    'ciphersuite', ciphersuite, 'not_after', to_timestamp(not_after), 'expires_at', to_timestamp(until), 'last_resort', false)))::text, 'UTF8'), \
    kept_until FROM taken WHERE key IS NOT NULL GROUP BY actor, key, request, missing, kept_until ORDER BY actor, key)";

/// Takes what was found and locked where `whole` holds for its wish, with the most devices before its `end`, and notes it. It
/// stays where it is: the update goes to its place and not through the index. Who changes what is fresh ends that it is: what
/// was changed since the statement began is passed over, and never half of a wish is missed.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "what is bound has to live until the statement is sent")]
fn take_if<'b>(out: &mut AstPass<'_, 'b, Pg>, whole: &str, end: &str, now: &'b i64, is_kept: bool) -> QueryResult<()> {
    out.push_sql(
        " LEFT JOIN devices d ON d.user_name = w.user_name AND d.removed_at IS NULL \
         AND (w.device_name IS NULL OR d.device_name = w.device_name)), \
         taken AS (UPDATE key_packages k SET state = 'reserved', reservation = r.nonce, reserved_by = r.actor, \
         reserved_until = r.until FROM pick r WHERE k.ctid = r.place AND ",
    );
    out.push_sql(whole);
    out.push_bind_param::<BigInt, _>(&MOST_DEVICES)?;
    out.push_sql(end);
    out.push_sql(
        " RETURNING r.wish, r.owner, r.user_name, r.owned, k.keypackage_ref, k.key_package, k.ciphersuite, k.not_after, \
         r.actor, r.nonce, r.group_id, r.until",
    );
    out.push_sql(if is_kept { ", r.key, r.request, r.kept_until, r.missing)" } else { ")" });
    out.push_sql(
        ", noted AS (INSERT INTO audit_events (device_id, keypackage_ref, action, actor, reservation, group_id, last_resort, \
         at, until) SELECT owner, keypackage_ref, 'reserve', actor, nonce, group_id, false, ",
    );
    out.push_bind_param::<BigInt, _>(now)?;
    out.push_sql(", until FROM taken)");
    if is_kept {
        out.push_sql(KEEP);
    }
    out.push_sql(
        " SELECT wish, owner, user_name, owned, keypackage_ref, key_package, ciphersuite, not_after FROM taken",
    );
    Ok(())
}

/// Takes what wishes are for, in one statement: all of a wish, or nothing.
pub(super) fn take(conn: &mut PgConnection, targets: &[Target<'_>], now: i64) -> QueryResult<Vec<Taken>> {
    let is_kept = targets.iter().any(|target| target.repeat.is_some());
    match (targets, is_kept) {
        ([], _) => Ok(Vec::new()),
        ([target], false) => One::of(*target, now).load(conn),
        ([target], true) => OneRepeatable(One::of(*target, now)).load(conn),
        (targets, false) => Many::of(targets, now).load(conn),
        (targets, true) => ManyRepeatable(Many::of(targets, now)).load(conn),
    }
}

#[cfg(test)]
mod tests {
    use diesel::debug_query;

    use super::*;

    /// The hot statements as `PostgreSQL` gets them: a change here is a change of what was measured.
    #[test]
    fn the_statements_are_those_that_were_measured() {
        let one = || One::of(Target::default(), 0);
        insta::assert_snapshot!("take_one", debug_query::<Pg, _>(&one()).to_string());
        insta::assert_snapshot!("take_one_repeatable", debug_query::<Pg, _>(&OneRepeatable(one())).to_string());
        insta::assert_snapshot!("take_many", debug_query::<Pg, _>(&Many::default()).to_string());
        insta::assert_snapshot!(
            "take_many_repeatable",
            debug_query::<Pg, _>(&ManyRepeatable(Many::default())).to_string()
        );
    }
}
