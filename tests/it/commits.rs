//! The commit fence: one Commit for each epoch, which spends the KeyPackages that it adds, or changes nothing.

use jiff::SignedDuration;
use keypool_openapi::ProblemType;
use rstest::rstest;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::support::{Answer, Anywhere, Database, Device, Http, Party, TestServer, decode, encode};

/// A user with one device, which is registered and has so many KeyPackages on the server.
pub async fn registered(server: &TestServer, user: &str, packages: usize) -> (Http, Device) {
    let http = server.anyone().registered(user, "phone").await;
    let device = Device::new(user, "phone");
    http.uploaded(&device.key_packages(packages)).await;
    (http, device)
}

pub fn named(users: &[&str]) -> Vec<Value> {
    users.iter().map(|user| json!({"user": user, "device": "phone"})).collect()
}

/// Adds those whose KeyPackages are reserved, and tells the members.
pub async fn add(http: &Http, party: &mut Party, reservations: &[&Value], members: &[&str]) -> Answer {
    let (commit, welcome) = party.adds(reservations);
    let ids: Vec<_> = reservations.iter().map(|reservation| &reservation["reservation_id"]).collect();
    let body = json!({
        "commit": encode(&commit), "welcome": encode(&welcome), "reservations": ids, "recipients": named(members)
    });
    http.post(&format!("/groups/{}/commits", party.path()), &body).await
}

/// Commits to new keys, and tells the members.
pub async fn update(http: &Http, party: &mut Party, members: &[&str]) -> Answer {
    let body = json!({"commit": encode(&party.updates()), "recipients": named(members)});
    http.post(&format!("/groups/{}/commits", party.path()), &body).await
}

pub async fn say(http: &Http, party: &mut Party, text: &str, members: &[&str]) -> Answer {
    let body = json!({"message": encode(&party.says(text)), "recipients": named(members)});
    http.post(&format!("/groups/{}/messages", party.path()), &body).await
}

pub async fn queue(http: &Http) -> Vec<Value> {
    http.get("/messages").await.ok()["messages"].as_array().unwrap().clone()
}

fn bytes(message: &Value) -> Vec<u8> {
    decode(message["message"].as_str().unwrap())
}

pub async fn ack(http: &Http, messages: &[&Value]) -> u64 {
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
    assert_eq!(answer, json!({"epoch": 1, "undelivered": [], "group_info_kept": false}));
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
        assert_eq!(
            alice.post(&path, &body).await.ok(),
            json!({"epoch": 1, "undelivered": missed, "group_info_kept": false})
        );
    }
    assert_eq!((queue(&bob).await.len(), &bob.status().await["spent"]), (1, &json!(1)));
    // Also when others have come since.
    alices.merges();
    update(&alice, &mut alices, &[]).await.ok();
    assert_eq!(
        alice.post(&path, &body).await.ok(),
        json!({"epoch": 1, "undelivered": missed, "group_info_kept": false})
    );
    assert_eq!(queue(&bob).await.len(), 1);
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
