//! What only SQLite does.

use std::sync::Arc;

use anyhow::Context;
use diesel::{
    Connection, SqliteConnection,
    connection::SimpleConnection,
    prelude::*,
    r2d2::Pool,
    sql_types::{BigInt, Binary, Nullable, Text},
};
use jiff::Timestamp;

use super::{
    StoreError,
    claims::{claims, fresh_of_sqlite},
    connection::{self, SQLITE_MIGRATIONS, WholeTable},
    delivery::{Announce, HoldEnvelopes},
    key_packages::HoldDevice,
    lineage::{Lineage, NOBODY, Renewed, Row, SKIPPED, Signs, WITNESS},
    liveness::{Connector, PeerClosed},
    schema::{devices, key_packages, users},
    sweep::{Census, batches},
    tokens::{ShownToken, TokenSql},
    watch::{DatabaseClock, Watch},
};

/// WAL lets readers go on while one writes; FULL makes every answered commit survive a power cut. The log is copied into the file
/// when it has 16,000 pages, 64 MiB; what it has grown beyond that while somebody read for long is given back after it.
const SESSION: &str = "PRAGMA busy_timeout = 5000; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; \
                       PRAGMA foreign_keys = ON; PRAGMA wal_autocheckpoint = 16000; \
                       PRAGMA journal_size_limit = 67108864";

/// What its owner alone may read and write.
#[cfg(unix)]
const PRIVATE: u32 = 0o600;

/// The writer has 16 MB for pages: with the 2 MB that are usual, what a batch changes does not fit, and is written to the log
/// more than once.
const WRITER: &str = "PRAGMA cache_size = -16000";

/// How every connection begins.
fn begin(conn: &mut SqliteConnection, watch: &Watch) -> QueryResult<()> {
    conn.batch_execute(SESSION)?;
    watch.look(conn, transaction)
}

/// The one that writes.
pub(super) fn writer(path: &str, watch: Arc<Watch>) -> Result<Pool<Connector<SqliteConnection>>, StoreError> {
    let begin = move |conn: &mut SqliteConnection| begin(conn, &watch).and_then(|()| conn.batch_execute(WRITER));
    connection::pool(Connector::new(path, begin), 1)
}

pub(super) fn readers(
    path: &str,
    size: u32,
    watch: Arc<Watch>,
) -> Result<Pool<Connector<SqliteConnection>>, StoreError> {
    connection::pool(Connector::new(path, move |conn| begin(conn, &watch)), size)
}

impl PeerClosed for SqliteConnection {
    fn has_hung_up(&mut self) -> bool {
        // It is this process.
        false
    }
}

/// The database is its owner's alone: made so before SQLite opens it, which gives the log and its index the same mode.
#[cfg(unix)]
fn make_private(path: &str) -> anyhow::Result<()> {
    use std::{
        fs::{self, OpenOptions, Permissions},
        os::unix::fs::{OpenOptionsExt, PermissionsExt},
    };
    let made = OpenOptions::new().read(true).append(true).create(true).mode(PRIVATE).open(path);
    made.with_context(|| format!("cannot open or make the file {path}"))?;
    for file in [path.to_owned(), format!("{path}-wal"), format!("{path}-shm"), format!("{path}.generation")] {
        let Ok(found) = fs::metadata(&file) else { continue };
        if found.permissions().mode() & 0o777 == PRIVATE {
            continue;
        }
        match fs::set_permissions(&file, Permissions::from_mode(PRIVATE)) {
            Ok(()) => tracing::info!(file, "others could read the database's file: now its owner alone can"),
            Err(error) => {
                tracing::warn!(file, %error, "others can read the database's file, and it could not be changed");
            }
        }
    }
    Ok(())
}

#[cfg(not(unix))]
fn make_private(_: &str) -> anyhow::Result<()> {
    Ok(())
}

