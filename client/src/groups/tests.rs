use keypool_openapi::{
    Base64Bytes, DeviceName, DeviceOf, KeyPackageRef, MessageKind, QueuedMessage, Reservation, ReserveRequest,
};
use openmls::prelude::{KeyPackage, LeafNodeIndex, MlsGroup};
use tempfile::TempDir;

use super::{incoming::Event, membership::MlsMembership, reserve::matches_request};
use crate::{
    api::ApiClient,
    clock::{Clock as _, SystemClock},
    connection::MlsConnection,
    error::{Error, Result},
    identity::DeviceIdentity,
    identity_check::{Standing, Standings},
    pool::{CIPHERSUITE, KeyPackagePoolConfig, PoolStore as _},
    storage::LocalStore,
};

struct Device {
    _directory: TempDir,
    store: LocalStore,
    identity: DeviceIdentity,
    api: ApiClient,
    config: KeyPackagePoolConfig,
}

impl Device {
    fn new(user: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = LocalStore::open(directory.path()).unwrap();
        let names = (&user.parse().unwrap(), &"laptop".parse().unwrap());
        let identity = DeviceIdentity::create(&store, "http://localhost:8080", names, &[CIPHERSUITE]).unwrap();
        let api = ApiClient::new(identity.server(), None).unwrap();
        Self { _directory: directory, store, identity, api, config: KeyPackagePoolConfig::default() }
    }

    fn membership(&self) -> MlsMembership<'_> {
        MlsMembership::new(MlsConnection::new(&self.api, &self.store, &SystemClock, &self.config), &self.identity)
    }

    /// Generates KeyPackages, or one last resort, and returns a reservation of the first, as a server would.
    fn reservation(&self, count: usize, last_resort: bool) -> Reservation {
        // OpenMLS validates lifetimes by the system's clock.
        let now = SystemClock.now();
        let pool = self.membership().connection.pool();
        let signer = self.identity.key_package_signer(CIPHERSUITE).unwrap();
        pool.generate_and_update_pool(&signer, (count, last_resort), now, &|_| {}).unwrap();
        let (keypackage_ref, message) = pool.unconfirmed(now).unwrap().remove(0);
        Reservation {
            reservation_id: "1f-67e55044-10b1-426f-9247-bb680e5fe0c8".parse().unwrap(),
            user: self.identity.user().clone(),
            device: self.identity.device().clone(),
            keypackage_ref,
            keypackage: Base64Bytes(message),
            ciphersuite: 1,
            not_after: now,
            expires_at: now,
            last_resort,
            handout: None,
            receipt: None,
        }
    }

    fn counts(&self) -> (i64, i64) {
        (self.store.count("openmls_key_packages"), self.store.count("keypackage_pool_metadata"))
    }
}

/// Runs a call that needs the identity check, and answers each leaf as unverified.
fn asked<T>(mut call: impl FnMut(&Standings) -> Result<T>) -> Result<T> {
    let mut answers = Standings::default();
    loop {
        match call(&answers) {
            Err(Error::Unchecked { leaves }) => answers.extend(&leaves, vec![Standing::Unverified; leaves.len()])?,
            outcome => return outcome,
        }
    }
}

impl Device {
    fn joins(&self, welcome: &[u8]) -> Result<MlsGroup> {
        let joined = asked(|answers| self.store.transaction(|| self.membership().join_within(welcome, None, answers)));
        Ok(joined?.group)
    }

    fn takes_in(&self, message: &QueuedMessage) -> Event {
        asked(|answers| self.membership().process_once(message, answers)).unwrap().unwrap()
    }
}

fn group_and_welcome(adder: &Device, reservation: &Reservation) -> (MlsGroup, Vec<u8>) {
    let mut group = adder.membership().create_group(b"friends").unwrap();
    let (_, welcome, _) = adder.membership().stage(&mut group, std::slice::from_ref(reservation)).unwrap();
    adder.membership().merge(&mut group).unwrap();
    (group, welcome)
}

#[test]
fn joining_removes_the_row_and_the_keys_of_the_package_it_used() {
    let (alice, bob) = (Device::new("alice"), Device::new("bob"));
    let reservation = bob.reservation(3, false);
    let (group, welcome) = group_and_welcome(&alice, &reservation);
    assert_eq!(bob.counts(), (3, 3));
    let joined = bob.joins(&welcome).unwrap();
    assert_eq!(bob.counts(), (2, 2));
    assert!(bob.store.metadata().unwrap().iter().all(|row| row.keypackage_ref != reservation.keypackage_ref));
    assert_eq!(joined.epoch_authenticator().as_slice(), group.epoch_authenticator().as_slice());
    let names: Vec<_> = joined.members().map(|member| member.credential.serialized_content().to_vec()).collect();
    assert_eq!(names, [b"alice/laptop".to_vec(), b"bob/laptop".to_vec()]);
    assert_eq!(bob.membership().load_group(b"friends").unwrap().own_leaf_index(), LeafNodeIndex::new(1));
}

