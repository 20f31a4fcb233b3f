//! The statement that takes fresh KeyPackages on `PostgreSQL`: for one request, or for many at once.
//!
//! A request is served completely or not at all. Nothing is taken for it, and `Store::reserve` serves it alone, when
//! - one of its users has no device, or one of the devices has no fresh KeyPackage that is free,
//! - another request of the batch has found the same KeyPackage,
//! - it is for more than [`MOST_DEVICES`] devices,
//! - the caller is near its limit, its token was revoked, or its `Idempotency-Key` was used before.

use diesel::{
    pg::Pg,
    prelude::*,
    query_builder::AstPass,
    sql_types::{Array, BigInt, Binary, Integer, Nullable, Text},
};

use crate::store::{
    database::sql::{push, statement},
    idempotency::IdempotencyKey,
    locks::HOLDS,
};

/// The most devices of a request here. So many KeyPackages of the largest size fill [`crate::store::ANSWER_BYTES`].
pub(super) const MOST_DEVICES: i64 = 64;

/// One user of a request: the statement takes one KeyPackage of each of the user's devices.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Target<'a> {
    /// The number of the request in its batch.
    pub request: i64,
    pub user: &'a str,
    pub device: Option<&'a str>,
    /// The first and the last ciphersuite of the range.
    pub suites: (i32, i32),
    /// The start of the search in the pool, and part of the reservation's name.
    pub nonce: &'a [u8],
    pub actor: i64,
    pub until: i64,
    pub usable_until: i64,
    pub group_id: Option<&'a [u8]>,
    /// The SHA-256 of the actor's token. Set in one target of each request.
    pub token: Option<&'a [u8]>,
    /// The most reservations that the actor's user may hold without being near a limit. Set in one target of each
    /// request, beside the token.
    pub spare: Option<i64>,
    /// The answer to keep if the request has an `Idempotency-Key`.
    pub repeat: Option<Repeat<'a>>,
}

/// The part of a kept answer that is known before the statement runs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Repeat<'a> {
    pub key: &'a IdempotencyKey,
    /// The devices that are missing from the answer, as JSON.
    pub missing: &'a str,
}

/// Request number, owner, user, device, ref, bytes, ciphersuite, `not_after`.
pub(super) type Taken = (i64, i64, String, String, Vec<u8>, Vec<u8>, i32, i64);

type TakenColumns = (BigInt, BigInt, Text, Text, Binary, Binary, Integer, BigInt);

/// Fast path for one request that names one user, the usual case at low load. The general statement is 10 % slower, and
/// so is a statement that can keep answers, whether it keeps one or not.
struct One<'a> {
    target: Target<'a>,
    kept: Kept<'a>,
    now: i64,
}

/// [`One`] for a request whose answer is kept.
struct OneRepeatable<'a>(One<'a>);

impl<'a> One<'a> {
    fn of(target: Target<'a>, now: i64) -> Self {
        Self { kept: Kept::of(target.repeat), target, now }
    }
}

/// Columns of a kept answer: key, digest of the request, end of the retention, and missing devices.
#[derive(Default)]
struct Kept<'a> {
    key: Option<&'a [u8]>,
    digest: Option<&'a [u8]>,
    until: Option<i64>,
    missing: Option<&'a str>,
}

impl<'a> Kept<'a> {
    fn of(repeat: Option<Repeat<'a>>) -> Self {
        repeat.map_or_else(Self::default, |Repeat { key, missing }| Self {
            key: Some(&key.key),
            digest: Some(&key.request),
            until: Some(key.until.as_second()),
            missing: Some(missing),
        })
    }
}

/// The users of several requests, one column for each field.
#[derive(Default)]
struct Many<'a> {
    request: Vec<i64>,
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
    spare: Vec<Option<i64>>,
    key: Vec<Option<&'a [u8]>>,
    digest: Vec<Option<&'a [u8]>>,
    kept_until: Vec<Option<i64>>,
    missing: Vec<Option<&'a str>>,
    now: i64,
}

/// [`Many`] where the answers of some requests are kept.
struct ManyRepeatable<'a>(Many<'a>);

