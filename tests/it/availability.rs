//! A KeyPackage that cannot be handed out is nowhere counted as available.

use std::time::Duration;

use jiff::SignedDuration;
use keypool_openapi::ProblemType;
use rstest::rstest;
use serde_json::json;

use crate::{
    operator::{ADMIN, with_an_admin},
    support::{Database, Device, TestServer},
};

const MINUTE: SignedDuration = SignedDuration::from_mins(1);
const HOUR: SignedDuration = SignedDuration::from_hours(1);

fn device() -> Device {
    Device::new("alice", "laptop")
}

#[rstest]
#[tokio::test]
async fn what_ends_too_soon_is_nowhere_available(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let server = TestServer::start_with(db, with_an_admin).await;
    let alice = server.anyone().registered("alice", "laptop").await;
    let bob = server.anyone().registered("bob", "phone").await;
    let admin = server.anyone().with_token(ADMIN);
    let short = device().valid_until(server.now() + HOUR + MINUTE);
    alice.uploaded(&[short.key_packages(32), vec![short.last_resort()]].concat()).await;
    let returned = bob.reserved("alice").await;
    bob.release(&returned).await.ok();
    let held = bob.reserved("alice").await;

    server.advance(MINUTE);
    let status = alice.status().await;
    let counts = |status: &serde_json::Value| {
        ["available", "fresh", "lapsed", "reserved", "expired", "expiring_soon", "total"]
            .map(|key| status[key].as_u64().unwrap())
    };
    // The reservation lapses in this second.
    assert_eq!(counts(&status), [32, 30, 2, 0, 0, 32, 32]);
    assert_eq!((&status["health"], &status["recommended_upload"]), (&json!("good"), &json!(2)));
    assert_eq!((&status["last_resort"]["present"], &status["min_remaining"]), (&json!(true), &json!(3_600)));
    let digest = status["inventory_digest"].clone();
    assert_eq!(admin.get("/admin/pools").await.ok()["pools"], json!([]));

    let held_longer = bob.post("/keypackages/reserve", &json!({"target_user": "alice", "ttl": 600})).await.ok();
    server.advance(SignedDuration::from_secs(1));
    let status = alice.status().await;
    assert_eq!(counts(&status), [0, 0, 0, 1, 31, 0, 32]);
    assert_eq!((&status["health"], &status["recommended_upload"]), (&json!("empty"), &json!(32)));
    assert_eq!(status["last_resort"], json!({"present": false, "uses": 0}));
    assert_eq!(status["ciphersuites"][0]["health"], "empty");
    assert_eq!(status["inventory_digest"], digest, "both sides still have them");
    bob.reserve("alice").await.is_problem(404, ProblemType::PoolExpired);
    let low = admin.get("/admin/pools").await.ok()["pools"].clone();
    assert_eq!((&low[0]["user"], &low[0]["fresh"], low.as_array().unwrap().len()), (&json!("alice"), &json!(0), 1));
    let mut shown = status.clone();
    shown.as_object_mut().unwrap().remove("log");
    assert_eq!(admin.get("/admin/users/alice/devices/laptop/status").await.ok(), shown, "all but what the log has");
    server.census().await;
    assert_eq!(server.metric("pool_packages{state=\"available\"}").await, "0");
    assert_eq!(server.metric("pools{health=\"empty\"}").await, "1");
    // An adder who holds one may spend it.
    bob.spend(&held_longer["reservations"][0], "friends").await.ok();
    bob.spend(&held, "friends").await.ok();
    assert_eq!(counts(&alice.status().await), [0, 0, 0, 0, 30, 0, 32]);
}

#[rstest]
#[tokio::test]
async fn what_can_never_be_handed_out_is_refused(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let server = TestServer::start_with(db, |config| config.min_remaining = Duration::from_hours(20 * 24)).await;
    let alice = server.anyone().registered("alice", "laptop").await;
    let bob = server.anyone().registered("bob", "phone").await;
    let enough = server.now() + HOUR * 24 * 20;
    let too_short = device().valid_until(enough - SignedDuration::from_secs(1));
    let answer = alice.upload(&[too_short.last_resort(), too_short.key_package()]).await.ok();
    assert_eq!(answer["accepted"], json!([]));
    for rejected in answer["rejected"].as_array().unwrap() {
        assert_eq!(rejected["reason"], "never-available");
        let detail = rejected["detail"].as_str().unwrap();
        assert!(detail.contains("1728000 s") && detail.contains("longer lifetime"), "{detail}");
    }
    // A refused KeyPackage has recorded no signature key, and leaves the last resort's place to a better one.
    let refused = device().valid_until(enough - SignedDuration::from_secs(1));
    let refused_last_resort = refused.last_resort();
    let just = refused.valid_until(enough);
    let packages = [refused_last_resort, just.last_resort(), just.key_package()];
    let answer = alice.upload(&packages).await.ok();
    assert_eq!((answer["accepted"].as_array().unwrap().len(), &answer["pool"]["fresh"]), (2, &json!(1)));
    assert_eq!(bob.reserved("alice").await["last_resort"], false);
    // An answer that was lost: the same upload is accepted again, though a new one would be refused by now.
    server.advance(MINUTE);
    let again = alice.upload(&packages).await.ok();
    assert_eq!(again["accepted"], answer["accepted"]);
    assert_eq!(again["pool"]["available"], 0);
}

#[rstest]
#[tokio::test]
async fn what_ends_too_soon_takes_no_room(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let server = TestServer::start_with(db, |config| {
        (config.pool_capacity, config.pool_target, config.low_watermark) = (3, 3, 1);
    });
    let server = server.await;
    let alice = server.anyone().registered("alice", "laptop").await;
    let bob = server.anyone().registered("bob", "phone").await;
    let short = device().valid_until(server.now() + HOUR);
    alice.uploaded(&short.key_packages(3)).await;
    alice.upload(&[short.key_package()]).await.is_problem(409, ProblemType::PoolFull);
    bob.post("/keypackages/reserve", &json!({"target_user": "alice", "ttl": 600})).await.ok();
    server.advance(SignedDuration::from_secs(1));
    // The one that is held counts.
    let lasting = short.valid_until(server.now() + HOUR * 24);
    let answer = alice.upload(&lasting.key_packages(3)).await.ok();
    assert_eq!((&answer["pool"]["available"], &answer["pool"]["reserved"]), (&json!(2), &json!(1)));
    assert_eq!(answer["rejected"][0]["reason"], "pool-full");
}
