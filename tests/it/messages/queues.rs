//! Queues: their capacity, their shares, and when a message leaves them.

use keypool_openapi::ProblemType;
use keypool_server::config::{Config, Limits};
use rstest::rstest;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::{
    commits::{ack, add, named, queue, registered, say, update},
    support::{Database, Device, Http, TestServer, encode},
};

#[rstest]
#[tokio::test]
async fn who_waits_with_a_token_that_ends_hears_nothing(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let server = TestServer::start(db).await;
    let (alice, at_alice) = registered(&server, "alice", 0).await;
    let (bob, _) = registered(&server, "bob", 0).await;
    let mut party = at_alice.founds("friends");
    update(&alice, &mut party, &[]).await.ok();
    let waiting = tokio::spawn({
        let bob = bob.clone();
        async move { bob.get("/messages?wait=60").await }
    });
    server.waits_for_a_message().await;
    let answer = bob.post("/devices/phone/token", &json!(null)).await.ok();
    say(&alice, &mut party, "hello", &["bob"]).await.ok();
    waiting.await.unwrap().is_problem(401, ProblemType::Unauthenticated);
    let bob = server.anyone().with_token(answer["token"].as_str().unwrap());
    assert_eq!(queue(&bob).await.len(), 1);
}

#[rstest]
#[tokio::test]
async fn nothing_comes_to_a_device_for_one_that_had_its_name_before(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
) {
    let server = TestServer::start(db).await;
    let (alice, at_alice) = registered(&server, "alice", 0).await;
    let (bob, at_bob) = registered(&server, "bob", 0).await;
    let laptop = bob.registered("bob", "laptop").await;
    bob.uploaded(&[at_bob.last_resort()]).await;
    let mut party = at_alice.founds("friends");
    update(&alice, &mut party, &["bob"]).await.ok();
    party.merges();
    let reservation = alice.reserved("bob").await;
    assert_eq!(reservation["last_resort"], true);
    laptop.delete("/devices/phone").await.ok();
    add(&alice, &mut party, &[&reservation], &[]).await.is_problem(409, ProblemType::ReservationLapsed);
    // As it can come when it was under way while the device was removed.
    server.database().run(
        "INSERT INTO deliveries (device_id, envelope_id) SELECT d.id, e.id FROM devices d, envelopes e \
         WHERE d.user_name = 'bob' AND d.device_name = 'phone'",
    );
    let anew = laptop.registered("bob", "phone").await;
    assert_eq!(queue(&anew).await, [] as [Value; 0]);
}

#[tokio::test]
async fn what_all_have_acknowledged_at_the_same_moment_is_gone() {
    let server = TestServer::start(Database::Postgres).await;
    let (alice, at_alice) = registered(&server, "alice", 0).await;
    let (bob, _) = registered(&server, "bob", 0).await;
    registered(&server, "carol", 0).await;
    let mut party = at_alice.founds("friends");
    update(&alice, &mut party, &["bob", "carol"]).await.ok();
    let waiting = queue(&bob).await;
    let mut carol = server.database();
    carol.run("BEGIN; SELECT id FROM envelopes FOR NO KEY UPDATE");
    carol.run("DELETE FROM deliveries WHERE device_id = (SELECT id FROM devices WHERE user_name = 'carol')");
    let of_bob = tokio::spawn(async move { ack(&bob, &[&waiting[0]]).await });
    while carol.waiting() < 1 {
        assert!(!of_bob.is_finished(), "it did not wait for who acknowledges the same");
        tokio::task::yield_now().await;
    }
    carol.run("COMMIT");
    assert_eq!(of_bob.await.unwrap(), 1);
    assert_eq!(carol.number("SELECT count(*) AS n FROM envelopes"), 0);
}

