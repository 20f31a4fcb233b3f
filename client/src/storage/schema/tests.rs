use rusqlite::params;

use super::*;
use crate::{pool::PoolStore as _, storage::LocalStore};

/// A file as each older version left it keeps its device and its KeyPackages.
#[test]
fn a_file_of_an_older_version_is_brought_up_to_date() {
    for version in 1..=MIGRATIONS.len() {
        let directory = tempfile::tempdir().unwrap();
        let old = Connection::open(directory.path().join("device.db")).unwrap();
        old.execute_batch(MIGRATIONS[0]).unwrap();
        old.execute(
            "INSERT INTO device_identity VALUES (1, 'http://localhost/', 'alice', 'laptop', 'token', x'01')",
            [],
        )
        .unwrap();
        old.execute("INSERT INTO keypackage_pool_metadata VALUES (?1, 'uploaded', 1, 2, 3, 1, 0)", params![[7_u8; 32]])
            .unwrap();
        for later in &MIGRATIONS[1..version] {
            old.execute_batch(later).unwrap();
        }
        old.pragma_update(None, "user_version", i64::try_from(version).unwrap()).unwrap();
        drop(old);
        let store = LocalStore::open(directory.path()).unwrap();
        let row = store.metadata().unwrap().remove(0);
        assert_eq!((row.created_at.as_second(), row.not_after.as_second(), row.superseded), (1, 3, false));
        let identity = store.identity().unwrap().unwrap();
        assert_eq!((identity.user.as_str(), identity.signature_keys), ("alice", vec![(1, vec![1])]));
        assert_eq!(store.commit_proof(b"friends", 1).unwrap(), None);
        drop(store);
        let new = Connection::open(directory.path().join("device.db")).unwrap();
        let found: usize = new.pragma_query_value(None, "user_version", |row| row.get(0)).unwrap();
        assert_eq!(found, MIGRATIONS.len(), "from version {version}");
    }
}

/// Which devices were removed stood in the history alone.
#[test]
fn removed_devices_are_taken_from_the_history() {
    let directory = tempfile::tempdir().unwrap();
    let old = Connection::open(directory.path().join("device.db")).unwrap();
    for version in &MIGRATIONS[..9] {
        old.execute_batch(version).unwrap();
    }
    let changes = [
        (b"friends", r#"{"added":["bob/phone","bob/laptop","carol/main","dave/main"],"removed":[],"updated":[]}"#),
        (b"friends", r#"{"added":[],"removed":["bob/phone","carol/main","dave/main"],"updated":[]}"#),
        (b"friends", r#"{"added":["carol/main"],"removed":["bob/laptop"],"updated":["dave/main"]}"#),
        (b"another", r#"{"added":["bob/phone"],"removed":["carol/main"],"updated":[]}"#),
    ];
    for (group_id, change) in changes {
        old.execute("INSERT INTO membership_changes (group_id, change) VALUES (?1, ?2)", params![group_id, change])
            .unwrap();
    }
    old.execute("INSERT INTO device_groups (group_id, joined_at, admits_devices) VALUES (?1, 0, 0)", [b"friends"])
        .unwrap();
    old.pragma_update(None, "user_version", 9).unwrap();
    drop(old);
    let store = LocalStore::open(directory.path()).unwrap();
    let mut removed = store.removed_devices(b"friends").unwrap();
    removed.sort();
    assert_eq!(removed, ["bob/laptop", "bob/phone"]);
    assert_eq!(store.removed_devices(b"another").unwrap(), ["carol/main"]);
    assert_eq!(store.groups().unwrap()[0].admits_since, Some(0), "somebody has said no");
}

#[test]
fn a_file_of_a_newer_program_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    drop(LocalStore::open(directory.path()).unwrap());
    let newer = Connection::open(directory.path().join("device.db")).unwrap();
    newer.pragma_update(None, "user_version", 99).unwrap();
    drop(newer);
    let refused = LocalStore::open(directory.path()).unwrap_err();
    assert!(matches!(refused, Error::NewerStore { found: 99, .. }), "{refused}");
}
