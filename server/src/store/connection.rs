//! Pools of connections, and the write transaction that every change goes through.

use std::time::Duration;

use diesel::{
    connection::{Connection, LoadConnection},
    r2d2::{ConnectionManager, Pool, R2D2Connection},
    result::{DatabaseErrorKind, Error},
};
use diesel_migrations::{EmbeddedMigrations, MigrationHarness, embed_migrations};

use super::{StoreError, postgres, sqlite};
use crate::config::Config;

/// How long a request waits for a connection before it is answered `unavailable`.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(5);

/// How often a write transaction that lost to another one is tried again.
const ATTEMPTS: u32 = 5;

pub(super) const POSTGRES_MIGRATIONS: EmbeddedMigrations = embed_migrations!("../migrations/postgres");
pub(super) const SQLITE_MIGRATIONS: EmbeddedMigrations = embed_migrations!("../migrations/sqlite");

/// The database behind the pool, `PostgreSQL` or SQLite. Cheap to clone.
#[derive(Clone)]
pub struct Store(pub(super) Pools);

#[derive(Clone)]
pub(super) enum Pools {
    Postgres(Pool<ConnectionManager<diesel::PgConnection>>),
    /// SQLite has one writer at a time: writers queue for the one connection here instead of colliding in the file.
    Sqlite {
        writer: Pool<ConnectionManager<diesel::SqliteConnection>>,
        readers: Pool<ConnectionManager<diesel::SqliteConnection>>,
    },
}

/// Compiles the same body against each database's connection.
macro_rules! with_conn {
    ($store:expr, write $name:literal, |$conn:ident| $body:expr) => {
        match &$store.0 {
            $crate::store::connection::Pools::Postgres(pool) => $crate::store::connection::write(
                pool,
                $name,
                $crate::store::postgres::transaction,
                |$conn: &mut diesel::PgConnection| $body,
            ),
            $crate::store::connection::Pools::Sqlite { writer, .. } => $crate::store::connection::write(
                writer,
                $name,
                $crate::store::sqlite::transaction,
                |$conn: &mut diesel::SqliteConnection| $body,
            ),
        }
    };
    ($store:expr, read, |$conn:ident| $body:expr) => {
        match &$store.0 {
            $crate::store::connection::Pools::Postgres(pool) => {
                $crate::store::connection::read(pool, |$conn: &mut diesel::PgConnection| $body)
            }
            $crate::store::connection::Pools::Sqlite { readers, .. } => {
                $crate::store::connection::read(readers, |$conn: &mut diesel::SqliteConnection| $body)
            }
        }
    };
}
pub(super) use with_conn;

impl Store {
    /// Connects to the database that the configuration names, and brings its schema up to date. Safe when several
    /// servers start at once.
    ///
    /// # Errors
    /// When the database cannot be reached or opened, or a migration fails.
    pub fn connect(config: &Config) -> Result<Self, StoreError> {
        let url = config.database_url.expose();
        let pools = if let Some(path) = url.strip_prefix("sqlite://") {
            sqlite::migrate(path)?;
            Pools::Sqlite { writer: sqlite::pool(path, 1)?, readers: sqlite::pool(path, config.database_connections)? }
        } else {
            postgres::migrate(url)?;
            Pools::Postgres(postgres::pool(url, config.database_connections)?)
        };
        Ok(Self(pools))
    }

    /// Whether the database answers.
    ///
    /// # Errors
    /// When it does not.
    pub fn ping(&self) -> Result<(), StoreError> {
        with_conn!(self, read, |conn| R2D2Connection::ping(conn))
    }

    /// The database's name, for people.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self.0 {
            Pools::Postgres(_) => "PostgreSQL",
            Pools::Sqlite { .. } => "SQLite",
        }
    }
}

pub(super) fn pool<C: R2D2Connection + 'static>(
    manager: ConnectionManager<C>,
    size: u32,
    setup: impl diesel::r2d2::CustomizeConnection<C, diesel::r2d2::Error> + 'static,
) -> Result<Pool<ConnectionManager<C>>, StoreError> {
    Pool::builder()
        .max_size(size)
        .min_idle(Some(1))
        .connection_timeout(CONNECTION_TIMEOUT)
        .test_on_check_out(true)
        .connection_customizer(Box::new(setup))
        .build(manager)
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

/// Runs a write transaction, again if it lost to another one.
pub(super) fn write<C, T, E>(
    pool: &Pool<ConnectionManager<C>>,
    name: &'static str,
    transaction: impl Fn(&mut C, &mut dyn FnMut(&mut C) -> Result<T, E>) -> Result<T, E>,
    mut body: impl FnMut(&mut C) -> Result<T, E>,
) -> Result<T, E>
where
    C: R2D2Connection + 'static,
    E: From<Error> + From<StoreError> + Retry,
{
    let mut conn = pool.get().map_err(StoreError::transient)?;
    let mut attempt = 1;
    loop {
        match transaction(&mut conn, &mut body) {
            Err(error) if attempt < ATTEMPTS && error.lost_to_another() => {
                tracing::debug!(name, attempt, "transaction lost to another one; trying again");
                attempt += 1;
            }
            result => return result,
        }
    }
}

/// Runs reads, each seeing the database as it is then.
pub(super) fn read<C, T, E>(
    pool: &Pool<ConnectionManager<C>>,
    body: impl FnOnce(&mut C) -> Result<T, E>,
) -> Result<T, StoreError>
where
    C: R2D2Connection + LoadConnection + Connection + 'static,
    StoreError: From<E>,
{
    let mut conn = pool.get().map_err(StoreError::transient)?;
    Ok(body(&mut conn)?)
}

/// Whether a failed transaction may work when it is simply run again.
pub(super) trait Retry {
    fn lost_to_another(&self) -> bool;
}

impl Retry for StoreError {
    fn lost_to_another(&self) -> bool {
        self.source.downcast_ref().is_some_and(lost_to_another)
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
    match error {
        Error::BrokenTransactionManager | Error::DatabaseError(DatabaseErrorKind::ClosedConnection, _) => true,
        Error::DatabaseError(DatabaseErrorKind::Unknown, info) => {
            ["database is locked", "terminating connection", "server closed the connection", "shutting down"]
                .iter()
                .any(|symptom| info.message().contains(symptom))
        }
        other => lost_to_another(other),
    }
}
