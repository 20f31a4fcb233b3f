use jiff::SignedDuration;

use super::*;
use crate::key_package_status::KeyPackageStatus;

fn start() -> Timestamp {
    "2030-01-01T00:00:00Z".parse().unwrap()
}

fn open() -> (tempfile::TempDir, LocalStore) {
    let directory = tempfile::tempdir().unwrap();
    let store = LocalStore::open(directory.path()).unwrap();
    (directory, store)
}

fn hash(number: u8) -> KeyPackageRef {
    vec![number; 32].into()
}

#[test]
fn a_row_comes_back_as_it_was_written() {
    let (_directory, store) = open();
    let row = KeyPackageMetadata {
        keypackage_ref: hash(1),
        status: KeyPackageStatus::Reserved,
        created_at: start(),
        uploaded_at: Some(start() + SignedDuration::from_secs(1)),
        reserved_at: Some(start() + SignedDuration::from_secs(2)),
        spent_at: Some(start() + SignedDuration::from_secs(3)),
        not_after: start() + SignedDuration::from_secs(4),
        reservation_id: Some("1f-67e55044-10b1-426f-9247-bb680e5fe0c8".parse().unwrap()),
        reservation_expires_at: Some(start() + SignedDuration::from_secs(5)),
        reserved_by: Some("bob/phone".to_owned()),
        spent_group_id: Some(vec![0, 255]),
        spent_by: Some("carol/tablet".to_owned()),
        ciphersuite: 2,
        last_resort: true,
        keep_until: Some(start() + SignedDuration::from_secs(6)),
        superseded: true,
    };
    store.create_pool_metadata(&row).unwrap();
    assert_eq!(store.metadata().unwrap(), std::slice::from_ref(&row));
    let changed = KeyPackageMetadata { keep_until: None, superseded: false, ..row };
    store.update_pool_metadata(&changed).unwrap();
    assert_eq!(store.find_metadata(&hash(1)).unwrap(), Some(changed));
    store.delete_pool_metadata(&hash(1)).unwrap();
    assert_eq!(store.find_metadata(&hash(1)).unwrap(), None);
}

#[test]
fn queries_by_status_expiry_and_creation_have_an_index() {
    let (_directory, store) = open();
    for (query, index) in [
        ("status = 'spent'", "keypackage_pool_metadata_status"),
        ("not_after <= 1", "keypackage_pool_metadata_expiry"),
        ("created_at <= 1", "keypackage_pool_metadata_creation"),
    ] {
        let plan = store.plan(&format!("SELECT * FROM keypackage_pool_metadata WHERE {query}"));
        assert!(plan.contains(index), "{query}: {plan}");
    }
}

#[test]
fn the_history_comes_back_as_it_was_written() {
    let (_directory, store) = open();
    assert_eq!(store.history().unwrap(), PoolHistory::default());
    // It is kept beside the identity.
    let names = (&"alice".parse().unwrap(), &"laptop".parse().unwrap());
    crate::identity::DeviceIdentity::create(&store, "http://localhost:8080", names, &[]).unwrap();
    for history in [
        PoolHistory { fenced_at: Some(start()), foreign_at: None },
        PoolHistory { fenced_at: Some(start()), foreign_at: Some(start() + SignedDuration::from_secs(1)) },
        PoolHistory { fenced_at: None, foreign_at: Some(start()) },
        PoolHistory::default(),
    ] {
        store.set_history(&history).unwrap();
        assert_eq!(store.history().unwrap(), history);
    }
}
