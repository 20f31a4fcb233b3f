//! The row of `lineage` and the witness rows, which show that a database is the one that was served before.

use diesel::{
    connection::SimpleConnection,
    prelude::*,
    sql_types::{BigInt, Binary, Bool, Nullable, Text},
};

use crate::store::database::{
    Conn,
    schema::{devices, lineage, users},
    sql::statements,
};

/// The evidence in the database about its own history, read at one moment.
#[derive(Clone, Debug, QueryableByName)]
pub(crate) struct Signs {
    /// The recorded origin; empty if no server has recorded one.
    #[diesel(sql_type = Text)]
    pub origin: String,
    #[diesel(sql_type = BigInt)]
    pub generation: i64,
    #[diesel(sql_type = Nullable<BigInt>)]
    pub fenced_at: Option<i64>,
    /// Whether the witness of `lineage` was written in this database.
    #[diesel(sql_type = Bool)]
    pub lineage_holds: bool,
    /// Whether the witness of `key_packages` was written in this database.
    #[diesel(sql_type = Bool)]
    pub pool_holds: bool,
}

/// The generation after a sweep has raised it.
#[derive(QueryableByName)]
struct Renewed {
    #[diesel(sql_type = BigInt)]
    generation: i64,
}

/// The row of `lineage`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Row<'a> {
    pub origin: &'a str,
    pub generation: i64,
    pub fenced_at: Option<i64>,
}

/// The ref of the witness in `key_packages`. A KeyPackage's ref is a hash, and longer.
pub(crate) const WITNESS: &[u8] = b"witness";

/// The device id of the witness. No real device has it.
pub(crate) const NOBODY: i64 = 0;

/// How many delivery numbers, and how many generations, are skipped after a restore: more than were used since any
/// backup. So no other server remembers a generation above the database's, and fences it once more.
pub(crate) const SKIPPED: i64 = 1 << 32;

#[derive(QueryableByName)]
struct Origin {
    #[diesel(sql_type = Text)]
    origin: String,
}

/// Advisory lock for taking up a database that was restored.
const LINEAGE_LOCK: i64 = 0x6b65_7970_6f6f_6c32;

/// Cluster, oid of the table (a dump recreates it), and timeline (a promotion or a point-in-time recovery begins a new
/// one).
const ORIGIN: &str = "SELECT concat_ws('/', system_identifier, 'lineage'::regclass::oid, \
                      left(pg_walfile_name(pg_current_wal_lsn()), 8)) AS origin FROM pg_control_system()";

