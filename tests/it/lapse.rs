//! The end of KeyPackages by time, by their owner and by the sweeper: an ended one stays ended.

use jiff::SignedDuration;
use keypool_openapi::ProblemType;
use keypool_server::config::{Config, OnLapse};
use keypool_validation::key_package::CredentialBinding;
use rstest::rstest;
use serde_json::{Value, json};

use crate::support::{Database, Device, Http, TestServer, with_the_keys_of};

const MINUTE: SignedDuration = SignedDuration::from_mins(1);
const DAY: SignedDuration = SignedDuration::from_hours(24);

struct Scene {
    server: TestServer,
    alice: Http,
    device: Device,
    bob: Http,
}

async fn scene(db: Database, packages: usize, change: impl FnOnce(&mut Config)) -> Scene {
    let server = TestServer::start_with(db, change).await;
    let alice = server.anyone().registered("alice", "laptop").await;
    let device = Device::new("alice", "laptop");
    if packages > 0 {
        alice.uploaded(&device.key_packages(packages)).await;
    }
    let bob = server.anyone().registered("bob", "phone").await;
    Scene { server, alice, device, bob }
}

fn retire(config: &mut Config) {
    config.on_lapse = OnLapse::Retire;
}

/// fresh, lapsed, reserved, spent, revoked, expired.
async fn counts(caller: &Http) -> [u64; 6] {
    let status = caller.status().await;
    ["fresh", "lapsed", "reserved", "spent", "revoked", "expired"].map(|key| status[key].as_u64().unwrap())
}

/// All that an owner can see of a pool, but for the audit trail.
async fn sight(caller: &Http) -> [Value; 2] {
    [caller.status().await, caller.get("/keypackages/inventory").await.ok()]
}

async fn revoke(caller: &Http, body: Value) -> Value {
    caller.post("/keypackages/revoke", &body).await.ok()
}

#[rstest]
#[tokio::test]
async fn what_lapses_is_retired_by_time_alone(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let Scene { server, alice, bob, device } = scene(db, 2, retire).await;
    let (lapses, released) = (bob.reserved("alice").await, bob.reserved("alice").await);
    assert_eq!(bob.release(&released).await.ok()["state"], "retired");
    assert_eq!(bob.release(&released).await.ok()["state"], "retired");
    server.advance(MINUTE);
    assert_eq!(counts(&alice).await, [0, 0, 0, 0, 2, 0]);
    bob.reserve("alice").await.is_problem(404, ProblemType::PoolExhausted);
    let before = sight(&alice).await;
    assert_eq!(before[1]["keypackages"].as_array().unwrap().iter().filter(|p| p["state"] == "retired").count(), 2);
    let report = server.sweep().await;
    assert_eq!((report.lapsed, report.expired), (1, 0));
    assert_eq!(sight(&alice).await, before, "a sweep changed what is to be seen");
    bob.reserve("alice").await.is_problem(404, ProblemType::PoolExhausted);

    // The adder may have committed: that is marked, however late.
    for late in [&lapses, &released] {
        assert_eq!(bob.spend(late, "friends").await.ok()["state"], "spent");
    }
    assert_eq!(counts(&alice).await, [0, 0, 0, 2, 0, 0]);
    alice.uploaded(&[device.last_resort()]).await;
    assert_eq!(bob.reserved("alice").await["last_resort"], true);
}

#[rstest]
#[tokio::test]
async fn what_is_retired_can_be_spent_before_it_is_swept(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let Scene { server, alice, bob, .. } = scene(db, 1, retire).await;
    let reservation = bob.reserved("alice").await;
    server.advance(MINUTE);
    bob.spend(&reservation, "friends").await.ok();
    assert_eq!(counts(&alice).await, [0, 0, 0, 1, 0, 0]);
    assert_eq!(server.sweep().await.lapsed, 0);
}

