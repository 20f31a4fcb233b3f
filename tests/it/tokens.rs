//! Tokens: every call needs one, strangers learn nothing, and a token that has ended changes nothing and fetches nothing, also by
//! way of a server that remembers it.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jiff::SignedDuration;
use keypool_openapi::{KeyPackageRef, ProblemType};
use reqwest::Method;
use rstest::rstest;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::{
    operator::with_an_admin,
    support::{Answer, Anywhere, Database, Device, Http, Party, TestServer, encode, group},
};

/// How a token ends.
#[derive(Clone, Copy, Debug)]
enum End {
    Replaced,
    Removed,
    RegisteredAnew,
}

/// Alice, whose laptop has a token that has ended at one server and that another server remembers.
struct Scene {
    server: TestServer,
    _other: TestServer,
    /// At the server that remembers it.
    old: Http,
    /// Alice's laptop as it is now, if it is still registered.
    new: Option<Http>,
    bob: Http,
    /// A reservation of Bob by the old token, before it ended, with an `Idempotency-Key`.
    reservation: Value,
    party: Party,
    /// A KeyPackage under another signature key, with the change that the laptop has signed before its token ended.
    changing: Value,
    before: Vec<i64>,
}

const KEY: &str = "0123456789abcdef";

impl Scene {
    async fn new(db: Database, end: End) -> Self {
        let server = TestServer::start(db).await;
        let other = server.beside(|_| ()).await;
        let laptop = server.anyone().registered("alice", "laptop").await;
        let phone = laptop.registered("alice", "phone").await;
        let bob = server.anyone().registered("bob", "phone").await;
        let at_alice = Device::new("alice", "laptop");
        laptop.uploaded(&at_alice.key_packages(3)).await;
        let listed = laptop.get("/users/alice/devices").await.ok();
        let listed = listed["devices"].as_array().unwrap().iter().find(|one| one["device"] == "laptop").unwrap();
        let (at, with_new_key) = (&listed["registered_at"], Device::new("alice", "laptop").with_new_key());
        let change = at_alice.change_to(&with_new_key, at.as_str().unwrap().parse().unwrap());
        let keypackages = [encode(&with_new_key.key_package())];
        let changing = json!({ "keypackages": keypackages, "signature_key_changes": [change] });
        bob.uploaded(&Device::new("bob", "phone").key_packages(9)).await;
        let mut party = at_alice.founds("friends");
        let commit = json!({"commit": encode(&party.updates()), "recipients": []});
        laptop.post(&format!("/groups/{}/commits", party.path()), &commit).await.ok();
        party.merges();
        let old = laptop.at(&other.base);
        let reservation = old.with_key(KEY).reserved("bob").await;
        let new = match end {
            End::Replaced => {
                let answer = phone.post("/devices/laptop/token", &json!(null)).await.ok();
                Some(server.anyone().with_token(answer["token"].as_str().unwrap()))
            }
            End::Removed => {
                phone.delete("/devices/laptop").await.ok();
                None
            }
            End::RegisteredAnew => {
                phone.delete("/devices/laptop").await.ok();
                let new = phone.registered("alice", "laptop").await;
                new.uploaded(&Device::new("alice", "laptop").key_packages(3)).await;
                Some(new)
            }
        };
        let before = Vec::new();
        let mut scene = Self { server, _other: other, old, new, bob, reservation, party, changing, before };
        scene.before = scene.counts();
        scene
    }

    fn counts(&self) -> Vec<i64> {
        let rows = |table: &str| self.server.database().number(&format!("SELECT count(*) AS n FROM {table}"));
        ["audit_events", "key_packages", "envelopes", "deliveries", "commits", "idempotency_keys", "signature_keys"]
            .map(rows)
            .to_vec()
    }

    #[track_caller]
    fn was_refused(&self, what: &str, answer: &Answer) {
        assert_eq!((what, answer.status), (what, 401), "{}", answer.text);
        answer.is_problem(401, ProblemType::Unauthenticated);
        assert_eq!(self.counts(), self.before, "{what} was refused, and left something");
    }
}

