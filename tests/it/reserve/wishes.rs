//! What an adder asks for: ciphersuites by preference, a lifetime that is left, no last resort.

use std::collections::BTreeSet;

use jiff::SignedDuration;
use keypool_openapi::ProblemType;
use keypool_server::config::Limits;
use rstest::rstest;
use serde_json::{Value, json};

use super::{SUITE_3, reserve, two_suites};
use crate::support::{Anywhere, Database, Device, Http, TestServer};

const DAY: i64 = 86_400;

/// What Bob gets of Alice with these wishes: ciphersuite, and whether it is the last resort.
async fn got(bob: &Http, wishes: Value) -> (u64, bool) {
    let reservation = reserved(bob, wishes).await;
    (reservation["ciphersuite"].as_u64().unwrap(), reservation["last_resort"].as_bool().unwrap())
}

async fn reserved(bob: &Http, wishes: Value) -> Value {
    reserve(bob, of_alice(wishes)).await.ok()["reservations"][0].clone()
}

fn of_alice(mut wishes: Value) -> Value {
    wishes["target_user"] = json!("alice");
    wishes
}

/// The reason for which Bob gets nothing of Alice.
async fn refusal(bob: &Http, wishes: Value) -> String {
    let answer = reserve(bob, of_alice(wishes)).await;
    assert_eq!(answer.status, 404, "{}", answer.text);
    let problem: Value = serde_json::from_str(&answer.text).unwrap();
    problem["missing"][0]["reason"].as_str().unwrap().to_owned()
}

/// Fresh before returned before last resort, and among each the most wanted ciphersuite.
#[rstest]
#[tokio::test]
async fn the_most_wanted_ciphersuite_comes_first(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let server = TestServer::start(db).await;
    let (alice, bob) = two_suites(&server).await;
    alice.uploaded(&[Device::new("alice", "laptop").last_resort()]).await;
    alice.uploaded(&[Device::new("alice", "laptop").of_suite(SUITE_3).last_resort()]).await;
    let either = json!({"ciphersuites": [3, 1, 3]});
    assert_eq!(got(&bob, either.clone()).await, (3, false));
    let returned = reserved(&bob, either.clone()).await;
    bob.release(&returned).await.ok();
    // Those of suite 1 are fresh, and the one of suite 3 was handed out before.
    assert_eq!(got(&bob, either.clone()).await, (1, false));
    assert_eq!(got(&bob, either.clone()).await, (1, false));
    assert_eq!(got(&bob, either.clone()).await, (3, false));
    assert_eq!(got(&bob, either.clone()).await, (3, true));
    assert_eq!(got(&bob, json!({"ciphersuites": [1, 3]})).await, (1, true));
    assert_eq!(got(&bob, json!({"ciphersuites": []})).await, (1, true), "an empty list is no wish");
    assert_eq!(refusal(&bob, json!({"ciphersuites": [2, 7]})).await, "no-matching-ciphersuite");
}

#[rstest]
#[tokio::test]
async fn rather_nothing_than_a_last_resort(#[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere) {
    let server = TestServer::start(db).await;
    let alice = server.anyone().registered("alice", "laptop").await;
    let bob = server.anyone().registered("bob", "phone").await;
    alice.uploaded(&[Device::new("alice", "laptop").last_resort()]).await;
    assert_eq!(refusal(&bob, json!({"last_resort": false})).await, "pool-exhausted");
    assert_eq!(alice.status().await["last_resort"]["uses"], 0, "a refusal uses nothing");
    for will_do in [json!({"last_resort": true}), json!({"last_resort": null}), json!({})] {
        assert_eq!(got(&bob, will_do).await, (1, true));
    }
    alice.uploaded(&Device::new("alice", "laptop").key_packages(1)).await;
    assert_eq!(got(&bob, json!({"last_resort": false})).await, (1, false));
}

