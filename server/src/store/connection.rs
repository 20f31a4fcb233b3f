//! Pools of connections, and the write transaction that every change goes through.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use diesel::{
    connection::{Connection, LoadConnection},
    r2d2::{Pool, PooledConnection, R2D2Connection},
    result::{DatabaseErrorKind, Error},
};
use diesel_migrations::{EmbeddedMigrations, MigrationHarness, embed_migrations};

use super::{
    StoreError,
    liveness::{Connector, PeerClosed},
    postgres, sqlite,
    watch::Watch,
    writable,
};
use crate::{clock::Clock, config::Config, metrics::Metrics};

/// How long a request waits for a connection before it is answered `unavailable`.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(2);

/// How often a write transaction that lost to another one is tried again.
const ATTEMPTS: u32 = 5;

/// What SQLite, PostgreSQL and libpq say of a database that is busy, restarting or out of reach: where Diesel does not
/// see that the connection is closed, the message is all that it hands on.
const AWAY: [&str; 15] = [
    "database is locked",
    "database table is locked",
    "canceling statement due to",
    "terminating connection",
    "the database system is",
    "too many clients",
    "remaining connection slots",
    "closed the connection",
    "no connection to the server",
    "could not connect",
    "could not receive data from server",
    "could not send data to server",
    "Connection refused",
    "SSL connection has been closed",
    "SSL SYSCALL error",
];

pub(super) const POSTGRES_MIGRATIONS: EmbeddedMigrations = embed_migrations!("../migrations/postgres");
pub(super) const SQLITE_MIGRATIONS: EmbeddedMigrations = embed_migrations!("../migrations/sqlite");

/// The database behind the pool, `PostgreSQL` or SQLite. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    pub(super) pools: Pools,
    pub(super) metrics: Arc<Metrics>,
    pub(super) watch: Arc<Watch>,
}

#[derive(Clone)]
pub(super) enum Pools {
    Postgres(Pool<Connector<diesel::PgConnection>>),
    /// SQLite has one writer at a time: writers queue for the one connection here instead of colliding in the file.
    Sqlite {
        writer: Pool<Connector<diesel::SqliteConnection>>,
        readers: Pool<Connector<diesel::SqliteConnection>>,
    },
}

/// Compiles the same body against each database's connection.
macro_rules! with_conn {
    ($store:expr, write $name:literal, |$conn:ident| $body:expr) => {
        match &$store.pools {
            $crate::store::connection::Pools::Postgres(pool) => $crate::store::connection::write(
                pool,
                &$store.metrics,
                $name,
                $crate::store::postgres::transaction,
                |$conn: &mut diesel::PgConnection| $body,
            ),
            $crate::store::connection::Pools::Sqlite { writer, .. } => $crate::store::connection::write(
                writer,
                &$store.metrics,
                $name,
                $crate::store::sqlite::transaction,
                |$conn: &mut diesel::SqliteConnection| $body,
            ),
        }
    };
    ($store:expr, read, |$conn:ident| $body:expr) => {
        match &$store.pools {
            $crate::store::connection::Pools::Postgres(pool) => {
                $crate::store::connection::read(pool, &$store.metrics, |$conn: &mut diesel::PgConnection| $body)
            }
            $crate::store::connection::Pools::Sqlite { readers, .. } => {
                $crate::store::connection::read(readers, &$store.metrics, |$conn: &mut diesel::SqliteConnection| $body)
            }
        }
    };
}
pub(super) use with_conn;