#[rstest]
#[tokio::test]
async fn an_ended_token_changes_nothing(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
    #[values(End::Replaced, End::Removed, End::RegisteredAnew)] end: End,
) {
    let mut scene = Scene::new(db, end).await;
    let id = &scene.reservation["reservation_id"];
    let upload: Vec<_> =
        Device::new("alice", "laptop").key_packages(2).iter().map(|one| encode(one.as_ref())).collect();
    let (message, commit) = (encode(&scene.party.says("hello")), encode(&scene.party.updates()));
    let in_group = |what: &str| format!("/groups/{}/{what}", scene.party.path());
    let calls = [
        ("/keypackages/reserve".to_owned(), json!({"target_user": "bob"})),
        ("/keypackages/reserve".to_owned(), json!({"targets": ["bob", "alice"], "group_id": group("friends")})),
        ("/keypackages/spend".to_owned(), json!({"reservation_id": id, "group_id": group("friends")})),
        ("/keypackages/release".to_owned(), json!({"reservation_id": id})),
        ("/keypackages/upload".to_owned(), json!({"keypackages": upload})),
        ("/keypackages/upload".to_owned(), scene.changing.clone()),
        ("/keypackages/revoke".to_owned(), json!({"all": true})),
        ("/keypackages/revoke".to_owned(), json!({"refs": [scene.reservation["keypackage_ref"]]})),
        (in_group("messages"), json!({"message": message, "recipients": [{"user": "bob", "device": "phone"}]})),
        (in_group("commits"), json!({"commit": commit, "recipients": [{"user": "bob", "device": "phone"}]})),
        ("/messages/ack".to_owned(), json!({"ids": [1, 2, 3]})),
        ("/messages/ack".to_owned(), json!({"ids": [], "unreadable": [4]})),
        ("/messages/ack".to_owned(), json!({"refused": [{"id": 4, "reason": "invalid"}]})),
        ("/devices".to_owned(), json!({"user": "alice", "device": "tablet"})),
        ("/devices/phone/token".to_owned(), json!(null)),
    ];
    for (path, body) in calls {
        scene.was_refused(&format!("{path} {body}"), &scene.old.post(&path, &body).await);
    }
    // A kept answer is not repeated either.
    scene.was_refused("a repetition", &scene.old.with_key(KEY).reserve("bob").await);
    scene.was_refused("a repetition of something else", &scene.old.with_key(KEY).reserve("alice").await);
    scene.was_refused("the queue", &scene.old.get("/messages").await);
    let removal = scene.old.try_send(Method::DELETE, "/devices/phone", None).await.unwrap();
    scene.was_refused("a removal", &removal);
}

#[rstest]
#[tokio::test]
async fn an_ended_token_sees_no_message_of_the_device_that_came_after(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
    #[values(End::Replaced, End::RegisteredAnew)] end: End,
) {
    let mut scene = Scene::new(db, end).await;
    let new = scene.new.take().unwrap();
    let body = json!({"message": encode(&scene.party.says("for the new one")),
        "recipients": [{"user": "alice", "device": "laptop"}]});
    scene.bob.post(&format!("/groups/{}/messages", scene.party.path()), &body).await.ok();
    scene.before = scene.counts();
    scene.was_refused("the queue", &scene.old.get("/messages").await);
    scene.was_refused("the queue", &scene.old.get("/messages?wait=30").await);
    let waiting = new.get("/messages").await.ok()["messages"].clone();
    let id = &waiting[0]["id"];
    scene.was_refused("an acknowledgement", &scene.old.post("/messages/ack", &json!({"ids": [id]})).await);
    scene.was_refused("an acknowledgement", &scene.old.post("/messages/ack", &json!({"unreadable": [id]})).await);
    let refused = json!({"refused": [{"id": id, "reason": "invalid"}]});
    scene.was_refused("a refusal", &scene.old.post("/messages/ack", &refused).await);
    assert_eq!(new.get("/messages").await.ok()["messages"], waiting);
    assert_eq!(new.post("/messages/ack", &json!({"ids": [id]})).await.ok(), json!({"acknowledged": 1}));
}

