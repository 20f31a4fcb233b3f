use std::{
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, params};
use secrecy::{ExposeSecret, SecretString};

use crate::{
    error::{Error, Result},
    mls::{Provider, SqliteStorage},
};

mod groups;
mod metadata;
mod schema;
mod signature_keys;

pub(crate) use groups::GroupRow;
pub use metadata::{KeyPackageMetadata, KeyPackageStatus, ReservationInfo, Spending};

/// The name of the database in the data directory.
const FILE: &str = "keypool.db";

/// What the store knows about the device: never its private keys, which OpenMLS's tables hold.
#[derive(Clone, Debug)]
pub(crate) struct IdentityRow {
    pub(crate) server: String,
    pub(crate) user: String,
    pub(crate) device: String,
    pub(crate) token: Option<SecretString>,
    /// What makes the registration one that may be repeated.
    pub(crate) registration_key: Option<String>,
    /// Each ciphersuite with the public signature key that is used for it.
    pub(crate) signature_keys: Vec<(u16, Vec<u8>)>,
    /// The ciphersuites whose signature key changes, each with the new one, which the server has not accepted yet.
    pub(crate) next_signature_keys: Vec<(u16, Vec<u8>)>,
}

/// One SQLite file, mode 0600, in a data directory: OpenMLS's tables, and beside them the metadata of the KeyPackage
/// pool and the device's identity, all on one connection so that keys and metadata change in one transaction. Encrypted
/// as a whole, by SQLCipher, if it was made with a passphrase.
///
/// One process at a time has it open.
#[derive(Debug)]
pub struct LocalStore {
    connection: Connection,
    directory: PathBuf,
    _lock: Lock,
}

/// The lock on a data directory, until it is dropped.
#[derive(Debug)]
struct Lock(File);

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing the file is not enough: a child process that another thread is just starting has it open, too, until it
        // runs its own program.
        if let Err(error) = self.0.unlock() {
            tracing::debug!(%error, "the lock goes with the file");
        }
    }
}

impl LocalStore {
    /// Opens the store in a data directory, and makes both where they do not exist.
    pub fn open(directory: &Path) -> Result<Self> {
        Self::open_with(directory, None)
    }

    /// Opens the store in a data directory, and makes both where they do not exist. With a passphrase, the file is made
    /// encrypted; one that is there must have been made with the same passphrase, or without any.
    pub fn open_with(directory: &Path, passphrase: Option<&SecretString>) -> Result<Self> {
        make_directory(directory)?;
        let lock = lock(directory)?;
        let path = directory.join(FILE);
        if matches!(beginning(&path)?, Beginning::Nothing) {
            create(directory, &path, passphrase)?;
        }
        private_file(&path)?;
        let mut connection = Connection::open(&path).map_err(Error::storage("open the database"))?;
        unlock(&connection, &path, passphrase)?;
        configure(&connection).map_err(Error::storage("set up the connection"))?;
        migrate_openmls(&mut connection)?;
        schema::migrate(&connection)?;
        Ok(Self { connection, directory: directory.to_owned(), _lock: lock })
    }

    /// Whether there is a store in a data directory that opens with a passphrase only.
    pub fn is_encrypted(directory: &Path) -> Result<bool> {
        let path = directory.join(FILE);
        Ok(!matches!(beginning(&path)?, Beginning::Nothing | Beginning::Plain))
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
        let keys = |sql| {
            self.connection
                .prepare_cached(sql)
                .and_then(|mut select| select.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect())
                .map_err(Error::storage("read the ciphersuites"))
        };
        let signature_keys = keys("SELECT ciphersuite, signature_key FROM device_ciphersuites ORDER BY ciphersuite")?;
        let next_signature_keys = keys(
            "SELECT ciphersuite, next_signature_key FROM device_ciphersuites
             WHERE next_signature_key IS NOT NULL ORDER BY ciphersuite",
        )?;
        self.connection
            .query_row("SELECT server, user, device, token, registration_key FROM device_identity", [], |row| {
                Ok(IdentityRow {
                    server: row.get(0)?,
                    user: row.get(1)?,
                    device: row.get(2)?,
                    token: row.get::<_, Option<String>>(3)?.map(SecretString::from),
                    registration_key: row.get(4)?,
                    signature_keys,
                    next_signature_keys,
                })
            })
            .optional()
            .map_err(Error::storage("read the identity"))
    }

