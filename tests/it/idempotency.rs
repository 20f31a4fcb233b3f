//! A request whose answer got lost is repeated with its `Idempotency-Key`, and happens once.

use jiff::SignedDuration;
use keypool_openapi::ProblemType;
use rstest::rstest;
use serde_json::{Value, json};

use crate::support::{Anywhere, Database, Device, Http, TestServer};

/// A key of a registration: 32 characters.
const KEY: &str = "67e5504410b1426f9247bb680e5fe0c8";

struct Scene {
    server: TestServer,
    alice: Http,
    bob: Http,
}

async fn scene(db: Database, packages: usize) -> Scene {
    let server = TestServer::start_with(db, |config| config.pair_burst = 3).await;
    let alice = server.anyone().registered("alice", "laptop").await;
    alice.uploaded(&Device::new("alice", "laptop").key_packages(packages)).await;
    let bob = server.anyone().registered("bob", "phone").await.with_key("one");
    Scene { server, alice, bob }
}

async fn reserve_for(caller: &Http, ttl: u64) -> crate::support::Answer {
    caller.post("/keypackages/reserve", &json!({"target_user": "alice", "ttl": ttl})).await
}

#[rstest]
#[tokio::test]
async fn a_repetition_is_answered_the_very_same_while_it_is_held(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
) {
    let Scene { server: _server, alice, bob } = scene(db, 3).await;
    let first = bob.reserve("alice").await;
    let again = bob.reserve("alice").await;
    assert_eq!((again.status, again.text), (200, first.text.clone()));
    assert_eq!(alice.status().await["reserved"], 1);
    bob.spend(&first.json["reservations"][0], "friends").await.ok();
    no_longer_held(&bob.reserve("alice").await);
    assert_eq!(alice.status().await["reserved"], 0, "a repetition reserved another one");
}

#[track_caller]
fn no_longer_held(answer: &crate::support::Answer) {
    answer.is_problem(409, ProblemType::ReservationLapsed);
    let missing = json!([{"user": "alice", "device": "laptop", "reason": "reservation-lapsed", "ciphersuites": []}]);
    assert_eq!(answer.json["missing"], missing);
}

/// A repetition shows no KeyPackage that may be another adder's by now, nor one that its owner withdrew.
#[rstest]
#[tokio::test]
async fn what_is_no_longer_held_is_missing_from_a_repetition(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
) {
    let Scene { server, alice, bob } = scene(db, 1).await;
    let released = bob.reserved("alice").await;
    bob.release(&released).await.ok();
    no_longer_held(&bob.reserve("alice").await);
    let carol = server.anyone().registered("carol", "phone").await;
    carol.reserved("alice").await;
    no_longer_held(&bob.reserve("alice").await);
    server.advance(SignedDuration::from_secs(60));
    let bob = bob.with_key("two");
    let kept = bob.reserve("alice").await;
    assert_eq!(bob.reserve("alice").await.text, kept.text);
    server.advance(SignedDuration::from_secs(60));
    no_longer_held(&bob.reserve("alice").await);
    let bob = bob.with_key("three");
    bob.reserved("alice").await;
    alice.post("/keypackages/revoke", &json!({"all": true})).await.ok();
    no_longer_held(&bob.reserve("alice").await);
    // The last resort is nobody's own: it is there while its owner offers it.
    let laptop = Device::new("alice", "laptop");
    alice.uploaded(&[laptop.last_resort()]).await;
    let bob = bob.with_key("four");
    server.advance(SignedDuration::from_secs(60));
    let last_resort = bob.reserve("alice").await;
    server.advance(SignedDuration::from_secs(60));
    assert_eq!(bob.reserve("alice").await.text, last_resort.text);
    alice.uploaded(&[laptop.last_resort()]).await;
    no_longer_held(&bob.reserve("alice").await);
}

