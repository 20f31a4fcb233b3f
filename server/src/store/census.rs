//! Counts what is in the database, for the metrics.
//!
//! On `PostgreSQL` large tables are sampled: a full count takes long, and takes disk bandwidth and a core from the
//! requests. The share that is read, and the weight of each row, follow from the table's size at the last vacuum.

use diesel::{
    prelude::*,
    sql_types::{BigInt, Nullable, Text},
};

use super::{
    as_of::AsOf,
    database::{
        Conn, Store, StoreError,
        rows::{count, timestamp},
    },
    restore::NOBODY,
};
use crate::metrics::Census;

/// Approximate number of rows of a table that a census reads.
const ROWS: u32 = 250_000;

/// Approximate number of devices whose pools a census reads.
const DEVICES: u32 = 2_000;

#[derive(QueryableByName)]
struct Counted {
    #[diesel(sql_type = Text)]
    kind: String,
    #[diesel(sql_type = BigInt)]
    n: i64,
}

#[derive(QueryableByName)]
struct Totals {
    #[diesel(sql_type = BigInt)]
    users: i64,
    #[diesel(sql_type = BigInt)]
    devices: i64,
    #[diesel(sql_type = BigInt)]
    without_upload: i64,
    #[diesel(sql_type = Nullable<BigInt>)]
    oldest_message: Option<i64>,
}

/// The users and devices, which are few enough to be counted one by one, and the oldest message. The index on
/// `expires_at` finds it: all messages are kept equally long.
const TOTALS: &str = "\
SELECT (SELECT count(*) FROM (SELECT 1 FROM devices WHERE removed_at IS NULL GROUP BY user_name) u) AS users, \
       (SELECT count(*) FROM devices WHERE removed_at IS NULL) AS devices, \
       (SELECT count(*) FROM devices WHERE removed_at IS NULL AND last_upload IS NULL) AS without_upload, \
       (SELECT at FROM envelopes ORDER BY expires_at LIMIT 1) AS oldest_message";

/// Part of a table: how to read it, and how many rows each of its rows stands for.
struct Sample {
    table: String,
    weight: String,
}

/// A sample of about this many rows; on SQLite, the whole table.
fn sample(conn: &Conn<'_>, table: &str, rows: u32) -> Sample {
    match conn {
        Conn::Postgres(_) => {
            let weight =
                format!("(SELECT greatest(reltuples / {rows}, 1) FROM pg_class WHERE oid = '{table}'::regclass)");
            Sample { table: format!("{table} TABLESAMPLE SYSTEM (100 / {weight})"), weight }
        }
        Conn::Sqlite(_) => Sample { table: table.to_owned(), weight: "1".to_owned() },
    }
}

/// Counts rows by a kind, which is an expression over the rows of `source`.
fn counted(conn: &mut Conn<'_>, kind: &str, source: &str, weight: &str) -> QueryResult<Vec<Counted>> {
    let query = diesel::sql_query(format!(
        "SELECT {kind} AS kind, CAST(count(*) * {weight} AS BIGINT) AS n FROM {source} GROUP BY 1"
    ));
    match conn {
        Conn::Postgres(conn) => query.load(*conn),
        Conn::Sqlite(conn) => query.load(*conn),
    }
}

fn packages(conn: &mut Conn<'_>, as_of: AsOf) -> QueryResult<Vec<Counted>> {
    let Sample { table, weight } = sample(conn, "key_packages", ROWS);
    let kind =
        format!("CASE WHEN state = 'available' AND not_after < {} THEN 'expired' ELSE state END", as_of.usable_until());
    counted(conn, &kind, &format!("{table} WHERE device_id <> {NOBODY}"), &weight)
}

/// The pools by the rule of the status.
fn pools(conn: &mut Conn<'_>, low: u64, as_of: AsOf) -> QueryResult<Vec<Counted>> {
    let Sample { table, weight } = sample(conn, "devices", DEVICES);
    let (usable_until, returned_by) = (as_of.usable_until(), as_of.returned_by());
    let pools = format!(
        "(SELECT count(CASE WHEN k.fresh AND k.not_after >= {usable_until} THEN 1 END) AS fresh, \
         count(CASE WHEN (k.fresh OR k.handed_out AND k.reserved_until <= {returned_by}) \
                    AND k.not_after >= {usable_until} THEN 1 END) AS available \
         FROM (SELECT id FROM {table} WHERE removed_at IS NULL AND last_upload IS NOT NULL) d \
         LEFT JOIN key_packages k ON k.device_id = d.id GROUP BY d.id, k.ciphersuite) pools"
    );
    let kind = format!("CASE WHEN available = 0 THEN 'empty' WHEN fresh < {low} THEN 'low' ELSE 'good' END");
    counted(conn, &kind, &pools, &weight)
}

fn messages(conn: &mut Conn<'_>) -> QueryResult<i64> {
    let Sample { table, weight } = sample(conn, "deliveries", ROWS);
    Ok(counted(conn, "'all'", &table, &weight)?.first().map_or(0, |all| all.n))
}

fn totals(conn: &mut Conn<'_>) -> QueryResult<Totals> {
    let query = diesel::sql_query(TOTALS);
    match conn {
        Conn::Postgres(conn) => query.get_result(*conn),
        Conn::Sqlite(conn) => query.get_result(*conn),
    }
}

fn by_kind<K>(counted: Vec<Counted>) -> Result<Vec<(K, u64)>, StoreError>
where
    K: std::str::FromStr<Err: std::error::Error + Send + Sync + 'static>,
{
    counted.into_iter().map(|row| Ok((row.kind.parse().map_err(StoreError::fatal)?, count(row.n)?))).collect()
}

impl Store {
    /// Counts what is in the database. A pool with fewer fresh KeyPackages than `low` is low.
    ///
    /// # Errors
    /// When the database fails.
    pub fn census(&self, low: u64, as_of: AsOf) -> Result<Census, StoreError> {
        let Totals { users, devices, without_upload, oldest_message } = self.read_whole_tables(totals)?;
        Ok(Census {
            users: count(users)?,
            devices: count(devices)?,
            without_upload: count(without_upload)?,
            packages: by_kind(self.read(|conn| packages(conn, as_of))?)?,
            pools: by_kind(self.read(|conn| pools(conn, low, as_of))?)?,
            messages: count(self.read(messages)?)?,
            oldest_message: oldest_message.map(timestamp).transpose()?,
        })
    }
}
