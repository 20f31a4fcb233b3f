//! Reads the contents of pools, for their owners.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use diesel::{
    pg::Pg,
    prelude::*,
    sql_types::{Array, BigInt, Binary, Bool, Integer, Nullable, Text},
    sqlite::Sqlite,
};
use jiff::Timestamp;
use keypool_openapi::{KeyPackageRef, State, UserName};

use super::{
    as_of::AsOf,
    database::{
        Conn, Store, StoreError,
        rows::{DeviceId, count, suite, timestamp},
        sql::{push, statement},
    },
};

/// The contents of a device's pool.
#[derive(Clone, Debug, Default)]
pub struct PoolContents {
    /// KeyPackages that are neither spent nor revoked, nor swept as expired.
    pub live: Vec<LiveKeyPackage>,
    /// Number of ended KeyPackages, by ciphersuite and state, without last resorts.
    pub ended: Vec<(u16, State, u64)>,
    /// Number of recent reservations, by the adder's user.
    pub handed_out: BTreeMap<UserName, u64>,
    /// The time of the last accepted upload.
    pub last_upload: Option<Timestamp>,
    /// The time at which all KeyPackages were withdrawn because the database had been restored.
    pub fenced_at: Option<Timestamp>,
}

/// A KeyPackage that is available or reserved.
#[derive(Clone, Debug)]
pub struct LiveKeyPackage {
    /// The KeyPackage's ref.
    pub keypackage_ref: KeyPackageRef,
    /// The KeyPackage's ciphersuite.
    pub ciphersuite: u16,
    /// The KeyPackage's expiry.
    pub not_after: Timestamp,
    /// Whether the row says `reserved`.
    pub is_held: bool,
    /// The end of the newest reservation, past or future; `None` if the KeyPackage was never handed out.
    pub reserved_until: Option<Timestamp>,
    /// Whether it is a last resort.
    pub last_resort: bool,
    /// How often it was handed out as a last resort.
    pub uses: u64,
}

/// Reads the pools of devices, and the adders that have reserved from them since a given time. One statement, so that
/// all of it is from one moment.
struct Pools<'a> {
    owners: &'a [i64],
    since: i64,
}

/// The same as [`Pools`] for one device.
struct PoolOf<'a> {
    owner: &'a i64,
    since: i64,
}

/// A group of KeyPackages: their common fields, their number, and the concatenated refs of the live ones. A device
/// without KeyPackages has one empty row.
#[derive(Queryable)]
struct Group {
    owner: i64,
    last_upload: Option<i64>,
    fenced_at: Option<i64>,
    ciphersuite: Option<i32>,
    state: Option<String>,
    last_resort: Option<bool>,
    not_after: Option<i64>,
    reserved_until: Option<i64>,
    user: Option<String>,
    n: Option<i64>,
    refs: Option<Vec<u8>>,
    uses: Option<i64>,
}

type GroupColumns = (
    BigInt,
    Nullable<BigInt>,
    Nullable<BigInt>,
    Nullable<Integer>,
    Nullable<Text>,
    Nullable<Bool>,
    Nullable<BigInt>,
    Nullable<BigInt>,
    Nullable<Text>,
    Nullable<BigInt>,
    Nullable<Binary>,
    Nullable<BigInt>,
);

/// The statement around the groups. It uses subqueries by key, so that the planner's choice of joins does not matter.
const ABOUT: &str = r"SELECT g.owner,
    (SELECT d.last_upload FROM devices d WHERE d.id = g.owner),
    (SELECT l.fenced_at FROM lineage l WHERE l.id = 1),
    g.ciphersuite, g.state, g.last_resort, g.not_after, g.reserved_until,
    (SELECT h.user_name FROM devices h WHERE h.id = g.holder),
    g.n, g.refs,
    CASE WHEN g.last_resort THEN (
        SELECT count(*) FROM audit_events a
        WHERE a.device_id = g.owner AND a.last_resort AND a.keypackage_ref = g.lone AND a.action = 'reserve') END