/// The size of a kept answer does not grow with the KeyPackages in it.
#[rstest]
#[tokio::test]
async fn a_kept_answer_is_small(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let Scene { server, alice, bob } = scene(db, 0).await;
    let large = Device::new("alice", "laptop").with_extension(60_000, true);
    alice.uploaded(&large.key_packages(2)).await;
    bob.reserved("alice").await;
    // The last resort is handed out alone, and not in a batch.
    alice.uploaded(&[large.last_resort()]).await;
    bob.with_key("two").reserved("alice").await;
    assert_eq!(bob.with_key("three").reserved("alice").await["last_resort"], true);
    let kept = server.database().number("SELECT CAST(max(length(answer)) AS BIGINT) AS n FROM idempotency_keys");
    assert!((100..1_000).contains(&kept), "{kept} bytes are kept");
}

#[rstest]
#[tokio::test]
async fn a_key_is_for_one_request(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let Scene { server: _server, alice, bob } = scene(db, 3).await;
    let first = bob.reserve("alice").await;
    reserve_for(&bob, 5).await.is_problem(422, ProblemType::IdempotencyMismatch);
    assert_eq!(alice.status().await["reserved"], 1);
    assert_eq!(bob.reserve("alice").await.text, first.text, "the other request took the key's answer away");
}

#[rstest]
#[tokio::test]
async fn an_answer_is_kept_while_its_reservation_lives(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let Scene { server, alice, bob } = scene(db, 2).await;
    let server = server.beside(|config| config.idempotency_window = std::time::Duration::from_mins(10)).await;
    let bob = bob.at(&server.base);
    let first = reserve_for(&bob, 600).await;
    server.advance(SignedDuration::from_secs(599));
    server.sweep().await;
    assert_eq!(reserve_for(&bob, 600).await.text, first.text);
    server.advance(SignedDuration::from_secs(1));
    let anew = reserve_for(&bob, 600).await.ok();
    assert_ne!(anew["reservations"], first.json["reservations"], "the key is not free when its window is over");
    assert_eq!(alice.status().await["reserved"], 1);
    server.advance(SignedDuration::from_secs(600));
    server.sweep().await;
    assert_eq!(server.database().number("SELECT count(*) AS n FROM idempotency_keys"), 0, "a key is kept for ever");
}

#[rstest]
#[tokio::test]
async fn an_answer_is_kept_for_the_window_after_its_reservation_is_over(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
) {
    let Scene { server, alice, bob } = scene(db, 2).await;
    reserve_for(&bob, 1).await.ok();
    server.advance(SignedDuration::from_secs(3_599));
    server.sweep().await;
    no_longer_held(&reserve_for(&bob, 1).await);
    assert_eq!(alice.status().await["reserved"], 0);
}

#[rstest]
#[tokio::test]
async fn what_came_to_nothing_may_be_tried_anew(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let Scene { server: _server, alice, bob } = scene(db, 0).await;
    bob.reserve("alice").await.is_problem(404, ProblemType::PoolExhausted);
    alice.uploaded(&Device::new("alice", "laptop").key_packages(1)).await;
    reserve_for(&bob, 5).await.ok();
}

#[rstest]
#[tokio::test]
async fn a_key_is_its_devices_own(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let Scene { server: _server, alice, bob } = scene(db, 2).await;
    let bob = bob.with_key(KEY);
    let tablet = bob.registered("bob", "tablet").await;
    assert_ne!(bob.reserved("alice").await["keypackage_ref"], tablet.reserved("alice").await["keypackage_ref"]);
    assert_eq!(alice.status().await["reserved"], 2);
}

#[rstest]
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn repetitions_at_once_reserve_once(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let Scene { server, alice, bob } = scene(db, 20).await;
    let server = server.beside(|config| config.pair_burst = 16).await;
    let tasks: Vec<_> = (0..16)
        .map(|_| {
            let bob = bob.at(&server.base);
            tokio::spawn(async move { bob.reserve("alice").await.text })
        })
        .collect();
    let mut answers = Vec::new();
    for task in tasks {
        answers.push(task.await.unwrap());
    }
    answers.dedup();
    assert_eq!(answers.len(), 1, "{answers:?}");
    assert_eq!(alice.status().await["reserved"], 1);
}

