//! Opens a database file: the right program's, and with the right passphrase.

use std::path::Path;

use rusqlite::{Connection, OptionalExtension as _};
use secrecy::{ExposeSecret, SecretString};

use super::files::{Beginning, beginning};
use crate::error::{Error, Result};

/// SQLite's application id of this database, `KPDV`: a server that is pointed at the file sees that it is none of its own.
const APPLICATION: i32 = 0x4b50_4456;

/// Opens a database file, with its passphrase.
pub(super) fn open(path: &Path, passphrase: Option<&SecretString>) -> Result<Connection> {
    let connection = Connection::open(path).map_err(Error::storage("open the database"))?;
    unlock(&connection, path, passphrase)?;
    Ok(connection)
}

/// Fails if another program has marked the database as its own.
pub(super) fn check_application(connection: &Connection, path: &Path) -> Result<()> {
    let application = connection
        .pragma_query_value(None, "application_id", |row| row.get::<_, i32>(0))
        .map_err(Error::storage("read whose database it is"))?;
    match application {
        APPLICATION => Ok(()),
        // New, or of an earlier version.
        0 => connection
            .pragma_update(None, "application_id", APPLICATION)
            .map_err(Error::storage("mark the database as this program's")),
        _ => Err(Error::OtherProgram(path.to_owned())),
    }
}

/// Gives SQLCipher the passphrase, and checks that it is correct.
fn unlock(connection: &Connection, path: &Path, passphrase: Option<&SecretString>) -> Result<()> {
    match (beginning(path)?, passphrase) {
        (Beginning::Plain, Some(_)) => return Err(Error::NotEncrypted(path.to_owned())),
        (Beginning::Other, None) => return Err(Error::Encrypted(path.to_owned())),
        (_, None) => return Ok(()),
        (_, Some(passphrase)) => {
            if !has_encryption(connection)? {
                return Err(Error::NoEncryption(path.to_owned()));
            }
            connection
                .pragma_update(None, "key", passphrase.expose_secret())
                // Silence SQLCipher's log: our errors say what is wrong. Setting the key enables the log, so do this
                // after it.
                .and_then(|()| connection.execute_batch("PRAGMA cipher_log_level = NONE"))
                .map_err(Error::storage("set the passphrase"))?;
        }
    }
    match connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get::<_, i64>(0)) {
        Err(rusqlite::Error::SqliteFailure(failure, _)) if failure.code == rusqlite::ErrorCode::NotADatabase => {
            Err(Error::WrongPassphrase(path.to_owned()))
        }
        other => other.map(drop).map_err(Error::storage("read the database")),
    }
}

/// Whether this program was built with SQLCipher.
pub(super) fn has_encryption(connection: &Connection) -> Result<bool> {
    connection
        .query_row("PRAGMA cipher_version", [], |_| Ok(()))
        .optional()
        .map(|version| version.is_some())
        .map_err(Error::storage("find out whether it can be encrypted"))
}
