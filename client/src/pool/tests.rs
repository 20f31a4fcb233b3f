use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use keypool_openapi::KeyPackageRef;
use openmls::prelude::Ciphersuite;
use tempfile::TempDir;

use super::{
    CIPHERSUITE, KeyPackagePool, KeyPackagePoolConfig, KeyPackageSigner, PoolStore as _, ReservationInfo, Spending,
    fail, supersede_all,
    test_support::{TestStore, over_each_store, signer},
    transitions::{change_status, record_reservation},
};
use crate::{
    error::{Error, Result},
    key_package_status::KeyPackageStatus,
    storage::LocalStore,
};

const P256: Ciphersuite = Ciphersuite::MLS_128_DHKEMP256_AES128GCM_SHA256_P256;
const DAY: SignedDuration = SignedDuration::from_hours(24);

struct Device<S> {
    _directory: TempDir,
    store: S,
    signer: KeyPackageSigner,
    config: KeyPackagePoolConfig,
}

impl<S: TestStore> Device<S> {
    fn new() -> Self {
        let (directory, store) = S::open();
        Self { _directory: directory, store, signer: signer(CIPHERSUITE), config: KeyPackagePoolConfig::default() }
    }

    fn pool(&self) -> KeyPackagePool<'_, S> {
        KeyPackagePool::new(&self.store, &self.config)
    }

    fn try_generate(&self, count: usize, last_resort: bool, now: Timestamp) -> Result<()> {
        self.pool().generate_and_update_pool(&self.signer, (count, last_resort), now, &|_| {})
    }

    fn generate(&self, count: usize, last_resort: bool, now: Timestamp) -> Vec<KeyPackageRef> {
        self.try_generate(count, last_resort, now).unwrap();
        self.pool().unconfirmed(now).unwrap().into_iter().map(|(keypackage_ref, _)| keypackage_ref).collect()
    }

    fn become_all(&self, keypackage_ref: &KeyPackageRef, steps: &[KeyPackageStatus], now: Timestamp) {
        for step in steps {
            change_status(&self.store, keypackage_ref, *step, now).unwrap();
        }
    }

    fn status(&self, keypackage_ref: &KeyPackageRef) -> KeyPackageStatus {
        self.store.find_metadata(keypackage_ref).unwrap().unwrap().status
    }

    fn rows(&self) -> usize {
        self.store.metadata().unwrap().len()
    }

    fn keys(&self) -> usize {
        self.store.keys()
    }
}

fn start() -> Timestamp {
    "2030-01-01T00:00:00Z".parse().unwrap()
}

over_each_store! {
    keys_and_rows_are_made_together,
    a_failing_generation_leaves_neither_keys_nor_rows,
    more_than_the_hard_cap_is_refused_as_a_whole,
    pools_are_replenished_by_what_is_fresh_in_their_ciphersuite,
    the_hard_cap_bounds_what_is_needed,
    an_unconfirmed_package_is_the_same_bytes_every_time,
    what_is_uploaded_or_expired_or_superseded_is_not_uploaded_again,
    a_package_keeps_its_keys_for_a_day_past_its_end,
    a_failed_package_goes_at_once_unless_somebody_may_have_it,
    a_last_resort_is_replaced_when_it_was_used_or_is_near_its_end,
    who_reserved_and_spent_it_is_kept,
}

fn keys_and_rows_are_made_together<S: TestStore>() {
    let device = Device::<S>::new();
    device.generate(5, true, start());
    assert_eq!((device.keys(), device.rows()), (6, 6));
    assert_eq!(device.pool().get_available_count(CIPHERSUITE, start()).unwrap(), 5);
    assert_eq!(device.pool().unconfirmed(start()).unwrap().len(), 6);
}

fn a_failing_generation_leaves_neither_keys_nor_rows<S: TestStore>() {
    let device = Device::<S>::new();
    device.store.refuse_rows_after(3);
    let failed = device.try_generate(5, true, start());
    assert!(matches!(failed, Err(Error::Storage { .. })), "{failed:?}");
    assert_eq!((device.keys(), device.rows()), (0, 0));
}

fn more_than_the_hard_cap_is_refused_as_a_whole<S: TestStore>() {
    let device = Device::<S>::new();
    device.generate(60, true, start());
    let refused = device.try_generate(5, true, start());
    assert!(matches!(refused, Err(Error::PoolCapacityExceeded { needed: 5, available: 4 })), "{refused:?}");
    assert_eq!(device.rows(), 61);
    device.generate(4, false, start());
    // Each ciphersuite has its own cap.
    let other = signer(P256);
    device.pool().generate_and_update_pool(&other, (64, false), start(), &|_| {}).unwrap();
    let refused = device.pool().generate_and_update_pool(&other, (1, false), start(), &|_| {});
    assert!(matches!(refused, Err(Error::PoolCapacityExceeded { needed: 1, available: 0 })), "{refused:?}");
}

