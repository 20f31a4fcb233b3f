//! An upload that takes the place of the pool.

use jiff::SignedDuration;
use keypool_openapi::ProblemType;
use keypool_validation::token::Token;
use openmls::prelude::Ciphersuite;
use rstest::rstest;
use serde_json::{Value, json};

use super::{alice, rejections};
use crate::support::{Anywhere, Database, Device, Http, TestServer, encode, tampered};

const CHACHA: Ciphersuite = Ciphersuite::MLS_128_DHKEMX25519_CHACHA20POLY1305_SHA256_Ed25519;

/// Uploads KeyPackages that take the place of the pool.
async fn replaced(owner: &Http, packages: &[Vec<u8>]) -> Value {
    let packages: Vec<_> = packages.iter().map(|package| encode(package)).collect();
    owner.post("/keypackages/upload", &json!({"keypackages": packages, "replace": true})).await.ok()
}

/// Fresh, reserved and revoked KeyPackages of a ciphersuite, and whether it has a last resort.
fn counts(status: &Value, ciphersuite: u16) -> (u64, u64, u64, bool) {
    let suites = status["ciphersuites"].as_array().unwrap();
    let suite = suites.iter().find(|suite| suite["ciphersuite"] == ciphersuite).unwrap();
    let count = |name: &str| suite[name].as_u64().unwrap();
    (count("fresh"), count("reserved"), count("revoked"), suite["last_resort"]["present"].as_bool().unwrap())
}

fn bytes(packages: Vec<impl AsRef<[u8]>>) -> Vec<Vec<u8>> {
    packages.into_iter().map(|package| package.as_ref().to_vec()).collect()
}

#[rstest]
#[tokio::test]
async fn a_new_pool_comes_and_the_old_one_goes_at_once(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let server = TestServer::start(db).await;
    let (alice, device) = alice(&server).await;
    let bob = server.anyone().registered("bob", "phone").await;
    alice.uploaded(&device.key_packages(3)).await;
    alice.uploaded(&[device.last_resort()]).await;
    let other = Device::new("alice", "laptop").of_suite(CHACHA);
    alice.uploaded(&other.key_packages(2)).await;
    let of_suite = json!({"target_user": "alice", "ciphersuite": 1});
    let held = bob.post("/keypackages/reserve", &of_suite).await.ok()["reservations"][0].clone();
    let lapsing = bob.post("/keypackages/reserve", &of_suite).await.ok()["reservations"][0].clone();

    let new = bytes(device.key_packages(2));
    let answer = replaced(&alice, &new).await;
    assert_eq!((answer["accepted"].as_array().unwrap().len(), answer["replaced"].as_u64()), (2, Some(2)));
    // One, and the last resort, which is not counted there: the new pool has none.
    assert_eq!(counts(&answer["pool"], 1), (2, 2, 1, false));
    assert_eq!(counts(&answer["pool"], 3), (2, 0, 0, false), "another ciphersuite is another pool");
    let again = replaced(&alice, &new).await;
    assert_eq!((again["accepted"].as_array().unwrap().len(), again["replaced"].as_u64()), (2, Some(0)));

    // What is held can be spent; what lapses is not handed out again.
    bob.spend(&held, "friends").await.ok();
    server.advance(SignedDuration::from_mins(2));
    server.sweep().await;
    for _ in 0..2 {
        let next = bob.post("/keypackages/reserve", &of_suite).await.ok()["reservations"][0].clone();
        assert_ne!(next["keypackage_ref"], lapsing["keypackage_ref"]);
    }
    bob.post("/keypackages/reserve", &of_suite).await.is_problem(404, ProblemType::PoolExpired);
}

#[rstest]
#[tokio::test]
async fn what_is_refused_takes_no_place(#[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere) {
    let server = TestServer::start(db).await;
    let (alice, device) = alice(&server).await;
    alice.uploaded(&device.key_packages(3)).await;
    let good = device.key_package();
    let bad = tampered(&good, good.len() - 1);
    let answer = replaced(&alice, &bytes(vec![bad])).await;
    assert_eq!((rejections(&answer), answer["replaced"].as_u64()), (vec![(0, "invalid-signature")], Some(0)));
    assert_eq!(counts(&answer["pool"], 1), (3, 0, 0, false));
    // One that is accepted takes the place, whatever becomes of the others.
    let strange = Device::new("mallory", "phone").key_package();
    let answer = replaced(&alice, &bytes(vec![good, strange])).await;
    assert_eq!((rejections(&answer), answer["replaced"].as_u64()), (vec![(1, "credential-mismatch")], Some(3)));
    assert_eq!(counts(&answer["pool"], 1), (1, 0, 3, false));
    // An ended token replaces nothing.
    let thief = server.anyone().with_token(Token::generate().unwrap().reveal());
    let body = json!({"keypackages": [encode(&device.key_package())], "replace": true});
    thief.post("/keypackages/upload", &body).await.is_problem(401, ProblemType::Unauthenticated);
    assert_eq!(counts(&alice.status().await, 1), (1, 0, 3, false));
}

/// The old pool takes no room of the new one, but what is reserved does.
#[rstest]
#[tokio::test]
async fn a_full_pool_can_be_replaced(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let server = TestServer::start_with(db, |config| config.pool_capacity = 4).await;
    let (alice, device) = alice(&server).await;
    let bob = server.anyone().registered("bob", "phone").await;
    let old = bytes(device.key_packages(4));
    alice.uploaded(&old).await;
    let new = bytes(device.key_packages(4));
    alice.upload(&new).await.is_problem(409, ProblemType::PoolFull);
    bob.reserved("alice").await;
    let answer = replaced(&alice, &new).await;
    assert_eq!((rejections(&answer), answer["replaced"].as_u64()), (vec![(3, "pool-full")], Some(3)));
    assert_eq!(counts(&answer["pool"], 1), (3, 1, 3, false));
    // What is there already counts once.
    let mixed = [&new[..2], &bytes(device.key_packages(1))].concat();
    let answer = replaced(&alice, &mixed).await;
    assert_eq!((rejections(&answer).len(), answer["replaced"].as_u64()), (0, Some(1)));
    assert_eq!(counts(&answer["pool"], 1), (3, 1, 4, false));
}