/// A user that is missing because of the limit of pairs is part of the answer, which does not change with the time.
#[rstest]
#[tokio::test]
async fn a_repetition_misses_whom_the_first_answer_missed(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
) {
    let Scene { server, bob, .. } = scene(db, 9).await;
    server.anyone().registered("carol", "phone").await.uploaded(&Device::new("carol", "phone").key_packages(2)).await;
    let both = json!({"targets": ["alice", "carol"]});
    let first = bob.post("/keypackages/reserve", &both).await;
    for key in ["two", "three"] {
        bob.with_key(key).reserved("alice").await;
    }
    // Now Alice is out of bounds for two seconds.
    assert_eq!(bob.post("/keypackages/reserve", &both).await.text, first.text);
    let limited = bob.with_key("four").post("/keypackages/reserve", &both).await;
    assert_eq!(limited.json["missing"][0]["reason"], "too-many-requests", "{}", limited.text);
    server.advance(SignedDuration::from_secs(2));
    assert_eq!(bob.with_key("four").post("/keypackages/reserve", &both).await.text, limited.text);
}

#[rstest]
#[tokio::test]
async fn keys_are_visible_characters(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let Scene { server: _server, bob, .. } = scene(db, 1).await;
    for bad in ["", "a b", "a\tb", &"a".repeat(256)] {
        bob.with_key(bad).reserve("alice").await.is_problem(400, ProblemType::MalformedRequest);
    }
    bob.with_key(&"a".repeat(255)).reserve("alice").await.ok();
}

fn token(answer: &Value) -> &str {
    answer["token"].as_str().unwrap()
}

#[rstest]
#[tokio::test]
async fn a_registration_is_repeated_until_its_token_is_used(
    #[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere,
) {
    let server = TestServer::start(db).await;
    let anyone = server.anyone().with_key(KEY);
    let first = anyone.register("alice", "laptop").await.ok();
    // The first request may be the one that arrives last: its token must not end the token of the answer that came.
    assert_eq!(token(&anyone.register("alice", "laptop").await.ok()), token(&first));
    for other in ["x", "0"].map(|end| format!("{}{end}", &KEY[..31])) {
        let answer = server.anyone().with_key(&other).register("alice", "laptop").await;
        answer.is_problem(401, ProblemType::Unauthenticated);
    }
    anyone.register("alice", "phone").await.is_problem(401, ProblemType::Unauthenticated);
    let third = anyone.register("alice", "laptop").await.ok();
    let alice = server.anyone().with_token(token(&third));
    alice.status().await;
    anyone.register("alice", "laptop").await.is_problem(401, ProblemType::Unauthenticated);
    alice.with_key(KEY).register("alice", "laptop").await.is_problem(409, ProblemType::AlreadyRegistered);
    alice.status().await;
    assert_eq!(alice.get("/users/alice/devices").await.ok()["devices"].as_array().unwrap().len(), 1);
}

#[rstest]
#[tokio::test]
async fn a_registration_is_repeated_within_the_window(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let server = TestServer::start(db).await;
    let anyone = server.anyone().with_key(KEY);
    anyone.register("alice", "laptop").await.ok();
    server.advance(SignedDuration::from_secs(3_599));
    let last = anyone.register("alice", "laptop").await.ok();
    server.advance(SignedDuration::from_secs(1));
    anyone.register("alice", "laptop").await.is_problem(401, ProblemType::Unauthenticated);
    server.anyone().with_token(token(&last)).status().await;
}

#[rstest]
#[tokio::test]
async fn whoever_could_guess_the_key_could_have_the_token(
    #[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere,
) {
    let server = TestServer::start(db).await;
    let short = server.anyone().with_key(&KEY[..31]);
    short.register("alice", "laptop").await.is_problem(400, ProblemType::MalformedRequest);
    server.anyone().with_key(KEY).register("alice", "laptop").await.ok();
}