#[rstest]
#[tokio::test]
async fn what_is_retired_is_never_taken_again(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let scene = scene(db, 0, |config| {
        retire(config);
        config.pool_capacity = 2;
    });
    let Scene { server, alice, bob, device } = scene.await;
    let packages = device.key_packages(2);
    alice.uploaded(&packages).await;
    bob.reserved("alice").await;
    bob.release(&bob.reserved("alice").await).await.ok();
    server.advance(MINUTE);
    for _ in 0..2 {
        let answer = alice.upload(&packages).await.ok();
        assert_eq!(answer["accepted"], json!([]), "what is retired was accepted");
        // It takes no place of the two.
        alice.uploaded(&[device.key_package()]).await;
        server.sweep().await;
    }
    alice.upload(&[device.key_package()]).await.is_problem(409, ProblemType::PoolFull);
}

#[rstest]
#[tokio::test]
async fn what_lapses_returns_and_a_sweep_changes_nothing(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let Scene { server, alice, bob, .. } = scene(db, 3, |_| ()).await;
    let (spent, lapsed) = (bob.reserved("alice").await, bob.reserved("alice").await);
    bob.spend(&spent, "friends").await.ok();
    server.advance(MINUTE);
    let before = sight(&alice).await;
    assert_eq!(counts(&alice).await, [1, 1, 0, 1, 0, 0]);
    let report = server.sweep().await;
    assert_eq!((report.lapsed, report.lag.as_secs()), (1, 0));
    assert_eq!(sight(&alice).await, before);
    assert_eq!(server.sweep().await.lapsed, 0);
    assert_eq!(bob.release(&lapsed).await.ok()["state"], "available");
    // The late spend holds after the sweep as before it.
    bob.spend(&lapsed, "friends").await.ok();
    assert_eq!(counts(&alice).await, [1, 0, 0, 2, 0, 0]);
}

#[rstest]
#[tokio::test]
async fn fresh_before_lapsed_before_the_last_resort(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let Scene { server, alice, bob, device } = scene(db, 3, |_| ()).await;
    alice.uploaded(&[device.last_resort()]).await;
    let first = bob.reserved("alice").await;
    server.advance(SignedDuration::from_secs(1));
    let second = bob.reserved("alice").await;
    server.advance(MINUTE);
    let third = bob.reserved("alice").await;
    assert!(third["keypackage_ref"] != first["keypackage_ref"] && third["keypackage_ref"] != second["keypackage_ref"]);
    // The longest lapsed goes first.
    assert_eq!(bob.reserved("alice").await["keypackage_ref"], first["keypackage_ref"]);
    assert_eq!(bob.reserved("alice").await["keypackage_ref"], second["keypackage_ref"]);
    assert_eq!(bob.reserved("alice").await["last_resort"], true);
}

#[rstest]
#[tokio::test]
async fn what_ends_too_soon_is_passed_over(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let scene = scene(db, 0, |config| config.min_remaining = std::time::Duration::from_hours(2)).await;
    let Scene { server, alice, bob, .. } = scene;
    let device = || Device::new("alice", "laptop");
    let short = device().valid_for(SignedDuration::from_hours(2) + MINUTE);
    alice.uploaded(&short.key_packages(2)).await;
    alice.uploaded(&[short.last_resort()]).await;
    // At two hours and a minute all may go out; two minutes later none.
    bob.release(&bob.reserved("alice").await).await.ok();
    server.advance(MINUTE * 2);
    bob.reserve("alice").await.is_problem(404, ProblemType::PoolExpired);
    alice.uploaded(&[device().key_package()]).await;
    assert_eq!(bob.reserved("alice").await["last_resort"], false);
    alice.uploaded(&[device().last_resort()]).await;
    assert_eq!(bob.reserved("alice").await["last_resort"], true);
    assert_eq!(counts(&alice).await, [0, 0, 1, 0, 0, 2]);
}