#[test]
fn the_last_resort_survives_a_join() {
    let (alice, bob) = (Device::new("alice"), Device::new("bob"));
    let reservation = bob.reservation(0, true);
    let (_, welcome) = group_and_welcome(&alice, &reservation);
    bob.joins(&welcome).unwrap();
    assert_eq!(bob.counts(), (1, 1));
}

#[test]
fn a_join_that_fails_leaves_the_package_in_place() {
    let (alice, bob) = (Device::new("alice"), Device::new("bob"));
    let (_, mut welcome) = group_and_welcome(&alice, &bob.reservation(1, false));
    // The last bytes are the authentication tag of the encrypted GroupInfo.
    *welcome.last_mut().unwrap() ^= 1;
    assert!(matches!(bob.joins(&welcome), Err(Error::Mls { .. })));
    assert_eq!(bob.counts(), (1, 1));
}

#[test]
fn what_is_no_welcome_is_refused() {
    let bob = Device::new("bob");
    let reservation = bob.reservation(1, false);
    assert!(bob.joins(&reservation.keypackage.0).unwrap_err().to_string().contains("read the Welcome"));
    assert!(bob.joins(b"nonsense").is_err());
}

fn check(reservation: &Reservation, user: &str) -> Result<KeyPackage> {
    let checker = Device::new("carol");
    matches_request(reservation, &ReserveRequest::of(user.parse().unwrap()))?;
    checker.membership().read_reserved(reservation)
}

#[test]
fn a_foreign_package_in_a_reservation_is_refused() {
    let (bob, mallory) = (Device::new("bob"), Device::new("mallory"));
    let honest = bob.reservation(1, false);
    check(&honest, "bob").unwrap();
    let foreign = Reservation { user: "bob".parse().unwrap(), ..mallory.reservation(1, false) };
    let refused = check(&foreign, "bob").unwrap_err();
    assert!(matches!(&refused, Error::ForeignKeyPackage { found, .. } if found == "mallory/laptop"), "{refused}");
    let other_device: DeviceName = "phone".parse().unwrap();
    assert!(matches!(
        check(&Reservation { device: other_device, ..honest.clone() }, "bob"),
        Err(Error::ForeignKeyPackage { .. })
    ));
    assert!(matches!(check(&mallory.reservation(1, false), "bob"), Err(Error::ForeignKeyPackage { .. })));
}

#[test]
fn a_damaged_package_or_another_ref_in_a_reservation_is_refused() {
    let honest = Device::new("bob").reservation(1, false);
    let mut damaged = honest.clone();
    *damaged.keypackage.0.last_mut().unwrap() ^= 1;
    assert!(matches!(check(&damaged, "bob"), Err(Error::InvalidKeyPackage { .. })));
    let other_ref = Reservation { keypackage_ref: KeyPackageRef::from(vec![0; 32]), ..honest };
    assert!(matches!(check(&other_ref, "bob"), Err(Error::InvalidKeyPackage { .. })));
}

#[test]
fn an_addition_that_is_not_spent_leaves_the_group_as_it_was() {
    let (alice, bob) = (Device::new("alice"), Device::new("bob"));
    let reservation = bob.reservation(1, false);
    let mut group = alice.membership().create_group(b"friends").unwrap();
    let epoch = group.epoch();
    alice.membership().stage(&mut group, std::slice::from_ref(&reservation)).unwrap();
    alice.membership().clear_pending(&mut group).unwrap();
    assert!(group.pending_commit().is_none());
    assert_eq!((group.epoch(), group.members().count()), (epoch, 1));
    assert!(alice.membership().load_group(b"friends").unwrap().pending_commit().is_none());
}

