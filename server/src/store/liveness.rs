//! Connection manager that skips the liveness query if the connection worked within the last second.

use std::time::{Duration, Instant};

use diesel::{
    QueryResult,
    r2d2::{ConnectionManager, Error, ManageConnection, R2D2Connection},
};

/// A connection that worked within this time is not checked by a query, which would cost each request a round trip.
const FRESH: Duration = Duration::from_secs(1);

/// A connection, and when it last worked.
pub(super) struct Checked<C> {
    pub(super) conn: C,
    pub(super) at: Option<Instant>,
    /// Whether to discard it: it may refuse writes even after the database accepts them again.
    pub(super) is_spoiled: bool,
}

/// Sees without a query whether the database has closed the connection.
pub(super) trait PeerClosed {
    /// Whether the database has closed the connection.
    fn has_hung_up(&mut self) -> bool;
}

type Begin<C> = dyn Fn(&mut C) -> QueryResult<()> + Send + Sync;

/// Opens connections and prepares each in the same way.
pub(super) struct Connector<C> {
    manager: ConnectionManager<C>,
    begin: Box<Begin<C>>,
}

impl<C: R2D2Connection + 'static> Connector<C> {
    pub(super) fn new(url: &str, begin: impl Fn(&mut C) -> QueryResult<()> + Send + Sync + 'static) -> Self {
        Self { manager: ConnectionManager::new(url), begin: Box::new(begin) }
    }
}

impl<C: R2D2Connection + PeerClosed + 'static> ManageConnection for Connector<C> {
    type Connection = Checked<C>;
    type Error = Error;

    fn connect(&self) -> Result<Checked<C>, Error> {
        let mut conn = self.manager.connect()?;
        (self.begin)(&mut conn).map_err(Error::QueryError)?;
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