pub(super) fn migrate(path: &str) -> Result<(), StoreError> {
    make_private(path).map_err(StoreError::fatal)?;
    let mut conn = SqliteConnection::establish(path).map_err(StoreError::fatal)?;
    conn.batch_execute(SESSION)?;
    // The first process migrates; the others wait for it and have nothing left to do.
    conn.exclusive_transaction(|conn| connection::migrate(conn, SQLITE_MIGRATIONS))
}

/// Begins as a writer: a transaction that becomes one later fails with `SQLITE_BUSY`, which no timeout cures.
pub(super) fn transaction<T, E: From<diesel::result::Error>>(
    conn: &mut SqliteConnection,
    body: &mut dyn FnMut(&mut SqliteConnection) -> Result<T, E>,
) -> Result<T, E> {
    conn.immediate_transaction(|conn| body(conn))
}

impl WholeTable for SqliteConnection {
    fn whole_table<T>(&mut self, mut body: impl FnMut(&mut Self) -> QueryResult<T>) -> QueryResult<T> {
        body(self)
    }
}

impl Census for SqliteConnection {
    fn census(&mut self) -> QueryResult<Vec<(String, i64)>> {
        key_packages::table
            .filter(key_packages::device_id.ne(NOBODY))
            .group_by(key_packages::state)
            .select((key_packages::state, diesel::dsl::count_star()))
            .load(self)
    }
}

impl HoldEnvelopes for SqliteConnection {
    /// It has one writer.
    fn hold_envelopes(&mut self, _: i64, _: &[i64]) -> QueryResult<()> {
        Ok(())
    }
}

impl Announce for SqliteConnection {
    /// The one server of the database knows by itself.
    fn announce(&mut self, _: &[i64]) -> QueryResult<()> {
        Ok(())
    }
}

/// Nothing but the generation tells a row of this file from one of a backup: where two tables have different ones, one of
/// them was loaded.
const SIGNS: &str = "SELECT l.origin, l.generation, l.fenced_at, true AS lineage_holds, \
                     coalesce((SELECT k.ended_at = l.generation FROM key_packages k WHERE k.keypackage_ref = ?), false) \
                     AS pool_holds FROM lineage l WHERE l.id = 1";

const WRITE_LINEAGE: &str = "INSERT INTO lineage (id, origin, generation, fenced_at) VALUES (1, ?, ?, ?) \
                             ON CONFLICT (id) DO UPDATE SET origin = excluded.origin, generation = excluded.generation, \
                             fenced_at = excluded.fenced_at";

/// As the migration has made it.
const WRITE_WITNESS: &str = "INSERT INTO key_packages (keypackage_ref, device_id, ciphersuite, key_package, not_after, \
                             last_resort, state, ended_at) VALUES (?, ?, 0, x'', 253370764800, 0, 'retired', ?) \
                             ON CONFLICT (keypackage_ref) DO UPDATE SET ended_at = excluded.ended_at";

const RENEW: &str = "UPDATE lineage SET generation = generation + 1 WHERE id = 1 AND generation >= ? AND generation = \
                     (SELECT ended_at FROM key_packages WHERE keypackage_ref = ?) RETURNING generation";

impl DatabaseClock for SqliteConnection {
    fn time(&mut self) -> QueryResult<Option<Timestamp>> {
        Ok(None)
    }
}

impl Lineage for SqliteConnection {
    /// A file is the same wherever it was copied to: its generation file tells.
    fn origin(&mut self) -> QueryResult<Option<String>> {
        Ok(None)
    }

    fn signs(&mut self) -> QueryResult<Option<Signs>> {
        diesel::sql_query(SIGNS).bind::<Binary, _>(WITNESS).get_result(self).optional()
    }

    fn hold_signs(&mut self) -> QueryResult<Option<Signs>> {
        // The transaction is the only writer already.
        self.signs()
    }

