//! Whether the database takes writes: a full disk, a standby, or an operator's setting may keep it from that. It is an outage, from
//! which the server recovers by itself.

use diesel::{
    PgConnection, QueryResult, SqliteConnection,
    prelude::*,
    r2d2::R2D2Connection,
    result::{DatabaseErrorKind, Error},
    sql_types::Bool,
};

use super::{Store, StoreError, connection::with_conn, rows::statements, schema::enrolments};
use crate::metrics::Metrics;

/// What SQLite and PostgreSQL say where there is no room, or no right to write; Diesel hands on the message alone.
const REFUSALS: [&str; 6] = [
    "database or disk is full",
    "attempt to write a readonly database",
    "disk I/O error",
    "unable to open database file",
    "No space left on device",
    "Read-only file system",
];

/// What a probe writes, and removes in the same transaction: the hash of no token that can be made.
const PROBE: [u8; 32] = [0; 32];

/// Whether a statement failed because the database takes no writes.
pub(super) fn is_refusal(error: &Error) -> bool {
    match error {
        Error::DatabaseError(DatabaseErrorKind::ReadOnlyTransaction, _) => true,
        Error::DatabaseError(DatabaseErrorKind::Unknown, info) => {
            REFUSALS.iter().any(|refusal| info.message().contains(refusal))
        }
        Error::RollbackErrorOnCommit { rollback_error, commit_error } => {
            is_refusal(rollback_error) || is_refusal(commit_error)
        }
        _ => false,
    }
}

/// Notes that the database takes no writes, and says so the first time. Each request that meets it is answered `unavailable`.
pub(super) fn note_refusal(metrics: &Metrics, error: &StoreError) {
    if metrics.database_is_writable(false) {
        tracing::error!(
            %error,
            "the database takes no writes: see whether its disk is full, or whether it is read-only. Until it takes them \
             again, requests that write are answered 503, and so is /readyz"
        );
    }
}

/// What a connection says of itself.
trait ReadOnly {
    /// Whether its transactions cannot write. It is also how the database is asked whether it is there.
    fn is_read_only(&mut self) -> QueryResult<bool>;
}

impl ReadOnly for PgConnection {
    fn is_read_only(&mut self) -> QueryResult<bool> {
        diesel::select(diesel::dsl::sql::<Bool>("current_setting('transaction_read_only')::boolean")).get_result(self)
    }
}

impl ReadOnly for SqliteConnection {
    fn is_read_only(&mut self) -> QueryResult<bool> {
        // A disk that is full or read-only shows when something is written.
        R2D2Connection::ping(self).map(|()| false)
    }
}

statements! {
    trait ProbeSql {
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
}

impl Store {
    /// Whether the database answers, and takes writes. Once it has refused one, something is written to see whether it does so
    /// still.
    ///
    /// # Errors
    /// When it does not.
    pub fn ping(&self) -> Result<(), StoreError> {
        let read_only = with_conn!(self, read, |conn| if conn.is_read_only()? {
            let why: Box<dyn diesel::result::DatabaseErrorInformation + Send + Sync> =
                Box::new("its transactions are read-only".to_owned());
            Err(Error::DatabaseError(DatabaseErrorKind::ReadOnlyTransaction, why))
        } else {
            Ok(())
        });
        read_only?;
        if self.metrics.database_was_writable() {
            return Ok(());
        }
        with_conn!(self, write "probe", |conn| conn.write_and_remove().map_err(StoreError::from))?;
        if self.metrics.database_is_writable(true) {
            tracing::info!("the database takes writes again");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_refuses_writes_is_told_from_what_is_wrong() {
        let said = |kind, message: &str| Error::DatabaseError(kind, Box::new(message.to_owned()));
        for message in [
            "database or disk is full",
            "attempt to write a readonly database",
            "could not extend file \"base/5/16384\": No space left on device",
        ] {
            assert!(is_refusal(&said(DatabaseErrorKind::Unknown, message)), "{message}");
        }
        assert!(is_refusal(&said(DatabaseErrorKind::ReadOnlyTransaction, "cannot execute UPDATE")));
        for (kind, message) in [
            (DatabaseErrorKind::Unknown, "syntax error at or near"),
            (DatabaseErrorKind::UniqueViolation, "database or disk is full"),
        ] {
            assert!(!is_refusal(&said(kind, message)), "{message}");
        }
        assert!(StoreError::from(said(DatabaseErrorKind::Unknown, "disk I/O error")).transient);
    }
}
