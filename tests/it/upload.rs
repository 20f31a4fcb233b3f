//! Uploads: the KeyPackages that enter a pool, and those that the server refuses.

mod batch;
mod replace;

use jiff::SignedDuration;
use keypool_openapi::ProblemType;
use rstest::rstest;
use serde_json::{Value, json};

use crate::support::{Anywhere, Database, Device, Http, TestServer, encode, tampered, with_the_keys_of};

fn rejections(answer: &Value) -> Vec<(u64, &str)> {
    let rejected = answer["rejected"].as_array().unwrap();
    rejected.iter().map(|one| (one["index"].as_u64().unwrap(), one["reason"].as_str().unwrap())).collect()
}

/// A status without its times: against containers the clock runs.
fn but_for_times(mut status: Value) -> Value {
    for time in ["at", "last_upload"] {
        assert!(status[time].take().is_string());
    }
    status
}

async fn alice(server: &TestServer) -> (Http, Device) {
    (server.anyone().registered("alice", "laptop").await, Device::new("alice", "laptop"))
}

#[rstest]
#[tokio::test]
async fn of_a_hundred_with_three_bad_ones_ninety_seven_are_taken(
    #[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere,
) {
    let server = TestServer::start(db).await;
    let (alice, device) = alice(&server).await;
    let mut batch = device.key_packages(100);
    let signature = batch[13].len() - 1;
    batch[13] = tampered(&batch[13], signature);
    batch[57] = Device::new("mallory", "phone").key_package();
    batch[99] = batch[2].clone();
    let answer = alice.upload(&batch).await.ok();
    assert_eq!(rejections(&answer), [(13, "invalid-signature"), (57, "credential-mismatch"), (99, "duplicate")]);
    assert_eq!(answer["accepted"].as_array().unwrap().len(), 97);
    assert_eq!((&answer["pool"]["fresh"], &answer["pool"]["total"]), (&json!(97), &json!(97)));
}

#[rstest]
#[tokio::test]
async fn any_byte_changed_is_rejected(#[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere) {
    let server = TestServer::start(db).await;
    let (alice, device) = alice(&server).await;
    let package = device.key_package();
    let changed: Vec<_> = (0..package.len()).map(|at| tampered(&package, at)).collect();
    for batch in changed.chunks(100) {
        let answer = alice.upload(batch).await.ok();
        assert_eq!(answer["accepted"], json!([]));
    }
    assert_eq!(alice.status().await["total"], 0);
    alice.uploaded(&[package]).await;
}

#[rstest]
#[tokio::test]
async fn what_comes_out_is_what_went_in(#[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere) {
    let server = TestServer::start(db).await;
    let (alice, device) = alice(&server).await;
    let package = device.key_package();
    alice.uploaded(std::slice::from_ref(&package)).await;
    let before = but_for_times(alice.status().await);
    alice.uploaded(std::slice::from_ref(&package)).await;
    assert_eq!(but_for_times(alice.status().await), before, "an upload repeated changed something");
    let bob = server.anyone().registered("bob", "phone").await;
    let reservation = bob.reserved("alice").await;
    assert_eq!(reservation["keypackage"], encode(&package));
    bob.spend(&reservation, "friends").await.ok();
    let again = alice.upload(&[package]).await.ok();
    assert_eq!(rejections(&again), [(0, "duplicate")]);
}

#[rstest]
#[tokio::test]
async fn keys_are_used_once(#[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere) {
    let server = TestServer::start(db).await;
    let (alice, device) = alice(&server).await;
    let package = device.key_package();
    let reused = with_the_keys_of(&package, &device);
    let answer = alice.upload(&[package, reused.clone()]).await.ok();
    assert_eq!(rejections(&answer), [(1, "init-key-reused")]);
    assert_eq!(rejections(&alice.upload(&[reused]).await.ok()), [(0, "init-key-reused")]);
}

#[rstest]
#[tokio::test]
async fn a_full_pool_takes_no_more(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let server = TestServer::start_with(db, |config| config.pool_capacity = 3).await;
    let (alice, device) = alice(&server).await;
    let answer = alice.upload(&device.key_packages(4)).await.ok();
    assert_eq!(rejections(&answer), [(3, "pool-full")]);
    alice.upload(&device.key_packages(1)).await.is_problem(409, ProblemType::PoolFull);
    alice.uploaded(&[device.last_resort()]).await;
    let second = [device.last_resort(), device.last_resort()];
    assert_eq!(rejections(&alice.upload(&second).await.ok()), [(1, "second-last-resort")]);
    let none: [&[u8]; 0] = [];
    alice.upload(&none).await.is_problem(400, ProblemType::MalformedRequest);
}

#[rstest]
#[tokio::test]
async fn grease_is_taken_where_it_is_listed(#[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere) {
    let server = TestServer::start(db).await;
    let (alice, _) = alice(&server).await;
    let device = || Device::new("alice", "laptop");
    let batch = [
        device().with_grease(0x8a8a, true).key_package(),
        device().with_grease_in_leaf(0x4a4a).key_package(),
        device().with_grease(0x0a0a, true).with_grease_in_leaf(0xeaea).last_resort(),
        device().with_grease(0x8a8a, false).key_package(),
    ];
    let answer = alice.upload(&batch).await.ok();
    assert_eq!(rejections(&answer), [(3, "unsupported-extension")]);
    let detail = answer["rejected"][0]["detail"].as_str().unwrap();
    assert!(detail.contains("GREASE extension 0x8a8a") && detail.contains("capabilities do not list"), "{detail}");
    let bob = server.anyone().registered("bob", "phone").await;
    let mut handed_out = [bob.reserved("alice").await, bob.reserved("alice").await];
    handed_out.sort_by_key(|one| one["keypackage"] != encode(&batch[0]));
    let bytes = handed_out.map(|one| one["keypackage"].clone());
    assert_eq!(bytes, [json!(encode(&batch[0])), json!(encode(&batch[1]))]);
}

#[rstest]
#[tokio::test]
async fn a_lifetime_may_begin_a_little_ahead_of_the_server(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
) {
    let server = TestServer::start(db).await;
    let (alice, device) = alice(&server).await;
    // The server's time stands still.
    let ahead = |seconds| server.now() + SignedDuration::from_secs(seconds);
    let end = ahead(86_400);
    let device = device.valid_between(ahead(60), end);
    alice.uploaded(&device.key_packages(2)).await;
    let device = device.valid_between(ahead(61), end);
    assert_eq!(rejections(&alice.upload(&[device.key_package()]).await.ok()), [(0, "lifetime-not-yet-valid")]);
    let strict = server.beside(|config| config.clock_tolerance = std::time::Duration::ZERO).await;
    let device = device.valid_between(ahead(1), end);
    let answer = alice.at(&strict.base).upload(&[device.key_package()]).await.ok();
    assert_eq!(rejections(&answer), [(0, "lifetime-not-yet-valid")]);
}
