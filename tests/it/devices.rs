//! A user's devices: their registration, their number, and their removal.

use jiff::SignedDuration;
use keypool_openapi::ProblemType;
use rstest::rstest;
use serde_json::json;

use crate::support::{Anywhere, Database, Device, TestServer, with_the_keys_of};

#[rstest]
#[tokio::test]
async fn a_device_is_registered_once(#[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere) {
    let server = TestServer::start(db).await;
    let answer = server.anyone().register("alice", "laptop").await;
    assert_eq!(answer.status, 201, "{}", answer.text);
    let alice = server.anyone().with_token(answer.json["token"].as_str().unwrap());
    alice.register("alice", "laptop").await.is_problem(409, ProblemType::AlreadyRegistered);
    let listed = alice.get("/users/alice/devices").await;
    assert!(!listed.text.contains(alice.token.as_deref().unwrap()), "the token is shown twice");
    assert_eq!(listed.ok()["devices"][0]["device"], "laptop");
}

#[rstest]
#[tokio::test]
async fn a_further_device_needs_a_token_of_its_user(#[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere) {
    let server = TestServer::start(db).await;
    let alice = server.anyone().registered("alice", "laptop").await;
    let mallory = server.anyone().registered("mallory", "phone").await;
    server.anyone().register("alice", "phone").await.is_problem(401, ProblemType::Unauthenticated);
    mallory.register("alice", "phone").await.is_problem(403, ProblemType::Forbidden);
    assert_eq!(alice.register("alice", "phone").await.status, 201);
    let devices = mallory.get("/users/alice/devices").await.ok();
    let names: Vec<_> = devices["devices"].as_array().unwrap().iter().map(|device| device["device"].clone()).collect();
    assert_eq!(names, [json!("laptop"), json!("phone")]);
    mallory.get("/users/nobody/devices").await.is_problem(404, ProblemType::UnknownUser);
}

#[rstest]
#[tokio::test]
async fn a_user_has_so_many_devices(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let server = TestServer::start_with(db, |config| config.max_devices = 2).await;
    let laptop = server.anyone().registered("alice", "laptop").await;
    laptop.registered("alice", "phone").await;
    laptop.register("alice", "tablet").await.is_problem(403, ProblemType::Forbidden);
    laptop.delete("/devices/phone").await.ok();
    laptop.registered("alice", "tablet").await;
}

#[tokio::test]
async fn registrations_at_the_same_moment_make_no_more_devices() {
    let server = TestServer::start_with(Database::Postgres, |config| config.max_devices = 2).await;
    let laptop = server.anyone().registered("alice", "laptop").await;
    let mut database = server.database();
    database.run("BEGIN; SELECT name FROM users FOR NO KEY UPDATE");
    let tasks = ["phone", "tablet"].map(|device| {
        let laptop = laptop.clone();
        tokio::spawn(async move { laptop.register("alice", device).await.status })
    });
    while database.waiting() < 2 {
        assert!(tasks.iter().all(|task| !task.is_finished()), "a registration did not wait for the user's row");
        tokio::task::yield_now().await;
    }
    database.run("COMMIT");
    let mut made = Vec::new();
    for task in tasks {
        made.push(task.await.unwrap());
    }
    made.sort_unstable();
    assert_eq!(made, [201, 403]);
}

#[rstest]
#[tokio::test]
async fn a_removed_device_is_gone_with_all_it_had(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let server = TestServer::start(db).await;
    let other = server.beside(|_| ()).await;
    let laptop = server.anyone().registered("alice", "laptop").await;
    let phone = laptop.registered("alice", "phone").await;
    let bob = server.anyone().registered("bob", "phone").await;
    let device = Device::new("alice", "phone");
    let packages = device.key_packages(4);
    phone.uploaded(&packages).await;
    phone.uploaded(&[device.last_resort()]).await;
    let spent = bob.reserved("alice").await;
    bob.spend(&spent, "friends").await.ok();
    let reservation = bob.reserved("alice").await;
    let phone_there = phone.at(&other.base);
    phone_there.status().await;

    let removed = laptop.delete("/devices/phone").await.ok();
    assert_eq!(removed, json!({"user": "alice", "device": "phone", "revoked": 4}));
    phone.get("/keypackages/status").await.is_problem(401, ProblemType::Unauthenticated);
    laptop.delete("/devices/phone").await.is_problem(404, ProblemType::UnknownDevice);
    bob.spend(&reservation, "friends").await.is_problem(409, ProblemType::ReservationLapsed);
    bob.spend(&spent, "friends").await.ok();
    assert_eq!(bob.get("/users/alice/devices").await.ok()["devices"].as_array().unwrap().len(), 1);
    let wanted = bob.post("/keypackages/reserve", &json!({"target_user": "alice", "device": "phone"})).await;
    wanted.is_problem(404, ProblemType::UnknownDevice);

    // Another server may have the token in mind for five seconds after it looked it up, however busy the device is.
    for _ in 0..4 {
        server.advance(SignedDuration::from_secs(1));
        phone_there.status().await;
    }
    server.advance(SignedDuration::from_secs(1));
    phone_there.get("/keypackages/status").await.is_problem(401, ProblemType::Unauthenticated);

    // The name is free again; what the device had stays known.
    let again = laptop.registered("alice", "phone").await;
    phone.get("/keypackages/status").await.is_problem(401, ProblemType::Unauthenticated);
    let status = again.status().await;
    assert_eq!((&status["available"], &status["revoked"], &status["spent"]), (&json!(0), &json!(3), &json!(1)));
    assert_eq!(status["last_resort"]["present"], false);
    let mut batch = packages.clone();
    batch.extend(packages.iter().map(|package| with_the_keys_of(package, &device)));
    let rejected = again.upload(&batch).await.ok()["rejected"].clone();
    let reasons: Vec<_> = rejected.as_array().unwrap().iter().map(|one| one["reason"].as_str().unwrap()).collect();
    assert_eq!(reasons, [["duplicate"; 4], ["init-key-reused"; 4]].concat());
    again.uploaded(&[device.key_package()]).await;
    bob.reserved("alice").await;
}

#[rstest]
#[tokio::test]
async fn a_device_may_remove_itself(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let server = TestServer::start(db).await;
    let alice = server.anyone().registered("alice", "laptop").await;
    alice.delete("/devices/laptop").await.ok();
    alice.get("/keypackages/status").await.is_problem(401, ProblemType::Unauthenticated);
    // The user is still known: nobody else gets the name.
    server.anyone().register("alice", "laptop").await.is_problem(401, ProblemType::Unauthenticated);
    let bob = server.anyone().registered("bob", "phone").await;
    assert_eq!(bob.get("/users/alice/devices").await.ok()["devices"], json!([]));
}
