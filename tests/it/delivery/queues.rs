//! Whose queue something is put into, and when it leaves.

use keypool_openapi::ProblemType;
use rstest::rstest;
use serde_json::{Value, json};

use super::{ack, add, queue, registered, say, update};
use crate::support::{Database, Device, TestServer};

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
    let server = TestServer::start_with(db, |config| config.queue_capacity = 2).await;
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
    // A Welcome costs a KeyPackage, and is never left out.
    bob.uploaded(&[Device::new("bob", "phone").key_package()]).await;
    party.merges();
    let reservation = alice.reserved("bob").await;
    assert_eq!(add(&alice, &mut party, &[&reservation], &[]).await.ok()["undelivered"], json!([]));
    assert_eq!(queue(&bob).await.len(), 3);
}
