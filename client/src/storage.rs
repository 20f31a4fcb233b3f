use std::{
    fs::{DirBuilder, File, OpenOptions, TryLockError},
    io,
    path::{Path, PathBuf},
};

use rusqlite::{Connection, OptionalExtension, params};
use secrecy::{ExposeSecret, SecretString};

use crate::{
    error::{Error, Result},
    mls::{Provider, SqliteStorage},
};

mod metadata;

pub(crate) use metadata::Metadata;
pub use metadata::{KeyPackageStatus, LocalCounts};

/// Our tables, one entry a version; `PRAGMA user_version` counts those that ran.
const MIGRATIONS: [&str; 1] = ["
    CREATE TABLE keypackage_pool_metadata (
        ref         BLOB    NOT NULL PRIMARY KEY,
        status      TEXT    NOT NULL
                    CHECK (status IN ('created', 'uploaded', 'available', 'reserved', 'spent', 'expired', 'failed')),
        created_at  INTEGER NOT NULL,
        uploaded_at INTEGER,
        not_after   INTEGER NOT NULL,
        ciphersuite INTEGER NOT NULL,
        last_resort INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE device_identity (
        id            INTEGER NOT NULL PRIMARY KEY CHECK (id = 1),
        server        TEXT    NOT NULL,
        user          TEXT    NOT NULL,
        device        TEXT    NOT NULL,
        token         TEXT,
        signature_key BLOB    NOT NULL
    ) STRICT;
"];

/// What the store knows about the device: never its private keys, which OpenMLS's tables hold.
#[derive(Clone, Debug)]
pub(crate) struct IdentityRow {
    pub(crate) server: String,
    pub(crate) user: String,
    pub(crate) device: String,
    pub(crate) token: Option<SecretString>,
    pub(crate) signature_key: Vec<u8>,
}

/// One SQLite file, mode 0600, in a data directory: OpenMLS's tables, and beside them the metadata of the KeyPackage
/// pool and the device's identity, all on one connection so that keys and metadata change in one transaction.
///
/// One process at a time has it open.
#[derive(Debug)]
pub struct LocalStore {
    connection: Connection,
    directory: PathBuf,
    /// Holds the lock for as long as it is open.
    _lock: File,
}

impl LocalStore {
    /// Opens the store in a data directory, and makes both where they do not exist.
    pub fn open(directory: &Path) -> Result<Self> {
        make_directory(directory)?;
        let lock = lock(directory)?;
        let path = directory.join("keypool.db");
        private_file(&path)?;
        let mut connection = Connection::open(&path).map_err(Error::storage("open the database"))?;
        configure(&connection).map_err(Error::storage("set up the connection"))?;
        SqliteStorage::<&mut Connection>::new(&mut connection)
            .run_migrations()
            .map_err(|error| Error::Migration(Box::new(error)))?;
        migrate(&connection)?;
        Ok(Self { connection, directory: directory.to_owned(), _lock: lock })
    }

    /// The data directory.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// OpenMLS's cryptography and storage, on this store's connection.
    #[must_use]
    pub fn provider(&self) -> Provider<'_> {
        Provider::new(&self.connection)
    }

    /// Runs `write` in one transaction: all of it happens, or, on an error, nothing.
    pub(crate) fn transaction<T>(&self, write: impl FnOnce() -> Result<T>) -> Result<T> {
        let transaction = self.connection.unchecked_transaction().map_err(Error::storage("begin a transaction"))?;
        let done = write()?;
        transaction.commit().map_err(Error::storage("commit a transaction"))?;
        Ok(done)
    }

    pub(crate) fn identity(&self) -> Result<Option<IdentityRow>> {
        self.connection
            .query_row("SELECT server, user, device, token, signature_key FROM device_identity", [], |row| {
                Ok(IdentityRow {
                    server: row.get(0)?,
                    user: row.get(1)?,
                    device: row.get(2)?,
                    token: row.get::<_, Option<String>>(3)?.map(SecretString::from),
                    signature_key: row.get(4)?,
                })
            })
            .optional()
            .map_err(Error::storage("read the identity"))
    }

    pub(crate) fn insert_identity(&self, identity: &IdentityRow) -> Result<()> {
        let IdentityRow { server, user, device, token, signature_key } = identity;
        self.connection
            .execute(
                "INSERT INTO device_identity (id, server, user, device, token, signature_key)
                 VALUES (1, ?1, ?2, ?3, ?4, ?5)",
                params![server, user, device, token.as_ref().map(ExposeSecret::expose_secret), signature_key],
            )
            .map_err(Error::storage("write the identity"))?;
        Ok(())
    }

    pub(crate) fn set_token(&self, token: &SecretString) -> Result<()> {
        self.connection
            .execute("UPDATE device_identity SET token = ?1", [token.expose_secret()])
            .map_err(Error::storage("write the token"))?;
        Ok(())
    }
}

fn configure(connection: &Connection) -> rusqlite::Result<()> {
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    // Deleted private keys are overwritten, not only unlinked.
    connection.pragma_update(None, "secure_delete", true)
}

fn migrate(connection: &Connection) -> Result<()> {
    let known = i64::try_from(MIGRATIONS.len()).unwrap_or(i64::MAX);
    let found: i64 = connection
        .pragma_query_value(None, "user_version", |row| row.get(0))
        .map_err(Error::storage("read the version"))?;
    let done = usize::try_from(found)
        .ok()
        .filter(|done| *done <= MIGRATIONS.len())
        .ok_or(Error::NewerStore { found, known })?;
    for (version, statements) in (1_i64..).zip(MIGRATIONS).skip(done) {
        let run = || {
            let transaction = connection.unchecked_transaction()?;
            connection.execute_batch(statements)?;
            connection.pragma_update(None, "user_version", version)?;
            transaction.commit()
        };
        run().map_err(Error::storage("bring the tables up to date"))?;
    }
    Ok(())
}

fn make_directory(directory: &Path) -> Result<()> {
    let mut builder = DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(directory).map_err(file_error("make the directory", directory))
}

fn lock(directory: &Path) -> Result<File> {
    let path = directory.join("keypool.lock");
    let file = private_file(&path)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Error::InUse(directory.to_owned())),
        Err(TryLockError::Error(source)) => Err(file_error("lock", &path)(source)),
    }
}

