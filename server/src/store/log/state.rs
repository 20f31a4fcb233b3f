//! The size and the root of the newest log.

use diesel::{prelude::*, result::Error};
use keypool_transparency::encoding::Hash;

use crate::store::database::{Conn, Store, StoreError, schema::log_state, sql::statements};

/// The tree of the newest log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TreeState {
    /// The log's number.
    pub k: i32,
    /// How many leaves it has.
    pub size: u64,
    /// The root over them.
    pub root: Hash,
    /// When the last ones came, in Unix seconds.
    pub at: i64,
    /// The last event that is in it, on SQLite.
    pub(super) last_event: i64,
}

type Columns = (i32, i64, Vec<u8>, i64, i64);

const COLUMNS: (log_state::k, log_state::size, log_state::root, log_state::at, log_state::last_event) =
    (log_state::k, log_state::size, log_state::root, log_state::at, log_state::last_event);

impl TreeState {
    fn from_columns((k, size, root, at, last_event): Columns) -> Result<Self, StoreError> {
        let size = u64::try_from(size).map_err(StoreError::fatal)?;
        let root =
            root.try_into().map_err(|_| StoreError::fatal(anyhow::anyhow!("the log's root has not 32 bytes")))?;
        Ok(Self { k, size, root, at, last_event })
    }
}

statements! {
    fn kept(conn) -> QueryResult<Option<Columns>> {
        log_state::table.find(1).select(COLUMNS).first(conn).optional()
    }

    pub(super) fn write(conn, state: &TreeState) -> QueryResult<usize> {
        let size = i64::try_from(state.size).unwrap_or(i64::MAX);
        let values = (
            log_state::k.eq(state.k),
            log_state::size.eq(size),
            log_state::root.eq(state.root.as_slice()),
            log_state::at.eq(state.at),
            log_state::last_event.eq(state.last_event),
        );
        diesel::insert_into(log_state::table)
            .values((log_state::id.eq(1), values))
            .on_conflict(log_state::id)
            .do_update()
            .set(values)
            .execute(conn)
    }
}

/// Reads the state; `None` if the database has no log.
pub(super) fn read(conn: &mut Conn<'_>) -> Result<Option<TreeState>, StoreError> {
    kept(conn)?.map(TreeState::from_columns).transpose()
}

/// Reads and locks the state. `None` if the database has no log, or if another server appends right now.
pub(super) fn hold(conn: &mut Conn<'_>) -> Result<Option<TreeState>, StoreError> {
    let found = match conn {
        Conn::Postgres(conn) => {
            let state = log_state::table.find(1).select(COLUMNS);
            state.for_update().skip_locked().first(*conn).optional()?
        }
        Conn::Sqlite(_) => kept(conn)?,
    };
    found.map(TreeState::from_columns).transpose()
}

/// Reads and locks the state, and waits for a server that appends right now.
pub(super) fn await_hold(conn: &mut Conn<'_>) -> QueryResult<Option<TreeState>> {
    let found = match conn {
        Conn::Postgres(conn) => log_state::table.find(1).select(COLUMNS).for_update().first(*conn).optional()?,
        Conn::Sqlite(_) => kept(conn)?,
    };
    found.map(TreeState::from_columns).transpose().map_err(unreadable)
}

/// A row that no server has written.
pub(super) fn unreadable(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::DeserializationError(Box::new(error))
}

impl Store {
    /// Returns the tree of the newest log; `None` if the database has no log. What it shows is durable.
    ///
    /// # Errors
    /// When the database fails.
    pub fn log_state(&self) -> Result<Option<TreeState>, StoreError> {
        self.read(read)
    }
}