fn pools_are_replenished_by_what_is_fresh_in_their_ciphersuite<S: TestStore>() {
    let device = Device::<S>::new();
    let pool = device.pool();
    let refs = device.generate(8, true, start());
    assert!(!pool.should_replenish(CIPHERSUITE, start()).unwrap());
    assert!(pool.should_replenish(P256, start()).unwrap());
    assert_eq!(pool.get_replenishment_needed(CIPHERSUITE, start()).unwrap(), 24);
    assert_eq!(pool.get_replenishment_needed(P256, start()).unwrap(), 32);
    // One was handed out and returned: it is available, but not fresh.
    let lapsed = refs.iter().find(|one| !device.store.find_metadata(one).unwrap().unwrap().last_resort).unwrap();
    let steps = [KeyPackageStatus::Uploaded, KeyPackageStatus::Reserved, KeyPackageStatus::Available];
    device.become_all(lapsed, &steps, start());
    assert_eq!(pool.get_available_count(CIPHERSUITE, start()).unwrap(), 8);
    assert_eq!(pool.get_fresh_count(CIPHERSUITE, start()).unwrap(), 7);
    assert!(pool.should_replenish(CIPHERSUITE, start()).unwrap());
    assert_eq!(pool.get_replenishment_needed(CIPHERSUITE, start()).unwrap(), 25);
    // Expired ones do not count.
    assert_eq!(pool.get_fresh_count(CIPHERSUITE, start() + DAY * 14).unwrap(), 0);
    supersede_all(&device.store).unwrap();
    assert_eq!(pool.get_available_count(CIPHERSUITE, start()).unwrap(), 0);
}

fn the_hard_cap_bounds_what_is_needed<S: TestStore>() {
    let mut device = Device::<S>::new();
    device.config.hard_cap = 40;
    let refs = device.generate(38, false, start());
    for one in &refs {
        let steps = [KeyPackageStatus::Uploaded, KeyPackageStatus::Reserved, KeyPackageStatus::Available];
        device.become_all(one, &steps, start());
    }
    assert_eq!(device.pool().get_replenishment_needed(CIPHERSUITE, start()).unwrap(), 2);
}

fn an_unconfirmed_package_is_the_same_bytes_every_time<S: TestStore>() {
    let device = Device::<S>::new();
    device.generate(2, true, start());
    let first = device.pool().unconfirmed(start()).unwrap();
    assert_eq!(first.len(), 3);
    assert_eq!(first, device.pool().unconfirmed(start()).unwrap());
}

fn what_is_uploaded_or_expired_or_superseded_is_not_uploaded_again<S: TestStore>() {
    let device = Device::<S>::new();
    let refs = device.generate(2, false, start());
    device.become_all(&refs[0], &[KeyPackageStatus::Uploaded], start());
    let left: Vec<_> = device.pool().unconfirmed(start()).unwrap().into_iter().map(|(one, _)| one).collect();
    assert_eq!(left, refs[1..]);
    assert_eq!(device.pool().unconfirmed(start() + DAY * 14).unwrap(), []);
    supersede_all(&device.store).unwrap();
    assert_eq!(device.pool().unconfirmed(start()).unwrap(), []);
}

fn a_package_keeps_its_keys_for_a_day_past_its_end<S: TestStore>() {
    let device = Device::<S>::new();
    let refs = device.generate(3, true, start());
    device.become_all(&refs[0], &[KeyPackageStatus::Uploaded], start());
    device.become_all(&refs[1], &[KeyPackageStatus::Uploaded], start());
    device.pool().mark_as_spent(&refs[1], &Spending::default(), start()).unwrap();
    let end = start() + DAY * 14;
    assert_eq!(device.pool().cleanup_expired(end - SignedDuration::from_secs(1)).unwrap(), 0);
    assert_eq!(device.status(&refs[0]), KeyPackageStatus::Uploaded);
    assert_eq!(device.pool().cleanup_expired(end).unwrap(), 0);
    assert_eq!(device.status(&refs[0]), KeyPackageStatus::Expired);
    assert_eq!(device.status(&refs[1]), KeyPackageStatus::Spent);
    assert_eq!((device.keys(), device.rows()), (4, 4));
    assert_eq!(device.pool().cleanup_expired(end + DAY - SignedDuration::from_secs(1)).unwrap(), 0);
    assert_eq!(device.pool().cleanup_expired(end + DAY).unwrap(), 4);
    assert_eq!((device.keys(), device.rows()), (0, 0));
}

fn a_failed_package_goes_at_once_unless_somebody_may_have_it<S: TestStore>() {
    let device = Device::<S>::new();
    let refs = device.generate(2, false, start());
    fail(&device.store, &refs[0], None, start()).unwrap();
    fail(&device.store, &refs[1], Some(start() + DAY), start()).unwrap();
    assert_eq!(device.pool().cleanup_expired(start()).unwrap(), 1);
    assert_eq!(device.status(&refs[1]), KeyPackageStatus::Failed);
    assert!(device.pool().has_keys(&refs[1]).unwrap() && !device.pool().has_keys(&refs[0]).unwrap());
    assert_eq!(device.pool().cleanup_expired(start() + DAY).unwrap(), 1);
    assert_eq!((device.keys(), device.rows()), (0, 0));
}

