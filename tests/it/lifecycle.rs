//! Reserve, spend, release, lapse: the rights, the times and the counts.

use jiff::SignedDuration;
use keypool_openapi::ProblemType;
use openmls::prelude::Ciphersuite;
use rstest::rstest;
use serde_json::{Value, json};

use crate::support::{Anywhere, Database, Device, Http, TestServer, Where};

const SUITE_3: Ciphersuite = Ciphersuite::MLS_128_DHKEMX25519_CHACHA20POLY1305_SHA256_Ed25519;

struct Scene {
    server: TestServer,
    alice: Http,
    device: Device,
    bob: Http,
}

async fn scene(db: impl Into<Where>, packages: usize) -> Scene {
    let server = TestServer::start(db).await;
    let alice = server.anyone().registered("alice", "laptop").await;
    let bob = server.anyone().registered("bob", "phone").await;
    let device = Device::new("alice", "laptop");
    if packages > 0 {
        alice.uploaded(&device.key_packages(packages)).await;
    }
    Scene { server, alice, device, bob }
}

/// fresh, lapsed, reserved, spent; checked to add up.
async fn counts(caller: &Http) -> [u64; 4] {
    let status = caller.status().await;
    let n = |key: &str| status[key].as_u64().unwrap();
    assert_eq!(n("available"), n("fresh") + n("lapsed"));
    assert_eq!(n("total"), n("available") + n("reserved") + n("spent") + n("revoked") + n("expired"));
    ["fresh", "lapsed", "reserved", "spent"].map(n)
}

async fn reserve(caller: &Http, body: Value) -> crate::support::Answer {
    caller.post("/keypackages/reserve", &body).await
}

#[rstest]
#[tokio::test]
async fn the_counts_follow_each_step(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let Scene { server, alice, bob, .. } = scene(db, 3).await;
    assert_eq!(counts(&alice).await, [3, 0, 0, 0]);
    let first = bob.reserved("alice").await;
    assert_eq!(counts(&alice).await, [2, 0, 1, 0]);
    bob.spend(&first, "friends").await.ok();
    assert_eq!(counts(&alice).await, [2, 0, 0, 1]);
    let second = bob.reserved("alice").await;
    bob.release(&second).await.ok();
    assert_eq!(counts(&alice).await, [1, 1, 0, 1]);
    let third = bob.reserved("alice").await;
    assert_ne!(third["keypackage_ref"], second["keypackage_ref"], "a returned one was handed out before a fresh one");
    server.advance(SignedDuration::from_secs(59));
    assert_eq!(counts(&alice).await, [0, 1, 1, 1]);
    server.advance(SignedDuration::from_secs(1));
    assert_eq!(counts(&alice).await, [0, 2, 0, 1]);
}

#[rstest]
#[tokio::test]
async fn only_the_reserver_spends_and_may_repeat_it(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let Scene { server, alice, bob, .. } = scene(db, 1).await;
    let reservation = bob.reserved("alice").await;
    let carol = server.anyone().registered("carol", "phone").await;
    for stranger in [&carol, &alice] {
        stranger.spend(&reservation, "friends").await.is_problem(403, ProblemType::NotYourReservation);
        stranger.release(&reservation).await.is_problem(403, ProblemType::NotYourReservation);
    }
    let spent = bob.spend(&reservation, "friends").await.ok();
    assert_eq!(spent["state"], "spent");
    server.advance(SignedDuration::from_hours(1));
    assert_eq!(bob.spend(&reservation, "friends").await.ok(), spent, "the same spend was answered otherwise");
    bob.spend(&reservation, "others").await.is_problem(409, ProblemType::AlreadySpent);
    bob.release(&reservation).await.is_problem(409, ProblemType::AlreadySpent);
    let never = json!({"reservation_id": "7fff-67e55044-10b1-426f-9247-bb680e5fe0c8"});
    bob.spend(&never, "friends").await.is_problem(404, ProblemType::UnknownReservation);
    bob.release(&never).await.is_problem(404, ProblemType::UnknownReservation);
}

#[rstest]
#[tokio::test]
async fn a_late_spend_holds_unless_somebody_else_has_it(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let Scene { server, alice, bob, device } = scene(db, 1).await;
    let late = bob.reserved("alice").await;
    server.advance(SignedDuration::from_secs(61));
    bob.spend(&late, "friends").await.ok();
    alice.uploaded(&device.key_packages(1)).await;
    let lost = bob.reserved("alice").await;
    server.advance(SignedDuration::from_secs(61));
    let carol = server.anyone().registered("carol", "phone").await;
    let won = carol.reserved("alice").await;
    assert_eq!(won["keypackage_ref"], lost["keypackage_ref"]);
    bob.spend(&lost, "friends").await.is_problem(409, ProblemType::ReservationLapsed);
    carol.spend(&won, "friends").await.ok();
}

#[rstest]
#[tokio::test]
async fn a_release_may_be_repeated(#[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere) {
    let Scene { server: _server, alice, bob, .. } = scene(db, 1).await;
    let reservation = bob.reserved("alice").await;
    for _ in 0..2 {
        assert_eq!(bob.release(&reservation).await.ok()["state"], "available");
    }
    assert_eq!(counts(&alice).await, [0, 1, 0, 0]);
    assert_eq!(bob.reserved("alice").await["keypackage_ref"], reservation["keypackage_ref"]);
}