/// Returns the origin, which differs in a copy that was restored or promoted; `None` if the database does not report
/// it. An SQLite file looks the same wherever it is copied, so its generation file is used instead. If the server lacks
/// the right to ask, the transaction is aborted.
pub(crate) fn origin(conn: &mut Conn<'_>) -> QueryResult<Option<String>> {
    let Conn::Postgres(conn) = conn else { return Ok(None) };
    match diesel::sql_query(ORIGIN).get_result::<Origin>(*conn) {
        Ok(Origin { origin }) => Ok(Some(origin)),
        // The database only speaks the protocol of `PostgreSQL`, or denies its users these functions.
        Err(error) if says_nothing(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

fn says_nothing(error: &diesel::result::Error) -> bool {
    let diesel::result::Error::DatabaseError(_, info) = error else { return false };
    ["does not exist", "unknown function", "permission denied", "not supported", "unsupported"]
        .iter()
        .any(|symptom| info.message().contains(symptom))
}

/// A witness holds if it has the number of the transaction that wrote its row. A dump keeps that number, but loads the
/// row in another transaction.
const POSTGRES_SIGNS: &str = "SELECT l.origin, l.generation, l.fenced_at, \
                     coalesce(l.xmin::text::bigint = l.witness, false) AS lineage_holds, \
                     coalesce((SELECT k.xmin::text::bigint = k.ended_at FROM key_packages k \
                     WHERE k.keypackage_ref = $1), false) AS pool_holds FROM lineage l WHERE l.id = 1";

/// In SQLite only the generation tells a row of this file from one of a backup. If two tables have different
/// generations, one of them was loaded.
const SQLITE_SIGNS: &str = "SELECT l.origin, l.generation, l.fenced_at, true AS lineage_holds, \
                     coalesce((SELECT k.ended_at = l.generation FROM key_packages k WHERE k.keypackage_ref = ?), false) \
                     AS pool_holds FROM lineage l WHERE l.id = 1";

/// Reads the signs; `None` if the row of `lineage` is missing.
pub(crate) fn signs(conn: &mut Conn<'_>) -> QueryResult<Option<Signs>> {
    match conn {
        Conn::Postgres(conn) => diesel::sql_query(POSTGRES_SIGNS).bind::<Binary, _>(WITNESS).get_result(*conn),
        Conn::Sqlite(conn) => diesel::sql_query(SQLITE_SIGNS).bind::<Binary, _>(WITNESS).get_result(*conn),
    }
    .optional()
}

/// Reads the signs, and locks them until the transaction ends.
pub(crate) fn hold_signs(conn: &mut Conn<'_>) -> QueryResult<Option<Signs>> {
    if let Conn::Postgres(conn) = conn {
        // The row may be missing, so a row lock would protect nothing.
        diesel::sql_query("SELECT pg_advisory_xact_lock($1)").bind::<BigInt, _>(LINEAGE_LOCK).execute(*conn)?;
    }
    signs(conn)
}

const POSTGRES_WRITE_LINEAGE: &str = "INSERT INTO lineage (id, origin, generation, fenced_at, witness) \
                             VALUES (1, $1, $2, $3, pg_current_xact_id()::xid::text::bigint) \
                             ON CONFLICT (id) DO UPDATE SET origin = excluded.origin, generation = excluded.generation, \
                             fenced_at = excluded.fenced_at, witness = excluded.witness";

const SQLITE_WRITE_LINEAGE: &str = "INSERT INTO lineage (id, origin, generation, fenced_at) VALUES (1, ?, ?, ?) \
                             ON CONFLICT (id) DO UPDATE SET origin = excluded.origin, generation = excluded.generation, \
                             fenced_at = excluded.fenced_at";

/// The same row as in the migration.
const POSTGRES_WRITE_WITNESS: &str = "INSERT INTO key_packages (keypackage_ref, device_id, ciphersuite, key_package, not_after, \
                             last_resort, state, ended_at) VALUES ($1, $2, 0, '', 253370764800, false, 'retired', \
                             pg_current_xact_id()::xid::text::bigint) \
                             ON CONFLICT (keypackage_ref) DO UPDATE SET ended_at = excluded.ended_at";

/// The same row as in the migration.
const SQLITE_WRITE_WITNESS: &str = "INSERT INTO key_packages (keypackage_ref, device_id, ciphersuite, key_package, not_after, \
                             last_resort, state, ended_at) VALUES (?, ?, 0, x'', 253370764800, 0, 'retired', ?) \
                             ON CONFLICT (keypackage_ref) DO UPDATE SET ended_at = excluded.ended_at";

/// Writes the row of `lineage` and both witnesses, and inserts the rows that are missing.
pub(crate) fn write_lineage(conn: &mut Conn<'_>, row: Row<'_>) -> QueryResult<()> {
    let write = |sql| {
        diesel::sql_query(sql)
            .bind::<Text, _>(row.origin)
            .bind::<BigInt, _>(row.generation)
            .bind::<Nullable<BigInt>, _>(row.fenced_at)
    };
    let witness = |sql| diesel::sql_query(sql).bind::<Binary, _>(WITNESS).bind::<BigInt, _>(NOBODY);
    match conn {
        Conn::Postgres(conn) => {
            write(POSTGRES_WRITE_LINEAGE).execute(*conn)?;
            witness(POSTGRES_WRITE_WITNESS).execute(*conn).map(drop)
        }
        Conn::Sqlite(conn) => {
            write(SQLITE_WRITE_LINEAGE).execute(*conn)?;
            add_nobody(conn)?;
            witness(SQLITE_WRITE_WITNESS).bind::<BigInt, _>(row.generation).execute(*conn).map(drop)
        }
    }
}

/// The witness refers to a device, and the device to a user. A backup from an earlier version has neither.
fn add_nobody(conn: &mut SqliteConnection) -> QueryResult<()> {
    diesel::insert_or_ignore_into(users::table)
        .values((users::name.eq(""), users::created_at.eq(0), users::devices_version.eq(0)))
        .execute(conn)?;
    diesel::insert_or_ignore_into(devices::table)
        .values((
            devices::id.eq(NOBODY),
            devices::user_name.eq(""),
            devices::device_name.eq(""),
            devices::token_hash.eq(&[][..]),
            devices::created_at.eq(0),
            devices::removed_at.eq(0),
        ))
        .execute(conn)
        .map(drop)
}

const RENEW_LINEAGE: &str = "UPDATE lineage SET generation = generation + 1, \
                             witness = pg_current_xact_id()::xid::text::bigint \
                             WHERE id = 1 AND xmin::text::bigint = witness AND generation >= $1 RETURNING generation";

const RENEW_WITNESS: &str = "UPDATE key_packages SET ended_at = pg_current_xact_id()::xid::text::bigint \
                             WHERE keypackage_ref = $1 AND xmin::text::bigint = ended_at";

/// A trigger raises the other witness.
const RENEW: &str = "UPDATE lineage SET generation = generation + 1 WHERE id = 1 AND generation >= ? AND generation = \
                     (SELECT ended_at FROM key_packages WHERE keypackage_ref = ?) RETURNING generation";

/// Raises the generation, and writes both witnesses again. `None` if one of them was not written in this database, or
/// if the database's generation is below `reached`.
pub(crate) fn renew_witnesses(conn: &mut Conn<'_>, reached: i64) -> QueryResult<Option<i64>> {
    let renewed = match conn {
        Conn::Postgres(conn) => {
            let renew = diesel::sql_query(RENEW_LINEAGE).bind::<BigInt, _>(reached);
            let renewed = renew.get_result::<Renewed>(*conn).optional()?;
            let is_whole = diesel::sql_query(RENEW_WITNESS).bind::<Binary, _>(WITNESS).execute(*conn)? == 1;
            renewed.filter(|_| is_whole)
        }
        Conn::Sqlite(conn) => {
            let renew = diesel::sql_query(RENEW).bind::<BigInt, _>(reached).bind::<Binary, _>(WITNESS);
            renew.get_result::<Renewed>(*conn).optional()?
        }
    };
    Ok(renewed.map(|renewed| renewed.generation))
}

/// Keeps other transactions from changing a pool until this one ends. Waits for them without a time limit.
pub(crate) fn hold_pools(conn: &mut Conn<'_>) -> QueryResult<()> {
    let Conn::Postgres(conn) = conn else { return Ok(()) };
    conn.batch_execute("SET LOCAL statement_timeout = 0; SET LOCAL enable_seqscan = on")?;
    diesel::sql_query("LOCK TABLE key_packages IN SHARE ROW EXCLUSIVE MODE").execute(*conn).map(drop)
}

/// Skips delivery numbers, so that numbers from before the restore are not used again: a client may remember them.
pub(crate) fn skip_deliveries(conn: &mut Conn<'_>) -> QueryResult<()> {
    match conn {
        Conn::Postgres(conn) => {
            let sequence = "pg_get_serial_sequence('deliveries', 'id')::regclass";
            let skip = diesel::sql_query(format!("SELECT setval({sequence}, nextval({sequence}) + $1)"));
            skip.bind::<BigInt, _>(SKIPPED).execute(*conn).map(drop)
        }
        // The row exists from the first delivery on.
        Conn::Sqlite(conn) => {
            let skip = diesel::sql_query("UPDATE sqlite_sequence SET seq = seq + ? WHERE name = 'deliveries'");
            skip.bind::<BigInt, _>(SKIPPED).execute(*conn).map(drop)
        }
    }
}

statements! {
    /// The time of the last fence.
    pub(crate) fn fenced_at(conn) -> QueryResult<Option<i64>> {
        lineage::table.select(lineage::fenced_at).first(conn)
    }
}
