//! Encrypts a database anew: with another passphrase, with a first one, or without one.

use std::path::Path;

use rusqlite::{Connection, params};
use secrecy::{ExposeSecret, SecretString};

use super::{
    files::{FILE, UNFINISHED, private_file, remove_unfinished, replace},
    open::{has_encryption, open},
};
use crate::error::{Error, Result};

/// Copies the database into a new file with the passphrase, and puts that one in its place. `PRAGMA rekey` would do it in the
/// same file, and only where it is encrypted before and after.
pub(super) fn encrypt_anew(connection: Connection, directory: &Path, passphrase: Option<&SecretString>) -> Result<()> {
    let (path, new) = (directory.join(FILE), directory.join(UNFINISHED));
    if !has_encryption(&connection)? {
        return Err(Error::NoEncryption(path));
    }
    private_file(&new)?;
    let copied = copy(&connection, &new, passphrase).and_then(|()| check(&connection, &new, passphrase));
    // The last connection that is closed copies the log into the file, and deletes the log.
    let closed = connection.close().map_err(|(_, error)| Error::storage("close the database")(error));
    let log = directory.join(format!("{FILE}-wal"));
    let is_left = || Error::storage("close the database")("its write-ahead log is still there");
    let ended = closed.and_then(|()| if log.exists() { Err(is_left()) } else { Ok(()) });
    if let Err(error) = copied.and(ended) {
        remove_unfinished(directory)?;
        return Err(error);
    }
    replace(&path, &new)
}

fn copy(connection: &Connection, new: &Path, passphrase: Option<&SecretString>) -> Result<()> {
    const DOING: &str = "encrypt the database anew";
    let key = passphrase.map(ExposeSecret::expose_secret).unwrap_or_default();
    let name = new.to_str().ok_or_else(|| Error::storage(DOING)("the name of the directory is not UTF-8"))?;
    connection.execute("ATTACH DATABASE ?1 AS new KEY ?2", params![name, key]).map_err(Error::storage(DOING))?;
    let copied = connection
        .execute_batch("PRAGMA cipher_log_level = NONE")
        .and_then(|()| connection.query_row("SELECT sqlcipher_export('new')", [], |_| Ok(())))
        .and_then(|()| {
            // The copy lacks these two.
            ["application_id", "user_version"].iter().try_for_each(|pragma| {
                let value: i32 = connection.pragma_query_value(Some("main"), pragma, |row| row.get(0))?;
                connection.pragma_update(Some("new"), pragma, value)
            })
        })
        .map_err(Error::storage(DOING));
    let detached = connection.execute_batch("DETACH DATABASE new").map_err(Error::storage(DOING));
    copied.and(detached)
}

/// Checks that the copy opens with the passphrase, is whole, and has as many rows as the original.
fn check(connection: &Connection, new: &Path, passphrase: Option<&SecretString>) -> Result<()> {
    let copy = open(new, passphrase)?;
    let wrong = |source: String| Error::storage("check the encrypted database")(source);
    let found: String = copy
        .query_row("PRAGMA integrity_check", [], |row| row.get(0))
        .map_err(Error::storage("check the encrypted database"))?;
    if found != "ok" {
        return Err(wrong(found));
    }
    if rows(connection)? != rows(&copy)? {
        return Err(wrong("the copy lacks some rows".to_owned()));
    }
    copy.close().map_err(|(_, error)| Error::storage("close the encrypted database")(error))
}

