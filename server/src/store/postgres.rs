//! What only PostgreSQL does.

use std::{
    ops::ControlFlow,
    time::{Duration, Instant},
};

use diesel::{
    Connection, PgConnection,
    prelude::*,
    r2d2::{ConnectionManager, CustomizeConnection, Pool},
};

use super::{
    StoreError,
    claims::claims,
    connection::{self, POSTGRES_MIGRATIONS},
    delivery::{Announce, Heard},
    key_packages::HoldDevice,
    rows::DeviceId,
    schema::devices,
    sweep::batches,
};

/// Names the advisory lock under which a server migrates, so that several may start at once.
const MIGRATION_LOCK: i64 = 0x6b65_7970_6f6f_6c31;

/// So that a stuck statement or a forgotten transaction cannot hold a connection for ever.
const SESSION: &str = "SET statement_timeout = '30s'; SET idle_in_transaction_session_timeout = '30s'";

/// Where servers tell each other whose queues have something new.
const CHANNEL: &str = "keypool_messages";

/// How often the listener looks for what has come: libpq hands notifications on only when it is asked.
const LISTENER_STEP: Duration = Duration::from_millis(10);

/// How often the listener sees whether its connection is still there.
const LISTENER_CHECK: Duration = Duration::from_secs(10);

/// How long the listener waits before it connects again.
const LISTENER_PAUSE: Duration = Duration::from_secs(1);

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

impl Announce for PgConnection {
    fn announce(&mut self, devices: &[i64]) -> QueryResult<()> {
        // A payload has 8,000 bytes at most, and a number 20.
        for batch in devices.chunks(350) {
            let payload = batch.iter().map(i64::to_string).collect::<Vec<_>>().join(",");
            diesel::sql_query("SELECT pg_notify($1, $2)")
                .bind::<diesel::sql_types::Text, _>(CHANNEL)
                .bind::<diesel::sql_types::Text, _>(payload)
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
    let mut conn = PgConnection::establish(url).map_err(StoreError::transient)?;
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
        // Asked even where there is nothing: whoever listens may be gone.
        next = hear(Heard::For(heard));
    }
    Ok(())
}

impl HoldDevice for PgConnection {
    fn hold_device(&mut self, owner: i64) -> QueryResult<bool> {
        let found = devices::table.find(owner).filter(devices::removed_at.is_null()).select(devices::id);
        found.for_no_key_update().first::<i64>(self).optional().map(|id| id.is_some())
    }
}

claims!(PgConnection, [.for_update().skip_locked()], [.for_update()]);
batches!(PgConnection, .for_update().skip_locked());