#[rstest]
#[tokio::test]
async fn what_expires_is_noted_and_forgotten_a_week_later(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
) {
    let Scene { server, alice, bob, device } = scene(db, 0, |_| ()).await;
    let short = Device::new("alice", "laptop").valid_until(server.now() + DAY);
    alice.uploaded(&short.key_packages(3)).await;
    alice.uploaded(&[short.last_resort()]).await;
    let reserve = json!({"target_user": "alice", "ttl": 600});
    let late = bob.post("/keypackages/reserve", &reserve).await.ok()["reservations"][0].clone();
    let spent = bob.reserved("alice").await;
    bob.spend(&spent, "friends").await.ok();
    let (returned, last_resort) = (bob.reserved("alice").await, bob.reserved("alice").await);
    bob.release(&returned).await.ok();
    assert_eq!(last_resort["last_resort"], true);
    alice.uploaded(&[device.key_package()]).await;
    server.advance(DAY);
    let before = sight(&alice).await;
    assert_eq!(counts(&alice).await, [1, 0, 0, 1, 0, 2]);
    assert_eq!(before[0]["last_resort"], json!({"present": false, "uses": 0}));
    let report = server.sweep().await;
    assert_eq!((report.lapsed, report.expired, report.forgotten), (1, 3, 0));
    assert_eq!(sight(&alice).await, before);
    // Marked as spent, so that the owner keeps its keys: the Commit may be out.
    bob.spend(&late, "friends").await.ok();
    assert_eq!(counts(&alice).await, [1, 0, 0, 2, 0, 1]);

    server.advance(DAY * 7 - MINUTE);
    server.sweep().await;
    assert_eq!(counts(&alice).await, [1, 0, 0, 2, 0, 1], "forgotten too early");
    server.advance(MINUTE * 2);
    // Four KeyPackages with two keys each.
    assert_eq!(server.sweep().await.forgotten, 4 + 8);
    assert_eq!(counts(&alice).await, [1, 0, 0, 0, 0, 0]);
    assert_eq!(server.database().number("SELECT count(*) AS n FROM hpke_keys"), 2);
    assert_eq!(server.sweep().await.forgotten, 0);
    for reservation in [&late, &spent, &returned, &last_resort] {
        bob.spend(reservation, "friends").await.is_problem(404, ProblemType::UnknownReservation);
        bob.release(reservation).await.is_problem(404, ProblemType::UnknownReservation);
    }
}

#[rstest]
#[tokio::test]
async fn an_owner_withdraws_some_or_all(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let Scene { server, alice, bob, device } = scene(db, 4, |_| ()).await;
    alice.uploaded(&[device.last_resort()]).await;
    let (spent, reserved) = (bob.reserved("alice").await, bob.reserved("alice").await);
    bob.spend(&spent, "friends").await.ok();
    let (spent_ref, reserved_ref) = (&spent["keypackage_ref"], &reserved["keypackage_ref"]);
    let carol = server.anyone().registered("carol", "phone").await;
    carol.uploaded(&[Device::new("carol", "phone").key_package()]).await;
    let inventory = carol.get("/keypackages/inventory").await.ok();
    let (hers, never) = (&inventory["keypackages"][0]["keypackage_ref"], json!("ab".repeat(32)));

    let answer = revoke(&alice, json!({"refs": [reserved_ref, reserved_ref, spent_ref, hers, never]})).await;
    assert_eq!(answer["revoked"], json!([reserved_ref]));
    assert_eq!(answer["ended"], json!([{"keypackage_ref": spent_ref, "state": "spent"}]));
    let mut unknown = [hers.as_str().unwrap(), never.as_str().unwrap()];
    unknown.sort_unstable();
    assert_eq!(answer["unknown"], json!(unknown), "another's KeyPackage is told from none at all");
    assert_eq!(carol.status().await["fresh"], 1);
    assert_eq!(counts(&alice).await, [2, 0, 0, 1, 1, 0]);
    bob.spend(&reserved, "friends").await.is_problem(409, ProblemType::ReservationLapsed);
    let again = revoke(&alice, json!({"refs": [reserved_ref]})).await;
    assert_eq!(again["ended"], json!([{"keypackage_ref": reserved_ref, "state": "revoked"}]));

    let all = revoke(&alice, json!({"all": true})).await;
    assert_eq!((all["revoked"].as_array().unwrap().len(), &all["pool"]["available"]), (3, &json!(0)));
    assert_eq!(all["pool"]["last_resort"]["present"], false);
    bob.reserve("alice").await.is_problem(404, ProblemType::PoolExhausted);
    assert_eq!(revoke(&alice, json!({"all": true})).await["revoked"], json!([]));
    for bad in [json!({}), json!({"refs": []}), json!({"refs": null}), json!({"all": true, "refs": []})] {
        let answer = alice.post("/keypackages/revoke", &bad).await;
        answer.is_problem(400, ProblemType::MalformedRequest);
    }
}