    fn write_lineage(&mut self, row: Row<'_>) -> QueryResult<()> {
        diesel::sql_query(WRITE_LINEAGE)
            .bind::<Text, _>(row.origin)
            .bind::<BigInt, _>(row.generation)
            .bind::<Nullable<BigInt>, _>(row.fenced_at)
            .execute(self)?;
        // The witness refers to a device, and that to a user: a backup from before has neither.
        diesel::insert_or_ignore_into(users::table)
            .values((users::name.eq(""), users::created_at.eq(0), users::devices_version.eq(0)))
            .execute(self)?;
        diesel::insert_or_ignore_into(devices::table)
            .values((
                devices::id.eq(NOBODY),
                devices::user_name.eq(""),
                devices::device_name.eq(""),
                devices::token_hash.eq(&[][..]),
                devices::created_at.eq(0),
                devices::removed_at.eq(0),
            ))
            .execute(self)?;
        diesel::sql_query(WRITE_WITNESS)
            .bind::<Binary, _>(WITNESS)
            .bind::<BigInt, _>(NOBODY)
            .bind::<BigInt, _>(row.generation)
            .execute(self)
            .map(drop)
    }

    fn renew_witnesses(&mut self, reached: i64) -> QueryResult<Option<i64>> {
        // A trigger raises the other one.
        let renew = diesel::sql_query(RENEW).bind::<BigInt, _>(reached).bind::<Binary, _>(WITNESS);
        let renewed = renew.get_result::<Renewed>(self).optional()?;
        Ok(renewed.map(|renewed| renewed.generation))
    }

    fn hold_pools(&mut self) -> QueryResult<()> {
        // The transaction is the only writer already.
        Ok(())
    }

    fn skip_deliveries(&mut self) -> QueryResult<()> {
        // The row is there from the first delivery on.
        diesel::sql_query("UPDATE sqlite_sequence SET seq = seq + ? WHERE name = 'deliveries'")
            .bind::<BigInt, _>(SKIPPED)
            .execute(self)
            .map(drop)
    }
}

// The transaction is the only writer already.
impl HoldDevice for SqliteConnection {
    fn hold_device(&mut self, owner: i64) -> QueryResult<Option<Vec<u8>>> {
        let found = devices::table.find(owner).filter(devices::removed_at.is_null()).select(devices::token_hash);
        found.first(self).optional()
    }

    fn hold_caller(&mut self, caller: &ShownToken) -> QueryResult<bool> {
        self.has_token(caller)
    }

    fn hold_user(&mut self, _: &str) -> QueryResult<()> {
        Ok(())
    }

    fn hold_adders(&mut self, _: &str) -> QueryResult<()> {
        Ok(())
    }

    fn hold_idle(&mut self, owners: &[i64]) -> QueryResult<Vec<(i64, Vec<u8>)>> {
        let found = devices::table.filter(devices::id.eq_any(owners).and(devices::removed_at.is_null()));
        found.select((devices::id, devices::token_hash)).load(self)
    }

    fn hold_pool(&mut self, _: i64, _: i32) -> QueryResult<()> {
        Ok(())
    }
}

// Nobody else writes while this transaction runs: there is nothing to pass over or to wait for.
claims!(SqliteConnection, fresh_of_sqlite, [], []);
batches!(SqliteConnection,);

/// How SQLite goes about a statement, for the tests of those that must not read whole tables.
#[cfg(test)]
pub(super) mod plans {
    use diesel::{debug_query, query_builder::QueryFragment, sql_types::Text, sqlite::Sqlite};

    use super::*;

    #[derive(QueryableByName)]
    struct Step {
        #[diesel(sql_type = Text)]
        detail: String,
    }

    /// An empty database of today's schema.
    pub fn migrated() -> SqliteConnection {
        let mut conn = SqliteConnection::establish(":memory:").unwrap();
        connection::migrate(&mut conn, SQLITE_MIGRATIONS).unwrap();
        conn
    }

    pub fn plan(query: &impl QueryFragment<Sqlite>) -> Vec<String> {
        let query = debug_query::<Sqlite, _>(query).to_string();
        let (statement, _) = query.split_once(" -- binds").unwrap();
        let steps = diesel::sql_query(format!("EXPLAIN QUERY PLAN {statement}")).load::<Step>(&mut migrated());
        steps.unwrap().into_iter().map(|step| step.detail).collect()
    }
}
