use std::collections::BTreeMap;

use jiff::SignedDuration;
use proptest::prelude::*;

use super::*;

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

/// Every allowed change of the status, as in the documentation.
const STEPS: [(KeyPackageStatus, &[KeyPackageStatus]); 7] = {
    use KeyPackageStatus::{Available, Created, Expired, Failed, Reserved, Spent, Uploaded};
    [
        (Created, &[Uploaded, Expired, Failed]),
        (Uploaded, &[Created, Available, Reserved, Spent, Expired, Failed]),
        (Available, &[Created, Reserved, Spent, Expired, Failed]),
        (Reserved, &[Available, Spent, Expired, Failed]),
        (Spent, &[]),
        (Expired, &[Spent]),
        (Failed, &[Spent]),
    ]
};

#[test]
fn a_status_changes_along_the_life_only() {
    let (_directory, store) = open();
    let mut number = 0;
    for (from, allowed) in STEPS {
        for to in KeyPackageStatus::iter() {
            number += 1;
            let row = KeyPackageMetadata {
                status: from,
                ..KeyPackageMetadata::created(hash(number), (start(), start()), 1, false)
            };
            store.create_pool_metadata(&row).unwrap();
            let outcome = store.update_pool_metadata_status(&row.keypackage_ref, to, start());
            let after = store.find_metadata(&row.keypackage_ref).unwrap().unwrap().status;
            if allowed.contains(&to) {
                outcome.unwrap();
                assert_eq!(after, to, "from {from}");
            } else {
                assert!(matches!(outcome, Err(Error::InvalidTransition { .. })), "{from} to {to}: {outcome:?}");
                assert_eq!(after, from);
            }
        }
    }
    let unknown = store.update_pool_metadata_status(&hash(255), KeyPackageStatus::Spent, start());
    assert!(matches!(unknown, Err(Error::UnknownKeyPackage(_))), "{unknown:?}");
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
    assert_eq!(store.get_metadata_by_status(KeyPackageStatus::Reserved).unwrap(), [row]);
    assert_eq!(store.get_metadata_by_status(KeyPackageStatus::Spent).unwrap(), []);
    store.delete_pool_metadata(&hash(1)).unwrap();
    assert_eq!(store.find_metadata(&hash(1)).unwrap(), None);
}

#[test]
fn the_expired_are_those_whose_end_has_come() {
    let (_directory, store) = open();
    for number in 1..=3 {
        let not_after = start() + SignedDuration::from_secs(number.into());
        let row = KeyPackageMetadata::created(hash(number), (start(), not_after), 1, false);
        store.create_pool_metadata(&row).unwrap();
    }
    assert_eq!(store.get_expired_refs(start()).unwrap(), []);
    assert_eq!(store.get_expired_refs(start() + SignedDuration::from_secs(2)).unwrap(), [hash(1), hash(2)]);
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

/// An operation on a store.
#[derive(Clone, Debug)]
enum Operation {
    Create(u8),
    Become(u8, KeyPackageStatus),
    Spend(u8),
    Fail(u8),
    Confirm,
    Delete(u8),
}

fn operation() -> impl Strategy<Value = Operation> {
    let number = 0..12_u8;
    let statuses: Vec<_> = KeyPackageStatus::iter().collect();
    prop_oneof![
        3 => number.clone().prop_map(Operation::Create),
        6 => (number.clone(), prop::sample::select(statuses)).prop_map(|(n, status)| Operation::Become(n, status)),
        1 => number.clone().prop_map(Operation::Spend),
        1 => number.clone().prop_map(Operation::Fail),
        1 => Just(Operation::Confirm),
        1 => number.prop_map(Operation::Delete),
    ]
}

/// Applies an operation to the model, a plain map. Returns whether it should succeed.
fn expect(model: &mut BTreeMap<u8, KeyPackageStatus>, operation: &Operation) -> bool {
    let step = |model: &mut BTreeMap<u8, KeyPackageStatus>, number: u8, next| {
        let status = model.get_mut(&number).filter(|status| status.may_become(next));
        status.map(|status| *status = next).is_some()
    };
    match *operation {
        Operation::Create(number) => {
            let is_new = !model.contains_key(&number);
            if is_new {
                model.insert(number, KeyPackageStatus::Created);
            }
            is_new
        }
        Operation::Become(number, next) => step(model, number, next),
        Operation::Spend(number) => step(model, number, KeyPackageStatus::Spent),
        Operation::Fail(number) => step(model, number, KeyPackageStatus::Failed),
        Operation::Confirm => {
            for status in model.values_mut().filter(|status| **status == KeyPackageStatus::Uploaded) {
                *status = KeyPackageStatus::Available;
            }
            true
        }
        Operation::Delete(number) => {
            model.remove(&number);
            true
        }
    }
}

fn run(store: &LocalStore, operation: &Operation) -> bool {
    let outcome = match operation {
        Operation::Create(number) => {
            store.create_pool_metadata(&KeyPackageMetadata::created(hash(*number), (start(), start()), 1, false))
        }
        Operation::Become(number, next) => store.update_pool_metadata_status(&hash(*number), *next, start()),
        Operation::Spend(number) => store.mark_spent(&hash(*number), &Spending::default(), start()),
        Operation::Fail(number) => store.mark_failed(&hash(*number), None, start()),
        Operation::Confirm => store.confirm_uploaded(),
        Operation::Delete(number) => store.delete_pool_metadata(&hash(*number)),
    };
    outcome.is_ok()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// After any operations, each KeyPackage has one status, the counts add up, and failed operations change nothing.
    #[test]
    fn the_counts_add_up_after_every_step(operations in prop::collection::vec(operation(), 1..60)) {
        let (_directory, store) = open();
        let mut model = BTreeMap::new();
        for operation in &operations {
            prop_assert_eq!(run(&store, operation), expect(&mut model, operation), "{:?}", operation);
            let counts = store.count_by_status().unwrap();
            prop_assert_eq!(counts.values().sum::<usize>(), store.metadata().unwrap().len());
            for status in KeyPackageStatus::iter() {
                let expected = model.values().filter(|is| **is == status).count();
                prop_assert_eq!(counts[&status], expected, "{:?}", status);
                prop_assert_eq!(store.get_metadata_by_status(status).unwrap().len(), expected);
            }
        }
    }
}