#[rstest]
#[tokio::test]
async fn what_is_over_never_comes_back_until_it_is_forgotten(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
) {
    let Scene { server, alice, bob, device } =
        scene(db, 0, |config| config.credential_binding = CredentialBinding::Off).await;
    let packages = device.key_packages(2);
    let refs = alice.upload(&packages).await.ok()["accepted"].clone();
    let spent = bob.reserved("alice").await;
    bob.spend(&spent, "friends").await.ok();
    let other = usize::from(refs[0]["keypackage_ref"] == spent["keypackage_ref"]);
    revoke(&alice, json!({"refs": [refs[other]["keypackage_ref"]]})).await;
    let mut batch = packages.clone();
    batch.extend(packages.iter().map(|package| with_the_keys_of(package, &device)));
    let mallory = server.anyone().registered("mallory", "phone").await;
    for _ in 0..2 {
        let answer = alice.upload(&batch).await.ok();
        let reasons: Vec<_> = answer["rejected"].as_array().unwrap().iter().map(|one| &one["reason"]).collect();
        assert_eq!(reasons, ["duplicate", "duplicate", "init-key-reused", "init-key-reused"]);
        // Nor does anybody else get it in.
        let answer = mallory.upload(&packages).await.ok();
        assert_eq!(answer["rejected"].as_array().unwrap().len(), 2, "{}", answer["accepted"]);
        server.sweep().await;
    }
    server.advance(DAY * 13);
    server.sweep().await;
    assert_eq!(alice.upload(&batch).await.ok()["accepted"], json!([]));
}

#[rstest]
#[tokio::test]
async fn the_sweeper_goes_on_until_all_is_done(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let small = |config: &mut Config| config.sweep_batch = 2;
    let Scene { server, alice, bob, .. } = scene(db, 7, small).await;
    let other = server.beside(small).await;
    for _ in 0..7 {
        bob.reserved("alice").await;
    }
    server.advance(MINUTE + SignedDuration::from_secs(7));
    let (one, two) = tokio::join!(server.sweep(), other.sweep());
    assert_eq!(one.lapsed + two.lapsed, 7);
    assert_eq!(one.lag.max(two.lag).as_secs(), 7);
    let trail = alice.get("/keypackages/audit").await.ok();
    let lapses = trail["events"].as_array().unwrap().iter().filter(|event| event["action"] == "lapse").count();
    assert_eq!(lapses, 7);

    server.advance(DAY * 14);
    let (one, two) = tokio::join!(server.sweep(), other.sweep());
    assert_eq!(one.expired + two.expired, 7);
    server.advance(DAY * 7);
    let (one, two) = tokio::join!(server.sweep(), other.sweep());
    assert_eq!(one.forgotten + two.forgotten, 7 + 14);
    assert_eq!(alice.status().await["total"], 0);
}

