//! The commit fence, and the queues.

mod queues;

use std::time::{Duration, Instant};

use jiff::SignedDuration;
use keypool_openapi::ProblemType;
use rstest::rstest;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::support::{Answer, Anywhere, Database, Device, Http, Party, TestServer, decode, encode};

/// A user with one device, which is registered and has so many KeyPackages on the server.
async fn registered(server: &TestServer, user: &str, packages: usize) -> (Http, Device) {
    let http = server.anyone().registered(user, "phone").await;
    let device = Device::new(user, "phone");
    http.uploaded(&device.key_packages(packages)).await;
    (http, device)
}

fn named(users: &[&str]) -> Vec<Value> {
    users.iter().map(|user| json!({"user": user, "device": "phone"})).collect()
}

/// Adds those whose KeyPackages are reserved, and tells the members.
async fn add(http: &Http, party: &mut Party, reservations: &[&Value], members: &[&str]) -> Answer {
    let (commit, welcome) = party.adds(reservations);
    let ids: Vec<_> = reservations.iter().map(|reservation| &reservation["reservation_id"]).collect();
    let body = json!({
        "commit": encode(&commit), "welcome": encode(&welcome), "reservations": ids, "recipients": named(members)
    });
    http.post(&format!("/groups/{}/commits", party.path()), &body).await
}

/// Commits to new keys, and tells the members.
async fn update(http: &Http, party: &mut Party, members: &[&str]) -> Answer {
    let body = json!({"commit": encode(&party.updates()), "recipients": named(members)});
    http.post(&format!("/groups/{}/commits", party.path()), &body).await
}

async fn say(http: &Http, party: &mut Party, text: &str, members: &[&str]) -> Answer {
    let body = json!({"message": encode(&party.says(text)), "recipients": named(members)});
    http.post(&format!("/groups/{}/messages", party.path()), &body).await
}

async fn queue(http: &Http) -> Vec<Value> {
    http.get("/messages").await.ok()["messages"].as_array().unwrap().clone()
}

fn bytes(message: &Value) -> Vec<u8> {
    decode(message["message"].as_str().unwrap())
}

async fn ack(http: &Http, messages: &[&Value]) -> u64 {
    let ids: Vec<_> = messages.iter().map(|message| &message["id"]).collect();
    http.post("/messages/ack", &json!({"ids": ids})).await.ok()["acknowledged"].as_u64().unwrap()
}

#[rstest]
#[tokio::test]
async fn an_addition_goes_all_the_way(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let server = TestServer::start(db).await;
    let (alice, at_alice) = registered(&server, "alice", 0).await;
    let (bob, at_bob) = registered(&server, "bob", 2).await;
    let (carol, at_carol) = registered(&server, "carol", 2).await;
    let mut alices = at_alice.founds("friends");
    let reservation = alice.reserved("bob").await;
    let answer = add(&alice, &mut alices, &[&reservation], &[]).await.ok();
    assert_eq!(answer, json!({"epoch": 1, "undelivered": []}));
    alices.merges();
    assert_eq!(bob.status().await["spent"], 1);
    let welcome = queue(&bob).await.remove(0);
    assert_eq!((&welcome["kind"], &welcome["group_id"]), (&json!("welcome"), &json!("ZnJpZW5kcw==")));
    assert_eq!((&welcome["from"], &welcome["sent_at"]), (&named(&["alice"])[0], &json!(server.second())));
    let mut bobs = at_bob.joins(&bytes(&welcome));
    assert_eq!(ack(&bob, &[&welcome]).await, 1);

    // Now Bob adds Carol: she has the Welcome, Alice has the Commit, and all three talk.
    let reservation = bob.reserved("carol").await;
    add(&bob, &mut bobs, &[&reservation], &["alice", "bob"]).await.ok();
    bobs.merges();
    let (to_alice, to_carol) = (queue(&alice).await.remove(0), queue(&carol).await.remove(0));
    assert_eq!((&to_alice["kind"], &to_carol["kind"]), (&json!("commit"), &json!("welcome")));
    assert_eq!(alices.hears(&bytes(&to_alice)), None);
    let mut carols = at_carol.joins(&bytes(&to_carol));
    assert_eq!(queue(&bob).await, [] as [Value; 0], "nobody is sent what is one's own");
    for text in ["hello", "who is there?"] {
        assert_eq!(say(&carol, &mut carols, text, &["alice", "bob"]).await.ok()["undelivered"], json!([]));
    }
    let heard: Vec<_> = queue(&bob).await.iter().map(|message| bobs.hears(&bytes(message)).unwrap()).collect();
    assert_eq!(heard, ["hello", "who is there?"]);
    assert_eq!(alices.epoch(), 2);
}