fn made_up(number: usize) -> String {
    format!("keypool_{}", URL_SAFE_NO_PAD.encode([number.to_le_bytes(); 4].concat()))
}

/// However many tokens somebody makes up, the look-ups take one connection to the database.
#[tokio::test]
async fn made_up_tokens_take_one_connection() {
    let server = TestServer::start_with(Database::Postgres, |config| config.database_connections = 4).await;
    let mut database = server.database();
    database.run("BEGIN; LOCK TABLE devices IN ACCESS EXCLUSIVE MODE");
    let asked: Vec<_> = (0..100)
        .map(|number| {
            let stranger = server.anyone().with_token(&made_up(number));
            tokio::spawn(async move { stranger.get("/keypackages/status").await })
        })
        .collect();
    while database.waiting() < 1 {
        tokio::task::yield_now().await;
    }
    assert!(server.anyone().is_ready().await, "the look-ups have all connections");
    assert_eq!(database.waiting(), 1);
    database.run("COMMIT");
    for answer in asked {
        answer.await.unwrap().is_problem(401, ProblemType::Unauthenticated);
    }
}

/// The same unknown token is looked up once in a while.
#[rstest]
#[tokio::test]
async fn an_unknown_token_is_remembered(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let server = TestServer::start(db).await;
    let stranger = server.anyone().with_token(&made_up(7));
    stranger.get("/keypackages/status").await.is_problem(401, ProblemType::Unauthenticated);
    server.anyone().registered("alice", "laptop").await;
    // A token that becomes valid is accepted after that time, which shows it.
    let hash = KeyPackageRef::from(Sha256::digest(made_up(7)).to_vec());
    let binary = if db == Database::Postgres { format!("'\\x{hash}'") } else { format!("x'{hash}'") };
    server.database().run(&format!("UPDATE devices SET token_hash = {binary} WHERE user_name = 'alice'"));
    server.advance(SignedDuration::from_secs(4));
    stranger.get("/keypackages/status").await.is_problem(401, ProblemType::Unauthenticated);
    server.advance(SignedDuration::from_secs(1));
    stranger.status().await;
}

#[rstest]
#[tokio::test]
async fn every_call_but_registration_needs_a_valid_token(#[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere) {
    let server = TestServer::start(db).await;
    server.anyone().registered("alice", "laptop").await;
    let wrong = format!("keypool_{}", "A".repeat(43));
    for caller in [server.anyone(), server.anyone().with_token("no-token"), server.anyone().with_token(&wrong)] {
        for path in ["/keypackages/status", "/users/alice/devices"] {
            caller.get(path).await.is_problem(401, ProblemType::Unauthenticated);
        }
        for path in ["upload", "reserve", "spend", "release"] {
            let answer = caller.post(&format!("/keypackages/{path}"), &json!({})).await;
            answer.is_problem(401, ProblemType::Unauthenticated);
        }
    }
}

#[rstest]
#[tokio::test]
async fn a_token_is_changed_for_another(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let server = TestServer::start(db).await;
    let old = server.anyone().registered("alice", "laptop").await;
    let phone = old.registered("alice", "phone").await;
    let answer = old.post("/devices/laptop/token", &json!(null)).await.ok();
    let new = server.anyone().with_token(answer["token"].as_str().unwrap());
    old.get("/keypackages/status").await.is_problem(401, ProblemType::Unauthenticated);
    assert_eq!(new.status().await["device"], "laptop");
    // The laptop replaces the token of a lost phone.
    phone.status().await;
    let answer = new.post("/devices/phone/token", &json!(null)).await.ok();
    phone.get("/keypackages/status").await.is_problem(401, ProblemType::Unauthenticated);
    assert_eq!(server.anyone().with_token(answer["token"].as_str().unwrap()).status().await["device"], "phone");
    let mallory = server.anyone().registered("mallory", "desk").await;
    for theirs in ["laptop", "phone", "none"] {
        let answer = mallory.post(&format!("/devices/{theirs}/token"), &json!(null)).await;
        answer.is_problem(404, ProblemType::UnknownDevice);
        mallory.delete(&format!("/devices/{theirs}")).await.is_problem(404, ProblemType::UnknownDevice);
    }
    new.status().await;
}

