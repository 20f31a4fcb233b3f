//! Connection manager that skips the liveness query if the connection worked within the last second.

use std::time::{Duration, Instant};

use diesel::{
    QueryResult,
    r2d2::{ConnectionManager, Error, ManageConnection, Pool, R2D2Connection},
};

use super::{conn::Conn, error::StoreError};

/// The longest that a request waits for a connection before it gets `unavailable`.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(2);

/// A connection that worked within this time is not checked with a query, which would cost each request a round trip.
const FRESH: Duration = Duration::from_secs(1);

/// A connection, and the time at which it last worked.
pub(super) struct Checked<C> {
    pub(super) conn: C,
    pub(super) at: Option<Instant>,
    /// Whether to discard the connection: it may refuse writes even after the database accepts them again.
    pub(super) is_spoiled: bool,
}

/// A connection of one of the databases.
pub(super) trait Driver: R2D2Connection + 'static {
    /// Detects without a query whether the database has closed the connection.
    fn has_hung_up(&mut self) -> bool;
    /// Wraps the connection in the type that covers both databases.
    fn conn(&mut self) -> Conn<'_>;
}

type Begin = dyn Fn(&mut Conn<'_>) -> QueryResult<()> + Send + Sync;

/// Opens connections and prepares each of them.
pub(super) struct Connector<C> {
    manager: ConnectionManager<C>,
    begin: Box<Begin>,
}

impl<C: Driver> Connector<C> {
    pub(super) fn new(url: &str, begin: impl Fn(&mut Conn<'_>) -> QueryResult<()> + Send + Sync + 'static) -> Self {
        Self { manager: ConnectionManager::new(url), begin: Box::new(begin) }
    }
}

impl<C: Driver> ManageConnection for Connector<C> {
    type Connection = Checked<C>;
    type Error = Error;

    fn connect(&self) -> Result<Checked<C>, Error> {
        let mut conn = self.manager.connect()?;
        (self.begin)(&mut conn.conn()).map_err(Error::QueryError)?;
        Ok(Checked { conn, at: Some(Instant::now()), is_spoiled: false })
    }

    fn is_valid(&self, checked: &mut Checked<C>) -> Result<(), Error> {
        let is_fresh = checked.at.is_some_and(|at| at.elapsed() < FRESH);
        if is_fresh && !checked.conn.has_hung_up() { Ok(()) } else { self.manager.is_valid(&mut checked.conn) }
    }

    fn has_broken(&self, checked: &mut Checked<C>) -> bool {
        checked.is_spoiled || self.manager.has_broken(&mut checked.conn)
    }
}

pub(super) fn pool<C: Driver>(connector: Connector<C>, size: u32) -> Result<Pool<Connector<C>>, StoreError> {
    Pool::builder()
        .max_size(size)
        .min_idle(Some(1))
        .connection_timeout(CONNECTION_TIMEOUT)
        .test_on_check_out(true)
        .build(connector)
        .map_err(StoreError::transient)
}