impl<'a> Many<'a> {
    fn of(targets: &[Target<'a>], now: i64) -> Self {
        let mut many = Self { now, ..Self::default() };
        for target in targets {
            many.request.push(target.request);
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
            many.spare.push(target.spare);
            let kept = Kept::of(target.repeat);
            many.key.push(kept.key);
            many.digest.push(kept.digest);
            many.kept_until.push(kept.until);
            many.missing.push(kept.missing);
        }
        many
    }
}

statement!(One, TakenColumns, Pg, PgConnection => |this, out| { push_one(&mut out, this, false)?; });
statement!(OneRepeatable, TakenColumns, Pg, PgConnection => |this, out| { push_one(&mut out, &this.0, true)?; });
statement!(Many, TakenColumns, Pg, PgConnection => |this, out| { push_many(&mut out, this, false)?; });
statement!(ManyRepeatable, TakenColumns, Pg, PgConnection => |this, out| { push_many(&mut out, &this.0, true)?; });

fn push_one<'b>(out: &mut AstPass<'_, 'b, Pg>, one: &'b One<'_>, is_kept: bool) -> QueryResult<()> {
    let (target, kept) = (&one.target, &one.kept);
    push_pick(out, &one.now, is_kept)?;
    push!(out, r"
    FROM (SELECT {request} AS request, {user} AS user_name, {device} AS device_name, {first_suite} AS first_suite,
                 {last_suite} AS last_suite, {nonce} AS nonce, {actor} AS actor, {until} AS until,
                 {usable_until} AS usable_until, {group_id} AS group_id, {token} AS token, {spare} AS spare",
        request: BigInt = &target.request,
        user: Text = target.user,
        device: Nullable<Text> = &target.device,
        first_suite: Integer = &target.suites.0,
        last_suite: Integer = &target.suites.1,
        nonce: Binary = target.nonce,
        actor: BigInt = &target.actor,
        until: BigInt = &target.until,
        usable_until: BigInt = &target.usable_until,
        group_id: Nullable<Binary> = &target.group_id,
        token: Nullable<Binary> = &target.token,
        spare: Nullable<BigInt> = &target.spare,
    );
    if is_kept {
        push!(out, r",
                 {key} AS key, {digest} AS digest, {kept_until} AS kept_until, {missing} AS missing",
            key: Nullable<Binary> = &kept.key,
            digest: Nullable<Binary> = &kept.digest,
            kept_until: Nullable<BigInt> = &kept.until,
            missing: Nullable<Text> = &kept.missing,
        );
    }
    push!(out, ") r");
    push_take(out, &one.now, is_kept, "(SELECT count(*) = count(place) AND count(*) <= {most} FROM pick)")
}

fn push_many<'b>(out: &mut AstPass<'_, 'b, Pg>, many: &'b Many<'_>, is_kept: bool) -> QueryResult<()> {
    push_pick(out, &many.now, is_kept)?;
    push!(out, r"
    FROM unnest({request}, {user}, {device}, {first_suite}, {last_suite}, {nonce}, {actor}, {until}, {usable_until},
                {group_id}, {token}, {spare}",
        request: Array<BigInt> = &many.request,
        user: Array<Text> = &many.user,
        device: Array<Nullable<Text>> = &many.device,
        first_suite: Array<Integer> = &many.first_suite,
        last_suite: Array<Integer> = &many.last_suite,
        nonce: Array<Binary> = &many.nonce,
        actor: Array<BigInt> = &many.actor,
        until: Array<BigInt> = &many.until,
        usable_until: Array<BigInt> = &many.usable_until,
        group_id: Array<Nullable<Binary>> = &many.group_id,
        token: Array<Nullable<Binary>> = &many.token,
        spare: Array<Nullable<BigInt>> = &many.spare,
    );
    if is_kept {
        push!(out, ", {key}, {digest}, {kept_until}, {missing}",
            key: Array<Nullable<Binary>> = &many.key,
            digest: Array<Nullable<Binary>> = &many.digest,
            kept_until: Array<Nullable<BigInt>> = &many.kept_until,
            missing: Array<Nullable<Text>> = &many.missing,
        );
    }
    push!(
        out,
        r")
        AS r (request, user_name, device_name, first_suite, last_suite, nonce, actor, until, usable_until,
              group_id, token, spare"
    );
    push!(out, if is_kept { ", key, digest, kept_until, missing)" } else { ")" });
    push_take(
        out,
        &many.now,
        is_kept,
        r"p.request NOT IN (
        SELECT request
        FROM (SELECT request, place,
                     row_number() OVER (PARTITION BY place ORDER BY request) AS rank,
                     count(*) OVER (PARTITION BY request) AS devices
              FROM pick) met
        WHERE place IS NULL OR rank > 1 OR devices > {most})",
    )
}

/// Finds and locks a KeyPackage for each device of each user. The search starts at the nonce and wraps around, as in
/// the statement for a single request. CASE hides the conditions on ciphersuite and lifetime from the planner, which
/// overrates their selectivity and would sort the whole pool. Repeated keys are found by a join: with EXISTS, the
/// planner would read all keys.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "what is bound has to live until the statement is sent")]
fn push_pick<'b>(out: &mut AstPass<'_, 'b, Pg>, now: &'b i64, is_kept: bool) -> QueryResult<()> {
    push!(out, r"WITH pick AS MATERIALIZED (
    SELECT r.*, d.id AS owner, d.device_name AS owned,
        CASE WHEN (r.token IS NULL OR (
                SELECT c.token_hash = r.token
                    AND (r.spare IS NULL OR pg_try_advisory_xact_lock({holds}, hashtext(c.user_name)))
                FROM devices c WHERE c.id = r.actor AND c.removed_at IS NULL))
            AND (r.spare IS NULL OR r.spare >= (
                SELECT count(*)
                FROM devices c
                JOIN devices o ON o.user_name = c.user_name
                JOIN key_packages k ON k.reserved_by = o.id
                WHERE c.id = r.actor AND k.held AND k.reserved_until > {now}))",
        holds: Integer = &HOLDS,
        now: BigInt = now,
    );
    if is_kept {
        push!(
            out,
            r"
            AND (r.key IS NULL OR (
                SELECT i.expires_at FROM idempotency_keys i WHERE i.device_id = r.actor AND i.key = r.key) IS NULL)"
        );
    }
    push!(
        out,
        r"
        THEN coalesce(
            (SELECT k.ctid FROM key_packages k
             WHERE k.device_id = d.id AND k.fresh
                AND CASE WHEN k.ciphersuite BETWEEN r.first_suite AND r.last_suite AND k.not_after >= r.usable_until
                    THEN true ELSE false END
                AND k.keypackage_ref >= r.nonce
             ORDER BY k.keypackage_ref LIMIT 1 FOR UPDATE SKIP LOCKED),
            (SELECT k.ctid FROM key_packages k
             WHERE k.device_id = d.id AND k.fresh
                AND CASE WHEN k.ciphersuite BETWEEN r.first_suite AND r.last_suite AND k.not_after >= r.usable_until
                    THEN true ELSE false END
                AND k.keypackage_ref < r.nonce
             ORDER BY k.keypackage_ref LIMIT 1 FOR UPDATE SKIP LOCKED))
        END AS place"
    );
    Ok(())
}