#[rstest]
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn registrations_at_once_make_one_device_with_one_token(
    #[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere,
) {
    let server = TestServer::start(db).await;
    let tasks: Vec<_> = (0..8)
        .map(|_| {
            let anyone = server.anyone().with_key(KEY);
            tokio::spawn(async move { anyone.register("alice", "laptop").await.ok() })
        })
        .collect();
    let mut tokens = Vec::new();
    for task in tasks {
        tokens.push(token(&task.await.unwrap()).to_owned());
    }
    tokens.dedup();
    assert_eq!(tokens.len(), 1, "the token of the answer that arrives has to be valid");
    server.anyone().with_token(&tokens[0]).status().await;
}

/// The key of an earlier registration does not give the token of a later one.
#[rstest]
#[tokio::test]
async fn a_registration_anew_with_the_same_key_has_another_token(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
) {
    let server = TestServer::start(db).await;
    let first = server.anyone().with_key(KEY).register("alice", "laptop").await.ok();
    let laptop = server.anyone().with_token(token(&first));
    let phone = laptop.with_key(KEY).register("alice", "phone").await.ok();
    assert_ne!(token(&phone), token(&first));
    let phone = server.anyone().with_token(token(&phone));
    phone.delete("/devices/laptop").await.ok();
    server.advance(SignedDuration::from_secs(1));
    let again = phone.with_key(KEY).register("alice", "laptop").await.ok();
    assert_ne!(token(&again), token(&first));
    laptop.get("/keypackages/status").await.is_problem(401, ProblemType::Unauthenticated);
}

/// A server of the version before made a token that nothing else gives.
#[rstest]
#[tokio::test]
async fn a_registration_at_an_older_server_is_repeated_with_a_new_token(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
) {
    let server = TestServer::start(db).await;
    let anyone = server.anyone().with_key(KEY);
    let first = anyone.register("alice", "laptop").await.ok();
    let other = if db == Database::Postgres { r"'\x00'::bytea" } else { "x'00'" };
    server.database().run(&format!("UPDATE devices SET token_hash = {other} WHERE user_name = 'alice'"));
    let repeated = anyone.register("alice", "laptop").await.ok();
    assert_eq!(token(&repeated), token(&first));
    server.anyone().with_token(token(&repeated)).status().await;
}

/// Both find that the device is not there, and both go on to register it.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_registration_and_its_repetition_may_meet() {
    let server = TestServer::start(Database::Postgres).await;
    let mut database = server.database();
    database.run("BEGIN; INSERT INTO users (name, created_at) VALUES ('alice', 0)");
    let tasks = [(); 2].map(|()| {
        let anyone = server.anyone().with_key(KEY);
        tokio::spawn(async move { anyone.register("alice", "laptop").await })
    });
    while database.waiting() < 2 {
        assert!(tasks.iter().all(|task| !task.is_finished()), "a registration did not wait for the other");
        tokio::task::yield_now().await;
    }
    database.run("ROLLBACK");
    for task in tasks {
        task.await.unwrap().ok();
    }
}

#[tokio::test]
async fn a_key_that_comes_anew_while_its_old_answer_is_forgotten_is_kept() {
    let server = TestServer::start(Database::Postgres).await;
    server.anyone().registered("bob", "phone").await;
    let mut anew = server.database();
    anew.run("INSERT INTO idempotency_keys SELECT id, 'key', '', '', 1 FROM devices");
    anew.run("BEGIN; UPDATE idempotency_keys SET expires_at = 4000000000");
    let (store, now) = (server.store(), server.now());
    let forgetting = tokio::task::spawn_blocking(move || store.forget(now, 10, now).unwrap());
    while anew.waiting() < 1 {
        assert!(!forgetting.is_finished(), "it did not wait for who has the key");
        tokio::task::yield_now().await;
    }
    anew.run("COMMIT");
    assert_eq!(forgetting.await.unwrap(), 0);
    assert_eq!(anew.number("SELECT count(*) AS n FROM idempotency_keys"), 1);
}