#[rstest]
#[tokio::test]
async fn whom_it_cannot_reach_is_named_and_the_rest_has_it(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
) {
    // Alice's share of a queue is two messages.
    let server = TestServer::start_with(db, |config| config.queue_capacity = 16).await;
    let (alice, at_alice) = registered(&server, "alice", 0).await;
    let (bob, _) = registered(&server, "bob", 0).await;
    let (carol, _) = registered(&server, "carol", 0).await;
    let mut party = at_alice.founds("friends");
    update(&alice, &mut party, &["bob"]).await.ok();
    say(&alice, &mut party, "1", &["bob"]).await.ok();
    let answer = say(&alice, &mut party, "2", &["bob", "carol", "nobody"]).await.ok();
    let missing = |user: &str, reason: &str| json!({"user": user, "device": "phone", "reason": reason});
    assert_eq!(answer["undelivered"], json!([missing("nobody", "unknown-device"), missing("bob", "queue-full")]));
    assert_eq!((queue(&bob).await.len(), queue(&carol).await.len()), (2, 1));
    // A Welcome costs a KeyPackage, and has room of its own.
    bob.uploaded(&[Device::new("bob", "phone").key_package()]).await;
    party.merges();
    let reservation = alice.reserved("bob").await;
    assert_eq!(add(&alice, &mut party, &[&reservation], &[]).await.ok()["undelivered"], json!([]));
    assert_eq!(queue(&bob).await.len(), 3);
}

/// A queue of 80 small messages: ten of each user, and five of each that show a proof, or are Welcomes.
fn small(config: &mut Config) {
    config.queue_capacity = 80;
}

/// The digest of the proof that the Commit of this epoch has to show.
fn digest(epoch: u8) -> String {
    encode(&Sha256::digest([epoch; 32]))
}

/// Sends to Bob until his queue takes no more of this user. Answers how many it took.
async fn floods(user: &Http, device: Device, name: &str) -> usize {
    let mut party = device.founds(name);
    update(user, &mut party, &[]).await.ok();
    party.merges();
    for sent in 0..100 {
        if say(user, &mut party, "spam", &["bob"]).await.ok()["undelivered"] != json!([]) {
            return sent;
        }
    }
    panic!("a queue takes all that one user sends");
}

#[rstest]
#[tokio::test]
async fn a_sender_fills_their_own_share_of_a_queue_and_no_other(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
) {
    let server = TestServer::start_with(db, small).await;
    let (alice, at_alice) = registered(&server, "alice", 0).await;
    let (bob, _) = registered(&server, "bob", 0).await;
    let (mallory, at_mallory) = registered(&server, "mallory", 0).await;
    assert_eq!(floods(&mallory, at_mallory, "spam").await, 10);
    // Another device of the same user has no share of its own, nor has it when it is removed and registered anew.
    let tablet = mallory.registered("mallory", "tablet").await;
    assert_eq!(floods(&tablet, Device::new("mallory", "tablet"), "more").await, 0);
    tablet.delete("/devices/phone").await.ok();
    let anew = tablet.registered("mallory", "phone").await;
    assert_eq!(floods(&anew, Device::new("mallory", "phone"), "again").await, 0);
    assert_eq!(floods(&alice, at_alice, "friends").await, 10);
    // A message that Bob has acknowledged frees its room.
    let waiting = queue(&bob).await;
    let mallorys: Vec<_> = waiting.iter().filter(|one| one["from"]["user"] == "mallory").take(3).collect();
    assert_eq!(ack(&bob, &mallorys).await, 3);
    assert_eq!(floods(&anew, Device::new("mallory", "phone"), "and again").await, 3);
}

#[rstest]
#[tokio::test]
async fn a_full_queue_takes_the_commits_of_its_groups(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let server = TestServer::start_with(db, small).await;
    let (alice, at_alice) = registered(&server, "alice", 0).await;
    let (bob, _) = registered(&server, "bob", 0).await;
    let mut party = at_alice.founds("friends");
    let first = json!({"commit": encode(&party.updates()), "recipients": [], "next_proof_digest": digest(1)});
    alice.post(&format!("/groups/{}/commits", party.path()), &first).await.ok();
    party.merges();
    for number in 0..8 {
        let name = format!("mallory{number}");
        let (mallory, at_mallory) = registered(&server, &name, 0).await;
        assert_eq!(floods(&mallory, at_mallory, &name).await, 10);
    }
    let missing = json!([{"user": "bob", "device": "phone", "reason": "queue-full"}]);
    assert_eq!(say(&alice, &mut party, "hello", &["bob"]).await.ok()["undelivered"], missing);
    let mut undelivered = Vec::new();
    for epoch in 1..=6 {
        let commit = json!({"commit": encode(&party.updates()), "recipients": named(&["bob"]),
            "proof": encode(&[epoch; 32]), "next_proof_digest": digest(epoch + 1)});
        let answer = alice.post(&format!("/groups/{}/commits", party.path()), &commit).await.ok();
        undelivered.push(answer["undelivered"] != json!([]));
        party.merges();
    }
    assert_eq!(
        undelivered,
        [false, false, false, false, false, true],
        "five Commits of Alice's have room of their own"
    );
    assert_eq!(queue(&bob).await.len(), 85);
}

