//! The queues: in order, kept until they are acknowledged, and each device's own.

mod queues;

use std::time::{Duration, Instant};

use jiff::SignedDuration;
use keypool_openapi::ProblemType;
use rstest::rstest;
use serde_json::{Value, json};

use crate::{
    commits::{ack, add, named, queue, registered, say, update},
    support::{Anywhere, Database, Http, Party, TestServer},
};

#[rstest]
#[tokio::test]
async fn a_queue_is_in_order_and_kept_until_it_is_acknowledged(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
) {
    let server = TestServer::start(db).await;
    let (alice, at_alice) = registered(&server, "alice", 0).await;
    let (bob, _) = registered(&server, "bob", 0).await;
    let (carol, _) = registered(&server, "carol", 0).await;
    let mut party = at_alice.founds("friends");
    update(&alice, &mut party, &["bob", "carol"]).await.ok();
    for text in 0..5 {
        say(&alice, &mut party, &text.to_string(), &["bob", "carol"]).await.ok();
    }
    let all = queue(&bob).await;
    let ids: Vec<_> = all.iter().map(|message| message["id"].as_i64().unwrap()).collect();
    assert_eq!((ids.len(), ids.is_sorted()), (6, true));
    let first = bob.get("/messages?limit=2").await.ok();
    assert_eq!(first["messages"].as_array().unwrap()[..], all[..2]);
    assert_eq!(ack(&carol, &[&all[0]]).await, 0, "another's queue");
    assert_eq!(ack(&bob, &[&all[0], &all[2]]).await, 2);
    assert_eq!(ack(&bob, &[&all[0]]).await, 0);
    let place = server.stopped_at();
    let server = TestServer::start_at(place, |_| {}).await;
    let (bob, carol) = (bob.at(&server.base), carol.at(&server.base));
    assert_eq!(queue(&bob).await, [&all[1..2], &all[3..]].concat(), "a restart changes nothing");
    assert_eq!(queue(&carol).await.len(), 6);
    // A message that all recipients have acknowledged is deleted.
    let mut database = server.database();
    assert_eq!(database.number("SELECT count(*) AS n FROM envelopes"), 6);
    for user in [&bob, &carol] {
        ack(user, &queue(user).await.iter().collect::<Vec<_>>()).await;
    }
    assert_eq!(database.number("SELECT count(*) AS n FROM envelopes"), 0);
}

#[rstest]
#[tokio::test]
async fn a_page_is_no_larger_than_a_client_can_take(#[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere) {
    let server = TestServer::start(db).await;
    let (alice, at_alice) = registered(&server, "alice", 0).await;
    let (bob, _) = registered(&server, "bob", 0).await;
    let mut party = at_alice.founds("friends");
    update(&alice, &mut party, &[]).await.ok();
    party.merges();
    let large = "x".repeat(900 * 1024);
    for _ in 0..6 {
        say(&alice, &mut party, &large, &["bob"]).await.ok();
    }
    let page = queue(&bob).await;
    assert_eq!(page.len(), 4, "four and no more are under 4 MiB");
    ack(&bob, &page.iter().collect::<Vec<_>>()).await;
    assert_eq!(queue(&bob).await.len(), 2);
    let too_large = say(&alice, &mut party, &"x".repeat(1024 * 1024), &["bob"]).await;
    too_large.is_problem(413, ProblemType::PayloadTooLarge);
}

#[rstest]
#[tokio::test]
async fn who_waits_is_woken_at_once_by_whichever_server(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let server = TestServer::start(db).await;
    let (alice, at_alice) = registered(&server, "alice", 0).await;
    let (bob, _) = registered(&server, "bob", 0).await;
    let mut party = at_alice.founds("friends");
    update(&alice, &mut party, &[]).await.ok();
    // Where the database takes several servers, the message comes by another one.
    let other = if db == Database::Postgres { Some(server.beside(|_| {}).await) } else { None };
    let alice = alice.at(other.as_ref().map_or(&server.base, |other| &other.base));
    let waiting = tokio::spawn({
        let bob = bob.clone();
        async move { bob.get("/messages?wait=60").await.ok() }
    });
    server.waits_for_a_message().await;
    let sent = Instant::now();
    say(&alice, &mut party, "hello", &["bob"]).await.ok();
    let heard = waiting.await.unwrap();
    assert_eq!(heard["messages"].as_array().unwrap().len(), 1);
    assert!(sent.elapsed() < Duration::from_secs(10), "it was not woken, after {:?}", sent.elapsed());
    println!("woken after {:?}", sent.elapsed());
    ack(&bob, &[&heard["messages"][0]]).await;
    let begun = Instant::now();
    assert_eq!(bob.get("/messages?wait=1").await.ok()["messages"], json!([]));
    assert!(begun.elapsed() >= Duration::from_secs(1));
}

#[rstest]
#[tokio::test]
async fn what_nobody_fetches_is_kept_for_its_time_and_no_longer(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
) {
    let server = TestServer::start_with(db, |config| config.message_retention = Duration::from_hours(24)).await;
    let (alice, at_alice) = registered(&server, "alice", 0).await;
    let (bob, _) = registered(&server, "bob", 0).await;
    let mut party = at_alice.founds("friends");
    update(&alice, &mut party, &["bob"]).await.ok();
    party.merges();
    update(&alice, &mut party, &["bob"]).await.ok();
    party.merges();
    server.advance(SignedDuration::from_hours(24) - SignedDuration::from_secs(1));
    server.sweep().await;
    assert_eq!(queue(&bob).await.len(), 2);
    server.advance(SignedDuration::from_secs(1));
    server.sweep().await;
    assert_eq!(queue(&bob).await.len(), 0);
    let mut database = server.database();
    assert_eq!(database.number("SELECT count(*) AS n FROM envelopes"), 0);
    // The epoch of the group is known for ever, and only that.
    assert_eq!(database.number("SELECT count(*) AS n FROM commits"), 1);
    assert_eq!(update(&alice, &mut party, &[]).await.ok()["epoch"], 3);
}