    /// Writes the identity of a new device, without its ciphersuites.
    pub(crate) fn insert_identity(&self, identity: &IdentityRow) -> Result<()> {
        let IdentityRow { server, user, device, token, registration_key, .. } = identity;
        let token = token.as_ref().map(ExposeSecret::expose_secret);
        self.connection
            .execute(
                "INSERT INTO device_identity (id, server, user, device, token, registration_key)
                 VALUES (1, ?1, ?2, ?3, ?4, ?5)",
                params![server, user, device, token, registration_key],
            )
            .map_err(Error::storage("write the identity"))?;
        Ok(())
    }

    /// Sets the public signature key that is used for a ciphersuite from now on.
    pub(crate) fn set_signature_key(&self, ciphersuite: u16, signature_key: &[u8]) -> Result<()> {
        self.connection
            .execute(
                "INSERT INTO device_ciphersuites (ciphersuite, signature_key) VALUES (?1, ?2)
                 ON CONFLICT (ciphersuite) DO UPDATE SET signature_key = excluded.signature_key",
                params![ciphersuite, signature_key],
            )
            .map_err(Error::storage("write the signature key of a ciphersuite"))?;
        Ok(())
    }

    pub(crate) fn set_token(&self, token: &SecretString) -> Result<()> {
        self.connection
            .execute("UPDATE device_identity SET token = ?1, registration_key = NULL", [token.expose_secret()])
            .map_err(Error::storage("write the token"))?;
        Ok(())
    }

    /// When the server's database was restored, in seconds, as far as this device has heeded it.
    pub(crate) fn fence(&self) -> Result<Option<i64>> {
        self.connection
            .query_row("SELECT fenced_at FROM device_identity", [], |row| row.get(0))
            .map_err(Error::storage("read when the server was restored"))
    }

    pub(crate) fn note_fence(&self, fenced_at: Option<i64>) -> Result<()> {
        self.connection
            .execute("UPDATE device_identity SET fenced_at = ?1", [fenced_at])
            .map_err(Error::storage("note when the server was restored"))?;
        Ok(())
    }

    /// Notes that the pool on the server had KeyPackages that were not generated here.
    pub(crate) fn note_foreign(&self, now: Timestamp) -> Result<()> {
        self.connection
            .execute("INSERT INTO foreign_key_packages (seen_at) VALUES (?1)", [now.as_second()])
            .map_err(Error::storage("note foreign KeyPackages"))?;
        Ok(())
    }

    /// Whether that was noted since then.
    pub(crate) fn foreign_since(&self, since: Timestamp) -> Result<bool> {
        self.connection
            .query_row(
                "SELECT EXISTS (SELECT 1 FROM foreign_key_packages WHERE seen_at > ?1)",
                [since.as_second()],
                |row| row.get(0),
            )
            .map_err(Error::storage("look for foreign KeyPackages"))
    }

    pub(crate) fn forget_foreign(&self) -> Result<()> {
        self.connection
            .execute("DELETE FROM foreign_key_packages", [])
            .map_err(Error::storage("forget foreign KeyPackages"))?;
        Ok(())
    }

    /// What is wrong with the file, in SQLite's words; nothing if all is well.
    pub fn integrity(&self) -> Result<Vec<String>> {
        let found: Vec<String> = self
            .connection
            .prepare("PRAGMA integrity_check")
            .and_then(|mut check| check.query_map([], |row| row.get(0))?.collect())
            .map_err(Error::storage("check the database"))?;
        Ok(found.into_iter().filter(|line| line != "ok").collect())
    }

