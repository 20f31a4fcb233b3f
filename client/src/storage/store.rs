//! The store itself: one SQLite file, opened, decrypted and brought up to date.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use parking_lot::{ReentrantMutex, ReentrantMutexGuard};
use rusqlite::Connection;
use secrecy::SecretString;

use super::{
    encryption::encrypt_anew,
    files::{
        Beginning, FILE, Lock, UNFINISHED, beginning, file_error, lock, make_directory, private_file,
        private_side_files, remove_unfinished,
    },
    former_name::{FORMER_FILE, rename_former},
    open::{check_application, open},
    provider::{Provider, SqliteStorage},
    schema,
    turns::Turns,
};
use crate::error::{Error, Result};

/// One SQLite file, mode 0600, in a data directory: OpenMLS's tables, the metadata of the KeyPackage pool, and the
/// device's identity. All use one connection, so that keys and metadata change in one transaction. SQLCipher encrypts
/// the whole file if it was created with a passphrase, which takes the feature `sqlcipher` of this crate.
///
/// Only one process at a time can open it. Its threads take turns: one has the connection for the length of a
/// transaction.
#[derive(Debug)]
pub struct LocalStore {
    /// Reentrant, since a transaction calls methods that use the connection.
    connection: ReentrantMutex<Connection>,
    pub(crate) turns: Turns,
    directory: PathBuf,
    _lock: Lock,
}

impl LocalStore {
    /// Opens the store in a data directory. Creates both if they do not exist.
    pub fn open(directory: &Path) -> Result<Self> {
        Self::open_with(directory, None)
    }

    /// Opens the store in a data directory. Creates both if they do not exist, encrypted if a passphrase is given. An
    /// existing store must have been created with the same passphrase, or both without one.
    pub fn open_with(directory: &Path, passphrase: Option<&SecretString>) -> Result<Self> {
        make_directory(directory)?;
        let lock = lock(directory)?;
        let path = directory.join(FILE);
        remove_unfinished(directory)?;
        if matches!(beginning(&path)?, Beginning::Nothing) {
            rename_former(directory, passphrase)?;
        }
        if matches!(beginning(&path)?, Beginning::Nothing) {
            create(directory, &path, passphrase)?;
        }
        private_file(&path)?;
        private_side_files(&path)?;
        let mut connection = open(&path, passphrase)?;
        check_application(&connection, &path)?;
        configure(&connection).map_err(Error::storage("set up the connection"))?;
        migrate_openmls(&mut connection)?;
        schema::migrate(&mut connection)?;
        let connection = ReentrantMutex::new(connection);
        Ok(Self { connection, turns: Turns::default(), directory: directory.to_owned(), _lock: lock })
    }

    /// The connection, which no other thread has meanwhile. Nobody may hold it while waiting for something else.
    pub(super) fn connection(&self) -> ReentrantMutexGuard<'_, Connection> {
        self.connection.lock()
    }

    /// Whether the data directory holds an encrypted store.
    pub fn is_encrypted(directory: &Path) -> Result<bool> {
        let database = match beginning(&directory.join(FILE))? {
            Beginning::Nothing => beginning(&directory.join(FORMER_FILE))?,
            found => found,
        };
        Ok(matches!(database, Beginning::Other))
    }

    /// Gives the store in a data directory another passphrase: encrypts one that had none, and decrypts one that is to have
    /// none. Takes the feature `sqlcipher` of this crate. On an error, and after a crash, the store is as it was.
    pub fn change_passphrase(
        directory: &Path,
        passphrase: Option<&SecretString>,
        new: Option<&SecretString>,
    ) -> Result<()> {
        if matches!(beginning(&directory.join(FILE))?, Beginning::Nothing)
            && matches!(beginning(&directory.join(FORMER_FILE))?, Beginning::Nothing)
        {
            return Err(Error::NotInitialised(directory.to_owned()));
        }
        let Self { connection, _lock, .. } = Self::open_with(directory, passphrase)?;
        encrypt_anew(connection.into_inner(), directory, new)
    }

    /// The data directory.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Writes a file in the data directory, which only its owner may read.
    pub(crate) fn write_file(&self, name: &str, content: &[u8]) -> Result<PathBuf> {
        let path = self.directory.join(name);
        let mut file = private_file(&path)?;
        file.set_len(0)
            .and_then(|()| io::Write::write_all(&mut file, content))
            .and_then(|()| file.sync_all())
            .map_err(file_error("write", &path))?;
        Ok(path)
    }

    /// OpenMLS's cryptography and storage, on this store's connection. Other threads wait for the store until the
    /// provider is dropped, so drop it before you wait for anything.
    #[must_use]
    pub fn provider(&self) -> Provider<'_> {
        Provider::new(self.connection())
    }

    /// Runs `write` in one transaction, which is rolled back on an error.
    pub(crate) fn transaction<T>(&self, write: impl FnOnce() -> Result<T>) -> Result<T> {
        let connection = self.connection();
        let transaction = connection.unchecked_transaction().map_err(Error::storage("begin a transaction"))?;
        let done = write()?;
        transaction.commit().map_err(Error::storage("commit a transaction"))?;
        Ok(done)
    }

    /// Runs `attempt` in a transaction that is always rolled back.
    pub(crate) fn dry_run<T>(&self, attempt: impl FnOnce() -> Result<T>) -> Result<T> {
        let connection = self.connection();
        let transaction = connection.unchecked_transaction().map_err(Error::storage("begin a transaction"))?;
        let outcome = attempt();
        transaction.rollback().map_err(Error::storage("roll a transaction back"))?;
        outcome
    }

    /// The damage that SQLite finds in the file, in SQLite's words; empty if there is none.
    pub fn integrity(&self) -> Result<Vec<String>> {
        let found: Vec<String> = self
            .connection()
            .prepare("PRAGMA integrity_check")
            .and_then(|mut check| check.query_map([], |row| row.get(0))?.collect())
            .map_err(Error::storage("check the database"))?;
        Ok(found.into_iter().filter(|line| line != "ok").collect())
    }

    /// The number of KeyPackages whose private keys are in OpenMLS's tables.
    pub fn count_keys(&self) -> Result<usize> {
        self.connection()
            .query_row("SELECT count(*) FROM openmls_key_packages", [], |row| row.get(0))
            .map_err(Error::storage("count the private keys"))
    }
}

/// Creates the database with OpenMLS's tables under another name, and renames it when it is complete. OpenMLS runs a
/// migration and records it in two transactions, so a crash between them would leave a file that cannot be repaired.
fn create(directory: &Path, path: &Path, passphrase: Option<&SecretString>) -> Result<()> {
    let new = directory.join(UNFINISHED);
    private_file(&new)?;
    let mut connection = open(&new, passphrase)?;
    migrate_openmls(&mut connection)?;
    connection.close().map_err(|(_, error)| Error::storage("create the database")(error))?;
    fs::rename(&new, path).map_err(file_error("put the database at", path))
}

fn migrate_openmls(connection: &mut Connection) -> Result<()> {
    SqliteStorage::<&mut Connection>::new(connection)
        .run_migrations()
        .map_err(|error| Error::Migration(Box::new(error)))
}

fn configure(connection: &Connection) -> rusqlite::Result<()> {
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    // Overwrite deleted private keys, instead of only unlinking them.
    connection.pragma_update(None, "secure_delete", true)
}
