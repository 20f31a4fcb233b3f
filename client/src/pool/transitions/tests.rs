use std::collections::BTreeMap;

use proptest::prelude::*;
use strum::IntoEnumIterator as _;

use super::*;
use crate::pool::{
    KeyPackagePool, KeyPackagePoolConfig,
    test_support::{TestStore, over_each_store},
};

fn start() -> Timestamp {
    "2030-01-01T00:00:00Z".parse().unwrap()
}

over_each_store! {
    a_status_changes_along_the_life_only,
    the_expired_are_those_whose_end_has_come,
    a_row_is_made_once_and_not_by_a_change,
    the_counts_add_up_after_every_step,
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

fn a_status_changes_along_the_life_only<S: TestStore>() {
    let (_directory, store) = S::open();
    let mut number = 0;
    for (from, allowed) in STEPS {
        for to in KeyPackageStatus::iter() {
            number += 1;
            let row = KeyPackageMetadata {
                status: from,
                ..KeyPackageMetadata::created(hash(number), (start(), start()), 1, false)
            };
            store.create_pool_metadata(&row).unwrap();
            let outcome = change_status(&store, &row.keypackage_ref, to, start());
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
    let unknown = change_status(&store, &hash(255), KeyPackageStatus::Spent, start());
    assert!(matches!(unknown, Err(Error::UnknownKeyPackage(_))), "{unknown:?}");
}

fn the_expired_are_those_whose_end_has_come<S: TestStore>() {
    let (_directory, store) = S::open();
    let config = KeyPackagePoolConfig::default();
    let pool = KeyPackagePool::new(&store, &config);
    for number in 1..=3 {
        let not_after = start() + SignedDuration::from_secs(number.into());
        let row = KeyPackageMetadata::created(hash(number), (start(), not_after), 1, false);
        store.create_pool_metadata(&row).unwrap();
    }
    assert_eq!(pool.get_expired_refs(start()).unwrap(), []);
    assert_eq!(pool.get_expired_refs(start() + SignedDuration::from_secs(2)).unwrap(), [hash(1), hash(2)]);
}

/// What the rules rely on: a change of a row never brings back one that was deleted meanwhile.
fn a_row_is_made_once_and_not_by_a_change<S: TestStore>() {
    let (_directory, store) = S::open();
    let row = KeyPackageMetadata::created(hash(1), (start(), start()), 1, false);
    store.update_pool_metadata(&row).unwrap();
    assert_eq!(store.metadata().unwrap(), []);
    store.create_pool_metadata(&row).unwrap();
    assert!(store.create_pool_metadata(&row).is_err());
    store.delete_pool_metadata(&hash(1)).unwrap();
    store.delete_pool_metadata(&hash(1)).unwrap();
    assert_eq!(store.find_metadata(&hash(1)).unwrap(), None);
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

fn run(store: &impl TestStore, operation: &Operation) -> bool {
    let outcome = match operation {
        Operation::Create(number) => {
            store.create_pool_metadata(&KeyPackageMetadata::created(hash(*number), (start(), start()), 1, false))
        }
        Operation::Become(number, next) => change_status(store, &hash(*number), *next, start()),
        Operation::Spend(number) => record_spend(store, &hash(*number), &Spending::default(), start()),
        Operation::Fail(number) => fail(store, &hash(*number), None, start()),
        Operation::Confirm => confirm_uploaded(store),
        Operation::Delete(number) => store.delete_pool_metadata(&hash(*number)),
    };
    outcome.is_ok()
}

/// After any operations, each KeyPackage has one status, the counts add up, and failed operations change nothing.
fn the_counts_add_up_after_every_step<S: TestStore>() {
    let config = KeyPackagePoolConfig::default();
    proptest!(ProptestConfig::with_cases(64), |(operations in prop::collection::vec(operation(), 1..60))| {
        let (_directory, store) = S::open();
        let pool = KeyPackagePool::new(&store, &config);
        let mut model = BTreeMap::new();
        for operation in &operations {
            prop_assert_eq!(run(&store, operation), expect(&mut model, operation), "{:?}", operation);
            let counts = pool.count_by_status().unwrap();
            prop_assert_eq!(counts.values().sum::<usize>(), store.metadata().unwrap().len());
            for status in KeyPackageStatus::iter() {
                let expected = model.values().filter(|is| **is == status).count();
                prop_assert_eq!(counts[&status], expected, "{:?}", status);
                prop_assert_eq!(pool.get_metadata_by_status(status).unwrap().len(), expected);
            }
        }
    });
}
