//! Classifies errors of the database, and which of them a retry may solve.

use std::fmt;

use diesel::result::{DatabaseErrorKind, Error};

/// Messages of SQLite, PostgreSQL and libpq for a database that is busy, restarting or unreachable. Where Diesel does
/// not detect a closed connection, it passes on only the message.
const AWAY: [&str; 15] = [
    "database is locked",
    "database table is locked",
    "canceling statement due to",
    "terminating connection",
    "the database system is",
    "too many clients",
    "remaining connection slots",
    "closed the connection",
    "no connection to the server",
    "could not connect",
    "could not receive data from server",
    "could not send data to server",
    "Connection refused",
    "SSL connection has been closed",
    "SSL SYSCALL error",
];

/// Messages of SQLite and PostgreSQL for a full disk or a missing right to write. Diesel passes on only the message.
const REFUSALS: [&str; 6] = [
    "database or disk is full",
    "attempt to write a readonly database",
    "disk I/O error",
    "unable to open database file",
    "No space left on device",
    "Read-only file system",
];

/// An error of the database.
#[derive(Debug)]
pub struct StoreError {
    /// Whether a retry may succeed soon: the database is unreachable, busy, shutting down, or refuses writes.
    pub transient: bool,
    /// Whether the database refuses writes. The log reports that when it begins, and not for each request.
    pub refuses_writes: bool,
    source: anyhow::Error,
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the database failed: {:#}", self.source)
    }
}

// The text has all causes already.
impl std::error::Error for StoreError {}

impl StoreError {
    pub(crate) fn transient(source: impl Into<anyhow::Error>) -> Self {
        Self { transient: true, refuses_writes: false, source: source.into() }
    }

    pub(crate) fn fatal(source: impl Into<anyhow::Error>) -> Self {
        Self { transient: false, refuses_writes: false, source: source.into() }
    }

    /// The same error, after an explanation.
    pub(crate) fn explained(self, explanation: String) -> Self {
        Self { source: self.source.context(explanation), ..self }
    }
}

impl From<Error> for StoreError {
    fn from(error: Error) -> Self {
        let refuses_writes = is_refusal(&error);
        let transient = refuses_writes || is_transient(&error);
        Self { transient, refuses_writes, source: error.into() }
    }
}

/// The reason why a transaction changed nothing.
#[derive(Debug)]
pub enum Failure<R> {
    /// The verb refused the request.
    Refused(R),
    /// The database failed.
    Store(StoreError),
}

impl<R> From<StoreError> for Failure<R> {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl<R> From<Error> for Failure<R> {
    fn from(error: Error) -> Self {
        Self::Store(error.into())
    }
}

/// Errors of a transaction that may succeed when it is run again.
pub(crate) trait Retry {
    /// Returns the database's error, if it is one.
    fn store_error(&self) -> Option<&StoreError>;

    fn lost_to_another(&self) -> bool {
        self.store_error().is_some_and(|error| error.source.downcast_ref().is_some_and(lost_to_another))
    }
}

impl Retry for StoreError {
    fn store_error(&self) -> Option<&StoreError> {
        Some(self)
    }
}

impl<R> Retry for Failure<R> {
    fn store_error(&self) -> Option<&StoreError> {
        if let Self::Store(error) = self { Some(error) } else { None }
    }
}

/// Whether a statement failed because the database refuses writes.
fn is_refusal(error: &Error) -> bool {
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

fn lost_to_another(error: &Error) -> bool {
    match error {
        Error::DatabaseError(DatabaseErrorKind::SerializationFailure, _) => true,
        // Diesel has no kind for a deadlock (SQLSTATE 40P01), so only the message identifies it.
        Error::DatabaseError(DatabaseErrorKind::Unknown, info) => info.message().contains("deadlock detected"),
        _ => false,
    }
}

/// Whether a retry may succeed soon.
fn is_transient(error: &Error) -> bool {
    lost_to_another(error) || is_away(error)
}

pub(super) fn is_away(error: &Error) -> bool {
    match error {
        Error::BrokenTransactionManager | Error::DatabaseError(DatabaseErrorKind::ClosedConnection, _) => true,
        Error::DatabaseError(DatabaseErrorKind::Unknown | DatabaseErrorKind::UnableToSendCommand, info) => {
            says_away(info.message())
        }
        Error::RollbackErrorOnCommit { rollback_error, commit_error } => {
            is_transient(rollback_error) || is_transient(commit_error)
        }
        _ => false,
    }
}

/// Whether a message says that the database is unreachable, restarting or busy.
pub(super) fn says_away(message: &str) -> bool {
    AWAY.iter().any(|symptom| message.contains(symptom))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(kind: DatabaseErrorKind, message: &str) -> Error {
        Error::DatabaseError(kind, Box::new(message.to_owned()))
    }

    #[test]
    fn a_database_that_is_away_is_asked_again_and_a_wrong_statement_is_not() {
        use DatabaseErrorKind as K;
        for (kind, message) in [
            (K::Unknown, "database is locked"),
            (K::Unknown, "FATAL:  terminating connection due to administrator command"),
            (K::Unknown, "the database system is starting up"),
            (K::Unknown, "the database system is in recovery mode"),
            (K::Unknown, "canceling statement due to statement timeout"),
            (K::Unknown, "sorry, too many clients already"),
            (K::Unknown, "server closed the connection unexpectedly"),
            (K::Unknown, "deadlock detected"),
            (K::UnableToSendCommand, "no connection to the server\n"),
            (K::UnableToSendCommand, "could not send data to server: Broken pipe"),
            (K::ClosedConnection, "Verbindung geschlossen"),
            (K::SerializationFailure, ""),
        ] {
            assert!(is_transient(&said(kind, message)), "{message}");
        }
        for (kind, message) in [
            (K::Unknown, "syntax error at or near"),
            (K::UnableToSendCommand, "number of parameters must be between 0 and 65535"),
            (K::UniqueViolation, "duplicate key value"),
        ] {
            assert!(!is_transient(&said(kind, message)), "{message}");
        }
        let lost = Error::RollbackErrorOnCommit {
            rollback_error: Box::new(said(K::UnableToSendCommand, "no connection to the server")),
            commit_error: Box::new(said(K::Unknown, "x")),
        };
        assert!(is_transient(&lost));
        assert!(!is_transient(&Error::NotFound));
    }

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
