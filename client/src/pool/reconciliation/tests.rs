use jiff::SignedDuration;
use keypool_openapi::{Base64Bytes, DeviceOf};
use tempfile::TempDir;

use super::*;
use crate::pool::{
    CIPHERSUITE, GRACE, KeyPackagePoolConfig, confirm_uploaded, fail, supersede_all,
    test_support::{TestStore, over_each_store, signer},
};

struct Device<S> {
    _directory: TempDir,
    store: S,
    config: KeyPackagePoolConfig,
    refs: Vec<KeyPackageRef>,
}

impl<S: TestStore> Device<S> {
    /// A device with `count` KeyPackages that are not uploaded.
    fn new(count: usize) -> Self {
        let (directory, store) = S::open();
        let config = KeyPackagePoolConfig::default();
        let pool = KeyPackagePool::new(&store, &config);
        pool.generate_and_update_pool(&signer(CIPHERSUITE), (count, false), start(), &|_| {}).unwrap();
        let refs: Vec<_> = pool.unconfirmed(start()).unwrap().into_iter().map(|(one, _)| one).collect();
        Self { _directory: directory, store, config, refs }
    }

    fn uploaded(count: usize) -> Self {
        let device = Self::new(count);
        for one in &device.refs {
            change_status(&device.store, one, KeyPackageStatus::Uploaded, start()).unwrap();
        }
        confirm_uploaded(&device.store).unwrap();
        device
    }

    fn reconcile(&self, inventory: Vec<InventoryItem>) -> Reconciliation {
        reconcile(&KeyPackagePool::new(&self.store, &self.config), inventory, start()).unwrap()
    }

    fn row(&self, index: usize) -> KeyPackageMetadata {
        self.store.find_metadata(&self.refs[index]).unwrap().unwrap()
    }

    fn status(&self, index: usize) -> KeyPackageStatus {
        self.row(index).status
    }
}

fn start() -> Timestamp {
    "2030-01-01T00:00:00Z".parse().unwrap()
}

over_each_store! {
    the_servers_word_is_taken_over_once,
    a_reservation_that_lapsed_is_available_and_not_fresh,
    an_upload_whose_answer_was_lost_is_found_there,
    what_the_server_has_lost_is_uploaded_again_unless_somebody_may_have_it,
    what_was_superseded_is_not_uploaded_again,
    what_has_no_keys_here_is_withdrawn_there,
    what_was_handed_out_and_joined_with_is_no_foreigner,
    what_is_used_up_here_is_withdrawn_where_it_could_be_handed_out_again,
}

fn item(keypackage_ref: &KeyPackageRef, state: State) -> InventoryItem {
    let handed_out = matches!(state, State::Reserved | State::Spent);
    InventoryItem {
        keypackage_ref: keypackage_ref.clone(),
        state,
        ciphersuite: 1,
        not_after: start() + SignedDuration::from_hours(24),
        last_resort: false,
        reservation_id: handed_out.then(|| "1f-67e55044-10b1-426f-9247-bb680e5fe0c8".parse().unwrap()),
        reserved_by: handed_out.then(|| DeviceOf { user: "bob".parse().unwrap(), device: "phone".parse().unwrap() }),
        reserved_until: handed_out.then(|| start() + SignedDuration::from_secs(60)),
        spent_at: (state == State::Spent).then(start),
        group_id: (state == State::Spent).then(|| Base64Bytes(b"friends".to_vec())),
    }
}

fn the_servers_word_is_taken_over_once<S: TestStore>() {
    let device = Device::<S>::uploaded(6);
    let states = [State::Available, State::Reserved, State::Spent, State::Revoked, State::Retired, State::Expired];
    let inventory = || device.refs.iter().zip(states).map(|(one, state)| item(one, state)).collect();
    assert_eq!(device.reconcile(inventory()), Reconciliation { changed: 5, ..Reconciliation::default() });
    let expected = [
        KeyPackageStatus::Available,
        KeyPackageStatus::Reserved,
        KeyPackageStatus::Spent,
        KeyPackageStatus::Failed,
        KeyPackageStatus::Failed,
        KeyPackageStatus::Expired,
    ];
    assert_eq!((0..6).map(|index| device.status(index)).collect::<Vec<_>>(), expected);
    let (reserved, spent, revoked) = (device.row(1), device.row(2), device.row(3));
    assert_eq!(reserved.reserved_by.as_deref(), Some("bob/phone"));
    assert_eq!(
        (spent.spent_by.as_deref(), spent.spent_group_id.as_deref()),
        (Some("bob/phone"), Some(&b"friends"[..]))
    );
    assert_eq!(revoked.keep_until, Some(start() + GRACE));
    assert_eq!(device.reconcile(inventory()), Reconciliation::default(), "the second time there is nothing new");
}