/// The wrong group id is only the beginning: each of these is refused, and nothing happens.
#[rstest]
#[tokio::test]
async fn what_is_not_what_it_should_be_is_refused(#[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere) {
    let server = TestServer::start(db).await;
    let (alice, at_alice) = registered(&server, "alice", 0).await;
    let (_bob, at_bob) = registered(&server, "bob", 1).await;
    let mut party = at_alice.founds("friends");
    let reservation = alice.reserved("bob").await;
    let (commit, welcome) = party.adds(&[&reservation]);
    party.clears();
    let text = party.says("hello");
    let package = at_bob.key_package();
    let id = &reservation["reservation_id"];
    let (commit, welcome, text, package) = (encode(&commit), encode(&welcome), encode(&text), encode(&package));
    for body in [
        json!({"commit": encode(b"nonsense")}),
        json!({"commit": text}),
        json!({"commit": welcome}),
        json!({"commit": package}),
        json!({"commit": commit, "welcome": welcome}),
        json!({"commit": commit, "reservations": [id]}),
        json!({"commit": commit, "welcome": commit, "reservations": [id]}),
        json!({"commit": commit, "welcome": encode(b""), "reservations": [id]}),
        json!({"commit": commit, "recipients": vec![named(&["bob"])[0].clone(); 1_001]}),
    ] {
        alice.post("/groups/ZnJpZW5kcw/commits", &body).await.is_problem(400, ProblemType::MalformedRequest);
    }
    let body = json!({"commit": commit, "welcome": welcome, "reservations": [id]});
    for path in ["/groups/b3RoZXJz/commits", "/groups/ZnJpZW5kcw==/commits", "/groups/=/commits"] {
        alice.post(path, &body).await.is_problem(400, ProblemType::MalformedRequest);
    }
    for (message, told) in
        [(&commit, "/commits."), (&welcome, "must be a PrivateMessage"), (&encode(b"x"), "MLSMessage")]
    {
        let body = json!({"message": message, "recipients": []});
        let refused = alice.post("/groups/ZnJpZW5kcw/messages", &body).await;
        refused.is_problem(400, ProblemType::MalformedRequest);
        assert!(refused.text.contains(told), "{}", refused.text);
    }
    // A message to a group that nobody ever committed to.
    say(&alice, &mut party, "hello", &["bob"]).await.is_problem(404, ProblemType::UnknownGroup);
    alice.get("/messages?wait=61").await.is_problem(400, ProblemType::MalformedRequest);
    alice.get("/messages?limit=0").await.is_problem(400, ProblemType::MalformedRequest);
    // Nothing of all this has spent the reservation or taken the epoch.
    alice.post("/groups/ZnJpZW5kcw/commits", &body).await.ok();
}

#[rstest]
#[tokio::test]
async fn the_first_commit_of_an_epoch_wins_and_the_other_has_done_nothing(
    #[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere,
) {
    let server = TestServer::start(db).await;
    let (alice, at_alice) = registered(&server, "alice", 0).await;
    let (bob, at_bob) = registered(&server, "bob", 1).await;
    let (carol, _at_carol) = registered(&server, "carol", 1).await;
    let mut alices = at_alice.founds("friends");
    let for_bob = alice.reserved("bob").await;
    add(&alice, &mut alices, &[&for_bob], &[]).await.ok();
    alices.merges();
    let welcome = queue(&bob).await.remove(0);
    let mut bobs = at_bob.joins(&bytes(&welcome));
    ack(&bob, &[&welcome]).await;

    let for_carol = bob.reserved("carol").await;
    update(&alice, &mut alices, &["bob"]).await.ok();
    let lost = add(&bob, &mut bobs, &[&for_carol], &["alice"]).await;
    lost.is_problem(409, ProblemType::StaleEpoch);
    assert_eq!(lost.json["epoch"], 2);
    assert_eq!(queue(&carol).await, [] as [Value; 0]);
    assert_eq!(queue(&alice).await, [] as [Value; 0]);
    assert_eq!((&carol.status().await["reserved"], &carol.status().await["spent"]), (&json!(1), &json!(0)));

    // Bob takes the other Commit in, and commits anew with the same reservation.
    bobs.clears();
    let commit = queue(&bob).await.remove(0);
    assert_eq!(bobs.hears(&bytes(&commit)), None);
    add(&bob, &mut bobs, &[&for_carol], &["alice"]).await.ok();
    assert_eq!(carol.status().await["spent"], 1);
}

