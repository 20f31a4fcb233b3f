//! Notifications between the servers of one database: which devices' queues have new messages.

use std::{
    ops::ControlFlow,
    time::{Duration, Instant},
};

use diesel::{Connection, PgConnection, prelude::*, sql_types::Text};

use super::database::{Conn, Store, StoreError, rows::DeviceId, with_defaults};
use crate::config::Config;

/// The `PostgreSQL` channel of these notifications.
const CHANNEL: &str = "keypool_messages";

/// Interval at which the listener polls: libpq returns notifications only when it is asked.
const LISTENER_STEP: Duration = Duration::from_millis(10);

/// Interval at which the listener checks its connection.
const LISTENER_CHECK: Duration = Duration::from_secs(10);

/// Pause before the listener connects again.
const LISTENER_PAUSE: Duration = Duration::from_secs(1);

/// A notification from the other servers of the database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// These devices' queues have new messages.
    For(Vec<DeviceId>),
    /// The listener was disconnected for a while: any queue may have new messages.
    Unsure,
}

/// Announces to the other servers, at commit, that these devices' queues have new messages. SQLite has only one server,
/// which needs no announcement.
pub(super) fn announce(conn: &mut Conn<'_>, devices: &[i64]) -> QueryResult<()> {
    let Conn::Postgres(conn) = conn else { return Ok(()) };
    // A payload has at most 8,000 bytes, and a device id at most 20.
    for batch in devices.chunks(350) {
        let payload = batch.iter().map(i64::to_string).collect::<Vec<_>>().join(",");
        let notify = diesel::sql_query("SELECT pg_notify($1, $2)");
        notify.bind::<Text, _>(CHANNEL).bind::<Text, _>(payload).execute(*conn)?;
    }
    Ok(())
}

/// Listens on its own thread until `hear` returns `Break`. After a lost connection it reconnects and reports
/// [`Heard::Unsure`].
fn listen(url: String, hear: impl Fn(Heard) -> ControlFlow<()> + Send + 'static) -> anyhow::Result<()> {
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
    // Notifications that were sent while no connection listened are lost.
    let mut next = hear(Heard::Unsure);
    while next.is_continue() {
        let mut heard = Vec::new();
        for notification in conn.notifications_iter() {
            heard.extend(notification?.payload.split(',').filter_map(|id| id.parse().ok().map(DeviceId)));
        }
        if heard.is_empty() {
            std::thread::sleep(LISTENER_STEP);
            if last_seen.elapsed() > LISTENER_CHECK {
                // A connection that was cut off reports no error until it is used.
                diesel::sql_query("SELECT 1").execute(&mut conn)?;
                last_seen = Instant::now();
            }
        }
        // Called even without news, so that the thread notices that its listener has ended.
        next = hear(Heard::For(heard));
    }
    Ok(())
}

impl Store {
    /// Listens, on its own thread, to the announcements of the other servers until `hear` returns `Break`. Does nothing
    /// on SQLite, which has only one server.
    ///
    /// # Errors
    /// When the system cannot start a thread.
    pub fn listen(
        &self,
        config: &Config,
        hear: impl Fn(Heard) -> ControlFlow<()> + Send + 'static,
    ) -> anyhow::Result<()> {
        if self.is_shared() { listen(config.database_url.expose().to_owned(), hear) } else { Ok(()) }
    }
}