/// The tables, and how many rows each has.
fn rows(connection: &Connection) -> Result<Vec<(String, i64)>> {
    let count = || -> rusqlite::Result<Vec<(String, i64)>> {
        let mut tables = connection.prepare(
            "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%' ORDER BY name",
        )?;
        let tables: Vec<String> = tables.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
        let count = |table: String| {
            let sql = format!("SELECT count(*) FROM \"{}\"", table.replace('"', "\"\""));
            connection.query_row(&sql, [], |row| row.get(0)).map(|rows| (table, rows))
        };
        tables.into_iter().map(count).collect()
    };
    count().map_err(Error::storage("count the rows of the database"))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::storage::LocalStore;

    const MARK: &[u8] = b"group-in-the-clear";

    fn open_store(directory: &Path, passphrase: Option<&str>) -> Result<LocalStore> {
        LocalStore::open_with(directory, passphrase.map(SecretString::from).as_ref())
    }

    fn change(directory: &Path, from: Option<&str>, to: Option<&str>) -> Result<()> {
        let secret = |text: Option<&str>| text.map(SecretString::from);
        LocalStore::change_passphrase(directory, secret(from).as_ref(), secret(to).as_ref())
    }

    /// A store with a group in it.
    fn store(directory: &Path, passphrase: Option<&str>) {
        let store = open_store(directory, passphrase).unwrap();
        let name = String::from_utf8(MARK.to_vec()).unwrap();
        store.put_group(MARK, Some(&name), "2030-01-01T00:00:00Z".parse().unwrap()).unwrap();
    }

    fn is_in_the_clear(directory: &Path) -> bool {
        fs::read_dir(directory).unwrap().any(|file| {
            let bytes = fs::read(file.unwrap().path()).unwrap();
            bytes.windows(MARK.len()).any(|window| window == MARK)
        })
    }

    #[test]
    fn a_store_is_encrypted_later_changed_and_decrypted() {
        let directory = tempfile::tempdir().unwrap();
        let directory = directory.path();
        store(directory, None);
        assert!(is_in_the_clear(directory));
        let steps = [None, Some("correct horse"), Some("it's \"new\""), Some("it's \"new\""), None, Some("last")];
        for step in steps.windows(2) {
            let [from, to] = step else { unreachable!() };
            change(directory, *from, *to).unwrap();
            assert_eq!(is_in_the_clear(directory), to.is_none(), "{step:?}");
            assert_eq!(LocalStore::is_encrypted(directory).unwrap(), to.is_some());
            if from != to {
                open_store(directory, *from).unwrap_err();
            }
            assert_eq!(open_store(directory, *to).unwrap().groups().unwrap().len(), 1, "{step:?}");
            let mut files: Vec<_> = fs::read_dir(directory).unwrap().map(|file| file.unwrap().file_name()).collect();
            files.sort();
            assert_eq!(files, ["device.db", "keypool.lock"], "{step:?}");
        }
    }

    /// Former content stays readable through a link of the file.
    #[cfg(unix)]
    #[test]
    fn the_former_content_is_overwritten() {
        use std::os::unix::fs::PermissionsExt as _;

        let directory = tempfile::tempdir().unwrap();
        store(directory.path(), None);
        let (file, link) = (directory.path().join(FILE), directory.path().join("link"));
        fs::hard_link(&file, &link).unwrap();
        change(directory.path(), None, Some("secret")).unwrap();
        let former = fs::read(link).unwrap();
        assert!(!former.is_empty() && former.iter().all(|byte| *byte == 0));
        assert_eq!(fs::metadata(file).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn nothing_changes_without_the_passphrase_or_while_it_is_open() {
        let directory = tempfile::tempdir().unwrap();
        let directory = directory.path();
        let missing = change(&directory.join("elsewhere"), None, Some("new")).unwrap_err();
        assert!(matches!(missing, Error::NotInitialised(_)), "{missing}");
        assert!(!directory.join("elsewhere").exists());
        store(directory, Some("old"));
        assert!(matches!(change(directory, Some("wrong"), Some("new")), Err(Error::WrongPassphrase(_))));
        assert!(matches!(change(directory, None, Some("new")), Err(Error::Encrypted(_))));
        let open = open_store(directory, Some("old")).unwrap();
        assert!(matches!(change(directory, Some("old"), Some("new")), Err(Error::InUse(_))));
        drop(open);
        assert_eq!(open_store(directory, Some("old")).unwrap().groups().unwrap().len(), 1);
    }

    #[test]
    fn a_copy_that_a_crash_left_is_removed() {
        let directory = tempfile::tempdir().unwrap();
        store(directory.path(), None);
        fs::copy(directory.path().join(FILE), directory.path().join(UNFINISHED)).unwrap();
        fs::write(directory.path().join("device.db.new-journal"), MARK).unwrap();
        assert_eq!(open_store(directory.path(), None).unwrap().groups().unwrap().len(), 1);
        for left_over in [UNFINISHED, "device.db.new-journal"] {
            assert!(!directory.path().join(left_over).exists());
        }
    }

    /// A copy that lacks rows does not take the place of the original.
    #[test]
    fn a_copy_without_some_rows_is_noticed() {
        let directory = tempfile::tempdir().unwrap();
        store(directory.path(), None);
        let original = open(&directory.path().join(FILE), None).unwrap();
        let new = directory.path().join(UNFINISHED);
        private_file(&new).unwrap();
        copy(&original, &new, None).unwrap();
        check(&original, &new, None).unwrap();
        open(&new, None).unwrap().execute_batch("DELETE FROM device_groups").unwrap();
        assert!(check(&original, &new, None).is_err());
    }
}