/// Keeps the answers of repeatable requests, as the JSON of [`super::kept_answers`]. Rows are inserted in the order of
/// their keys, so that two batches with the same keys cannot deadlock.
const KEEP: &str = r",
kept AS (
    INSERT INTO idempotency_keys (device_id, key, request, answer, expires_at)
    SELECT actor, key, digest,
        convert_to(json_build_object(
            'missing', missing::json,
            'reservations', json_agg(json_build_object(
                'reservation_id', to_hex(owner) || '-' || encode(nonce, 'hex')::uuid,
                'user', user_name, 'device', owned,
                'keypackage_ref', encode(keypackage_ref, 'hex'), 'ciphersuite', ciphersuite,
                'not_after', to_timestamp(not_after), 'expires_at', to_timestamp(until),
                'last_resort', false)))::text, 'UTF8'),
        kept_until
    FROM taken WHERE key IS NOT NULL
    GROUP BY actor, key, digest, missing, kept_until ORDER BY actor, key)";

/// Takes the KeyPackages that were found and locked for the requests that are `complete`, and writes the audit trail.
/// The update addresses each row by its physical position instead of through the index. A KeyPackage that another
/// transaction has changed since the statement began is no longer fresh: it is skipped, so no request is half served.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "what is bound has to live until the statement is sent")]
fn push_take<'b>(out: &mut AstPass<'_, 'b, Pg>, now: &'b i64, is_kept: bool, complete: &str) -> QueryResult<()> {
    push!(
        out,
        r"
    LEFT JOIN devices d ON d.user_name = r.user_name AND d.removed_at IS NULL
        AND (r.device_name IS NULL OR d.device_name = r.device_name)),
taken AS (
    UPDATE key_packages k
    SET state = 'reserved', reservation = p.nonce, reserved_by = p.actor, reserved_until = p.until
    FROM pick p
    WHERE k.ctid = p.place AND "
    );
    push!(out, complete, most: BigInt = &MOST_DEVICES);
    push!(
        out,
        r"
    RETURNING p.request, p.owner, p.user_name, p.owned, k.keypackage_ref, k.key_package, k.ciphersuite, k.not_after,
        p.actor, p.nonce, p.group_id, p.until"
    );
    push!(out, if is_kept { ", p.key, p.digest, p.kept_until, p.missing)" } else { ")" });
    push!(out, r",
noted AS (
    INSERT INTO audit_events (device_id, keypackage_ref, action, actor, reservation, group_id, last_resort, at, until)
    SELECT owner, keypackage_ref, 'reserve', actor, nonce, group_id, false, {now}, until FROM taken)",
        now: BigInt = now,
    );
    if is_kept {
        push!(out, KEEP);
    }
    push!(
        out,
        r"
SELECT request, owner, user_name, owned, keypackage_ref, key_package, ciphersuite, not_after FROM taken"
    );
    Ok(())
}

/// Takes KeyPackages for requests in one statement. Each request is served completely or not at all.
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

    /// The hot statements as `PostgreSQL` gets them. A changed snapshot means that performance must be measured again.
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