#[rstest]
#[tokio::test]
async fn a_token_that_has_ended_gives_nobody_another(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let server = TestServer::start(db).await;
    let other = server.beside(|_| ()).await;
    let laptop = server.anyone().registered("alice", "laptop").await;
    let phone = laptop.registered("alice", "phone").await;
    // Both are in the other server's mind.
    let (old_laptop, old_phone) = (laptop.at(&other.base), phone.at(&other.base));
    old_laptop.status().await;
    old_phone.status().await;
    let answer = laptop.post("/devices/laptop/token", &json!(null)).await.ok();
    let laptop = server.anyone().with_token(answer["token"].as_str().unwrap());
    laptop.delete("/devices/phone").await.ok();

    for old in [old_laptop, old_phone] {
        old.status().await;
        old.register("alice", "tablet").await.is_problem(401, ProblemType::Unauthenticated);
        old.post("/devices/laptop/token", &json!(null)).await.is_problem(401, ProblemType::Unauthenticated);
        old.delete("/devices/laptop").await.is_problem(401, ProblemType::Unauthenticated);
    }
    assert_eq!(laptop.get("/users/alice/devices").await.ok()["devices"].as_array().unwrap().len(), 1);
}

#[rstest]
#[tokio::test]
async fn strangers_learn_nothing(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let server = TestServer::start_with(db, with_an_admin).await;
    let alice = server.anyone().registered("alice", "laptop").await;
    alice.uploaded(&[Device::new("alice", "laptop").key_package()]).await;
    let unknown = format!("keypool_{}", "A".repeat(43));
    let foreign = "eyJhbGciOiJFUzI1NiJ9.e30.c2lnbmF0dXJl";
    for stranger in [server.anyone(), server.anyone().with_token(&unknown), server.anyone().with_token(foreign)] {
        for (method, known, unknown) in [
            (Method::GET, "/users/alice/devices", "/users/nobody/devices"),
            (Method::DELETE, "/devices/laptop", "/devices/phone"),
            (Method::POST, "/devices/laptop/token", "/devices/phone/token"),
            (Method::GET, "/keypackages/audit?user=alice", "/keypackages/audit?user=nobody"),
            (Method::DELETE, "/admin/users/alice/devices/laptop", "/admin/users/nobody/devices/laptop"),
            (Method::GET, "/admin/pools", "/keypackages/inventory"),
        ] {
            let answers = [known, unknown].map(|path| stranger.try_send(method.clone(), path, None));
            let [known, unknown] = answers;
            let (known, unknown) = (known.await.unwrap(), unknown.await.unwrap());
            known.is_problem(401, ProblemType::Unauthenticated);
            assert_eq!((known.status, known.text), (unknown.status, unknown.text));
        }
        for path in ["upload", "reserve", "spend", "release", "revoke"] {
            let known = stranger.post(&format!("/keypackages/{path}"), &json!({"target_user": "alice"})).await;
            let unknown = stranger.post(&format!("/keypackages/{path}"), &json!({"target_user": "nobody"})).await;
            known.is_problem(401, ProblemType::Unauthenticated);
            assert_eq!((known.status, known.text), (unknown.status, unknown.text));
        }
    }
    // That a name is taken can be found out where registration is open; which devices are there cannot.
    let mallory = server.anyone().registered("mallory", "phone").await;
    for stranger in [server.anyone(), mallory] {
        let (known, unknown) = (stranger.register("alice", "laptop").await, stranger.register("alice", "phone").await);
        assert_eq!((known.status, known.text), (unknown.status, unknown.text));
    }
}
