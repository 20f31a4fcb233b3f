//! Each step of a KeyPackage's life is a leaf, and its parties can prove it.

use std::collections::HashSet;

use base64::{Engine, engine::general_purpose::STANDARD};
use jiff::SignedDuration;
use keypool_transparency::{
    adder::Spend,
    answers::Found,
    commitment::Event,
    key_package::KeyPackageFields,
    package::{PackageId, Step},
    verdict::Verdict,
};
use rstest::rstest;
use serde_json::{Value, json};

use super::checks::{Handed, bytes, is_whole, leaves, policy, proofs, receipt, reserve};
use crate::support::{Database, Device, Http, TestServer, encode};

const BOB: (&str, &str) = ("bob", "phone");
const CAROL: (&str, &str) = ("carol", "phone");

struct Scene {
    server: TestServer,
    alice: Http,
    bob: Http,
    carol: Http,
}

/// Alice has so many KeyPackages.
async fn scene(db: Database, packages: usize) -> Scene {
    let server = TestServer::start(db).await;
    let alice = server.anyone().registered("alice", "laptop").await;
    alice.uploaded(&Device::new("alice", "laptop").key_packages(packages)).await;
    let bob = server.anyone().registered(BOB.0, BOB.1).await;
    let carol = server.anyone().registered(CAROL.0, CAROL.1).await;
    Scene { server, alice, bob, carol }
}

fn is_good(verdict: &Verdict) {
    assert!(matches!(verdict, Verdict::Fine), "{verdict:?}");
}

#[rstest]
#[tokio::test]
async fn adders_prove_their_own_hand_out_and_how_earlier_ones_ended(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
) {
    let Scene { server, bob, carol, .. } = scene(db, 1).await;
    let lapsed = reserve(&bob, BOB, "alice", "friends").await;
    assert_eq!(lapsed.hand_out.n, Some(0));
    server.advance(SignedDuration::from_mins(2));
    let released = reserve(&carol, CAROL, "alice", "club").await;
    assert_eq!((released.hand_out.n, released.package()), (Some(1), lapsed.package()));
    released.release().await;
    let mut spent = reserve(&bob, BOB, "alice", "friends").await;
    assert_eq!(spent.hand_out.n, Some(2));
    spent.spend().await;
    assert_eq!(is_whole(&server).await, 6);
    for handed in [&lapsed, &released, &spent] {
        is_good(&handed.verdict().await);
    }
    let answers = proofs(&bob, json!([{"reservation_id": spent.reservation["reservation_id"]}])).await;
    let checked = answers.check(&policy(&bob).await.log_keys()).unwrap();
    let event = |step: Step| match checked.get(&step.tag(&spent.package())) {
        Some(Found::Included { opening: Some(opening), .. }) => (opening.details.event, opening.actor.is_some()),
        other => panic!("{step:?}: {other:?}"),
    };
    assert_eq!(event(Step::End(0)), (Event::Lapse, false), "an adder sees who had it before");
    assert_eq!(event(Step::End(1)), (Event::Release, false));
    assert_eq!(event(Step::Open(2)), (Event::Reserve, true));
    assert_eq!(event(Step::End(2)), (Event::Spend, true));
    assert!(checked.get(&Step::Open(0).tag(&spent.package())).is_none(), "an adder sees when others reserved");
}

#[rstest]
#[tokio::test]
async fn a_receipt_promises_the_very_leaf_that_comes(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let Scene { server, bob, .. } = scene(db, 3).await;
    let policy = policy(&bob).await;
    let mut spent = reserve(&bob, BOB, "alice", "friends").await;
    spent.spend().await;
    let lapsed = reserve(&bob, BOB, "alice", "friends").await;
    server.advance(SignedDuration::from_mins(2));
    server.sweep().await;
    let mut late = Handed { ..lapsed };
    late.spend().await;
    assert_eq!(late.hand_out.n, Some(1), "a late spend is one more hand-out");
    server.sequence().await;
    let leaves = leaves(&server).await;
    let mut promised = 0;
    for signed in spent.hand_out.receipts.iter().chain(&late.hand_out.receipts) {
        let receipt = receipt(&policy, signed);
        assert_eq!(receipt.to, "bob/phone");
        for leaf in receipt.leaves() {
            assert!(leaves.contains(leaf), "a promised leaf did not come: {leaf:?}");
            promised += 1;
        }
    }
    assert_eq!(promised, 5, "reserve and spend; reserve and both leaves of a late spend");
    assert_eq!(is_whole(&server).await, 6);
    is_good(&spent.verdict().await);
    is_good(&late.verdict().await);
}

