//! What only PostgreSQL does.

use std::{
    ops::ControlFlow,
    sync::Arc,
    time::{Duration, Instant},
};

use diesel::{
    Connection, PgConnection,
    connection::SimpleConnection,
    migration::{Migration, MigrationSource},
    pg::Pg,
    prelude::*,
    r2d2::Pool,
    sql_types::{BigInt, Binary, Nullable, Text},
};
use jiff::Timestamp;

use super::{
    StoreError,
    claims::{claims, fresh_of_postgres},
    connection::{self, POSTGRES_MIGRATIONS, WholeTable},
    delivery::{Announce, Heard, HoldEnvelopes},
    key_packages::HoldDevice,
    lineage::{Lineage, NOBODY, Renewed, Row, SKIPPED, Signs, WITNESS},
    liveness::{Connector, PeerClosed},
    rows::DeviceId,
    schema::{deliveries, devices, envelopes, key_packages, users},
    sweep::{Census, batches},
    tokens::ShownToken,
    watch::{DatabaseClock, Watch},
};

diesel::table! {
    /// Where Diesel notes what it has migrated.
    #[sql_name = "__diesel_schema_migrations"]
    migrations (version) {
        version -> Text,
    }
}

/// Names the advisory lock under which a server migrates, so that several may start at once.
const MIGRATION_LOCK: i64 = 0x6b65_7970_6f6f_6c31;

/// Names the advisory locks that keep the limits of what a user holds, each with the hash of the user's name.
pub(super) const HOLDS: &str = "1802072432";

/// So that a stuck statement or a forgotten transaction cannot hold a connection for ever; and a statement is planned once
/// for each connection, since all of them go by the keys that they are given, whatever those are. By keys also where a table
/// looks small, as each does until it is first analysed: such a plan would stay while the table grows. None runs long enough
/// to be worth compiling, which takes 50 ms where statistics are missing and a statement looks expensive.
const SESSION: &str = "SET statement_timeout = '30s'; SET idle_in_transaction_session_timeout = '30s'; \
                       SET plan_cache_mode = force_generic_plan; SET jit = off; SET enable_seqscan = off";

/// Where servers tell each other whose queues have something new.
const CHANNEL: &str = "keypool_messages";

/// How often the listener looks for what has come: libpq hands notifications on only when it is asked.
const LISTENER_STEP: Duration = Duration::from_millis(10);

/// How often the listener sees whether its connection is still there.
const LISTENER_CHECK: Duration = Duration::from_secs(10);

/// How long the listener waits before it connects again.
const LISTENER_PAUSE: Duration = Duration::from_secs(1);

/// What libpq is told where the URL does not say otherwise: a database that is gone without a word is given up after so
/// many seconds, or milliseconds, and not after the two hours that TCP takes.
const DEFAULTS: [(&str, &str); 3] =
    [("connect_timeout", "5"), ("keepalives_idle", "10"), ("tcp_user_timeout", "15000")];

/// How every connection begins.
fn begin(conn: &mut PgConnection, watch: &Watch) -> QueryResult<()> {
    conn.batch_execute(SESSION)?;
    watch.look(conn, transaction)
}

pub(super) fn pool(url: &str, size: u32, watch: Arc<Watch>) -> Result<Pool<Connector<PgConnection>>, StoreError> {
    connection::pool(Connector::new(&with_defaults(url), move |conn| begin(conn, &watch)), size)
}

impl PeerClosed for PgConnection {
    fn has_hung_up(&mut self) -> bool {
        // Reads what has come, which is the end where the database has closed the connection: after its last words, if it
        // had any.
        (0..2).any(|_| self.notifications_iter().any(|notification| notification.is_err()))
    }
}

/// The URL, with the defaults for what it does not say.
fn with_defaults(url: &str) -> String {
    let mut url = url.to_owned();
    for (name, value) in DEFAULTS {
        let parameters = url.split_once('?').map_or("", |(_, parameters)| parameters);
        if parameters.split('&').all(|one| one.split('=').next() != Some(name)) {
            let separator = if url.contains('?') { '&' } else { '?' };
            url.extend([separator.to_string().as_str(), name, "=", value]);
        }
    }
    url
}

pub(super) fn migrate(url: &str) -> Result<(), StoreError> {
    // Left to libpq, OpenSSL would be taken down when the program ends, under a connection that the pool is just making:
    // a crash after all is done. Who is first says whether it is, and this one says no.
    openssl_sys::init();
    let mut conn = PgConnection::establish(&with_defaults(url)).map_err(StoreError::transient)?;
    // The lock is the session's: it ends with this connection, whatever happens.
    diesel::sql_query("SELECT pg_advisory_lock($1)").bind::<BigInt, _>(MIGRATION_LOCK).execute(&mut conn)?;
    // An account that may not change the schema starts where there is nothing to change; Diesel's harness would have it try.
    if is_migrated(&mut conn).unwrap_or(false) { Ok(()) } else { connection::migrate(&mut conn, POSTGRES_MIGRATIONS) }
}

