//! What a pool holds, for its owner.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use diesel::{
    pg::Pg,
    prelude::*,
    sql_types::{BigInt, Binary, Bool, Integer, Nullable, Text},
    sqlite::Sqlite,
};
use jiff::Timestamp;
use keypool_openapi::{KeyPackageRef, State, UserName};

use super::{
    Store, StoreError,
    connection::with_conn,
    rows::{DeviceId, count, suite, timestamp},
    sql::{columns, statement},
};

/// What a device has in its pool.
#[derive(Clone, Debug, Default)]
pub struct PoolContents {
    /// What is neither spent nor revoked, nor swept as expired.
    pub live: Vec<LiveKeyPackage>,
    /// How many of each ciphersuite ended how; last resorts are left out.
    pub ended: Vec<(u16, State, u64)>,
    /// Whom the pool was handed out to lately, and how often.
    pub handed_out: BTreeMap<UserName, u64>,
    /// When something was last accepted.
    pub last_upload: Option<Timestamp>,
    /// When everything was withdrawn, because the database had been restored.
    pub fenced_at: Option<Timestamp>,
}

/// A KeyPackage that is available or reserved.
#[derive(Clone, Debug)]
pub struct LiveKeyPackage {
    /// Its ref.
    pub keypackage_ref: KeyPackageRef,
    /// Its ciphersuite.
    pub ciphersuite: u16,
    /// When it expires.
    pub not_after: Timestamp,
    /// Whether the database has it as reserved.
    pub is_held: bool,
    /// When its newest reservation ends or ended; `None` where it was never handed out.
    pub reserved_until: Option<Timestamp>,
    /// Whether it is the last resort.
    pub last_resort: bool,
    /// How often it was handed out as a last resort.
    pub uses: u64,
}

/// The pools of devices, and who was handed out KeyPackages of them since then. It is one statement, and so one moment.
struct Pools<'a> {
    owners: &'a [i64],
    since: i64,
}

/// The same of one device.
struct PoolOf<'a> {
    owner: &'a i64,
    since: i64,
}

/// What a group of KeyPackages has in common, how many they are, and the refs of those that are live, one after the other.
/// A device that has none has one row all the same.
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

/// Around the groups. What belongs to them is looked up by key, whatever the planner thinks of joins.
const ABOUT: &str = "SELECT g.owner, (SELECT d.last_upload FROM devices d WHERE d.id = g.owner), \
                     (SELECT l.fenced_at FROM lineage l WHERE l.id = 1), g.ciphersuite, g.state, g.last_resort, \
                     g.not_after, g.reserved_until, (SELECT h.user_name FROM devices h WHERE h.id = g.holder), g.n, \
                     g.refs, CASE WHEN g.last_resort THEN (SELECT count(*) FROM audit_events a \
                     WHERE a.device_id = g.owner AND a.last_resort AND a.keypackage_ref = g.lone \
                     AND a.action = 'reserve') END FROM (";

/// What is live is grouped by what time makes a difference to; a last resort stands for itself.
const GROUPED: &str = "k.ciphersuite, k.state, k.last_resort, CASE WHEN k.live THEN k.not_after END AS not_after, \
                       CASE WHEN k.live THEN k.reserved_until END AS reserved_until, \
                       CASE WHEN k.last_resort THEN k.keypackage_ref END AS lone, CASE WHEN k.reserved_until > ";
const COUNTED: &str = " THEN k.reserved_by END AS holder, count(k.keypackage_ref) AS n, ";

statement!(Pools, GroupColumns, Pg, PgConnection => |this, out| {
    out.push_sql(ABOUT);
    out.push_sql("SELECT w.owner, k.* FROM unnest(");
    columns!(out, BigInt => this.owners);
    out.push_sql(") AS w (owner) LEFT JOIN LATERAL (SELECT ");
    out.push_sql(GROUPED);
    out.push_bind_param::<BigInt, _>(&this.since)?;
    out.push_sql(COUNTED);
    out.push_sql(
        "string_agg(CASE WHEN k.live THEN k.keypackage_ref END, ''::bytea) AS refs FROM key_packages k \
         WHERE k.device_id = w.owner GROUP BY 1, 2, 3, 4, 5, 6, 7) k ON true) g",
    );
});

// SQLite aggregates text only.
statement!(PoolOf, GroupColumns, Sqlite, SqliteConnection => |this, out| {
    out.push_sql(ABOUT);
    out.push_sql("SELECT o.id AS owner, ");
    out.push_sql(GROUPED);
    out.push_bind_param::<BigInt, _>(&this.since)?;
    out.push_sql(COUNTED);
    out.push_sql(
        "unhex(group_concat(hex(CASE WHEN k.live THEN k.keypackage_ref END), '')) AS refs FROM devices o \
         LEFT JOIN key_packages k ON k.device_id = o.id WHERE o.id = ",
    );
    out.push_bind_param::<BigInt, _>(this.owner)?;
    out.push_sql(" GROUP BY 1, 2, 3, 4, 5, 6, 7, 8) g");
});

/// How each database says what pools hold.
trait StatusSql {
    fn groups(&mut self, owners: &[i64], since: i64) -> QueryResult<Vec<Group>>;
}

impl StatusSql for PgConnection {
    fn groups(&mut self, owners: &[i64], since: i64) -> QueryResult<Vec<Group>> {
        Pools { owners, since }.load(self)
    }
}

impl StatusSql for SqliteConnection {
    /// One after the other: nothing is won by fewer statements where there is no way to the database.
    fn groups(&mut self, owners: &[i64], since: i64) -> QueryResult<Vec<Group>> {
        let mut groups = Vec::new();
        for owner in owners {
            groups.extend(PoolOf { owner, since }.load::<Group>(self)?);
        }
        Ok(groups)
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
        // Refs of one ciphersuite are equally long.
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

fn contents<C: StatusSql>(conn: &mut C, owners: &[i64], since: i64) -> Result<Vec<Arc<PoolContents>>, StoreError> {
    // Two may ask for the same pool.
    let distinct: BTreeSet<_> = owners.iter().copied().collect();
    let mut pools: HashMap<i64, PoolContents> = HashMap::new();
    for group in conn.groups(&Vec::from_iter(distinct), since)? {
        pools.entry(group.owner).or_default().add(group)?;
    }
    let pools: HashMap<_, _> = pools.into_iter().map(|(owner, pool)| (owner, Arc::new(pool))).collect();
    Ok(owners.iter().map(|owner| pools.get(owner).cloned().unwrap_or_default()).collect())
}

impl Store {
    /// What each of the devices has in its pool, and whom it was handed out to since then.
    ///
    /// # Errors
    /// When the database fails.
    pub fn contents(&self, owners: &[DeviceId], since: Timestamp) -> Result<Vec<Arc<PoolContents>>, StoreError> {
        let owners: Vec<_> = owners.iter().map(|owner| owner.0).collect();
        with_conn!(self, read, |conn| contents(conn, &owners, since.as_second()))
    }
}

#[cfg(test)]
mod tests {
    use diesel::debug_query;

    use super::*;

    /// The statements as the databases get them: a change here is a change of what was measured.
    #[test]
    fn the_statements_are_those_that_were_measured() {
        let pools = debug_query::<Pg, _>(&Pools { owners: &[1, 2], since: 3 }).to_string();
        insta::assert_snapshot!("postgres_pools", pools);
        let pool = debug_query::<Sqlite, _>(&PoolOf { owner: &1, since: 3 }).to_string();
        insta::assert_snapshot!("sqlite_pool", pool);
    }
}
