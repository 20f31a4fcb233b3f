//! One reserve may name many users, many devices, many ciphersuites.

mod batch;
mod wishes;

use std::collections::BTreeSet;

use keypool_openapi::{MAX_KEY_PACKAGE_SIZE, MAX_TARGETS, ProblemType};
use openmls::prelude::Ciphersuite;
use rstest::rstest;
use serde_json::{Value, json};

use crate::support::{Answer, Anywhere, Database, Device, Http, Raw, TestServer, with_the_keys_of};

const SUITE_3: Ciphersuite = Ciphersuite::MLS_128_DHKEMX25519_CHACHA20POLY1305_SHA256_Ed25519;

async fn reserve(caller: &Http, body: Value) -> Answer {
    caller.post("/keypackages/reserve", &body).await
}

/// The users and devices of an answer's reservations.
fn owners(answer: &Value) -> Vec<String> {
    let reservations = answer["reservations"].as_array().unwrap();
    let owner = |one: &Value| format!("{}/{}", one["user"].as_str().unwrap(), one["device"].as_str().unwrap());
    reservations.iter().map(owner).collect()
}

fn missing(user: &str, device: Option<&str>, reason: &str) -> Value {
    json!({"user": user, "device": device, "reason": reason, "ciphersuites": []})
}

/// Alice has a laptop with two KeyPackages of suite 1 and two of suite 3; Bob asks.
async fn two_suites(server: &TestServer) -> (Http, Http) {
    let alice = server.anyone().registered("alice", "laptop").await;
    alice.uploaded(&Device::new("alice", "laptop").key_packages(2)).await;
    alice.uploaded(&Device::new("alice", "laptop").of_suite(SUITE_3).key_packages(2)).await;
    (alice, server.anyone().registered("bob", "phone").await)
}

#[rstest]
#[tokio::test]
async fn of_a_hundred_users_those_who_can_be_are_reserved(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
) {
    let server = TestServer::start_with(db, |config| config.pair_burst = 1).await;
    let bob = server.anyone().registered("bob", "phone").await;
    let mut names: Vec<_> = (0..95).map(|n| format!("user-{n:02}")).collect();
    for user in &names {
        let laptop = server.anyone().registered(user, "laptop").await;
        laptop.uploaded(&[Device::new(user, "laptop").key_package()]).await;
    }
    let tablet = server.anyone().registered("two", "laptop").await.registered("two", "tablet").await;
    tablet.uploaded(&[Device::new("two", "tablet").key_package()]).await;
    let gone = server.anyone().registered("gone", "phone").await;
    gone.delete("/devices/phone").await.ok();
    server.anyone().registered("empty", "phone").await;
    bob.reserved("user-07").await;
    bob.reserve("zoe").await.is_problem(404, ProblemType::UnknownUser);
    names.extend(["two", "gone", "empty", "nobody", "zoe"].map(str::to_owned));
    assert_eq!(names.len(), MAX_TARGETS);

    let answer = reserve(&bob, json!({"targets": names})).await.ok();
    let mut expected: Vec<_> = (0..95).filter(|n| *n != 7).map(|n| format!("user-{n:02}/laptop")).collect();
    expected.insert(0, "two/tablet".to_owned());
    assert_eq!(owners(&answer), expected);
    assert_eq!(
        answer["missing"],
        json!([
            missing("empty", Some("phone"), "pool-exhausted"),
            missing("gone", None, "unknown-device"),
            missing("nobody", None, "unknown-user"),
            missing("two", Some("laptop"), "pool-exhausted"),
            missing("user-07", None, "too-many-requests"),
            missing("zoe", None, "too-many-requests"),
        ])
    );
    let refs: BTreeSet<_> =
        answer["reservations"].as_array().unwrap().iter().map(|r| r["reservation_id"].to_string()).collect();
    assert_eq!(refs.len(), 95, "reservations share an id");
    for reservation in answer["reservations"].as_array().unwrap().iter().take(3) {
        bob.spend(reservation, "friends").await.ok();
    }
}

#[rstest]
#[tokio::test]
async fn a_request_names_somebody_and_each_once(#[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere) {
    let server = TestServer::start(db).await;
    let (alice, bob) = two_suites(&server).await;
    for bad in [
        json!({}),
        json!({"targets": []}),
        json!({"target_user": null}),
        json!({"target_user": null, "targets": null}),
        json!({"targets": vec!["alice"; MAX_TARGETS + 1]}),
        json!({"target_user": "alice", "group_id": ""}),
        json!({"target_user": "alice", "group_id": "A".repeat(344)}),
        json!({"target_user": "alice", "ciphersuite": 65_536}),
        json!({"target_user": "alice", "all": true}),
    ] {
        reserve(&bob, bad).await.is_problem(400, ProblemType::MalformedRequest);
    }
    assert_eq!(alice.status().await["fresh"], 4);
    let often = reserve(&bob, json!({"targets": vec!["alice"; MAX_TARGETS]})).await.ok();
    assert_eq!(owners(&often), ["alice/laptop"], "a user who is named often is asked once");
    let both =
        reserve(&bob, json!({"target_user": "alice", "targets": ["alice", "bob"], "device": "laptop"})).await.ok();
    assert_eq!(owners(&both), ["alice/laptop"]);
    assert_eq!(both["missing"], json!([missing("bob", Some("laptop"), "unknown-device")]));
}