/// Opens a file that its owner alone may read, and makes it if need be. Made before SQLite opens it, so that it is
/// never readable for others; SQLite gives its own side files the same mode.
fn private_file(path: &Path) -> Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let file = options.open(path).map_err(file_error("open", path))?;
    #[cfg(unix)]
    file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o600))
        .map_err(file_error("restrict the permissions of", path))?;
    Ok(file)
}

fn file_error(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::File { doing, path, source }
}

#[cfg(test)]
impl LocalStore {
    /// How many rows a table has.
    pub(crate) fn count(&self, table: &str) -> i64 {
        self.connection.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0)).unwrap()
    }

    /// Makes every metadata row past the first `limit` fail.
    pub(crate) fn refuse_rows_after(&self, limit: u32) {
        let trigger = format!(
            "CREATE TRIGGER full BEFORE INSERT ON keypackage_pool_metadata
             WHEN (SELECT count(*) FROM keypackage_pool_metadata) >= {limit}
             BEGIN SELECT RAISE(ABORT, 'full'); END"
        );
        self.connection.execute_batch(&trigger).unwrap();
    }

    /// All that the metadata table holds, as bytes.
    pub(crate) fn metadata_bytes(&self) -> Vec<u8> {
        use rusqlite::types::ValueRef;

        let mut select = self.connection.prepare("SELECT * FROM keypackage_pool_metadata").unwrap();
        let columns = select.column_count();
        let mut rows = select.query([]).unwrap();
        let mut bytes = Vec::new();
        while let Some(row) = rows.next().unwrap() {
            for column in 0..columns {
                match row.get_ref(column).unwrap() {
                    ValueRef::Null => {}
                    ValueRef::Integer(number) => bytes.extend(number.to_be_bytes()),
                    ValueRef::Real(number) => bytes.extend(number.to_be_bytes()),
                    ValueRef::Text(value) | ValueRef::Blob(value) => bytes.extend(value),
                }
            }
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_opening_is_refused_and_the_first_lets_go() {
        let directory = tempfile::tempdir().unwrap();
        let first = LocalStore::open(directory.path()).unwrap();
        let refused = LocalStore::open(directory.path()).unwrap_err();
        assert!(matches!(refused, Error::InUse(_)), "{refused}");
        assert!(refused.to_string().contains("in use by another process"));
        drop(first);
        LocalStore::open(directory.path()).unwrap();
    }

    #[cfg(unix)]
    #[test]
    fn only_the_owner_can_read_the_files() {
        use std::os::unix::fs::PermissionsExt;

        let parent = tempfile::tempdir().unwrap();
        let directory = parent.path().join("new/er");
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::write(directory.join("keypool.db"), b"").unwrap();
        std::fs::set_permissions(directory.join("keypool.db"), std::fs::Permissions::from_mode(0o644)).unwrap();
        let store = LocalStore::open(&directory).unwrap();
        store.transaction(|| store.set_token(&"keypool_x".into())).unwrap();
        for entry in std::fs::read_dir(&directory).unwrap() {
            let entry = entry.unwrap();
            assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{:?}", entry.file_name());
        }
    }

    #[test]
    fn a_file_of_a_newer_program_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let store = LocalStore::open(directory.path()).unwrap();
        store.connection.pragma_update(None, "user_version", 99).unwrap();
        drop(store);
        let refused = LocalStore::open(directory.path()).unwrap_err();
        assert!(matches!(refused, Error::NewerStore { found: 99, .. }), "{refused}");
    }

    #[test]
    fn foreign_keys_and_the_write_ahead_log_are_on() {
        let directory = tempfile::tempdir().unwrap();
        let store = LocalStore::open(directory.path()).unwrap();
        let pragma =
            |name| store.connection.pragma_query_value(None, name, |row| row.get::<_, rusqlite::types::Value>(0));
        assert_eq!(pragma("journal_mode").unwrap(), "wal".to_owned().into());
        assert_eq!(pragma("foreign_keys").unwrap(), 1.into());
        assert_eq!(pragma("secure_delete").unwrap(), 1.into());
    }
}