fn is_migrated(conn: &mut PgConnection) -> diesel::migration::Result<bool> {
    let applied: Vec<String> = migrations::table.select(migrations::version).load(conn)?;
    let ours = MigrationSource::<Pg>::migrations(&POSTGRES_MIGRATIONS)?;
    Ok(ours.iter().all(|one| applied.contains(&one.name().version().to_string())))
}

#[expect(clippy::disallowed_methods, reason = "this is the write-transaction helper")]
pub(super) fn transaction<T, E: From<diesel::result::Error>>(
    conn: &mut PgConnection,
    body: &mut dyn FnMut(&mut PgConnection) -> Result<T, E>,
) -> Result<T, E> {
    conn.transaction(|conn| body(conn))
}

/// Runs what is one statement, and so all or nothing by itself.
pub(super) fn statement<T, E: From<diesel::result::Error>>(
    conn: &mut PgConnection,
    body: &mut dyn FnMut(&mut PgConnection) -> Result<T, E>,
) -> Result<T, E> {
    body(conn)
}

impl WholeTable for PgConnection {
    fn whole_table<T>(&mut self, mut body: impl FnMut(&mut Self) -> QueryResult<T>) -> QueryResult<T> {
        transaction(self, &mut |conn| {
            conn.batch_execute("SET LOCAL enable_seqscan = on")?;
            body(conn)
        })
    }
}

/// Rows that a census looks at, about. Where there are more it is a sample: to count all of a large table takes long, and the
/// disk and a core from everybody else.
const SAMPLE: i32 = 250_000;

#[derive(QueryableByName)]
struct Counted {
    #[diesel(sql_type = Text)]
    state: String,
    #[diesel(sql_type = BigInt)]
    n: i64,
}

impl Census for PgConnection {
    /// The sample is a share of the table's pages, by how many rows it had when it was last vacuumed; so is what each counts
    /// for.
    fn census(&mut self) -> QueryResult<Vec<(String, i64)>> {
        let counted: Vec<Counted> = diesel::sql_query(format!(
            "WITH size AS MATERIALIZED (SELECT greatest(reltuples / {SAMPLE}, 1) AS samples FROM pg_class \
             WHERE oid = 'key_packages'::regclass) SELECT state, (count(*) * (SELECT samples FROM size))::bigint AS n \
             FROM key_packages TABLESAMPLE SYSTEM (100 / (SELECT samples FROM size)) WHERE device_id <> {NOBODY} \
             GROUP BY state"
        ))
        .load(self)?;
        Ok(counted.into_iter().map(|row| (row.state, row.n)).collect())
    }
}

impl HoldEnvelopes for PgConnection {
    fn hold_envelopes(&mut self, device: i64, ids: &[i64]) -> QueryResult<()> {
        let held = deliveries::table.filter(deliveries::device_id.eq(device).and(deliveries::id.eq_any(ids)));
        let brought = envelopes::table.filter(envelopes::id.eq_any(held.select(deliveries::envelope_id)));
        brought.order(envelopes::id.asc()).select(envelopes::id).for_no_key_update().load::<i64>(self).map(drop)
    }
}

impl Announce for PgConnection {
    fn announce(&mut self, devices: &[i64]) -> QueryResult<()> {
        // A payload has 8,000 bytes at most, and a number 20.
        for batch in devices.chunks(350) {
            let payload = batch.iter().map(i64::to_string).collect::<Vec<_>>().join(",");
            diesel::sql_query("SELECT pg_notify($1, $2)")
                .bind::<Text, _>(CHANNEL)
                .bind::<Text, _>(payload)
                .execute(self)?;
        }
        Ok(())
    }
}

/// Listens on a thread of its own until told to stop. When the connection is lost, it comes back, and says that it may
/// have missed something.
pub(super) fn listen(url: String, hear: impl Fn(Heard) -> ControlFlow<()> + Send + 'static) -> anyhow::Result<()> {
    std::thread::Builder::new().name("listener".to_owned()).spawn(move || {
        loop {
            match listen_once(&url, &hear) {
                Ok(()) => return,
                Err(error) => tracing::warn!(%error, "cannot hear of messages by other servers; trying again"),
            }
            std::thread::sleep(LISTENER_PAUSE);
            if hear(Heard::Unsure).is_break() {
                return;
            }
        }
    })?;
    Ok(())
}

