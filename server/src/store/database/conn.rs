//! One connection, of either database.

use diesel::{Connection, PgConnection, SqliteConnection, result::Error};

/// A connection to the database. A statement that is the same on both is written once, with the macro `statements`; one that
/// differs matches on this.
pub(crate) enum Conn<'a> {
    Postgres(&'a mut PgConnection),
    Sqlite(&'a mut SqliteConnection),
}

impl Conn<'_> {
    /// Runs the body in a transaction that may write. On SQLite it begins as a writer: a transaction that becomes one later
    /// fails with `SQLITE_BUSY`, which no timeout cures.
    #[expect(clippy::disallowed_methods, reason = "this is the write-transaction helper")]
    pub(crate) fn transaction<T, E: From<Error>>(
        &mut self,
        body: &mut dyn FnMut(&mut Conn<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        match self {
            Conn::Postgres(conn) => conn.transaction(|conn| body(&mut Conn::Postgres(conn))),
            Conn::Sqlite(conn) => conn.immediate_transaction(|conn| body(&mut Conn::Sqlite(conn))),
        }
    }
}