fn a_last_resort_is_replaced_when_it_was_used_or_is_near_its_end<S: TestStore>() {
    let device = Device::<S>::new();
    let pool = device.pool();
    let needed = |uses, now| pool.needs_last_resort(CIPHERSUITE, uses, now).unwrap();
    assert!(needed(0, start()));
    let refs = device.generate(0, true, start());
    assert!(!needed(0, start()) && pool.needs_last_resort(P256, 0, start()).unwrap());
    // A last resort that is not uploaded has no uses.
    assert!(!needed(3, start()));
    device.become_all(&refs[0], &[KeyPackageStatus::Uploaded], start());
    assert!(needed(1, start()));
    assert!(!needed(0, start() + DAY * 12) && needed(0, start() + DAY * 12 + SignedDuration::from_secs(1)));
    assert!(needed(0, start() + DAY * 14));
}

fn who_reserved_and_spent_it_is_kept<S: TestStore>() {
    let device = Device::<S>::new();
    let refs = device.generate(1, false, start());
    let by = keypool_openapi::DeviceOf { user: "bob".parse().unwrap(), device: "phone".parse().unwrap() };
    let reservation_id = Some("1f-67e55044-10b1-426f-9247-bb680e5fe0c8".parse().unwrap());
    device.become_all(&refs[0], &[KeyPackageStatus::Uploaded, KeyPackageStatus::Reserved], start());
    let info = ReservationInfo { reservation_id, reserved_by: Some(by.clone()), expires_at: Some(start() + DAY) };
    record_reservation(&device.store, &refs[0], &info, start()).unwrap();
    let group_id = Some(keypool_openapi::Base64Bytes(b"friends".to_vec()));
    let spending = Spending { by: Some(by), group_id, at: Some(start() + DAY) };
    device.pool().mark_as_spent(&refs[0], &spending, start()).unwrap();
    let row = device.store.find_metadata(&refs[0]).unwrap().unwrap();
    assert_eq!((row.reservation_id, row.reservation_expires_at), (reservation_id, Some(start() + DAY)));
    assert_eq!((row.reserved_by.as_deref(), row.spent_by.as_deref()), (Some("bob/phone"), Some("bob/phone")));
    assert_eq!((row.spent_group_id.as_deref(), row.spent_at), (Some(&b"friends"[..]), Some(start() + DAY)));
    assert!(device.pool().has_keys(&refs[0]).unwrap(), "its Welcome may be under way");
}

#[test]
#[expect(clippy::print_stdout, reason = "the figure is what the documentation quotes")]
fn metadata_holds_no_key_material_and_little_else() {
    let device = Device::<LocalStore>::new();
    for one in device.generate(32, true, start()) {
        device.become_all(&one, &[KeyPackageStatus::Uploaded, KeyPackageStatus::Reserved], start());
        let reserved_by =
            Some(keypool_openapi::DeviceOf { user: "bob".parse().unwrap(), device: "phone".parse().unwrap() });
        let reservation_id = Some("1f-67e55044-10b1-426f-9247-bb680e5fe0c8".parse().unwrap());
        let info = ReservationInfo { reservation_id, reserved_by, expires_at: Some(start()) };
        // Every other one was handed out, more than in practice.
        if one.as_bytes()[0] % 2 == 0 {
            record_reservation(&device.store, &one, &info, start()).unwrap();
        }
    }
    let bytes = device.store.metadata_bytes();
    for row in device.store.metadata().unwrap() {
        let bundle = device.pool().bundle(&row.keypackage_ref).unwrap().unwrap();
        let private: &[u8] = bundle.init_private_key();
        for key in [private, bundle.key_package().hpke_init_key().as_slice()] {
            assert!(!bytes.windows(key.len()).any(|window| window == key));
        }
    }
    let average = device.store.metadata_size() / 33;
    println!("{average} bytes of metadata a KeyPackage");
    assert!(average <= 150, "{average} bytes");
}

#[test]
fn the_configuration_is_checked() {
    let valid = KeyPackagePoolConfig::default();
    valid.validate().unwrap();
    for broken in [
        KeyPackagePoolConfig { low_watermark: 0, ..valid.clone() },
        KeyPackagePoolConfig { low_watermark: 33, ..valid.clone() },
        KeyPackagePoolConfig { target_pool_size: 65, ..valid.clone() },
        KeyPackagePoolConfig { lifetime: Duration::from_secs(3_599), ..valid.clone() },
        KeyPackagePoolConfig { lifetime: Duration::from_hours(84 * 24 + 1), ..valid },
    ] {
        assert!(matches!(broken.validate(), Err(Error::Config(_))), "{broken:?}");
    }
}