fn listen_once(url: &str, hear: &impl Fn(Heard) -> ControlFlow<()>) -> Result<(), StoreError> {
    let mut conn = PgConnection::establish(&with_defaults(url)).map_err(StoreError::transient)?;
    diesel::sql_query(format!("LISTEN {CHANNEL}")).execute(&mut conn)?;
    let mut last_seen = Instant::now();
    // What came while nobody listened.
    let mut next = hear(Heard::Unsure);
    while next.is_continue() {
        let mut heard = Vec::new();
        for notification in conn.notifications_iter() {
            heard.extend(notification?.payload.split(',').filter_map(|id| id.parse().ok().map(DeviceId)));
        }
        if heard.is_empty() {
            std::thread::sleep(LISTENER_STEP);
            if last_seen.elapsed() > LISTENER_CHECK {
                // A connection that was cut off says nothing by itself.
                diesel::sql_query("SELECT 1").execute(&mut conn)?;
                last_seen = Instant::now();
            }
        }
        // Called even without news, to notice that the listener has gone.
        next = hear(Heard::For(heard));
    }
    Ok(())
}

/// The cluster, the table as a dump recreates it, and the timeline that a promotion or a recovery to a point in time
/// begins.
const ORIGIN: &str = "SELECT concat_ws('/', system_identifier, 'lineage'::regclass::oid, \
                      left(pg_walfile_name(pg_current_wal_lsn()), 8)) AS origin FROM pg_control_system()";

/// Names the advisory lock under which a database that was restored is taken up.
const LINEAGE_LOCK: i64 = 0x6b65_7970_6f6f_6c32;

/// A witness holds where it has the number of the transaction that wrote its row. A dump has that number, too, but loads the
/// row in another transaction.
const SIGNS: &str = "SELECT l.origin, l.generation, l.fenced_at, \
                     coalesce(l.xmin::text::bigint = l.witness, false) AS lineage_holds, \
                     coalesce((SELECT k.xmin::text::bigint = k.ended_at FROM key_packages k \
                     WHERE k.keypackage_ref = $1), false) AS pool_holds FROM lineage l WHERE l.id = 1";

const WRITE_LINEAGE: &str = "INSERT INTO lineage (id, origin, generation, fenced_at, witness) \
                             VALUES (1, $1, $2, $3, pg_current_xact_id()::xid::text::bigint) \
                             ON CONFLICT (id) DO UPDATE SET origin = excluded.origin, generation = excluded.generation, \
                             fenced_at = excluded.fenced_at, witness = excluded.witness";

/// As the migration has made it.
const WRITE_WITNESS: &str = "INSERT INTO key_packages (keypackage_ref, device_id, ciphersuite, key_package, not_after, \
                             last_resort, state, ended_at) VALUES ($1, $2, 0, '', 253370764800, false, 'retired', \
                             pg_current_xact_id()::xid::text::bigint) \
                             ON CONFLICT (keypackage_ref) DO UPDATE SET ended_at = excluded.ended_at";

const RENEW_LINEAGE: &str = "UPDATE lineage SET generation = generation + 1, \
                             witness = pg_current_xact_id()::xid::text::bigint \
                             WHERE id = 1 AND xmin::text::bigint = witness AND generation >= $1 RETURNING generation";

const RENEW_WITNESS: &str = "UPDATE key_packages SET ended_at = pg_current_xact_id()::xid::text::bigint \
                             WHERE keypackage_ref = $1 AND xmin::text::bigint = ended_at";

#[derive(QueryableByName)]
struct Origin {
    #[diesel(sql_type = Text)]
    origin: String,
}

#[derive(QueryableByName)]
struct Time {
    #[diesel(sql_type = BigInt)]
    micros: i64,
}

impl DatabaseClock for PgConnection {
    fn time(&mut self) -> QueryResult<Option<Timestamp>> {
        let query = diesel::sql_query("SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint AS micros");
        let Time { micros } = query.get_result(self)?;
        let time = Timestamp::from_microsecond(micros);
        time.map(Some).map_err(|error| diesel::result::Error::DeserializationError(error.into()))
    }
}

