use std::fs;

use rusqlite::Connection;
use secrecy::SecretString;

use super::{LocalStore, device::IdentityRow};
use crate::error::Error;

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
    fs::create_dir_all(&directory).unwrap();
    for name in ["device.db", "device.db-wal", "device.db-shm"] {
        fs::write(directory.join(name), b"").unwrap();
        fs::set_permissions(directory.join(name), fs::Permissions::from_mode(0o644)).unwrap();
    }
    let store = LocalStore::open(&directory).unwrap();
    store.transaction(|| store.set_token(&"keypool_x".into())).unwrap();
    for entry in fs::read_dir(&directory).unwrap() {
        let entry = entry.unwrap();
        assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{:?}", entry.file_name());
    }
}

/// The files that a crash during the creation of the database leaves behind.
#[test]
fn a_database_that_was_not_finished_is_made_anew() {
    let directory = tempfile::tempdir().unwrap();
    let half = Connection::open(directory.path().join("device.db.new")).unwrap();
    half.execute_batch("CREATE TABLE openmls_key_packages (half INTEGER)").unwrap();
    drop(half);
    fs::write(directory.path().join("device.db.new-journal"), b"left over").unwrap();
    let store = LocalStore::open(directory.path()).unwrap();
    assert_eq!(store.count_keys().unwrap(), 0);
    let files: Vec<_> = fs::read_dir(directory.path()).unwrap().map(|file| file.unwrap().file_name()).collect();
    assert!(!files.iter().any(|name| name.to_string_lossy().contains(".new")), "{files:?}");
}

#[test]
fn a_passphrase_encrypts_the_whole_file() {
    let directory = tempfile::tempdir().unwrap();
    let open =
        |passphrase: Option<&str>| LocalStore::open_with(directory.path(), passphrase.map(SecretString::from).as_ref());
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
        |name| store.connection().pragma_query_value(None, name, |row| row.get::<_, rusqlite::types::Value>(0));
    assert_eq!(pragma("journal_mode").unwrap(), "wal".to_owned().into());
    assert_eq!(pragma("foreign_keys").unwrap(), 1.into());
    assert_eq!(pragma("secure_delete").unwrap(), 1.into());
}