#[rstest]
#[tokio::test]
async fn a_full_queue_takes_welcomes_that_cost_a_key_package(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
) {
    let server = TestServer::start_with(db, small).await;
    let (alice, at_alice) = registered(&server, "alice", 0).await;
    let (bob, at_bob) = registered(&server, "bob", 6).await;
    assert_eq!(floods(&alice, at_alice, "spam").await, 10);
    // Five Welcomes have room of their own. One more, or one that costs nothing, has not, and all stays as it was.
    let mut welcomed = Vec::new();
    for number in 0..6 {
        let mut party = Device::new("alice", "phone").founds(&format!("friends {number}"));
        let reservation = alice.reserved("bob").await;
        let answer = add(&alice, &mut party, &[&reservation], &[]).await;
        welcomed.push(answer.status);
        if answer.status != 200 {
            answer.is_problem(409, ProblemType::QueueFull);
            assert_eq!(answer.json["reservation_id"], reservation["reservation_id"]);
            alice.release(&reservation).await.ok();
        }
    }
    assert_eq!(welcomed, [200, 200, 200, 200, 200, 409]);
    assert_eq!((&bob.status().await["spent"], &bob.status().await["available"]), (&json!(5), &json!(1)));
    bob.post("/keypackages/revoke", &json!({"all": true})).await.ok();
    bob.uploaded(&[at_bob.last_resort()]).await;
    let mut party = Device::new("alice", "phone").founds("friends");
    let reservation = alice.reserved("bob").await;
    assert_eq!(reservation["last_resort"], true);
    let waiting = queue(&bob).await;
    let welcome = waiting.iter().find(|one| one["kind"] == "welcome").unwrap();
    ack(&bob, &[welcome]).await;
    add(&alice, &mut party, &[&reservation], &[]).await.is_problem(409, ProblemType::QueueFull);
    let spam = waiting.iter().find(|one| one["kind"] == "message").unwrap();
    ack(&bob, &[spam]).await;
    party.clears();
    add(&alice, &mut party, &[&reservation], &[]).await.ok();
}

/// A queue is bounded in bytes, too.
#[rstest]
#[tokio::test]
async fn large_messages_take_more_of_a_queue(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let server = TestServer::start_with(db, |config| config.limits = Limits::Off).await;
    let (alice, at_alice) = registered(&server, "alice", 0).await;
    registered(&server, "bob", 0).await;
    let mut party = at_alice.founds("friends");
    update(&alice, &mut party, &[]).await.ok();
    party.merges();
    let large = "x".repeat(1_000 * 1024);
    for _ in 0..12 {
        say(&alice, &mut party, &large, &["bob"]).await.ok();
    }
    let kept = server.database().number("SELECT sum(length(message)) AS n FROM envelopes");
    assert!((9_000_000..10_500_000).contains(&kept), "{kept} bytes are kept");
}

/// A large message counts like many requests, so that nobody writes gigabytes.
#[rstest]
#[tokio::test]
async fn bytes_count_in_the_limits(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let server = TestServer::start_with(db, |config| config.requester_burst = 300).await;
    let (alice, at_alice) = registered(&server, "alice", 0).await;
    let mut party = at_alice.founds("friends");
    update(&alice, &mut party, &[]).await.ok();
    party.merges();
    let large = "x".repeat(1_000 * 1024);
    for _ in 0..2 {
        say(&alice, &mut party, &large, &["bob"]).await.ok();
    }
    say(&alice, &mut party, &large, &["bob"]).await.is_problem(429, ProblemType::TooManyRequests);
    say(&alice, &mut party, "small", &["bob"]).await.ok();
}
