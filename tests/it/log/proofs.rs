//! What is proven to whom.

use jiff::SignedDuration;
use keypool_openapi::ProblemType;
use keypool_transparency::{answers::Found, package::Step, receipt::Promise};
use rstest::rstest;
use serde_json::json;

use super::checks::{is_whole, policy, proofs, receipt, reserve};
use crate::support::{Database, Device, TestServer};

#[rstest]
#[tokio::test]
async fn an_owner_sees_all_steps_and_no_group_that_it_was_not_added_to(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
) {
    let server = TestServer::start(db).await;
    let alice = server.anyone().registered("alice", "laptop").await;
    alice.uploaded(&Device::new("alice", "laptop").key_packages(1)).await;
    let bob = server.anyone().registered("bob", "phone").await;
    let first = reserve(&bob, ("bob", "phone"), "alice", "secret").await;
    server.advance(SignedDuration::from_mins(2));
    server.sweep().await;
    let mut second = reserve(&bob, ("bob", "phone"), "alice", "friends").await;
    assert_eq!(first.package(), second.package());
    let package = second.package();
    is_whole(&server).await;
    let of = json!([{"keypackage_ref": second.reservation["keypackage_ref"]}]);
    let (keys, next) = (policy(&alice).await.log_keys(), [Step::End(1), Step::Open(2)]);
    let before = proofs(&alice, of.clone()).await;
    let checked = before.check(&keys).unwrap();
    for step in [Step::Open(0), Step::End(0), Step::Open(1)] {
        let found = checked.get(&step.tag(&package));
        let Some(Found::Included { opening: Some(opening), .. }) = found else { panic!("{step:?}: {found:?}") };
        assert!(opening.actor.is_none(), "{step:?} shows the group");
    }
    let denied = receipt(&policy(&alice).await, before.receipt.as_ref().unwrap());
    for step in next {
        assert!(matches!(checked.get(&step.tag(&package)), Some(Found::None)), "{step:?}");
        assert!(denied.promises.contains(&Promise::None(step.tag(&package))), "{step:?}");
    }
    second.spend().await;
    is_whole(&server).await;
    let after = proofs(&alice, of).await;
    let checked = after.check(&keys).unwrap();
    for (step, group) in [(Step::Open(1), "friends"), (Step::End(1), "friends")] {
        let found = checked.get(&step.tag(&package));
        let Some(Found::Included { opening: Some(opening), .. }) = found else { panic!("{step:?}: {found:?}") };
        assert_eq!(opening.actor.as_ref().unwrap().group_id, group.as_bytes());
    }
    let found = checked.get(&Step::Open(0).tag(&package));
    let Some(Found::Included { opening: Some(opening), .. }) = found else { panic!("{found:?}") };
    assert!(opening.actor.is_none(), "a lapsed hand-out shows its group");
}

#[rstest]
#[tokio::test]
async fn others_get_no_proof(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let server = TestServer::start(db).await;
    let alice = server.anyone().registered("alice", "laptop").await;
    alice.uploaded(&Device::new("alice", "laptop").key_packages(1)).await;
    let bob = server.anyone().registered("bob", "phone").await;
    let carol = server.anyone().registered("carol", "phone").await;
    let handed = reserve(&bob, ("bob", "phone"), "alice", "friends").await;
    is_whole(&server).await;
    let (id, of) = (&handed.reservation["reservation_id"], &handed.reservation["keypackage_ref"]);
    for stranger in [&carol, &alice] {
        let answer = stranger.post("/log/proofs", &json!({"of": [{"reservation_id": id}]})).await;
        answer.is_problem(403, ProblemType::NotYourReservation);
    }
    for stranger in [&carol, &bob] {
        assert!(proofs(stranger, json!([{"keypackage_ref": of}])).await.proofs.is_empty());
    }
    let nobody =
        json!([{"reservation_id": "7fff-67e55044-10b1-426f-9247-bb680e5fe0c8"}, {"keypackage_ref": "ab".repeat(32)}]);
    assert!(proofs(&carol, nobody).await.proofs.is_empty(), "what is forgotten is left out");
    server.anyone().post("/log/proofs", &json!({"of": []})).await.is_problem(401, ProblemType::Unauthenticated);
    for bad in [json!({}), json!({"reservation_id": id, "keypackage_ref": of})] {
        bob.post("/log/proofs", &json!({"of": [bad]})).await.is_problem(400, ProblemType::MalformedRequest);
    }
}

#[rstest]
#[tokio::test]
async fn a_thousand_are_proven_in_one_request(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let server = TestServer::start_with(db, |config| {
        config.limits = keypool_server::config::Limits::Off;
    })
    .await;
    let alice = server.anyone().registered("alice", "laptop").await;
    let bob = server.anyone().registered("bob", "phone").await;
    let mut refs = Vec::new();
    for _ in 0..10 {
        let uploaded = alice.upload(&Device::new("alice", "laptop").key_packages(100)).await.ok();
        refs.extend(uploaded["accepted"].as_array().unwrap().iter().map(|one| one["keypackage_ref"].clone()));
    }
    for _ in 0..5 {
        bob.reserved("alice").await;
    }
    is_whole(&server).await;
    let of: Vec<_> = refs.iter().map(|keypackage_ref| json!({"keypackage_ref": keypackage_ref})).collect();
    let answers = proofs(&alice, json!(of)).await;
    answers.check(&policy(&alice).await.log_keys()).unwrap();
    let included = answers.proofs.iter().filter(|proof| matches!(proof.found, Found::Included { .. })).count();
    assert_eq!((answers.proofs.len(), included), (1_000 * 2 + 5, 5));
}