impl Lineage for PgConnection {
    fn origin(&mut self) -> QueryResult<Option<String>> {
        match diesel::sql_query(ORIGIN).get_result::<Origin>(self) {
            Ok(Origin { origin }) => Ok(Some(origin)),
            // A database that only speaks the protocol, or keeps this from its users.
            Err(error) if says_nothing(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn signs(&mut self) -> QueryResult<Option<Signs>> {
        diesel::sql_query(SIGNS).bind::<Binary, _>(WITNESS).get_result(self).optional()
    }

    fn hold_signs(&mut self) -> QueryResult<Option<Signs>> {
        // The row may be gone: a lock on it would hold nobody.
        diesel::sql_query("SELECT pg_advisory_xact_lock($1)").bind::<BigInt, _>(LINEAGE_LOCK).execute(self)?;
        self.signs()
    }

    fn write_lineage(&mut self, row: Row<'_>) -> QueryResult<()> {
        diesel::sql_query(WRITE_LINEAGE)
            .bind::<Text, _>(row.origin)
            .bind::<BigInt, _>(row.generation)
            .bind::<Nullable<BigInt>, _>(row.fenced_at)
            .execute(self)?;
        diesel::sql_query(WRITE_WITNESS).bind::<Binary, _>(WITNESS).bind::<BigInt, _>(NOBODY).execute(self).map(drop)
    }

    fn renew_witnesses(&mut self, reached: i64) -> QueryResult<Option<i64>> {
        let renewed =
            diesel::sql_query(RENEW_LINEAGE).bind::<BigInt, _>(reached).get_result::<Renewed>(self).optional()?;
        let is_whole = diesel::sql_query(RENEW_WITNESS).bind::<Binary, _>(WITNESS).execute(self)? == 1;
        Ok(renewed.filter(|_| is_whole).map(|renewed| renewed.generation))
    }

    fn hold_pools(&mut self) -> QueryResult<()> {
        self.batch_execute("SET LOCAL statement_timeout = 0; SET LOCAL enable_seqscan = on")?;
        diesel::sql_query("LOCK TABLE key_packages IN SHARE ROW EXCLUSIVE MODE").execute(self).map(drop)
    }

    fn skip_deliveries(&mut self) -> QueryResult<()> {
        let sequence = "pg_get_serial_sequence('deliveries', 'id')::regclass";
        diesel::sql_query(format!("SELECT setval({sequence}, nextval({sequence}) + $1)"))
            .bind::<BigInt, _>(SKIPPED)
            .execute(self)
            .map(drop)
    }
}

fn says_nothing(error: &diesel::result::Error) -> bool {
    let diesel::result::Error::DatabaseError(_, info) = error else { return false };
    ["does not exist", "unknown function", "permission denied", "not supported", "unsupported"]
        .iter()
        .any(|symptom| info.message().contains(symptom))
}

impl HoldDevice for PgConnection {
    fn hold_device(&mut self, owner: i64) -> QueryResult<Option<Vec<u8>>> {
        let found = devices::table.find(owner).filter(devices::removed_at.is_null()).select(devices::token_hash);
        found.for_no_key_update().first(self).optional()
    }

    fn hold_caller(&mut self, caller: &ShownToken) -> QueryResult<bool> {
        let found = devices::table.find(caller.device.0).filter(devices::removed_at.is_null()).select(devices::id);
        let found = found.filter(devices::token_hash.eq(caller.token_hash.as_slice()));
        found.for_share().first::<i64>(self).optional().map(|id| id.is_some())
    }

    fn hold_user(&mut self, user: &str) -> QueryResult<()> {
        users::table.find(user).select(users::name).for_no_key_update().first::<String>(self).map(drop)
    }

    fn hold_adders(&mut self, user: &str) -> QueryResult<()> {
        diesel::sql_query(format!("SELECT pg_advisory_xact_lock({HOLDS}, hashtext($1))"))
            .bind::<Text, _>(user)
            .execute(self)
            .map(drop)
    }

    fn hold_idle(&mut self, owners: &[i64]) -> QueryResult<Vec<(i64, Vec<u8>)>> {
        let found = devices::table.filter(devices::id.eq_any(owners).and(devices::removed_at.is_null()));
        found.select((devices::id, devices::token_hash)).for_no_key_update().skip_locked().load(self)
    }

    fn hold_pool(&mut self, owner: i64, suite: i32) -> QueryResult<()> {
        let theirs = key_packages::device_id.eq(owner).and(key_packages::ciphersuite.eq(suite)).and(key_packages::live);
        let held = key_packages::table.filter(theirs).order(key_packages::keypackage_ref.asc());
        held.select(key_packages::keypackage_ref).for_update().load::<Vec<u8>>(self).map(drop)
    }
}

claims!(PgConnection, fresh_of_postgres, [.for_update().skip_locked()], [.for_update()]);
batches!(PgConnection, .for_update().skip_locked());

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_url_says_goes_over_the_defaults() {
        assert_eq!(
            with_defaults("postgres://a@b/c"),
            "postgres://a@b/c?connect_timeout=5&keepalives_idle=10&tcp_user_timeout=15000"
        );
        assert_eq!(
            with_defaults("postgres://b/c?sslmode=require&connect_timeout=1"),
            "postgres://b/c?sslmode=require&connect_timeout=1&keepalives_idle=10&tcp_user_timeout=15000"
        );
    }
}
