//! Checks whether the database accepts writes. A full disk, a standby or an operator's setting may prevent them. The
//! server treats that as an outage and recovers by itself.

use diesel::{
    QueryResult,
    prelude::*,
    r2d2::R2D2Connection,
    result::{DatabaseErrorInformation, DatabaseErrorKind, Error},
    sql_types::Bool,
};

use super::{conn::Conn, connection::Store, error::StoreError, schema::enrolments, sql::statements, watch::ClockOff};

/// A hash that no token has. The probe inserts it and deletes it in the same transaction.
const PROBE: [u8; 32] = [0; 32];

/// Returns whether the connection's transactions are read-only. The query also shows whether the database answers.
fn is_read_only(conn: &mut Conn<'_>) -> QueryResult<bool> {
    match conn {
        Conn::Postgres(conn) => {
            let setting = diesel::dsl::sql::<Bool>("current_setting('transaction_read_only')::boolean");
            diesel::select(setting).get_result(*conn)
        }
        // On SQLite, a full or read-only disk shows only at a write.
        Conn::Sqlite(conn) => R2D2Connection::ping(*conn).map(|()| false),
    }
}

statements! {
    fn write_and_remove(conn) -> QueryResult<usize> {
        diesel::insert_into(enrolments::table)
            .values((
                enrolments::token_hash.eq(PROBE.as_slice()),
                enrolments::user_name.eq(""),
                enrolments::created_at.eq(0),
                enrolments::expires_at.eq(0),
            ))
            .execute(conn)?;
        diesel::delete(enrolments::table.find(PROBE.as_slice())).execute(conn)
    }
}

impl Store {
    /// Checks that the database answers and accepts writes. After a refused write, it probes with a write until one
    /// succeeds.
    ///
    /// # Errors
    /// When it does not.
    pub fn ping(&self) -> Result<(), StoreError> {
        let read_only = self.read(|conn| {
            if is_read_only(conn)? {
                let why: Box<dyn DatabaseErrorInformation + Send + Sync> =
                    Box::new("its transactions are read-only".to_owned());
                Err(Error::DatabaseError(DatabaseErrorKind::ReadOnlyTransaction, why))
            } else {
                Ok(())
            }
        });
        read_only?;
        if self.metrics.database_was_writable() {
            return Ok(());
        }
        self.write("probe", |conn| write_and_remove(conn).map_err(StoreError::from))?;
        if self.metrics.database_is_writable(true) {
            tracing::info!("the database takes writes again");
        }
        Ok(())
    }

    /// Asks the database for its time, and compares this server's clock with it.
    ///
    /// # Errors
    /// When the database does not answer.
    pub fn compare_clocks(&self) -> Result<(), StoreError> {
        self.read(|conn| self.watch.compare_clocks(conn))
    }

    /// Checks the result of the last comparison of clocks.
    ///
    /// # Errors
    /// When it was off by more than is allowed.
    pub fn check_clock(&self) -> Result<(), ClockOff> {
        self.watch.check_clock()
    }
}
