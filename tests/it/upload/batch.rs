//! Uploads of one batch are stored as each would be alone, or left for that.

use std::collections::HashMap;

use jiff::SignedDuration;
use keypool_openapi::{ProblemType, RejectionReason};
use keypool_server::{
    config::{Config, Limits},
    store::{AsOf, DeviceId, Failure, Registration, Store, TokenRevoked, Upload, UploadLimits, UploadOutcome},
};
use keypool_validation::{key_package::ValidatedKeyPackage, token::Token};
use rstest::rstest;

use crate::support::{Database, Device, TestServer};

const STORED: UploadOutcome = UploadOutcome::Stored;
const LIMITS: UploadLimits = UploadLimits { capacity: 2, binds_keys: true };
const REUSED: UploadOutcome = UploadOutcome::Refused(RejectionReason::InitKeyReused);

/// A server where alice and bob have a device each, and its store.
struct Scene {
    server: TestServer,
    store: Store,
    alice: DeviceId,
    bob: DeviceId,
    /// By which each came, and when it was registered.
    shown: HashMap<DeviceId, ([u8; 32], i64)>,
}

impl Scene {
    async fn new(db: Database) -> Self {
        let server = TestServer::start(db).await;
        let mut shown = HashMap::new();
        let mut devices = Vec::new();
        for user in ["alice", "bob"] {
            let token = server.anyone().registered(user, "laptop").await.token.unwrap();
            let token = Token::from_header(&format!("Bearer {token}")).unwrap().hash();
            let of = |column: &str| {
                server.database().number(&format!("SELECT {column} AS n FROM devices WHERE user_name = '{user}'"))
            };
            let device = DeviceId(of("id"));
            shown.insert(device, (token, of("created_at")));
            devices.push(device);
        }
        Self { store: server.store(), server, alice: devices[0], bob: devices[1], shown }
    }

    fn upload<'a>(&self, device: DeviceId, packages: &'a [ValidatedKeyPackage]) -> Upload<'a> {
        let (token_hash, at) = self.shown[&device];
        Upload { by: Registration { device, at }, token_hash, packages, changes: &[], replace: false }
    }

    fn as_of(&self) -> AsOf {
        AsOf { now: self.server.now(), retire: false, min_remaining: 1 }
    }

    fn together<const N: usize>(
        &self,
        uploads: [(DeviceId, &[ValidatedKeyPackage]); N],
    ) -> [Option<Vec<UploadOutcome>>; N] {
        let uploads = uploads.map(|(owner, packages)| self.upload(owner, packages));
        let uploaded = self.store.upload_batch(&uploads, LIMITS, self.as_of()).unwrap();
        let outcomes: Vec<_> = uploaded.into_iter().map(|one| one.map(|one| one.outcomes)).collect();
        outcomes.try_into().unwrap()
    }

    fn alone(&self, owner: DeviceId, packages: &[ValidatedKeyPackage]) -> Option<Vec<UploadOutcome>> {
        match self.store.upload(self.upload(owner, packages), LIMITS, self.as_of()) {
            Ok(uploaded) => Some(uploaded.outcomes),
            Err(Failure::Refused(TokenRevoked)) => None,
            Err(Failure::Store(error)) => panic!("{error}"),
        }
    }

    /// A made-up KeyPackage: the store does not validate it.
    fn package(&self, number: u8) -> ValidatedKeyPackage {
        ValidatedKeyPackage {
            keypackage_ref: vec![number; 32].into(),
            ciphersuite: 1,
            init_key: vec![number; 32],
            encryption_key: vec![100 + number; 32],
            signature_key: vec![7; 32],
            not_after: self.server.now() + SignedDuration::from_hours(24),
            last_resort: false,
            bytes: vec![number; 300],
        }
    }

    /// How many rows there are.
    fn count(&self, of: &str) -> i64 {
        self.server.database().number(&format!("SELECT count(*) AS n FROM {of}"))
    }
}