#[rstest]
#[tokio::test]
async fn what_is_not_in_the_log_yet_is_promised_on_demand(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
) {
    let server = TestServer::start(db).await;
    let alice = server.anyone().registered("alice", "laptop").await;
    alice.uploaded(&Device::new("alice", "laptop").key_packages(1)).await;
    let bob = server.anyone().registered(BOB.0, BOB.1).await;
    let handed = reserve(&bob, BOB, "alice", "friends").await;
    let of = json!([{"reservation_id": handed.reservation["reservation_id"]}]);
    let before = proofs(&bob, of.clone()).await;
    let (policy, tag) = (policy(&bob).await, Step::Open(0).tag(&handed.package()));
    let checked = before.check(&policy.log_keys()).unwrap();
    // The sequencer may have come in between.
    let promised = match checked.get(&tag) {
        Some(Found::Pending) => receipt(&policy, before.receipt.as_ref().unwrap()).leaves().copied().next(),
        Some(Found::Included { leaf, .. }) => Some(*leaf),
        other => panic!("{other:?}"),
    };
    server.sequence().await;
    assert!(leaves(&server).await.contains(&promised.unwrap()));
    is_good(&handed.verdict().await);
}

#[rstest]
#[tokio::test]
async fn last_resorts_are_logged_by_use(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let Scene { server, alice, bob, carol } = scene(db, 0).await;
    alice.uploaded(&[Device::new("alice", "laptop").last_resort()]).await;
    let mut one = reserve(&bob, BOB, "alice", "friends").await;
    let mut other = reserve(&carol, CAROL, "alice", "club").await;
    assert_eq!((one.hand_out.n, one.package()), (None, other.package()));
    let body = json!({"reservation_id": one.reservation["reservation_id"], "group_id": "ZnJpZW5kcw=="});
    let spends = futures_util::future::join_all((0..8).map(|_| bob.post("/keypackages/spend", &body))).await;
    assert!(spends.into_iter().all(|answer| answer.ok()["state"] == "available"));
    one.hand_out.spend = Spend::Acknowledged;
    other.spend().await;
    assert_eq!(is_whole(&server).await, 4, "repetitions of a spend at once are one step");
    is_good(&one.verdict().await);
    is_good(&other.verdict().await);
}

#[rstest]
#[tokio::test]
async fn revocations_end_a_hand_out_or_come_before_it(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let Scene { server, alice, bob, .. } = scene(db, 2).await;
    let held = reserve(&bob, BOB, "alice", "friends").await;
    alice.post("/keypackages/revoke", &json!({"all": true})).await.ok();
    assert_eq!(is_whole(&server).await, 3, "open(0) and end(0) of one, end(0) of the other");
    is_good(&held.verdict().await);
    let revoked = leaves(&server).await;
    let end = revoked.iter().find(|leaf| leaf.tag() == Step::End(0).tag(&held.package()));
    assert!(end.is_some());
}

#[rstest]
#[tokio::test]
async fn the_sixteenth_hand_out_is_the_last(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let Scene { server, alice, bob, .. } = scene(db, 1).await;
    for n in 0..15 {
        let handed = reserve(&bob, BOB, "alice", "friends").await;
        assert_eq!(handed.hand_out.n, Some(n));
        handed.release().await;
    }
    let last = reserve(&bob, BOB, "alice", "friends").await;
    assert_eq!(last.hand_out.n, Some(15));
    last.release().await;
    let status = alice.status().await;
    assert_eq!((status["available"].as_u64(), status["total"].as_u64()), (Some(0), Some(1)), "{status}");
    bob.reserve("alice").await.is_problem(404, keypool_openapi::ProblemType::PoolExhausted);
    assert_eq!(is_whole(&server).await, 32);
    is_good(&last.verdict().await);
}

#[rstest]
#[tokio::test]
async fn the_sixteenth_hand_out_is_the_last_when_it_lapses(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
) {
    let Scene { server, alice, bob, .. } = scene(db, 1).await;
    for _ in 0..16 {
        reserve(&bob, BOB, "alice", "friends").await;
        server.advance(SignedDuration::from_mins(2));
    }
    let status = alice.status().await;
    assert_eq!(status["available"], 0, "before the sweep: {status}");
    assert_eq!(bob.reserve("alice").await.status, 404);
    server.sweep().await;
    assert_eq!(bob.reserve("alice").await.status, 404);
    assert_eq!(is_whole(&server).await, 31, "the last one expires with its reservation");
}

/// A repetition gets the first answer, and no receipt of a leaf that is another.
#[rstest]
#[tokio::test]
async fn a_repetition_promises_no_other_leaf(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let Scene { server, bob, .. } = scene(db, 1).await;
    let body =
        json!({"target_user": "alice", "bind": "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=", "proof": "receipt"});
    let with_key = bob.with_key("one");
    let mut first = with_key.post("/keypackages/reserve", &body).await.ok();
    assert!(first["reservations"][0].as_object_mut().unwrap().remove("receipt").unwrap().is_string());
    server.advance(SignedDuration::from_secs(10));
    let again = with_key.post("/keypackages/reserve", &body).await.ok();
    assert_eq!(again["reservations"], first["reservations"]);
    assert_eq!(is_whole(&server).await, 1);
}

