//! The statement that takes fresh KeyPackages on `PostgreSQL`, in `take.sql`: for one request, or for many at once.
//!
//! A request is served completely or not at all. Nothing is taken for it, and `Store::reserve` serves it alone, when
//! - one of its users has no device, or one of the devices has no fresh KeyPackage that is free,
//! - another request of the batch has found the same KeyPackage,
//! - it is for more than [`MOST_DEVICES`] devices,
//! - the caller is near its limit, its token was revoked, or its `Idempotency-Key` was used before.

use std::sync::LazyLock;

use diesel::{
    pg::Pg,
    prelude::*,
    query_builder::AstPass,
    result::Error,
    sql_types::{Array, BigInt, Binary, Integer, Nullable, Text},
};

use crate::store::{database::sql::statement, idempotency::IdempotencyKey, locks::HOLDS};

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
    pub bind: Option<&'a [u8]>,
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
    bind: Vec<Option<&'a [u8]>>,
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
            many.bind.push(target.bind);
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

/// The statement with all its forms. A line that belongs to some of them ends with their marks: `one` or `many` users,
/// answers that are `kept`, or not (`plain`).
const FORMS: &str = include_str!("take.sql");

/// The form with these marks.
fn form(marks: [&str; 2]) -> String {
    let lines = FORMS.lines().filter(|line| !line.starts_with("--"));
    let lines = lines.map(|line| line.split_once(" -- ").unwrap_or((line, "")));
    let of_form = lines.filter(|(_, of)| of.split_whitespace().all(|mark| marks.contains(&mark)));
    of_form.map(|(line, _)| line).collect::<Vec<_>>().join("\n")
}

/// Writes a form, and binds each of its parameters by its name.
fn push_form<'b>(
    out: &mut AstPass<'_, 'b, Pg>,
    mut sql: &str,
    bind: impl Fn(&mut AstPass<'_, 'b, Pg>, &str) -> QueryResult<()>,
) -> QueryResult<()> {
    while let Some((before, (name, after))) =
        sql.split_once('{').and_then(|(before, rest)| Some((before, rest.split_once('}')?)))
    {
        out.push_sql(before);
        bind(out, name)?;
        sql = after;
    }
    out.push_sql(sql);
    Ok(())
}

fn unknown(name: &str) -> QueryResult<()> {
    Err(Error::QueryBuilderError(format!("take.sql has an unknown parameter {name}").into()))
}

fn push_one<'b>(out: &mut AstPass<'_, 'b, Pg>, one: &'b One<'_>, is_kept: bool) -> QueryResult<()> {
    static PLAIN: LazyLock<String> = LazyLock::new(|| form(["one", "plain"]));
    static KEPT: LazyLock<String> = LazyLock::new(|| form(["one", "kept"]));
    let (target, kept) = (&one.target, &one.kept);
    push_form(out, if is_kept { &KEPT } else { &PLAIN }, |out, name| match name {
        "holds" => out.push_bind_param::<Integer, _>(&HOLDS),
        "most" => out.push_bind_param::<BigInt, _>(&MOST_DEVICES),
        "now" => out.push_bind_param::<BigInt, _>(&one.now),
        "request" => out.push_bind_param::<BigInt, _>(&target.request),
        "user" => out.push_bind_param::<Text, _>(target.user),
        "device" => out.push_bind_param::<Nullable<Text>, _>(&target.device),
        "first_suite" => out.push_bind_param::<Integer, _>(&target.suites.0),
        "last_suite" => out.push_bind_param::<Integer, _>(&target.suites.1),
        "nonce" => out.push_bind_param::<Binary, _>(target.nonce),
        "actor" => out.push_bind_param::<BigInt, _>(&target.actor),
        "until" => out.push_bind_param::<BigInt, _>(&target.until),
        "usable_until" => out.push_bind_param::<BigInt, _>(&target.usable_until),
        "group_id" => out.push_bind_param::<Nullable<Binary>, _>(&target.group_id),
        "bind" => out.push_bind_param::<Nullable<Binary>, _>(&target.bind),
        "token" => out.push_bind_param::<Nullable<Binary>, _>(&target.token),
        "spare" => out.push_bind_param::<Nullable<BigInt>, _>(&target.spare),
        "key" => out.push_bind_param::<Nullable<Binary>, _>(&kept.key),
        "digest" => out.push_bind_param::<Nullable<Binary>, _>(&kept.digest),
        "kept_until" => out.push_bind_param::<Nullable<BigInt>, _>(&kept.until),
        "missing" => out.push_bind_param::<Nullable<Text>, _>(&kept.missing),
        name => unknown(name),
    })
}

fn push_many<'b>(out: &mut AstPass<'_, 'b, Pg>, many: &'b Many<'_>, is_kept: bool) -> QueryResult<()> {
    static PLAIN: LazyLock<String> = LazyLock::new(|| form(["many", "plain"]));
    static KEPT: LazyLock<String> = LazyLock::new(|| form(["many", "kept"]));
    push_form(out, if is_kept { &KEPT } else { &PLAIN }, |out, name| match name {
        "holds" => out.push_bind_param::<Integer, _>(&HOLDS),
        "most" => out.push_bind_param::<BigInt, _>(&MOST_DEVICES),
        "now" => out.push_bind_param::<BigInt, _>(&many.now),
        "request" => out.push_bind_param::<Array<BigInt>, _>(&many.request),
        "user" => out.push_bind_param::<Array<Text>, _>(&many.user),
        "device" => out.push_bind_param::<Array<Nullable<Text>>, _>(&many.device),
        "first_suite" => out.push_bind_param::<Array<Integer>, _>(&many.first_suite),
        "last_suite" => out.push_bind_param::<Array<Integer>, _>(&many.last_suite),
        "nonce" => out.push_bind_param::<Array<Binary>, _>(&many.nonce),
        "actor" => out.push_bind_param::<Array<BigInt>, _>(&many.actor),
        "until" => out.push_bind_param::<Array<BigInt>, _>(&many.until),
        "usable_until" => out.push_bind_param::<Array<BigInt>, _>(&many.usable_until),
        "group_id" => out.push_bind_param::<Array<Nullable<Binary>>, _>(&many.group_id),
        "bind" => out.push_bind_param::<Array<Nullable<Binary>>, _>(&many.bind),
        "token" => out.push_bind_param::<Array<Nullable<Binary>>, _>(&many.token),
        "spare" => out.push_bind_param::<Array<Nullable<BigInt>>, _>(&many.spare),
        "key" => out.push_bind_param::<Array<Nullable<Binary>>, _>(&many.key),
        "digest" => out.push_bind_param::<Array<Nullable<Binary>>, _>(&many.digest),
        "kept_until" => out.push_bind_param::<Array<Nullable<BigInt>>, _>(&many.kept_until),
        "missing" => out.push_bind_param::<Array<Nullable<Text>>, _>(&many.missing),
        name => unknown(name),
    })
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