    /// How many KeyPackages OpenMLS's tables hold the private keys of.
    pub fn count_keys(&self) -> Result<usize> {
        self.connection
            .query_row("SELECT count(*) FROM openmls_key_packages", [], |row| row.get(0))
            .map_err(Error::storage("count the private keys"))
    }
}

/// Makes the database with OpenMLS's tables under another name, and puts it in its place when it is whole: a migration of
/// OpenMLS and the note that it was done are two transactions, and a crash between them could never be mended.
fn create(directory: &Path, path: &Path, passphrase: Option<&SecretString>) -> Result<()> {
    let new = directory.join("keypool.db.new");
    for left_over in [new.clone(), directory.join("keypool.db.new-journal")] {
        match fs::remove_file(&left_over) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(file_error("remove", &left_over)(error));
            }
            _ => {}
        }
    }
    private_file(&new)?;
    let mut connection = Connection::open(&new).map_err(Error::storage("make the database"))?;
    unlock(&connection, &new, passphrase)?;
    migrate_openmls(&mut connection)?;
    connection.close().map_err(|(_, error)| Error::storage("make the database")(error))?;
    fs::rename(&new, path).map_err(file_error("put the database at", path))
}

fn migrate_openmls(connection: &mut Connection) -> Result<()> {
    SqliteStorage::<&mut Connection>::new(connection)
        .run_migrations()
        .map_err(|error| Error::Migration(Box::new(error)))
}

/// How a file begins.
enum Beginning {
    Nothing,
    Plain,
    Other,
}

fn beginning(path: &Path) -> Result<Beginning> {
    let mut bytes = Vec::new();
    match File::open(path) {
        Ok(file) => file.take(16).read_to_end(&mut bytes).map_err(file_error("read", path))?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
        Err(error) => return Err(file_error("open", path)(error)),
    };
    Ok(match bytes.as_slice() {
        [] => Beginning::Nothing,
        b"SQLite format 3\0" => Beginning::Plain,
        _ => Beginning::Other,
    })
}