#[rstest]
#[tokio::test]
async fn each_is_judged_by_its_own_pool(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let scene = Scene::new(db).await;
    let [one, two, three] = [1, 2, 3].map(|number| scene.package(number));
    // A key of somebody else's is no matter, one of its own is.
    let four = ValidatedKeyPackage { init_key: one.init_key.clone(), ..scene.package(4) };
    let five = ValidatedKeyPackage { encryption_key: four.init_key.clone(), ..scene.package(5) };
    let full = UploadOutcome::Refused(RejectionReason::PoolFull);
    let outcomes = scene.together([(scene.alice, &[one.clone(), two.clone(), three]), (scene.bob, &[four, five])]);
    assert_eq!(outcomes, [Some(vec![STORED, STORED, full]), Some(vec![STORED, REUSED])]);
    let six = ValidatedKeyPackage { init_key: two.encryption_key, ..scene.package(6) };
    let outcomes = scene.together([(scene.alice, &[one, six]), (scene.bob, &[scene.package(7)])]);
    assert_eq!(outcomes, [Some(vec![UploadOutcome::Known, REUSED]), Some(vec![STORED])]);
    for table in ["key_packages", "audit_events"] {
        for owner in [scene.alice, scene.bob] {
            assert_eq!(scene.count(&format!("{table} WHERE device_id = {}", owner.0)), 2, "{table}");
        }
    }
    assert_eq!((scene.count("hpke_keys"), scene.count("devices WHERE last_upload IS NOT NULL")), (8, 2));
}

#[rstest]
#[tokio::test]
async fn what_two_bring_is_the_firsts(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let scene = Scene::new(db).await;
    let package = [scene.package(1)];
    let outcomes = scene.together([(scene.bob, &package), (scene.alice, &package)]);
    assert_eq!(outcomes, [Some(vec![STORED]), Some(vec![UploadOutcome::Refused(RejectionReason::Duplicate)])]);
    assert_eq!(scene.count(&format!("key_packages WHERE device_id = {}", scene.bob.0)), 1);
    assert_eq!(scene.count("devices WHERE last_upload IS NOT NULL"), 1);
}

#[rstest]
#[tokio::test]
async fn who_comes_twice_or_is_gone_is_left_for_alone(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let scene = Scene::new(db).await;
    scene.server.database().run("UPDATE devices SET removed_at = 1 WHERE user_name = 'bob'");
    let [one, two, three] = [1, 2, 3].map(|number| [scene.package(number)]);
    let outcomes = scene.together([(scene.bob, &three), (scene.alice, &one), (scene.alice, &two)]);
    assert_eq!(outcomes, [None, Some(vec![STORED]), None]);
    assert_eq!(scene.count("key_packages WHERE device_id > 0"), 1, "something was stored of an upload that was left");
    assert_eq!(scene.alone(scene.alice, &two), Some(vec![STORED]));
    assert_eq!(scene.alone(scene.bob, &three), None);
}

#[tokio::test]
async fn who_is_held_is_not_waited_for() {
    let scene = Scene::new(Database::Postgres).await;
    let mut other = scene.server.database();
    other.run(&format!("BEGIN; SELECT 1 FROM devices WHERE id = {} FOR UPDATE", scene.alice.0));
    let outcomes = scene.together([(scene.alice, &[scene.package(1)]), (scene.bob, &[scene.package(2)])]);
    assert_eq!(outcomes, [None, Some(vec![STORED])]);
}

#[rstest]
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn at_once_they_fill_a_pool_and_no_more(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let capacity = 50;
    let limits = |config: &mut Config| (config.limits, config.pool_capacity) = (Limits::Off, capacity);
    let server = TestServer::start_with(db, limits).await;
    let (alice, device) = (server.anyone().registered("alice", "laptop").await, Device::new("alice", "laptop"));
    let uploads = (0..8).map(|_| {
        let (alice, packages) = (alice.at(&server.base), device.key_packages(10));
        tokio::spawn(async move { alice.upload(&packages).await })
    });
    let uploads: Vec<_> = uploads.collect();
    let mut accepted = 0;
    for upload in uploads {
        let answer = upload.await.unwrap();
        if answer.status == 409 {
            answer.is_problem(409, ProblemType::PoolFull);
        } else {
            accepted += answer.ok()["accepted"].as_array().unwrap().len();
        }
    }
    assert_eq!((accepted, &alice.status().await["fresh"]), (50, &capacity.into()));
}