#[rstest]
#[tokio::test]
async fn the_last_resort_is_never_used_up(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let Scene { server, alice, bob, device } = scene(db, 1).await;
    alice.uploaded(&[device.last_resort()]).await;
    let first = bob.reserved("alice").await;
    assert_eq!(first["last_resort"], false);
    for _ in 0..3 {
        let last = bob.reserved("alice").await;
        assert_eq!(last["last_resort"], true);
        bob.spend(&last, "friends").await.ok();
    }
    assert_eq!(alice.status().await["last_resort"], json!({"present": true, "uses": 3}));
    server.advance(SignedDuration::from_secs(61));
    let lapsed = bob.reserved("alice").await;
    assert_eq!(lapsed["keypackage_ref"], first["keypackage_ref"], "a lapsed one goes before the last resort");
}

/// One that was replaced may be in a Commit already, even where the one in its place has expired.
#[rstest]
#[tokio::test]
async fn a_last_resort_that_was_withdrawn_is_not_spent_and_one_that_was_replaced_is(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
    #[values(None, Some(2), Some(300))] hours_of_its_replacement: Option<i64>,
) {
    let Scene { server, alice, bob, device } = scene(db, 0).await;
    alice.uploaded(&[device.last_resort()]).await;
    let (before, after) = (bob.reserved("alice").await, bob.reserved("alice").await);
    bob.spend(&before, "friends").await.ok();
    if let Some(hours) = hours_of_its_replacement {
        let replacement = device.valid_for(SignedDuration::from_hours(hours)).last_resort();
        alice.uploaded(&[replacement]).await;
    } else {
        alice.post("/keypackages/revoke", &json!({"all": true})).await.ok();
    }
    server.advance(SignedDuration::from_hours(3));
    let spent = bob.spend(&after, "friends").await;
    if hours_of_its_replacement.is_some() {
        spent.ok();
    } else {
        spent.is_problem(409, ProblemType::ReservationLapsed);
    }
    // A KeyPackage that was spent before stays spent, and a repeated spend gets the same answer.
    bob.spend(&before, "friends").await.ok();
}

#[rstest]
#[tokio::test]
async fn each_device_gives_one_and_the_empty_are_named(#[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere) {
    let Scene { server: _server, alice, bob, .. } = scene(db, 2).await;
    let tablet = alice.registered("alice", "tablet").await;
    alice.registered("alice", "watch").await;
    tablet.uploaded(&Device::new("alice", "tablet").of_suite(SUITE_3).key_packages(1)).await;
    let one = reserve(&bob, json!({"target_user": "alice", "ciphersuite": 3, "device": "tablet"})).await.ok();
    bob.release(&one["reservations"][0]).await.ok();
    let all = bob.reserve("alice").await.ok();
    let mut devices: Vec<_> = all["reservations"].as_array().unwrap().iter().map(|r| r["device"].to_string()).collect();
    devices.sort();
    assert_eq!(devices, [r#""laptop""#, r#""tablet""#]);
    assert_eq!(
        all["missing"],
        json!([{"user": "alice", "device": "watch", "reason": "pool-exhausted", "ciphersuites": []}])
    );
    let unknown = reserve(&bob, json!({"target_user": "alice", "device": "car"})).await;
    unknown.is_problem(404, ProblemType::UnknownDevice);
    bob.reserve("nobody").await.is_problem(404, ProblemType::UnknownUser);
    bob.reserve("bob").await.is_problem(404, ProblemType::PoolExhausted);
    let other = reserve(&bob, json!({"target_user": "alice", "device": "laptop", "ciphersuite": 3})).await;
    other.is_problem(404, ProblemType::NoMatchingCiphersuite);
    for ttl in [0, 601] {
        let answer = reserve(&bob, json!({"target_user": "alice", "ttl": ttl})).await;
        answer.is_problem(400, ProblemType::MalformedRequest);
    }
}

#[rstest]
#[tokio::test]
async fn what_ends_too_soon_is_not_handed_out(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let Scene { server, alice, bob, .. } = scene(db, 0).await;
    alice.uploaded(&Device::new("alice", "laptop").valid_for(SignedDuration::from_hours(2)).key_packages(1)).await;
    server.advance(SignedDuration::from_mins(61));
    bob.reserve("alice").await.is_problem(404, ProblemType::PoolExpired);
    server.advance(SignedDuration::from_hours(1));
    assert_eq!(alice.status().await["expired"], 1);
}

#[rstest]
#[tokio::test]
async fn health_follows_the_fresh_ones(#[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere) {
    let Scene { server: _server, alice, device, .. } = scene(db, 0).await;
    for (upload, health, recommended) in [(0, "empty", 32), (7, "low", 25), (1, "good", 24)] {
        if upload > 0 {
            alice.uploaded(&device.key_packages(upload)).await;
        }
        let status = alice.status().await;
        assert_eq!((&status["health"], &status["recommended_upload"]), (&json!(health), &json!(recommended)));
    }
}