#[rstest]
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_many_at_once_one_commit_wins(#[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere) {
    let server = TestServer::start(db).await;
    let (alice, _) = registered(&server, "alice", 0).await;
    let (bob, _) = registered(&server, "bob", 0).await;
    for round in 0..10 {
        let name = format!("group {round}");
        // The same group id in eight hands: eight different Commits of epoch 0.
        let rivals = (0..8).map(|_| {
            let mut party = Device::new("alice", "phone").founds(&name);
            let body = json!({"commit": encode(&party.updates()), "recipients": named(&["bob"])});
            let (alice, path) = (alice.clone(), format!("/groups/{}/commits", party.path()));
            tokio::spawn(async move { alice.post(&path, &body).await })
        });
        let mut won = 0;
        for rival in rivals.collect::<Vec<_>>() {
            let answer = rival.await.unwrap();
            if answer.status == 200 {
                won += 1;
            } else {
                answer.is_problem(409, ProblemType::StaleEpoch);
            }
        }
        assert_eq!(won, 1);
        let queued = queue(&bob).await;
        assert_eq!(queued.len(), 1, "a Commit that lost was delivered");
        ack(&bob, &[&queued[0]]).await;
    }
}

#[rstest]
#[tokio::test]
async fn a_reservation_that_went_to_another_fails_the_commit_as_a_whole(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
) {
    let server = TestServer::start(db).await;
    let (alice, at_alice) = registered(&server, "alice", 0).await;
    let (bob, _) = registered(&server, "bob", 1).await;
    let (carol, _) = registered(&server, "carol", 1).await;
    let (mallory, _) = registered(&server, "mallory", 0).await;
    let mut alices = at_alice.founds("friends");
    let (for_bob, for_carol) = (alice.reserved("bob").await, alice.reserved("carol").await);
    server.advance(SignedDuration::from_secs(60));
    let taken = mallory.reserved("bob").await;
    assert_eq!(taken["keypackage_ref"], for_bob["keypackage_ref"]);

    let refused = add(&alice, &mut alices, &[&for_carol, &for_bob], &["mallory"]).await;
    refused.is_problem(409, ProblemType::ReservationLapsed);
    assert_eq!(refused.json["reservation_id"], for_bob["reservation_id"]);
    for user in [&bob, &carol, &mallory] {
        assert_eq!(queue(user).await, [] as [Value; 0]);
        assert_eq!(user.status().await["spent"], 0);
    }
    // The epoch is still free, and without Bob it works: a late spend of what nobody has taken.
    alices.clears();
    assert_eq!(add(&alice, &mut alices, &[&for_carol], &[]).await.ok()["epoch"], 1);
    assert_eq!(carol.status().await["spent"], 1);
    let others = add(&mallory, &mut Device::new("mallory", "phone").founds("x"), &[&for_carol], &[]).await;
    others.is_problem(403, ProblemType::NotYourReservation);
}

#[rstest]
#[tokio::test]
async fn who_cannot_show_what_the_commit_before_asked_for_takes_no_epoch(
    #[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere,
) {
    let server = TestServer::start(db).await;
    let (alice, at_alice) = registered(&server, "alice", 0).await;
    let (bob, _) = registered(&server, "bob", 0).await;
    let mut party = at_alice.founds("friends");
    let path = format!("/groups/{}/commits", party.path());
    let asked = encode(&Sha256::digest([7; 32]));
    let first = json!({"commit": encode(&party.updates()), "next_proof_digest": asked});
    alice.post(&path, &first).await.ok();
    party.merges();
    let commit = encode(&party.updates());
    for (proof, status) in [(json!(null), 403), (json!(encode(&[8; 32])), 403), (json!(encode(&[7; 31])), 400)] {
        let answer = bob.post(&path, &json!({"commit": commit, "proof": proof, "recipients": named(&["alice"])})).await;
        assert_eq!(answer.status, status, "{}", answer.text);
    }
    assert_eq!(queue(&alice).await, [] as [Value; 0]);
    assert_eq!(alice.post(&path, &first).await.ok()["epoch"], 1, "a repetition needs no proof");
    assert_eq!(alice.post(&path, &json!({"commit": commit, "proof": encode(&[7; 32])})).await.ok()["epoch"], 2);
    // That one asked for nothing.
    party.merges();
    assert_eq!(update(&alice, &mut party, &[]).await.ok()["epoch"], 3);
}