#[test]
fn a_group_that_looks_like_another_takes_nothing_from_it() {
    let alice = Device::new("alice");
    let membership = alice.membership();
    let find = |name: &str| membership.find_group(name);
    let is_ambiguous = |name: &str| matches!(find(name), Err(Error::AmbiguousGroup { ids, .. }) if ids.len() == 2);
    let own = membership.create_named_group("cafe").unwrap();
    let beginning = &own.id[..6];
    assert_eq!(find("cafe").unwrap(), own);
    assert_eq!(find(beginning).unwrap(), own);
    assert!(matches!(find(&own.id[..3]), Err(Error::UnknownGroup(_))), "too short to be meant as an id");

    membership.create_named_group(beginning).unwrap();
    assert!(is_ambiguous(beginning));
    membership.create_named_group(&own.id).unwrap();
    assert_eq!(find(&own.id).unwrap(), own, "a whole id always tells");
    membership.create_group(&[0xca, 0xfe]).unwrap();
    alice.store.put_group(&[0xca, 0xfe], Some("other"), SystemClock.now()).unwrap();
    assert!(is_ambiguous("cafe"), "the id of one is the name of the other");
    membership.create_named_group("other").unwrap();
    assert!(is_ambiguous("other"));
}

/// A Welcome in a queue.
fn queued(id: u64, group_id: &[u8], from: &Device, welcome: &[u8]) -> QueuedMessage {
    QueuedMessage {
        id,
        kind: MessageKind::Welcome,
        group_id: Base64Bytes(group_id.to_vec()),
        from: DeviceOf { user: from.identity.user().clone(), device: from.identity.device().clone() },
        message: Base64Bytes(welcome.to_vec()),
        refusal: None,
        sent_at: SystemClock.now(),
    }
}

#[test]
fn a_welcome_that_comes_again_changes_nothing() {
    let (alice, bob) = (Device::new("alice"), Device::new("bob"));
    // A last resort opens a Welcome any number of times.
    let (_, welcome) = group_and_welcome(&alice, &bob.reservation(0, true));
    let comes = |id| bob.takes_in(&queued(id, b"friends", &alice, &welcome));
    assert!(matches!(comes(1), Event::Joined { .. }));
    assert!(matches!(comes(2), Event::Ignored { .. }));
    let group = bob.membership().load_group(b"friends").unwrap();
    assert_eq!((group.epoch().as_u64(), group.members().count()), (1, 2));
    assert_eq!(bob.membership().groups().unwrap().len(), 1);
}

#[test]
fn a_welcome_of_another_group_than_the_server_says_changes_nothing() {
    let (alice, bob) = (Device::new("alice"), Device::new("bob"));
    let (_, welcome) = group_and_welcome(&alice, &bob.reservation(1, false));
    bob.membership().create_named_group("own").unwrap();
    let own = bob.membership().find_group("own").unwrap();
    for (id, said) in [(1, own.group_id.as_slice()), (2, b"others")] {
        let event = bob.takes_in(&queued(id, said, &alice, &welcome));
        assert!(!matches!(event, Event::Joined { .. }), "{event:?}");
        assert_eq!(bob.membership().groups().unwrap(), std::slice::from_ref(&own));
        assert!(matches!(bob.membership().load_group(b"friends"), Err(Error::UnknownGroup(_))));
        assert_eq!(bob.counts(), (1, 1), "its keys are still there");
    }
    let event = bob.takes_in(&queued(3, b"friends", &alice, &welcome));
    assert!(matches!(event, Event::Joined { .. }), "{event:?}");
}

#[test]
fn a_group_is_in_the_place_of_one_that_there_is_only_by_a_member_of_that() {
    let (alice, bob, carol, mallory) =
        (Device::new("alice"), Device::new("bob"), Device::new("carol"), Device::new("mallory"));
    // A last resort opens any number of Welcomes.
    let reservation = bob.reservation(0, true);
    let comes = |id, welcome: &[u8]| bob.takes_in(&queued(id, b"friends", &alice, welcome));
    let (_, welcome) = group_and_welcome(&alice, &reservation);
    assert!(matches!(comes(1, &welcome), Event::Joined { .. }));
    // A group of the same id, in a later epoch.
    let (mut made_up, _) = group_and_welcome(&mallory, &carol.reservation(1, false));
    let (_, welcome, _) = mallory.membership().stage(&mut made_up, std::slice::from_ref(&reservation)).unwrap();
    assert!(matches!(comes(2, &welcome), Event::Ignored { .. }));
    let group = bob.membership().load_group(b"friends").unwrap();
    let names: Vec<_> = group.members().map(|member| member.credential.serialized_content().to_vec()).collect();
    assert_eq!((group.epoch().as_u64(), names), (1, vec![b"alice/laptop".to_vec(), b"bob/laptop".to_vec()]));
}
