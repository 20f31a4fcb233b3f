//! What a server remembers of its database beside what the database says of itself.

use std::sync::{
    Arc,
    atomic::{AtomicI64, Ordering},
};

use diesel::QueryResult;

use super::lineage::{Lineage, LineageSql, TakeUp, take_up};
use crate::{
    clock::Clock,
    config::{Config, OnRestore},
};

/// The memory of one server.
pub(super) struct Watch {
    clock: Arc<dyn Clock>,
    trust: bool,
    /// The highest generation that was seen.
    reached: AtomicI64,
}

impl Watch {
    pub(super) fn new(config: &Config, clock: Arc<dyn Clock>) -> Self {
        Self { clock, trust: config.on_restore == OnRestore::Trust, reached: AtomicI64::new(0) }
    }

    /// The generation that the database has at least. Asked for before the database is: it only goes up.
    pub(super) fn reached(&self) -> i64 {
        self.reached.load(Ordering::SeqCst)
    }

    pub(super) fn saw(&self, generation: i64) {
        self.reached.fetch_max(generation, Ordering::SeqCst);
    }

    pub(super) fn take_up<'a>(&self, origin: Option<&'a str>) -> TakeUp<'a> {
        TakeUp { origin, reached: self.reached(), trust: self.trust, now: self.clock.now().as_second() }
    }

    /// Sees over a new connection whether the database was restored, and fences it then. After a failover or a restore all
    /// connections are new: so nothing is asked of one before this.
    pub(super) fn look<C: Lineage + LineageSql>(
        &self,
        conn: &mut C,
        transaction: impl FnOnce(&mut C, &mut dyn FnMut(&mut C) -> QueryResult<i64>) -> QueryResult<i64>,
    ) -> QueryResult<()> {
        let origin = conn.origin()?;
        let up = self.take_up(origin.as_deref());
        let generation = match up.known(conn.signs()?.as_ref()) {
            Some(generation) => generation,
            None => transaction(conn, &mut |conn| take_up(conn, &up))?,
        };
        self.saw(generation);
        Ok(())
    }
}