#[rstest]
#[tokio::test]
async fn a_commit_whose_answer_was_lost_can_be_asked_for_again(
    #[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere,
) {
    let server = TestServer::start(db).await;
    let (alice, at_alice) = registered(&server, "alice", 0).await;
    let (bob, _) = registered(&server, "bob", 2).await;
    let mut alices = at_alice.founds("friends");
    let reservation = alice.reserved("bob").await;
    let (commit, welcome) = alices.adds(&[&reservation]);
    let body = json!({
        "commit": encode(&commit),
        "welcome": encode(&welcome),
        "reservations": [reservation["reservation_id"]],
        "recipients": [{"user": "nobody", "device": "phone"}]
    });
    let path = format!("/groups/{}/commits", alices.path());
    let missed = json!([{"user": "nobody", "device": "phone", "reason": "unknown-device"}]);
    for _ in 0..3 {
        assert_eq!(alice.post(&path, &body).await.ok(), json!({"epoch": 1, "undelivered": missed}));
    }
    assert_eq!((queue(&bob).await.len(), &bob.status().await["spent"]), (1, &json!(1)));
    // Also when others have come since.
    alices.merges();
    update(&alice, &mut alices, &[]).await.ok();
    assert_eq!(alice.post(&path, &body).await.ok(), json!({"epoch": 1, "undelivered": missed}));
    assert_eq!(queue(&bob).await.len(), 1);
}

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
    // What everybody has had is kept no longer.
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

#[rstest]
#[tokio::test]
async fn a_welcome_that_cannot_be_opened_is_told_to_who_sent_it(
    #[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere,
) {
    let server = TestServer::start(db).await;
    let (alice, at_alice) = registered(&server, "alice", 0).await;
    let (bob, _) = registered(&server, "bob", 1).await;
    let mut party = at_alice.founds("friends");
    let reservation = alice.reserved("bob").await;
    add(&alice, &mut party, &[&reservation], &[]).await.ok();
    party.merges();
    let welcome = queue(&bob).await.remove(0);
    let body = json!({"unreadable": [welcome["id"]]});
    assert_eq!(bob.post("/messages/ack", &body).await.ok()["acknowledged"], 1);
    assert_eq!(bob.post("/messages/ack", &body).await.ok()["acknowledged"], 0);
    let told = queue(&alice).await;
    assert_eq!(told.len(), 1);
    assert_eq!((&told[0]["kind"], &told[0]["from"]), (&json!("unreadable"), &named(&["bob"])[0]));
    assert_eq!((&told[0]["group_id"], &told[0]["message"]), (&json!("ZnJpZW5kcw=="), &json!("")));
    // What is no Welcome tells nobody.
    say(&alice, &mut party, "hello", &["bob"]).await.ok();
    let message = queue(&bob).await.remove(0);
    bob.post("/messages/ack", &json!({"unreadable": [message["id"]]})).await.ok();
    assert_eq!(queue(&alice).await.len(), 1);
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

#[rstest]
#[tokio::test]
async fn a_key_package_serves_one_commit(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
    #[values(false, true)] is_last_resort: bool,
) {
    let server = TestServer::start(db).await;
    let (alice, at_alice) = registered(&server, "alice", 0).await;
    let (bob, at_bob) = registered(&server, "bob", 0).await;
    bob.uploaded(&[if is_last_resort { at_bob.last_resort() } else { at_bob.key_package() }]).await;
    let mut party = at_alice.founds("friends");
    let reservation = alice.reserved("bob").await;
    let (commit, welcome) = party.adds(&[&reservation]);
    let body = |commit: &[u8]| {
        json!({
            "commit": encode(commit), "welcome": encode(&welcome), "reservations": [reservation["reservation_id"]]
        })
    };
    let path = format!("/groups/{}/commits", party.path());
    alice.post(&path, &body(&commit)).await.ok();
    party.merges();
    let again = alice.post(&path, &body(&party.updates())).await;
    again.is_problem(409, ProblemType::AlreadySpent);
    assert_eq!(queue(&bob).await.len(), 1);
    party.clears();
    update(&alice, &mut party, &[]).await.ok();
}