/// Alice with her group, and Bob, whose Welcome waits for him.
async fn with_a_welcome(server: &TestServer) -> (Http, Party, Http) {
    let (alice, at_alice) = registered(server, "alice", 0).await;
    let (bob, _) = registered(server, "bob", 1).await;
    let mut party = at_alice.founds("friends");
    let reservation = alice.reserved("bob").await;
    add(&alice, &mut party, &[&reservation], &[]).await.ok();
    party.merges();
    (alice, party, bob)
}

#[rstest]
#[tokio::test]
async fn a_welcome_that_cannot_be_opened_is_told_to_who_sent_it(
    #[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere,
) {
    let server = TestServer::start(db).await;
    let (alice, mut party, bob) = with_a_welcome(&server).await;
    let welcome = queue(&bob).await.remove(0);
    let body = json!({"unreadable": [welcome["id"]]});
    assert_eq!(bob.post("/messages/ack", &body).await.ok()["acknowledged"], 1);
    assert_eq!(bob.post("/messages/ack", &body).await.ok()["acknowledged"], 0);
    let told = queue(&alice).await;
    assert_eq!(told.len(), 1);
    assert_eq!((&told[0]["kind"], &told[0]["from"]), (&json!("unreadable"), &named(&["bob"])[0]));
    assert_eq!((&told[0]["group_id"], &told[0]["message"]), (&json!("ZnJpZW5kcw=="), &json!("")));
    assert_eq!(told[0]["refusal"], json!({"about": "welcome", "reason": "keys-gone"}));
    // Of several messages of a sender, one notice tells.
    for text in ["hello", "are you there?"] {
        say(&alice, &mut party, text, &["bob"]).await.ok();
    }
    let ids: Vec<_> = queue(&bob).await.iter().map(|one| one["id"].clone()).collect();
    assert_eq!(ids.len(), 2);
    bob.post("/messages/ack", &json!({"unreadable": ids})).await.ok();
    let told = queue(&alice).await;
    assert_eq!(told.len(), 2);
    assert_eq!(told[1]["refusal"], json!({"about": "message", "reason": "keys-gone"}));
}

#[rstest]
#[tokio::test]
async fn who_cannot_use_a_commit_or_a_welcome_tells_its_sender_why(
    #[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere,
) {
    let server = TestServer::start(db).await;
    let (alice, mut party, bob) = with_a_welcome(&server).await;
    update(&alice, &mut party, &["bob"]).await.ok();
    party.merges();
    say(&alice, &mut party, "hello", &["bob"]).await.ok();
    let ids: Vec<_> = queue(&bob).await.iter().map(|one| one["id"].clone()).collect();
    let reasons = ["not-trusted", "unsupported", "invalid"];
    let refused: Vec<_> = ids.iter().zip(reasons).map(|(id, reason)| json!({"id": id, "reason": reason})).collect();
    let body = json!({"refused": refused});
    assert_eq!(bob.post("/messages/ack", &body).await.ok()["acknowledged"], 3);
    assert_eq!(bob.post("/messages/ack", &body).await.ok()["acknowledged"], 0);
    let told: Vec<_> = queue(&alice).await.iter().map(|one| one["refusal"].clone()).collect();
    let about = |about, reason| json!({"about": about, "reason": reason});
    assert_eq!(told, [about("welcome", "not-trusted"), about("commit", "unsupported"), about("message", "invalid")]);
}

/// Notices that an older version stored have no content.
#[rstest]
#[tokio::test]
async fn a_notice_from_before_there_were_reasons_is_about_keys(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
) {
    let server = TestServer::start(db).await;
    let (alice, at_alice) = registered(&server, "alice", 0).await;
    let (bob, _) = registered(&server, "bob", 1).await;
    let mut party = at_alice.founds("friends");
    let reservation = alice.reserved("bob").await;
    add(&alice, &mut party, &[&reservation], &[]).await.ok();
    let welcome = queue(&bob).await.remove(0);
    bob.post("/messages/ack", &json!({"unreadable": [welcome["id"]]})).await.ok();
    let empty = if db == Database::Postgres { "''::bytea" } else { "x''" };
    server.database().run(&format!("UPDATE envelopes SET message = {empty} WHERE kind = 'unreadable'"));
    assert_eq!(queue(&alice).await[0]["refusal"], json!({"about": "welcome", "reason": "keys-gone"}));
}

#[rstest]
#[tokio::test]
async fn a_device_of_the_same_name_has_none_of_the_old_ones_messages(
    #[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere,
) {
    let server = TestServer::start(db).await;
    let (alice, at_alice) = registered(&server, "alice", 0).await;
    let (bob, _) = registered(&server, "bob", 0).await;
    let tablet = server.anyone().with_token(bob.register("bob", "tablet").await.ok()["token"].as_str().unwrap());
    let mut party = at_alice.founds("friends");
    update(&alice, &mut party, &["bob"]).await.ok();
    tablet.delete("/devices/phone").await.ok();
    let phone = tablet.register("bob", "phone").await.ok();
    assert_eq!(queue(&server.anyone().with_token(phone["token"].as_str().unwrap())).await, [] as [Value; 0]);
}