/// Gives SQLCipher the passphrase, and sees whether it is the right one.
fn unlock(connection: &Connection, path: &Path, passphrase: Option<&SecretString>) -> Result<()> {
    match (beginning(path)?, passphrase) {
        (Beginning::Plain, Some(_)) => return Err(Error::NotEncrypted(path.to_owned())),
        (Beginning::Other, None) => return Err(Error::Encrypted(path.to_owned())),
        (_, None) => return Ok(()),
        (_, Some(passphrase)) => {
            connection
                .pragma_update(None, "key", passphrase.expose_secret())
                // What is wrong is told by our own errors. The key wakes the log up, so this comes after it.
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

fn configure(connection: &Connection) -> rusqlite::Result<()> {
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    // Deleted private keys are overwritten, not only unlinked.
    connection.pragma_update(None, "secure_delete", true)
}

fn make_directory(directory: &Path) -> Result<()> {
    let mut builder = DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(directory).map_err(file_error("make the directory", directory))
}

fn lock(directory: &Path) -> Result<Lock> {
    let path = directory.join("keypool.lock");
    let file = private_file(&path)?;
    match file.try_lock() {
        Ok(()) => Ok(Lock(file)),
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

    /// How many bytes the metadata table has in the file, without its indexes.
    pub(crate) fn metadata_size(&self) -> usize {
        let sql = "SELECT sum(pgsize - unused) FROM dbstat WHERE name = 'keypackage_pool_metadata'";
        self.connection.query_row(sql, [], |row| row.get(0)).unwrap()
    }

    /// How SQLite would run a query.
    pub(crate) fn plan(&self, query: &str) -> String {
        self.connection.query_row(&format!("EXPLAIN QUERY PLAN {query}"), [], |row| row.get("detail")).unwrap()
    }

    /// Takes the private keys of a KeyPackage away, and leaves its row.
    pub(crate) fn lose_keys(&self, keypackage_ref: &keypool_openapi::KeyPackageRef) {
        use openmls_traits::{OpenMlsProvider as _, storage::StorageProvider as _};

        let hash = crate::mls::hash_reference(keypackage_ref.as_bytes()).unwrap();
        self.provider().storage().delete_key_package(&hash).unwrap();
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

    #[test]
    fn a_child_process_that_is_just_started_does_not_hold_the_lock() {
        let directory = tempfile::tempdir().unwrap();
        let held = lock(directory.path()).unwrap();
        // What a child has between fork and exec.
        let _inherited = held.0.try_clone().unwrap();
        drop(held);
        lock(directory.path()).unwrap();
    }

    #[cfg(unix)]
    #[test]
    fn only_the_owner_can_read_the_files() {
        use std::os::unix::fs::PermissionsExt;

        let parent = tempfile::tempdir().unwrap();
        let directory = parent.path().join("new/er");
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join("keypool.db"), b"").unwrap();
        fs::set_permissions(directory.join("keypool.db"), fs::Permissions::from_mode(0o644)).unwrap();
        let store = LocalStore::open(&directory).unwrap();
        store.transaction(|| store.set_token(&"keypool_x".into())).unwrap();
        for entry in fs::read_dir(&directory).unwrap() {
            let entry = entry.unwrap();
            assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{:?}", entry.file_name());
        }
    }

    /// What a crash in the middle of making the database leaves behind.
    #[test]
    fn a_database_that_was_not_finished_is_made_anew() {
        let directory = tempfile::tempdir().unwrap();
        let half = Connection::open(directory.path().join("keypool.db.new")).unwrap();
        half.execute_batch("CREATE TABLE openmls_key_packages (half INTEGER)").unwrap();
        drop(half);
        fs::write(directory.path().join("keypool.db.new-journal"), b"left over").unwrap();
        let store = LocalStore::open(directory.path()).unwrap();
        assert_eq!(store.count_keys().unwrap(), 0);
        let files: Vec<_> = fs::read_dir(directory.path()).unwrap().map(|file| file.unwrap().file_name()).collect();
        assert!(!files.iter().any(|name| name.to_string_lossy().contains(".new")), "{files:?}");
    }

    #[test]
    fn a_passphrase_encrypts_the_whole_file() {
        let directory = tempfile::tempdir().unwrap();
        let open = |passphrase: Option<&str>| {
            LocalStore::open_with(directory.path(), passphrase.map(SecretString::from).as_ref())
        };
        assert!(!LocalStore::is_encrypted(directory.path()).unwrap());
        let store = open(Some("correct horse")).unwrap();
        let row = IdentityRow {
            server: "http://localhost/".to_owned(),
            user: "alice-in-the-clear".to_owned(),
            device: "laptop".to_owned(),
            token: Some("token-in-the-clear".into()),
            registration_key: None,
            signature_keys: Vec::new(),
            next_signature_keys: Vec::new(),
        };
        store.transaction(|| store.insert_identity(&row)).unwrap();
        for file in fs::read_dir(directory.path()).unwrap() {
            let bytes = fs::read(file.unwrap().path()).unwrap();
            assert!(!bytes.windows(12).any(|window| window == b"in-the-clear"));
        }
        drop(store);
        assert!(LocalStore::is_encrypted(directory.path()).unwrap());
        assert!(matches!(open(None), Err(Error::Encrypted(_))));
        assert!(matches!(open(Some("battery staple")), Err(Error::WrongPassphrase(_))));
        assert_eq!(open(Some("correct horse")).unwrap().identity().unwrap().unwrap().user, row.user);
    }

    #[test]
    fn a_passphrase_for_a_file_without_one_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        drop(LocalStore::open(directory.path()).unwrap());
        let refused = LocalStore::open_with(directory.path(), Some(&"secret".into()));
        assert!(matches!(refused, Err(Error::NotEncrypted(_))), "{refused:?}");
        drop(LocalStore::open(directory.path()).unwrap());
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