#[rstest]
#[tokio::test]
async fn where_nothing_can_be_had_the_problem_says_why_of_each(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
) {
    let server = TestServer::start_with(db, |config| config.pair_burst = 1).await;
    let bob = server.anyone().registered("bob", "phone").await;
    server.anyone().registered("empty", "phone").await;
    bob.reserve("limited").await.is_problem(404, ProblemType::UnknownUser);

    let answer = reserve(&bob, json!({"targets": ["nobody", "limited", "empty"]})).await;
    answer.is_problem(404, ProblemType::PoolExhausted);
    let limited = missing("limited", None, "too-many-requests");
    let nobody = missing("nobody", None, "unknown-user");
    let empty = missing("empty", Some("phone"), "pool-exhausted");
    assert_eq!(answer.json["missing"], json!([empty, limited, nobody]));
    assert!(answer.json["detail"].as_str().unwrap().contains("of empty is left"), "{}", answer.text);

    let answer = reserve(&bob, json!({"targets": ["none", "limited"]})).await;
    answer.is_problem(404, ProblemType::UnknownUser);
    assert!(answer.json["detail"].as_str().unwrap().contains("no user none."), "{}", answer.text);

    let answer = reserve(&bob, json!({"targets": ["limited", "empty"]})).await;
    answer.is_problem(429, ProblemType::TooManyRequests);
    assert_eq!(
        answer.json["missing"],
        json!([missing("empty", None, "too-many-requests"), missing("limited", None, "too-many-requests")])
    );
}

#[rstest]
#[tokio::test]
async fn the_ciphersuite_can_be_chosen(#[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere) {
    let server = TestServer::start(db).await;
    let (alice, bob) = two_suites(&server).await;
    for _ in 0..2 {
        let answer = reserve(&bob, json!({"target_user": "alice", "ciphersuite": 3})).await.ok();
        assert_eq!(answer["reservations"][0]["ciphersuite"], 3);
    }
    let suites = &alice.status().await["ciphersuites"];
    assert_eq!(
        (&suites[0]["ciphersuite"], &suites[0]["fresh"], &suites[0]["reserved"]),
        (&json!(1), &json!(2), &json!(0))
    );
    assert_eq!(
        (&suites[1]["ciphersuite"], &suites[1]["fresh"], &suites[1]["reserved"]),
        (&json!(3), &json!(0), &json!(2))
    );
    let other = reserve(&bob, json!({"target_user": "alice", "ciphersuite": 2})).await;
    other.is_problem(404, ProblemType::NoMatchingCiphersuite);
    assert_eq!(other.json["missing"][0]["ciphersuites"], json!([1]), "what is reserved cannot be asked for");
    assert!(other.json["detail"].as_str().unwrap().contains("of: 1."), "{}", other.text);
    let any = bob.reserve("alice").await.ok();
    assert_eq!(any["reservations"][0]["ciphersuite"], 1);
}

#[rstest]
#[tokio::test]
async fn each_ciphersuite_has_a_last_resort_of_its_own(#[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere) {
    let server = TestServer::start(db).await;
    let alice = server.anyone().registered("alice", "laptop").await;
    let bob = server.anyone().registered("bob", "phone").await;
    let (one, three) = (Device::new("alice", "laptop"), Device::new("alice", "laptop").of_suite(SUITE_3));
    alice.uploaded(&[one.last_resort(), three.last_resort()]).await;
    let last_of = async |suite: u16| {
        let answer = reserve(&bob, json!({"target_user": "alice", "ciphersuite": suite})).await.ok();
        assert_eq!(answer["reservations"][0]["last_resort"], true);
        answer["reservations"][0]["keypackage_ref"].clone()
    };
    let (first, third) = (last_of(1).await, last_of(3).await);
    last_of(3).await;
    let resorts = async || {
        let status = alice.status().await;
        json!([&status["ciphersuites"][0]["last_resort"], &status["ciphersuites"][1]["last_resort"]])
    };
    let used = |uses: u64| json!({"present": true, "uses": uses});
    assert_eq!(resorts().await, json!([used(1), used(2)]));
    // A new one takes the place of the old one of its ciphersuite, and of no other.
    alice.uploaded(&[three.last_resort()]).await;
    assert_eq!(resorts().await, json!([used(1), used(0)]));
    assert_ne!(last_of(3).await, third);
    assert_eq!(last_of(1).await, first);
}