impl Store {
    /// Connects to the database that the configuration names, and brings its schema up to date. Safe when several
    /// servers start at once. A database that was restored or promoted is fenced, here and at every connection that
    /// is made later, unless the operator has it trusted.
    ///
    /// # Errors
    /// When the database cannot be reached or opened, or a migration fails.
    pub fn connect(config: &Config, metrics: Arc<Metrics>, clock: Arc<dyn Clock>) -> Result<Self, StoreError> {
        let url = config.database_url.expose();
        let watch = Arc::new(Watch::new(config, clock, Arc::clone(&metrics)));
        let its = || Arc::clone(&watch);
        let pools = if let Some(path) = url.strip_prefix("sqlite://") {
            sqlite::migrate(path)?;
            Pools::Sqlite {
                writer: sqlite::writer(path, its())?,
                readers: sqlite::readers(path, config.database_connections, its())?,
            }
        } else {
            postgres::migrate(url)?;
            Pools::Postgres(postgres::pool(url, config.database_connections, its())?)
        };
        Ok(Self { pools, metrics, watch })
    }

    /// What this server counts.
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// The same, to keep.
    #[must_use]
    pub fn metrics_handle(&self) -> Arc<Metrics> {
        Arc::clone(&self.metrics)
    }

    /// Whether several may write to it at once.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        matches!(self.pools, Pools::Postgres(_))
    }

    /// The database's name, for people.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self.pools {
            Pools::Postgres(_) => "PostgreSQL",
            Pools::Sqlite { .. } => "SQLite",
        }
    }
}

pub(super) fn pool<C: R2D2Connection + PeerClosed + 'static>(
    connector: Connector<C>,
    size: u32,
) -> Result<Pool<Connector<C>>, StoreError> {
    Pool::builder()
        .max_size(size)
        .min_idle(Some(1))
        .connection_timeout(CONNECTION_TIMEOUT)
        .test_on_check_out(true)
        .build(connector)
        .map_err(StoreError::transient)
}

pub(super) fn migrate<C: MigrationHarness<DB>, DB: diesel::backend::Backend>(
    conn: &mut C,
    migrations: EmbeddedMigrations,
) -> Result<(), StoreError> {
    let applied = conn
        .run_pending_migrations(migrations)
        .map_err(|error| StoreError::fatal(anyhow::anyhow!("a migration failed: {error}")))?;
    for migration in applied {
        tracing::info!(%migration, "migrated the database");
    }
    Ok(())
}

fn connection<C: R2D2Connection + PeerClosed + 'static>(
    pool: &Pool<Connector<C>>,
    metrics: &Metrics,
) -> Result<PooledConnection<Connector<C>>, StoreError> {
    let begun = Instant::now();
    let conn = pool.get();
    metrics.waited_for_connection(begun.elapsed());
    conn.map_err(StoreError::transient)
}

/// Runs a write transaction, again if it lost to another one.
pub(super) fn write<C, T, E>(
    pool: &Pool<Connector<C>>,
    metrics: &Metrics,
    name: &'static str,
    transaction: impl Fn(&mut C, &mut dyn FnMut(&mut C) -> Result<T, E>) -> Result<T, E>,
    mut body: impl FnMut(&mut C) -> Result<T, E>,
) -> Result<T, E>
where
    C: R2D2Connection + PeerClosed + 'static,
    E: From<Error> + From<StoreError> + Retry,
{
    let mut checked = connection(pool, metrics)?;
    let mut attempt = 1;
    loop {
        let result = transaction(&mut checked.conn, &mut body);
        checked.at = result.is_ok().then(Instant::now);
        if let Some(error) = result.as_ref().err().and_then(Retry::store_error).filter(|error| error.refuses_writes) {
            writable::note_refusal(metrics, error);
            checked.is_spoiled = true;
        }
        match result {
            Err(error) if attempt < ATTEMPTS && error.lost_to_another() => {
                tracing::debug!(name, attempt, "transaction lost to another one; trying again");
                metrics.retried(name);
                attempt += 1;
            }
            result => return result,
        }
    }
}

/// Runs reads, each seeing the database as it is then.
pub(super) fn read<C, T, E>(
    pool: &Pool<Connector<C>>,
    metrics: &Metrics,
    body: impl FnOnce(&mut C) -> Result<T, E>,
) -> Result<T, StoreError>
where
    C: R2D2Connection + PeerClosed + LoadConnection + Connection + 'static,
    StoreError: From<E>,
{
    let mut checked = connection(pool, metrics)?;
    let result = body(&mut checked.conn).map_err(StoreError::from);
    checked.at = result.is_ok().then(Instant::now);
    if let Some(error) = result.as_ref().err().filter(|error| error.refuses_writes) {
        writable::note_refusal(metrics, error);
        checked.is_spoiled = true;
    }
    result
}

