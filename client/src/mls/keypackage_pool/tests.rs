use jiff::SignedDuration;
use tempfile::TempDir;

use super::*;

const LIFETIME: Duration = Duration::from_hours(14 * 24);
const DAY: SignedDuration = SignedDuration::from_hours(24);

struct Device {
    _directory: TempDir,
    store: LocalStore,
    identity: DeviceIdentity,
}

impl Device {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = LocalStore::open(directory.path()).unwrap();
        let identity = DeviceIdentity::create(
            &store,
            "http://localhost:8080",
            &"alice".parse().unwrap(),
            &"laptop".parse().unwrap(),
        )
        .unwrap();
        Self { _directory: directory, store, identity }
    }

    fn pool(&self) -> KeyPackagePool<'_> {
        KeyPackagePool::new(&self.store)
    }

    fn generate(&self, count: usize, last_resort: bool, now: Timestamp) {
        self.pool().generate(&self.identity, (count, last_resort), LIFETIME, now, &|_| {}).unwrap();
    }

    fn rows(&self) -> i64 {
        self.store.count("keypackage_pool_metadata")
    }

    fn keys(&self) -> i64 {
        self.store.count("openmls_key_packages")
    }
}

fn start() -> Timestamp {
    "2030-01-01T00:00:00Z".parse().unwrap()
}

#[test]
fn keys_and_rows_are_made_together() {
    let device = Device::new();
    device.generate(5, true, start());
    assert_eq!((device.keys(), device.rows()), (6, 6));
    assert_eq!(device.pool().counts().unwrap(), LocalCounts { total: 5, unconfirmed: 6, last_resort: 1 });
}

#[test]
fn a_failing_generation_leaves_neither_keys_nor_rows() {
    let device = Device::new();
    device.store.refuse_rows_after(3);
    let failed = device.pool().generate(&device.identity, (5, true), LIFETIME, start(), &|_| {});
    assert!(matches!(failed, Err(Error::Storage { .. })), "{failed:?}");
    assert_eq!((device.keys(), device.rows()), (0, 0));
}

#[test]
fn an_unconfirmed_package_is_the_same_bytes_every_time() {
    let device = Device::new();
    device.generate(2, true, start());
    let first = device.pool().unconfirmed(start()).unwrap();
    assert_eq!(first.len(), 3);
    assert_eq!(first, device.pool().unconfirmed(start()).unwrap());
}

#[test]
fn what_is_uploaded_or_expired_is_not_uploaded_again() {
    let device = Device::new();
    device.generate(2, false, start());
    let unconfirmed = device.pool().unconfirmed(start()).unwrap();
    device.store.set_uploaded(&unconfirmed[0].0, start()).unwrap();
    assert_eq!(device.pool().unconfirmed(start()).unwrap(), unconfirmed[1..]);
    assert_eq!(device.pool().unconfirmed(start() + DAY * 14).unwrap(), []);
}

#[test]
fn an_expired_package_that_was_never_uploaded_goes_at_once() {
    let device = Device::new();
    device.generate(2, true, start());
    assert_eq!(device.pool().remove_expired(start() + DAY * 14 - SignedDuration::from_secs(1)).unwrap(), 0);
    assert_eq!(device.pool().remove_expired(start() + DAY * 14).unwrap(), 3);
    assert_eq!((device.keys(), device.rows()), (0, 0));
}

#[test]
fn an_uploaded_package_keeps_its_keys_for_a_day_past_its_end() {
    let device = Device::new();
    device.generate(1, false, start());
    let unconfirmed = device.pool().unconfirmed(start()).unwrap();
    device.store.set_uploaded(&unconfirmed[0].0, start()).unwrap();
    assert_eq!(device.pool().remove_expired(start() + DAY * 14).unwrap(), 0);
    assert_eq!(device.store.metadata().unwrap()[0].status, KeyPackageStatus::Expired);
    assert_eq!((device.keys(), device.rows()), (1, 1));
    assert_eq!(device.pool().remove_expired(start() + DAY * 15).unwrap(), 1);
    assert_eq!((device.keys(), device.rows()), (0, 0));
}

#[test]
fn a_refused_package_is_removed_with_its_keys() {
    let device = Device::new();
    device.generate(2, false, start());
    let unconfirmed = device.pool().unconfirmed(start()).unwrap();
    device.store.set_status(&unconfirmed[0].0, KeyPackageStatus::Failed).unwrap();
    assert_eq!(device.pool().remove_expired(start()).unwrap(), 1);
    assert_eq!((device.keys(), device.rows()), (1, 1));
    assert_eq!(device.pool().unconfirmed(start()).unwrap(), unconfirmed[1..]);
}

#[test]
fn metadata_holds_no_key_material() {
    let device = Device::new();
    device.generate(3, true, start());
    for row in device.store.metadata().unwrap() {
        let bundle: KeyPackageBundle = device
            .store
            .provider()
            .storage()
            .key_package(&hash_reference(row.keypackage_ref.as_bytes()).unwrap())
            .unwrap()
            .unwrap();
        let private: &[u8] = bundle.init_private_key();
        let public = bundle.key_package().hpke_init_key().as_slice();
        for key in [private, public] {
            assert!(!device.store.metadata_bytes().windows(key.len()).any(|window| window == key));
        }
    }
    // A ref is 32 bytes; all of a row is within what the design allows.
    assert!(device.store.metadata_bytes().len() <= 4 * 150);
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

#[test]
fn a_pool_is_filled_below_the_low_watermark_and_never_above_the_cap() {
    let config = KeyPackagePoolConfig::default();
    assert_eq!(config.wanted(8, 8, false), 0);
    assert_eq!(config.wanted(7, 7, false), 25);
    assert_eq!(config.wanted(8, 8, true), 24);
    assert_eq!(config.wanted(32, 32, true), 0);
    assert_eq!(config.wanted(0, 60, false), 4);
    assert_eq!(config.wanted(0, 64, false), 0);
}