#[rstest]
#[tokio::test]
async fn a_last_resort_that_was_replaced_never_comes_back(
    #[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere,
) {
    let server = TestServer::start(db).await;
    let alice = server.anyone().registered("alice", "laptop").await;
    let bob = server.anyone().registered("bob", "phone").await;
    let device = Device::new("alice", "laptop");
    let (old, new) = (device.last_resort(), device.last_resort());
    alice.uploaded(std::slice::from_ref(&old)).await;
    alice.uploaded(std::slice::from_ref(&old)).await;
    let reservation = bob.reserved("alice").await;
    assert_eq!(alice.status().await["last_resort"], json!({"present": true, "uses": 1}));
    alice.uploaded(&[new]).await;
    let refused = alice.upload(&[old]).await.ok();
    assert_eq!(refused["rejected"][0]["reason"], "duplicate");
    assert_eq!(refused["pool"]["last_resort"], json!({"present": true, "uses": 0}));
    // Its holder may have used the old one already.
    bob.spend(&reservation, "friends").await.ok();

    let plain = device.key_package();
    alice.uploaded(std::slice::from_ref(&plain)).await;
    bob.spend(&bob.reserved("alice").await, "friends").await.ok();
    let reused = alice.upload(&[with_the_keys_of(&plain, &device)]).await.ok();
    assert_eq!(reused["rejected"][0]["reason"], "init-key-reused");
}

#[rstest]
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn any_number_get_the_last_resort_at_once(#[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere) {
    let server = TestServer::start(db).await;
    let alice = server.anyone().registered("alice", "laptop").await;
    alice.uploaded(&[Device::new("alice", "laptop").last_resort()]).await;
    let bob = server.anyone().registered("bob", "phone").await;
    let tasks: Vec<_> = (0..20)
        .map(|_| {
            let bob = bob.clone();
            tokio::spawn(async move {
                let reservation = bob.reserved("alice").await;
                assert_eq!(reservation["last_resort"], true);
                assert_eq!(bob.spend(&reservation, "friends").await.ok()["state"], "available");
                reservation["reservation_id"].to_string()
            })
        })
        .collect();
    let mut ids = BTreeSet::new();
    for task in tasks {
        ids.insert(task.await.unwrap());
    }
    assert_eq!(ids.len(), 20);
    assert_eq!(alice.status().await["last_resort"], json!({"present": true, "uses": 20}));
}

/// Gives users so many devices between them, each with a KeyPackage of the largest size. Nobody parses it.
fn add_large(database: &mut Raw, users: &[&str], devices: u8) {
    let large = database.bytes(&vec![0; MAX_KEY_PACKAGE_SIZE]);
    for user in users {
        database.run(&format!("INSERT INTO users (name, created_at) VALUES ('{user}', 0)"));
    }
    for (n, user) in (0..devices).zip(users.iter().cycle()) {
        let bytes = database.bytes(&[n; 32]);
        database.run(&format!(
            "INSERT INTO devices (user_name, device_name, token_hash, created_at) VALUES ('{user}', 'd{n:02}', {bytes}, 0);
             INSERT INTO key_packages (keypackage_ref, device_id, ciphersuite, key_package, not_after, last_resort, state)
             SELECT {bytes}, max(id), 1, {large}, 4000000000, false, 'available' FROM devices"
        ));
    }
}

#[rstest]
#[tokio::test]
async fn an_answer_has_4_mib_of_key_packages_and_says_what_is_left_for_another(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
    #[values(&["large"], &["large", "too"])] users: &[&str],
    #[values(false, true)] is_repeatable: bool,
) {
    let server = TestServer::start(db).await;
    let bob = server.anyone().registered("bob", "phone").await;
    add_large(&mut server.database(), users, 66);
    let asks = if is_repeatable { bob.with_key("once") } else { bob.clone() };
    let answer = reserve(&asks, json!({"targets": users})).await.ok();
    assert_eq!(owners(&answer).len() * MAX_KEY_PACKAGE_SIZE, 4 * 1024 * 1024);
    let left = answer["missing"].as_array().unwrap();
    assert_eq!(left.len(), 2);
    for one in left {
        let (user, device) = (one["user"].as_str().unwrap(), one["device"].as_str().unwrap());
        assert_eq!(*one, missing(user, Some(device), "too-many-requests"));
        reserve(&bob, json!({"target_user": user, "device": device})).await.ok();
    }
}
