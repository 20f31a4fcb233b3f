//! How connections are made, and how it is known that one still works.

use std::time::{Duration, Instant};

use diesel::{
    QueryResult,
    r2d2::{ConnectionManager, Error, ManageConnection, R2D2Connection},
};

/// A connection that did what it was asked within this time is not asked whether it is there: that would be another round
/// trip for every request.
const FRESH: Duration = Duration::from_secs(1);

/// A connection, and when it last did what it was asked.
pub(super) struct Proven<C> {
    pub(super) conn: C,
    pub(super) at: Option<Instant>,
    /// Whether it is not to be used again: it may go on refusing writes when the database no longer does.
    pub(super) is_spoiled: bool,
}

/// What can be seen of the other end without asking it.
pub(super) trait Glance {
    /// Whether it has hung up.
    fn has_hung_up(&mut self) -> bool;
}

type Begin<C> = dyn Fn(&mut C) -> QueryResult<()> + Send + Sync;

/// Makes connections, each of which begins in the same way.
pub(super) struct Connector<C> {
    manager: ConnectionManager<C>,
    begin: Box<Begin<C>>,
}

impl<C: R2D2Connection + 'static> Connector<C> {
    pub(super) fn new(url: &str, begin: impl Fn(&mut C) -> QueryResult<()> + Send + Sync + 'static) -> Self {
        Self { manager: ConnectionManager::new(url), begin: Box::new(begin) }
    }
}

impl<C: R2D2Connection + Glance + 'static> ManageConnection for Connector<C> {
    type Connection = Proven<C>;
    type Error = Error;

    fn connect(&self) -> Result<Proven<C>, Error> {
        let mut conn = self.manager.connect()?;
        (self.begin)(&mut conn).map_err(Error::QueryError)?;
        Ok(Proven { conn, at: Some(Instant::now()), is_spoiled: false })
    }

    fn is_valid(&self, proven: &mut Proven<C>) -> Result<(), Error> {
        let is_fresh = proven.at.is_some_and(|at| at.elapsed() < FRESH);
        if is_fresh && !proven.conn.has_hung_up() { Ok(()) } else { self.manager.is_valid(&mut proven.conn) }
    }

    fn has_broken(&self, proven: &mut Proven<C>) -> bool {
        proven.is_spoiled || self.manager.has_broken(&mut proven.conn)
    }
}
