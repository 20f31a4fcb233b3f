//! The name that the database had before version 0.2. A server's database has it, too.

use std::{fs, path::Path};

use secrecy::SecretString;

use super::{
    files::{Beginning, FILE, beginning, file_error},
    open::open,
};
use crate::error::{Error, Result};

/// The former name.
pub(super) const FORMER_FILE: &str = "keypool.db";

/// Gives a database of the former name its new one. Does nothing if there is none. Fails if the file belongs to another
/// program, such as a server: the private keys of a device do not belong beside its database.
pub(super) fn rename_former(directory: &Path, passphrase: Option<&SecretString>) -> Result<()> {
    let former = directory.join(FORMER_FILE);
    if matches!(beginning(&former)?, Beginning::Nothing) {
        return Ok(());
    }
    let connection = open(&former, passphrase)?;
    let tables: i64 = connection
        .query_row("SELECT count(*) FROM sqlite_schema WHERE name = 'device_identity'", [], |row| row.get(0))
        .map_err(Error::storage("read whose database it is"))?;
    if tables == 0 {
        return Err(Error::OtherProgram(former));
    }
    // Closing it copies the log into the file, and deletes the log.
    connection.close().map_err(|(_, error)| Error::storage("close the database of an earlier version")(error))?;
    fs::rename(&former, directory.join(FILE)).map_err(file_error("rename", &former))
}

#[cfg(test)]
mod tests {
    use rusqlite::Connection;

    use super::*;
    use crate::storage::LocalStore;

    /// A device's database under its former name, with and without a passphrase, and with a log beside it.
    #[test]
    fn a_database_of_the_former_name_keeps_its_device() {
        for passphrase in [None, Some("correct horse".into())] {
            let directory = tempfile::tempdir().unwrap();
            let open = || LocalStore::open_with(directory.path(), passphrase.as_ref());
            let store = open().unwrap();
            store.put_group(b"friends", Some("friends"), "2030-01-01T00:00:00Z".parse().unwrap()).unwrap();
            drop(store);
            fs::rename(directory.path().join(FILE), directory.path().join(FORMER_FILE)).unwrap();
            assert_eq!(LocalStore::is_encrypted(directory.path()).unwrap(), passphrase.is_some());
            assert_eq!(open().unwrap().groups().unwrap().len(), 1);
            assert!(!directory.path().join(FORMER_FILE).exists());
        }
    }

    #[test]
    fn a_database_of_another_program_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(FORMER_FILE);
        let servers = Connection::open(&path).unwrap();
        servers.execute_batch("CREATE TABLE key_packages (id INTEGER)").unwrap();
        drop(servers);
        let before = fs::read(&path).unwrap();
        let refused = LocalStore::open(directory.path()).unwrap_err();
        assert!(matches!(&refused, Error::OtherProgram(found) if *found == path), "{refused}");
        assert!(fs::read(&path).unwrap() == before && !directory.path().join(FILE).exists());

        // Its own mark is enough, whatever the file is called.
        let others = Connection::open(directory.path().join(FILE)).unwrap();
        others.pragma_update(None, "application_id", 1).unwrap();
        drop(others);
        assert!(matches!(LocalStore::open(directory.path()), Err(Error::OtherProgram(_))));
    }
}