/// What reads a whole table says so: everything else finds its rows by an index, however few `PostgreSQL` thinks there are.
pub(super) trait WholeTable: Sized {
    fn whole_table<T>(&mut self, body: impl FnMut(&mut Self) -> diesel::QueryResult<T>) -> diesel::QueryResult<T>;
}

/// Whether a failed transaction may work when it is simply run again.
pub(super) trait Retry {
    /// The failure of the database, where it is that.
    fn store_error(&self) -> Option<&StoreError>;

    fn lost_to_another(&self) -> bool {
        self.store_error().is_some_and(|error| error.source.downcast_ref().is_some_and(lost_to_another))
    }
}

impl Retry for StoreError {
    fn store_error(&self) -> Option<&StoreError> {
        Some(self)
    }
}

fn lost_to_another(error: &Error) -> bool {
    match error {
        Error::DatabaseError(DatabaseErrorKind::SerializationFailure, _) => true,
        // Diesel has no kind for a deadlock (SQLSTATE 40P01): the message is all that it hands on.
        Error::DatabaseError(DatabaseErrorKind::Unknown, info) => info.message().contains("deadlock detected"),
        _ => false,
    }
}

/// Whether the same call may work in a moment.
pub(super) fn is_transient(error: &Error) -> bool {
    lost_to_another(error) || is_away(error)
}

fn is_away(error: &Error) -> bool {
    match error {
        Error::BrokenTransactionManager | Error::DatabaseError(DatabaseErrorKind::ClosedConnection, _) => true,
        Error::DatabaseError(DatabaseErrorKind::Unknown | DatabaseErrorKind::UnableToSendCommand, info) => {
            AWAY.iter().any(|symptom| info.message().contains(symptom))
        }
        Error::RollbackErrorOnCommit { rollback_error, commit_error } => {
            is_transient(rollback_error) || is_transient(commit_error)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(kind: DatabaseErrorKind, message: &str) -> Error {
        Error::DatabaseError(kind, Box::new(message.to_owned()))
    }

    #[test]
    fn a_database_that_is_away_is_asked_again_and_a_wrong_statement_is_not() {
        use DatabaseErrorKind as K;
        for (kind, message) in [
            (K::Unknown, "database is locked"),
            (K::Unknown, "FATAL:  terminating connection due to administrator command"),
            (K::Unknown, "the database system is starting up"),
            (K::Unknown, "the database system is in recovery mode"),
            (K::Unknown, "canceling statement due to statement timeout"),
            (K::Unknown, "sorry, too many clients already"),
            (K::Unknown, "server closed the connection unexpectedly"),
            (K::Unknown, "deadlock detected"),
            (K::UnableToSendCommand, "no connection to the server\n"),
            (K::UnableToSendCommand, "could not send data to server: Broken pipe"),
            (K::ClosedConnection, "Verbindung geschlossen"),
            (K::SerializationFailure, ""),
        ] {
            assert!(is_transient(&said(kind, message)), "{message}");
        }
        for (kind, message) in [
            (K::Unknown, "syntax error at or near"),
            (K::UnableToSendCommand, "number of parameters must be between 0 and 65535"),
            (K::UniqueViolation, "duplicate key value"),
        ] {
            assert!(!is_transient(&said(kind, message)), "{message}");
        }
        let lost = Error::RollbackErrorOnCommit {
            rollback_error: Box::new(said(K::UnableToSendCommand, "no connection to the server")),
            commit_error: Box::new(said(K::Unknown, "x")),
        };
        assert!(is_transient(&lost));
        assert!(!is_transient(&Error::NotFound));
    }
}