#[rstest]
#[tokio::test]
async fn the_trail_is_kept_for_its_time(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let scene = scene(db, 5, |config| {
        config.sweep_batch = 2;
        config.audit_retention = std::time::Duration::from_hours(24);
    });
    let Scene { server, alice, bob, .. } = scene.await;
    server.advance(DAY - MINUTE);
    bob.spend(&bob.reserved("alice").await, "friends").await.ok();
    assert_eq!(server.sweep().await.forgotten, 0);
    server.advance(MINUTE * 2);
    assert_eq!(server.sweep().await.forgotten, 5);
    let trail = alice.get("/keypackages/audit").await.ok();
    let actions: Vec<_> = trail["events"].as_array().unwrap().iter().map(|event| &event["action"]).collect();
    assert_eq!(actions, ["spend", "reserve"]);
    assert_eq!(counts(&alice).await, [4, 0, 0, 1, 0, 0]);
}

/// A row that a sweep holds: a reserve skips it if there is another row, and waits for it otherwise.
#[rstest]
#[case::fresh(0)]
#[case::lapsed(61)]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sweep_makes_no_pool_look_empty(#[case] seconds: i64) {
    let Scene { server, alice, bob, .. } = scene(Database::Postgres, 2, |_| ()).await;
    if seconds > 0 {
        bob.reserved("alice").await;
        bob.reserved("alice").await;
        server.advance(SignedDuration::from_secs(seconds));
    }
    let mut sweeper = server.database();
    sweeper.run("BEGIN; SELECT 1 FROM key_packages WHERE device_id > 0 ORDER BY keypackage_ref LIMIT 1 FOR UPDATE");
    let first = bob.reserved("alice").await;
    assert_eq!(server.sweep().await.lapsed, 0, "the sweep took what was another's");
    let adder = bob.clone();
    let second = tokio::spawn(async move { adder.reserve("alice").await });
    while !second.is_finished() && sweeper.waiting() == 0 {
        tokio::task::yield_now().await;
    }
    sweeper.run("COMMIT");
    let second = second.await.unwrap().ok()["reservations"][0].clone();
    assert_ne!(second["keypackage_ref"], first["keypackage_ref"]);
    assert_eq!(alice.status().await["reserved"], 2);
    bob.reserve("alice").await.is_problem(404, ProblemType::PoolExhausted);
}

/// If another adder takes the row that a reserve waits for, the reserve gets the last resort.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_waited_for_may_be_gone() {
    let Scene { server, alice, bob, device } = scene(Database::Postgres, 1, |_| ()).await;
    alice.uploaded(&[device.last_resort()]).await;
    let mut another = server.database();
    another.run("BEGIN; UPDATE key_packages SET state = 'revoked' WHERE NOT last_resort");
    let adder = bob.clone();
    let waits = tokio::spawn(async move { adder.reserved("alice").await });
    while !waits.is_finished() && another.waiting() == 0 {
        tokio::task::yield_now().await;
    }
    another.run("COMMIT");
    assert_eq!(waits.await.unwrap()["last_resort"], true);
}

/// The end of a KeyPackage and of its reservation may be one second, or the reservation may outlive it: it has expired,
/// swept or not.
#[rstest]
#[tokio::test]
async fn what_expires_while_it_is_held_has_expired(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
    #[values(OnLapse::Release, OnLapse::Retire)] on_lapse: OnLapse,
    #[values(60, 90)] ttl: u64,
) {
    let scene = scene(db, 0, |config| {
        config.on_lapse = on_lapse;
        config.min_remaining = std::time::Duration::ZERO;
    });
    let Scene { server, alice, device, bob } = scene.await;
    let device = device.valid_until(server.now() + MINUTE);
    alice.uploaded(&[device.key_package()]).await;
    bob.post("/keypackages/reserve", &json!({"target_user": "alice", "ttl": ttl})).await.ok();
    server.advance(MINUTE);
    for _ in 0..2 {
        bob.reserve("alice").await.is_problem(404, ProblemType::PoolExpired);
        assert_eq!(counts(&alice).await, [0, 0, 0, 0, 0, 1]);
        server.sweep().await;
    }
}
