//! What only PostgreSQL does.

use diesel::{
    Connection, PgConnection,
    prelude::*,
    r2d2::{ConnectionManager, CustomizeConnection, Pool},
};

use super::{
    StoreError,
    claims::claims,
    connection::{self, POSTGRES_MIGRATIONS},
    key_packages::HoldDevice,
    schema::devices,
    sweep::batches,
};

/// Names the advisory lock under which a server migrates, so that several may start at once.
const MIGRATION_LOCK: i64 = 0x6b65_7970_6f6f_6c31;

/// So that a stuck statement or a forgotten transaction cannot hold a connection for ever.
const SESSION: &str = "SET statement_timeout = '30s'; SET idle_in_transaction_session_timeout = '30s'";

#[derive(Debug)]
struct Session;

impl CustomizeConnection<PgConnection, diesel::r2d2::Error> for Session {
    fn on_acquire(&self, conn: &mut PgConnection) -> Result<(), diesel::r2d2::Error> {
        use diesel::connection::SimpleConnection;
        conn.batch_execute(SESSION).map_err(diesel::r2d2::Error::QueryError)
    }
}

pub(super) fn pool(url: &str, size: u32) -> Result<Pool<ConnectionManager<PgConnection>>, StoreError> {
    connection::pool(ConnectionManager::new(url), size, Session)
}

pub(super) fn migrate(url: &str) -> Result<(), StoreError> {
    let mut conn = PgConnection::establish(url).map_err(StoreError::transient)?;
    // The lock is the session's: it ends with this connection, whatever happens.
    diesel::sql_query("SELECT pg_advisory_lock($1)")
        .bind::<diesel::sql_types::BigInt, _>(MIGRATION_LOCK)
        .execute(&mut conn)?;
    connection::migrate(&mut conn, POSTGRES_MIGRATIONS)
}

#[expect(clippy::disallowed_methods, reason = "this is the write-transaction helper")]
pub(super) fn transaction<T, E: From<diesel::result::Error>>(
    conn: &mut PgConnection,
    body: &mut dyn FnMut(&mut PgConnection) -> Result<T, E>,
) -> Result<T, E> {
    conn.transaction(|conn| body(conn))
}

impl HoldDevice for PgConnection {
    fn hold_device(&mut self, owner: i64) -> QueryResult<bool> {
        let found = devices::table.find(owner).filter(devices::removed_at.is_null()).select(devices::id);
        found.for_no_key_update().first::<i64>(self).optional().map(|id| id.is_some())
    }
}

claims!(PgConnection, [.for_update().skip_locked()], [.for_update()]);
batches!(PgConnection, .for_update().skip_locked());