#[rstest]
#[tokio::test]
async fn one_reserve_of_many_devices_has_a_receipt_of_each(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
) {
    let Scene { server, alice, bob, .. } = scene(db, 1).await;
    let tablet = alice.registered("alice", "tablet").await;
    tablet.uploaded(&Device::new("alice", "tablet").key_packages(1)).await;
    let body =
        json!({"target_user": "alice", "bind": "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=", "proof": "receipt"});
    let answer = bob.post("/keypackages/reserve", &body).await.ok();
    let policy = policy(&bob).await;
    let mut promised = HashSet::new();
    for reservation in answer["reservations"].as_array().unwrap() {
        let receipt = receipt(&policy, reservation["receipt"].as_str().unwrap());
        let fields = KeyPackageFields::parse(&bytes(&reservation["keypackage"])).unwrap();
        let [leaf] = receipt.leaves().copied().collect::<Vec<_>>()[..] else { panic!("{receipt:?}") };
        assert_eq!(leaf.tag(), Step::Open(0).tag(&PackageId::of(&fields)), "a receipt is of its own reservation alone");
        promised.insert(leaf);
    }
    assert_eq!((promised.len(), is_whole(&server).await), (2, 2));
    assert!(promised.is_subset(&leaves(&server).await));
}

/// The Commit is the spend of most clients.
#[rstest]
#[tokio::test]
async fn a_commit_with_binds_has_a_receipt_of_each_spend(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let Scene { server, alice, bob, carol } = scene(db, 2).await;
    carol.uploaded(&Device::new("carol", "phone").key_packages(1)).await;
    let mut party = Device::new(BOB.0, BOB.1).founds("friends");
    let late = reserve(&bob, BOB, "alice", "friends").await;
    server.advance(SignedDuration::from_mins(2));
    server.sweep().await;
    let mut handed = [late, reserve(&bob, BOB, "carol", "friends").await];
    let (commit, welcome) = party.adds(&handed.each_ref().map(|one| &one.reservation));
    let binds = handed.each_ref().map(|one| STANDARD.encode(one.hand_out.bind.0));
    let ids = handed.each_ref().map(|one| one.reservation["reservation_id"].clone());
    let commits = format!("/groups/{}/commits", party.path());
    let body = |binds: Value| json!({"commit": encode(&commit), "welcome": encode(&welcome), "reservations": ids, "binds": binds});
    for bad in [json!([binds[0]]), json!([binds[0], binds[1], binds[1]]), json!([binds[0], "AQEB"])] {
        let refused = bob.post(&commits, &body(bad)).await;
        refused.is_problem(400, keypool_openapi::ProblemType::MalformedRequest);
    }
    let answer = bob.post(&commits, &body(json!(binds))).await.ok();
    for (one, id) in handed.iter_mut().zip(&ids) {
        let its = answer["receipts"].as_array().unwrap().iter().find(|receipt| receipt["reservation_id"] == *id);
        one.hand_out.receipts.push(its.unwrap()["receipt"].as_str().unwrap().to_owned());
        one.hand_out.spend = Spend::Acknowledged;
    }
    // The first is one more hand-out, and its receipt has both leaves.
    (handed[0].hand_out.n, handed[0].hand_out.until) = (Some(1), None);
    server.sequence().await;
    let (policy, leaves) = (policy(&bob).await, leaves(&server).await);
    let promised = |one: &Handed| {
        let receipt = receipt(&policy, one.hand_out.receipts.last().unwrap());
        assert!(receipt.leaves().all(|leaf| leaves.contains(leaf)), "a promised leaf did not come");
        receipt.leaves().count()
    };
    assert_eq!(handed.each_ref().map(promised), [2, 1]);
    for one in &handed {
        is_good(&one.verdict().await);
    }
    let again = bob.post(&commits, &body(json!(binds))).await.ok();
    assert_eq!(again.get("receipts"), None, "a repetition promises nothing anew");
    drop(alice);
}

#[rstest]
#[tokio::test]
async fn a_receipt_needs_random_bytes(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let Scene { server: _server, bob, .. } = scene(db, 1).await;
    for bad in [json!({"proof": "receipt"}), json!({"bind": "AQEB"}), json!({"proof": "all"})] {
        let mut body = json!({"target_user": "alice"});
        body.as_object_mut().unwrap().extend(bad.as_object().unwrap().clone());
        let answer = bob.post("/keypackages/reserve", &body).await;
        answer.is_problem(400, keypool_openapi::ProblemType::MalformedRequest);
    }
}