FROM (";

/// Groups live KeyPackages by the fields that determine their state at a later time. Each last resort is its own group.
const GROUPED: &str = r"k.ciphersuite, k.state, k.last_resort,
        CASE WHEN k.live THEN k.not_after END AS not_after,
        CASE WHEN k.live THEN k.reserved_until END AS reserved_until,
        CASE WHEN k.last_resort THEN k.keypackage_ref END AS lone,
        CASE WHEN k.reserved_until > {since} THEN k.reserved_by END AS holder,
        count(k.keypackage_ref) AS n,
        ";

statement!(Pools, GroupColumns, Pg, PgConnection => |this, out| {
    push!(out, ABOUT);
    push!(out, r"
    SELECT w.owner, k.* FROM unnest({owners}) AS w (owner)
    LEFT JOIN LATERAL (
        SELECT ",
        owners: Array<BigInt> = &this.owners,
    );
    push!(out, GROUPED, since: BigInt = &this.since);
    push!(out, r"string_agg(CASE WHEN k.live THEN k.keypackage_ref END, ''::bytea) AS refs
        FROM key_packages k WHERE k.device_id = w.owner
        GROUP BY 1, 2, 3, 4, 5, 6, 7) k ON true) g");
});

// SQLite aggregates text only, so the refs are concatenated in hexadecimal.
statement!(PoolOf, GroupColumns, Sqlite, SqliteConnection => |this, out| {
    push!(out, ABOUT);
    push!(out, r"
    SELECT o.id AS owner,
        ");
    push!(out, GROUPED, since: BigInt = &this.since);
    push!(out, r"unhex(group_concat(hex(CASE WHEN k.live THEN k.keypackage_ref END), '')) AS refs
    FROM devices o LEFT JOIN key_packages k ON k.device_id = o.id
    WHERE o.id = {owner}
    GROUP BY 1, 2, 3, 4, 5, 6, 7, 8) g",
        owner: BigInt = this.owner,
    );
});

fn groups(conn: &mut Conn<'_>, owners: &[i64], since: i64) -> QueryResult<Vec<Group>> {
    match conn {
        Conn::Postgres(conn) => Pools { owners, since }.load(*conn),
        // One query for each device: SQLite has no round trip to save.
        Conn::Sqlite(conn) => {
            let mut groups = Vec::new();
            for owner in owners {
                groups.extend(PoolOf { owner, since }.load::<Group>(*conn)?);
            }
            Ok(groups)
        }
    }
}

impl LiveKeyPackage {
    /// The KeyPackage's state at a given time.
    pub(crate) fn state(&self, as_of: AsOf) -> State {
        let state = if self.is_held { State::Reserved } else { State::Available };
        as_of.state(state, self.not_after.as_second(), self.reserved_until.map(Timestamp::as_second))
    }

    /// Whether it may be handed out at a given time.
    pub(crate) fn is_available(&self, as_of: AsOf) -> bool {
        self.state(as_of) == State::Available && self.not_after.as_second() >= as_of.usable_until()
    }
}

impl PoolContents {
    fn add(&mut self, group: Group) -> Result<(), StoreError> {
        self.last_upload = group.last_upload.map(timestamp).transpose()?;
        self.fenced_at = group.fenced_at.map(timestamp).transpose()?;
        let (Some(number), Some(state), Some(n), Some(last_resort)) =
            (group.ciphersuite, group.state, group.n, group.last_resort)
        else {
            return Ok(());
        };
        let (ciphersuite, state, n) = (suite(number)?, state.parse().map_err(StoreError::fatal)?, count(n)?);
        if let Some(user) = group.user {
            *self.handed_out.entry(user.try_into().map_err(StoreError::fatal)?).or_default() += n;
        }
        let Some(not_after) = group.not_after else {
            if !last_resort {
                self.ended.push((ciphersuite, state, n));
            }
            return Ok(());
        };
        let refs = group.refs.unwrap_or_default();
        // All refs of one ciphersuite have the same length.
        let length = usize::try_from(n).ok().and_then(|n| refs.len().checked_div(n)).filter(|length| *length > 0);
        let length = length.ok_or_else(|| StoreError::fatal(anyhow::anyhow!("a KeyPackage has no ref")))?;
        for keypackage_ref in refs.chunks_exact(length) {
            self.live.push(LiveKeyPackage {
                keypackage_ref: keypackage_ref.to_vec().into(),
                ciphersuite,
                not_after: timestamp(not_after)?,
                is_held: state == State::Reserved,
                reserved_until: group.reserved_until.map(timestamp).transpose()?,
                last_resort,
                uses: count(group.uses.unwrap_or_default())?,
            });
        }
        Ok(())
    }
}

fn contents(conn: &mut Conn<'_>, owners: &[i64], since: i64) -> Result<Vec<Arc<PoolContents>>, StoreError> {
    // Two requests may name the same pool.
    let distinct: BTreeSet<_> = owners.iter().copied().collect();
    let mut pools: HashMap<i64, PoolContents> = HashMap::new();
    for group in groups(conn, &Vec::from_iter(distinct), since)? {
        pools.entry(group.owner).or_default().add(group)?;
    }
    let pools: HashMap<_, _> = pools.into_iter().map(|(owner, pool)| (owner, Arc::new(pool))).collect();
    Ok(owners.iter().map(|owner| pools.get(owner).cloned().unwrap_or_default()).collect())
}

impl Store {
    /// Returns the contents of each device's pool, and the adders that have reserved from it since then.
    ///
    /// # Errors
    /// When the database fails.
    pub fn contents(&self, owners: &[DeviceId], since: Timestamp) -> Result<Vec<Arc<PoolContents>>, StoreError> {
        let owners: Vec<_> = owners.iter().map(|owner| owner.0).collect();
        self.read(|conn| contents(conn, &owners, since.as_second()))
    }
}

#[cfg(test)]
mod tests {
    use diesel::debug_query;

    use super::*;

    /// The statements as the databases get them. A changed snapshot means that performance must be measured again.
    #[test]
    fn the_statements_are_those_that_were_measured() {
        let pools = debug_query::<Pg, _>(&Pools { owners: &[1, 2], since: 3 }).to_string();
        insta::assert_snapshot!("postgres_pools", pools);
        let pool = debug_query::<Sqlite, _>(&PoolOf { owner: &1, since: 3 }).to_string();
        insta::assert_snapshot!("sqlite_pool", pool);
    }
}