fn a_reservation_that_lapsed_is_available_and_not_fresh<S: TestStore>() {
    let device = Device::<S>::uploaded(1);
    device.reconcile(vec![item(&device.refs[0], State::Reserved)]);
    let mut back = item(&device.refs[0], State::Reserved);
    back.state = State::Available;
    assert_eq!(device.reconcile(vec![back]).changed, 1);
    assert_eq!(device.status(0), KeyPackageStatus::Available);
    assert!(!device.row(0).is_fresh(start()) && device.row(0).is_available(start()));
}

fn an_upload_whose_answer_was_lost_is_found_there<S: TestStore>() {
    let device = Device::<S>::new(2);
    let inventory = vec![item(&device.refs[0], State::Available), item(&device.refs[1], State::Spent)];
    assert_eq!(device.reconcile(inventory), Reconciliation { changed: 2, ..Reconciliation::default() });
    assert_eq!((device.status(0), device.status(1)), (KeyPackageStatus::Available, KeyPackageStatus::Spent));
    assert_eq!(device.row(0).uploaded_at, Some(start()));
}

fn what_the_server_has_lost_is_uploaded_again_unless_somebody_may_have_it<S: TestStore>() {
    let device = Device::<S>::uploaded(3);
    change_status(&device.store, &device.refs[1], KeyPackageStatus::Reserved, start()).unwrap();
    change_status(&device.store, &device.refs[2], KeyPackageStatus::Spent, start()).unwrap();
    assert_eq!(device.reconcile(vec![]), Reconciliation { changed: 2, ..Reconciliation::default() });
    assert_eq!(device.status(0), KeyPackageStatus::Created);
    assert_eq!((device.status(1), device.row(1).keep_until), (KeyPackageStatus::Failed, Some(start() + GRACE)));
    assert_eq!(device.status(2), KeyPackageStatus::Spent);
}

fn what_was_superseded_is_not_uploaded_again<S: TestStore>() {
    let device = Device::<S>::uploaded(1);
    supersede_all(&device.store).unwrap();
    device.reconcile(vec![]);
    assert_eq!(device.status(0), KeyPackageStatus::Failed);
}

fn what_has_no_keys_here_is_withdrawn_there<S: TestStore>() {
    let device = Device::<S>::uploaded(2);
    let pool = KeyPackagePool::new(&device.store, &device.config);
    // The first has lost its keys; the second also its row.
    device.store.lose_keys(&device.refs[0]);
    pool.delete(&device.refs[1]).unwrap();
    let inventory = vec![item(&device.refs[0], State::Available), item(&device.refs[1], State::Available)];
    let found = device.reconcile(inventory);
    let mut refs = device.refs.clone();
    refs.sort_unstable();
    assert_eq!(found, Reconciliation { changed: 1, to_revoke: refs, foreign: 1 });
    assert_eq!(device.store.metadata().unwrap(), []);
}

fn what_was_handed_out_and_joined_with_is_no_foreigner<S: TestStore>() {
    let device = Device::<S>::uploaded(1);
    let joined = vec![7; 32].into();
    let found = device.reconcile(vec![item(&device.refs[0], State::Available), item(&joined, State::Reserved)]);
    assert_eq!(found, Reconciliation { changed: 0, to_revoke: vec![joined], foreign: 0 });
}

fn what_is_used_up_here_is_withdrawn_where_it_could_be_handed_out_again<S: TestStore>() {
    let device = Device::<S>::uploaded(2);
    change_status(&device.store, &device.refs[0], KeyPackageStatus::Spent, start()).unwrap();
    fail(&device.store, &device.refs[1], None, start()).unwrap();
    let inventory = device.refs.iter().map(|one| item(one, State::Available)).collect();
    let mut refs = device.refs.clone();
    refs.sort_unstable();
    assert_eq!(device.reconcile(inventory), Reconciliation { changed: 0, to_revoke: refs, foreign: 0 });
    assert_eq!((device.status(0), device.status(1)), (KeyPackageStatus::Spent, KeyPackageStatus::Failed));
}