#[rstest]
#[tokio::test]
async fn what_ends_too_soon_is_left_for_others(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let server = TestServer::start(db).await;
    let alice = server.anyone().registered("alice", "laptop").await;
    let bob = server.anyone().registered("bob", "phone").await;
    let device = |days: i64| Device::new("alice", "laptop").valid_for(SignedDuration::from_secs(days * DAY));
    alice.uploaded(&[device(2).key_package(), device(2).key_package(), device(10).key_package()]).await;
    let long = json!({"min_lifetime": 5 * DAY, "last_resort": false});
    let kept = reserved(&bob, long.clone()).await;
    let ends: jiff::Timestamp = kept["not_after"].as_str().unwrap().parse().unwrap();
    assert!(ends > server.now() + SignedDuration::from_secs(9 * DAY));
    bob.spend(&kept, "friends").await.ok();
    assert_eq!(refusal(&bob, long).await, "pool-expired", "there are two, which end sooner");
    alice.uploaded(&[device(20).last_resort()]).await;
    assert_eq!(got(&bob, json!({"min_lifetime": 5 * DAY})).await, (1, true), "the last resort lives long enough");
    assert_eq!(refusal(&bob, json!({"min_lifetime": 30 * DAY})).await, "pool-expired");
    assert_eq!(refusal(&bob, json!({"min_lifetime": u32::MAX})).await, "pool-expired");
    assert_eq!(got(&bob, json!({"min_lifetime": 0})).await, (1, false));
    // The operator's own limit still holds.
    server.advance(SignedDuration::from_secs(2 * DAY));
    assert_eq!(got(&bob, json!({"min_lifetime": 1})).await, (1, true));
}

#[rstest]
#[tokio::test]
async fn wishes_are_clear_and_part_of_a_request(#[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere) {
    let server = TestServer::start(db).await;
    let (_, bob) = two_suites(&server).await;
    for bad in [
        json!({"ciphersuite": 1, "ciphersuites": [3]}),
        json!({"ciphersuites": [65_536]}),
        json!({"ciphersuites": vec![1; 17]}),
        json!({"ciphersuites": 1}),
        json!({"last_resort": 0}),
        json!({"min_lifetime": -1}),
        json!({"min_lifetime": 4_294_967_296_u64}),
    ] {
        reserve(&bob, of_alice(bad)).await.is_problem(400, ProblemType::MalformedRequest);
    }
    let once = bob.with_key("once");
    let first = reserve(&once, of_alice(json!({"ciphersuites": [3, 1]}))).await.ok();
    assert_eq!(reserve(&once, of_alice(json!({"ciphersuites": [3, 1]}))).await.ok(), first);
    for other in [json!({"ciphersuites": [1, 3]}), json!({"ciphersuites": [3, 1], "min_lifetime": 60})] {
        reserve(&once, of_alice(other)).await.is_problem(422, ProblemType::IdempotencyMismatch);
    }
}

/// Adders with different wishes reserve at the same time. No KeyPackage is handed out twice, and each adder gets one.
#[rstest]
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn wishes_that_race_are_all_met(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let server = TestServer::start_with(db, |config| config.limits = Limits::Off).await;
    let alice = server.anyone().registered("alice", "laptop").await;
    let device = |days: i64| Device::new("alice", "laptop").valid_for(SignedDuration::from_secs(days * DAY));
    // Each ciphersuite fits 24 adders, so its pool has 24 KeyPackages.
    alice.uploaded(&device(10).key_packages(24)).await;
    alice.uploaded(&device(10).of_suite(SUITE_3).key_packages(24)).await;
    let wishes = [
        json!({"ciphersuites": [1, 3]}),
        json!({"ciphersuites": [3, 1]}),
        json!({"ciphersuite": 1, "min_lifetime": DAY}),
        json!({"ciphersuite": 3, "last_resort": false}),
    ];
    let mut adders = Vec::new();
    for number in 0..32 {
        let bob = server.anyone().registered(&format!("bob-{number}"), "phone").await;
        let wish = wishes[number % wishes.len()].clone();
        adders.push(tokio::spawn(async move { reserved(&bob, wish).await["keypackage_ref"].to_string() }));
    }
    let mut taken = BTreeSet::new();
    for adder in adders {
        assert!(taken.insert(adder.await.unwrap()), "one was handed out twice");
    }
    assert_eq!(taken.len(), 32);
}
