//! The store: its connection pools, and the write transaction that every change uses.

use std::{sync::Arc, time::Instant};

use diesel::{
    PgConnection, QueryResult, SqliteConnection,
    connection::SimpleConnection,
    r2d2::{Pool, PooledConnection},
    result::Error,
};

use super::{
    conn::Conn,
    error::{Retry, StoreError},
    liveness::{Connector, Driver},
    postgres, sqlite,
    watch::Watch,
};
use crate::{config::Config, metrics::Metrics};

/// The most attempts of a write transaction that fails because of a concurrent one.
const ATTEMPTS: u32 = 5;

/// The database behind the pool, `PostgreSQL` or SQLite. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    pools: Pools,
    pub(super) metrics: Arc<Metrics>,
    pub(crate) watch: Arc<Watch>,
}

#[derive(Clone)]
enum Pools {
    Postgres(Pool<Connector<PgConnection>>),
    /// SQLite allows one writer at a time: writers queue for the one connection here instead of colliding in the file.
    Sqlite {
        writer: Pool<Connector<SqliteConnection>>,
        readers: Pool<Connector<SqliteConnection>>,
    },
}

impl Store {
    /// Connects to the configured database, and migrates its schema. Several servers may start at once. `begin` prepares
    /// each connection.
    pub(crate) fn open(
        config: &Config,
        metrics: Arc<Metrics>,
        watch: Arc<Watch>,
        begin: impl Fn(&mut Conn<'_>) -> QueryResult<()> + Clone + Send + Sync + 'static,
    ) -> Result<Self, StoreError> {
        let (url, connections) = (config.database_url.expose(), config.database_connections);
        let pools = if let Some(path) = url.strip_prefix("sqlite://") {
            sqlite::migrate(path, config.database_wait)?;
            Pools::Sqlite {
                writer: sqlite::writer(path, begin.clone())?,
                readers: sqlite::readers(path, connections, begin)?,
            }
        } else {
            postgres::migrate(config)?;
            Pools::Postgres(postgres::pool(url, connections, begin)?)
        };
        Ok(Self { pools, metrics, watch })
    }

    /// Runs a write transaction. Retries it if it fails because of a concurrent transaction.
    pub(crate) fn write<T, E>(
        &self,
        name: &'static str,
        mut body: impl FnMut(&mut Conn<'_>) -> Result<T, E>,
    ) -> Result<T, E>
    where
        E: From<Error> + From<StoreError> + Retry,
    {
        match &self.pools {
            Pools::Postgres(pool) => self.attempt(pool, name, |conn| conn.conn().transaction(&mut body)),
            Pools::Sqlite { writer, .. } => self.attempt(writer, name, |conn| conn.conn().transaction(&mut body)),
        }
    }

    /// Runs one atomic statement on `PostgreSQL`. Returns `None` on SQLite.
    pub(crate) fn write_on_postgres<T>(
        &self,
        name: &'static str,
        statement: impl FnMut(&mut PgConnection) -> Result<T, StoreError>,
    ) -> Result<Option<T>, StoreError> {
        match &self.pools {
            Pools::Postgres(pool) => self.attempt(pool, name, statement).map(Some),
            Pools::Sqlite { .. } => Ok(None),
        }
    }

    /// Runs reads without a transaction: each sees the database at its own time.
    pub(crate) fn read<T, E>(&self, body: impl FnOnce(&mut Conn<'_>) -> Result<T, E>) -> Result<T, StoreError>
    where
        StoreError: From<E>,
    {
        match &self.pools {
            Pools::Postgres(pool) => self.read_from(pool, |conn| body(&mut conn.conn())),
            Pools::Sqlite { readers, .. } => self.read_from(readers, |conn| body(&mut conn.conn())),
        }
    }

    /// Runs reads of whole tables. All other reads must use an index, whatever size `PostgreSQL` estimates for the
    /// table.
    pub(crate) fn read_whole_tables<T>(
        &self,
        mut body: impl FnMut(&mut Conn<'_>) -> QueryResult<T>,
    ) -> Result<T, StoreError> {
        self.read(|conn| {
            let Conn::Postgres(_) = conn else { return body(conn) };
            conn.transaction(&mut |conn| {
                if let Conn::Postgres(conn) = conn {
                    conn.batch_execute("SET LOCAL enable_seqscan = on")?;
                }
                body(conn)
            })
        })
    }

    fn attempt<C: Driver, T, E: From<StoreError> + Retry>(
        &self,
        pool: &Pool<Connector<C>>,
        name: &'static str,
        mut transaction: impl FnMut(&mut C) -> Result<T, E>,
    ) -> Result<T, E> {
        let mut checked = self.connection(pool)?;
        let mut attempt = 1;
        loop {
            let result = transaction(&mut checked.conn);
            checked.at = result.is_ok().then(Instant::now);
            if let Some(error) = result.as_ref().err().and_then(Retry::store_error).filter(|error| error.refuses_writes)
            {
                self.note_refusal(error);
                checked.is_spoiled = true;
            }
            match result {
                Err(error) if attempt < ATTEMPTS && error.lost_to_another() => {
                    tracing::debug!(name, attempt, "transaction lost to another one; trying again");
                    self.metrics.retried(name);
                    attempt += 1;
                }
                result => return result,
            }
        }
    }

    fn read_from<C: Driver, T, E>(
        &self,
        pool: &Pool<Connector<C>>,
        body: impl FnOnce(&mut C) -> Result<T, E>,
    ) -> Result<T, StoreError>
    where
        StoreError: From<E>,
    {
        let mut checked = self.connection(pool)?;
        let result = body(&mut checked.conn).map_err(StoreError::from);
        checked.at = result.is_ok().then(Instant::now);
        if let Some(error) = result.as_ref().err().filter(|error| error.refuses_writes) {
            self.note_refusal(error);
            checked.is_spoiled = true;
        }
        result
    }

    fn connection<C: Driver>(&self, pool: &Pool<Connector<C>>) -> Result<PooledConnection<Connector<C>>, StoreError> {
        let begun = Instant::now();
        let conn = pool.get();
        self.metrics.waited_for_connection(begun.elapsed());
        conn.map_err(StoreError::transient)
    }

    /// Records that the database refuses writes, and logs it the first time. The affected requests get `unavailable`.
    fn note_refusal(&self, error: &StoreError) {
        if self.metrics.database_is_writable(false) {
            tracing::error!(
                %error,
                "the database takes no writes: see whether its disk is full, or whether it is read-only. Until it takes them \
                 again, requests that write are answered 503, and so is /readyz"
            );
        }
    }

    /// The metrics of this server.
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Whether several servers may use the database at once.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        matches!(self.pools, Pools::Postgres(_))
    }

    /// The name of the database system, for log messages.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self.pools {
            Pools::Postgres(_) => "PostgreSQL",
            Pools::Sqlite { .. } => "SQLite",
        }
    }
}
