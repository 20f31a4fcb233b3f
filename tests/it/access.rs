//! Who may come in, what a token opens and how it ends, and what strangers learn.

use jiff::SignedDuration;
use keypool_openapi::ProblemType;
use keypool_server::config::{AdminToken, Config, Registration};
use reqwest::Method;
use rstest::rstest;
use serde_json::json;

use crate::support::{Answer, Database, Device, Http, TestServer, with_the_keys_of};

const ADMIN: &str = "correct horse battery staple, and a tail";

fn with_an_admin(config: &mut Config) {
    config.admin_token = Some(AdminToken::from(ADMIN));
}

fn by_token(config: &mut Config) {
    config.registration = Registration::Token;
}

/// An answer without what it was asked about.
fn without(answer: &Answer, names: &[&str]) -> (u16, String) {
    (answer.status, names.iter().fold(answer.text.clone(), |text, name| text.replace(name, "?")))
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

#[rstest]
#[tokio::test]
async fn without_an_enrolment_token_nobody_comes_in(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let server = TestServer::start_with(db, by_token).await;
    let enrolled = server.anyone().with_token(&server.enrol("alice", SignedDuration::from_hours(1)));
    let answer = enrolled.register("alice", "laptop").await;
    assert_eq!(answer.status, 201, "{}", answer.text);
    let alice = server.anyone().with_token(answer.json["token"].as_str().unwrap());
    alice.status().await;

    let names = ["alice", "nobody"];
    let mallory = server.anyone().with_token(&server.enrol("mallory", SignedDuration::from_hours(1)));
    let mallory = mallory.registered("mallory", "phone").await;
    let spare = server.anyone().with_token(&server.enrol("mallory", SignedDuration::from_hours(1)));
    let made_up = server.anyone().with_token(&format!("keypool_enrol_{}", "A".repeat(43)));
    for (stranger, status, kind) in [
        (server.anyone(), 401, ProblemType::Unauthenticated),
        (made_up, 401, ProblemType::Unauthenticated),
        (enrolled, 401, ProblemType::Unauthenticated),
        (spare.clone(), 401, ProblemType::Unauthenticated),
        (server.anyone().with_token("something else"), 401, ProblemType::Unauthenticated),
        (mallory, 403, ProblemType::Forbidden),
    ] {
        let known = stranger.register("alice", "laptop").await;
        let unknown = stranger.register("nobody", "laptop").await;
        known.is_problem(status, kind);
        assert_eq!(without(&known, &names), without(&unknown, &names));
    }
    // What was refused to others is still good for its own user.
    assert_eq!(spare.register("mallory", "tablet").await.status, 201);
    alice.get("/users/nobody/devices").await.is_problem(404, ProblemType::UnknownUser);
}

#[rstest]
#[tokio::test]
async fn an_enrolment_token_is_used_once_and_in_time(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let server = TestServer::start_with(db, by_token).await;
    let token = server.enrol("alice", SignedDuration::from_secs(60));
    let late = server.enrol("alice", SignedDuration::from_secs(60));
    let key = "0".repeat(32);
    let enrolled = server.anyone().with_token(&token);
    let first = enrolled.with_key(&key).registered("alice", "laptop").await;
    let again = enrolled.with_key(&key).registered("alice", "laptop").await;
    first.get("/keypackages/status").await.is_problem(401, ProblemType::Unauthenticated);
    enrolled.register("alice", "phone").await.is_problem(401, ProblemType::Unauthenticated);
    for path in ["/keypackages/status", "/users/alice/devices"] {
        enrolled.get(path).await.is_problem(401, ProblemType::Unauthenticated);
    }
    // A further device comes in by a token of its user, in this mode too.
    again.registered("alice", "tablet").await;
    server.advance(SignedDuration::from_secs(60));
    let late = server.anyone().with_token(&late);
    late.register("alice", "phone").await.is_problem(401, ProblemType::Unauthenticated);
    server.sweep().await;
    assert_eq!(server.database().number("SELECT count(*) AS n FROM enrolments"), 0);
}

#[rstest]
#[tokio::test]
async fn enrolments_that_are_over_are_forgotten_a_few_at_a_time(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
) {
    let server = TestServer::start_with(db, by_token).await;
    for seconds in [60, 60, 60, 61] {
        server.enrol("alice", SignedDuration::from_secs(seconds));
    }
    server.advance(SignedDuration::from_secs(60));
    let (store, now) = (server.store(), server.now());
    let forgotten = [(); 3].map(|()| store.forget(now, 2, now).unwrap());
    assert_eq!(forgotten, [2, 1, 0]);
    assert_eq!(server.database().number("SELECT count(*) AS n FROM enrolments"), 1);
}

#[rstest]
#[tokio::test]
async fn who_lost_every_device_comes_back_by_enrolment(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let server = TestServer::start(db).await;
    server.anyone().registered("alice", "laptop").await;
    server.anyone().register("alice", "phone").await.is_problem(401, ProblemType::Unauthenticated);
    let enrolled = server.anyone().with_token(&server.enrol("alice", SignedDuration::from_hours(1)));
    let phone = enrolled.registered("alice", "phone").await;
    phone.delete("/devices/laptop").await.ok();
}

#[rstest]
#[tokio::test]
async fn a_user_has_so_many_devices(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let server = TestServer::start_with(db, |config| config.max_devices = 2).await;
    let laptop = server.anyone().registered("alice", "laptop").await;
    laptop.registered("alice", "phone").await;
    laptop.register("alice", "tablet").await.is_problem(403, ProblemType::Forbidden);
    laptop.delete("/devices/phone").await.ok();
    laptop.registered("alice", "tablet").await;
}

#[tokio::test]
async fn registrations_at_the_same_moment_make_no_more_devices() {
    let server = TestServer::start_with(Database::Postgres, |config| config.max_devices = 2).await;
    let laptop = server.anyone().registered("alice", "laptop").await;
    let mut database = server.database();
    database.run("BEGIN; SELECT name FROM users FOR NO KEY UPDATE");
    let tasks = ["phone", "tablet"].map(|device| {
        let laptop = laptop.clone();
        tokio::spawn(async move { laptop.register("alice", device).await.status })
    });
    while database.waiting() < 2 {
        assert!(tasks.iter().all(|task| !task.is_finished()), "a registration did not wait for the user's row");
        tokio::task::yield_now().await;
    }
    database.run("COMMIT");
    let mut made = Vec::new();
    for task in tasks {
        made.push(task.await.unwrap());
    }
    made.sort_unstable();
    assert_eq!(made, [201, 403]);
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
    // Of a lost phone, from the laptop.
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
async fn a_removed_device_is_gone_with_all_it_had(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let server = TestServer::start(db).await;
    let other = server.beside(|_| ()).await;
    let laptop = server.anyone().registered("alice", "laptop").await;
    let phone = laptop.registered("alice", "phone").await;
    let bob = server.anyone().registered("bob", "phone").await;
    let device = Device::new("alice", "phone");
    let packages = device.key_packages(4);
    phone.uploaded(&packages).await;
    phone.uploaded(&[device.last_resort()]).await;
    let spent = bob.reserved("alice").await;
    bob.spend(&spent, "friends").await.ok();
    let reservation = bob.reserved("alice").await;
    let phone_there = phone.at(&other.base);
    phone_there.status().await;

    let removed = laptop.delete("/devices/phone").await.ok();
    assert_eq!(removed, json!({"user": "alice", "device": "phone", "revoked": 4}));
    phone.get("/keypackages/status").await.is_problem(401, ProblemType::Unauthenticated);
    laptop.delete("/devices/phone").await.is_problem(404, ProblemType::UnknownDevice);
    bob.spend(&reservation, "friends").await.is_problem(409, ProblemType::ReservationLapsed);
    bob.spend(&spent, "friends").await.ok();
    assert_eq!(bob.get("/users/alice/devices").await.ok()["devices"].as_array().unwrap().len(), 1);
    let wanted = bob.post("/keypackages/reserve", &json!({"target_user": "alice", "device": "phone"})).await;
    wanted.is_problem(404, ProblemType::UnknownDevice);

    // Another server may have the token in mind for five seconds after it looked it up, however busy the device is.
    for _ in 0..4 {
        server.advance(SignedDuration::from_secs(1));
        phone_there.status().await;
    }
    server.advance(SignedDuration::from_secs(1));
    phone_there.get("/keypackages/status").await.is_problem(401, ProblemType::Unauthenticated);

    // The name is free again; what the device had stays known.
    let again = laptop.registered("alice", "phone").await;
    phone.get("/keypackages/status").await.is_problem(401, ProblemType::Unauthenticated);
    let status = again.status().await;
    assert_eq!((&status["available"], &status["revoked"], &status["spent"]), (&json!(0), &json!(3), &json!(1)));
    assert_eq!(status["last_resort"]["present"], false);
    let mut batch = packages.clone();
    batch.extend(packages.iter().map(|package| with_the_keys_of(package, &device)));
    let rejected = again.upload(&batch).await.ok()["rejected"].clone();
    let reasons: Vec<_> = rejected.as_array().unwrap().iter().map(|one| one["reason"].as_str().unwrap()).collect();
    assert_eq!(reasons, [["duplicate"; 4], ["init-key-reused"; 4]].concat());
    again.uploaded(&[device.key_package()]).await;
    bob.reserved("alice").await;
}

#[rstest]
#[tokio::test]
async fn a_device_may_remove_itself(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let server = TestServer::start(db).await;
    let alice = server.anyone().registered("alice", "laptop").await;
    alice.delete("/devices/laptop").await.ok();
    alice.get("/keypackages/status").await.is_problem(401, ProblemType::Unauthenticated);
    // The user is still known: nobody else gets the name.
    server.anyone().register("alice", "laptop").await.is_problem(401, ProblemType::Unauthenticated);
    let bob = server.anyone().registered("bob", "phone").await;
    assert_eq!(bob.get("/users/alice/devices").await.ok()["devices"], json!([]));
}

async fn refused(callers: &[(&Http, u16, ProblemType)], method: Method, path: &str) {
    for (caller, status, kind) in callers {
        caller.try_send(method.clone(), path, None).await.unwrap().is_problem(*status, *kind);
    }
}

#[rstest]
#[tokio::test]
async fn the_operator_has_a_token_of_its_own(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let server = TestServer::start_with(db, with_an_admin).await;
    let alice = server.anyone().registered("alice", "laptop").await;
    let phone = alice.registered("alice", "phone").await;
    let bob = server.anyone().registered("bob", "phone").await;
    alice.uploaded(&Device::new("alice", "laptop").key_packages(8)).await;
    phone.uploaded(&Device::new("alice", "phone").key_packages(3)).await;
    bob.post("/keypackages/reserve", &json!({"target_user": "alice", "device": "phone"})).await.ok();
    let admin = server.anyone().with_token(ADMIN);
    let wrong = server.anyone().with_token(&ADMIN[1..]);

    let low = admin.get("/admin/pools").await.ok()["pools"].clone();
    let low: Vec<_> =
        low.as_array().unwrap().iter().map(|pool| [&pool["user"], &pool["device"], &pool["fresh"]]).collect();
    let (a, b, p) = (json!("alice"), json!("bob"), json!("phone"));
    assert_eq!(low, [[&b, &p, &json!(0)], [&a, &p, &json!(2)]]);
    assert_eq!(admin.get("/admin/pools?limit=1").await.ok()["pools"].as_array().unwrap().len(), 1);

    let trail = admin.get("/keypackages/audit?user=alice").await.ok();
    assert_eq!(trail["events"].as_array().unwrap().len(), 12);
    assert_eq!(trail["events"][0]["actor"], json!({"user": "bob", "device": "phone"}));
    admin.get("/keypackages/audit").await.is_problem(400, ProblemType::MalformedRequest);
    admin.get("/keypackages/audit?user=nobody").await.is_problem(404, ProblemType::UnknownUser);
    alice.get("/keypackages/audit?user=alice").await.is_problem(403, ProblemType::Forbidden);

    let devices = admin.get("/users/alice/devices").await.ok()["devices"].clone();
    let names: Vec<_> = devices.as_array().unwrap().iter().map(|one| &one["device"]).collect();
    assert_eq!(names, ["laptop", "phone"]);
    let removed = admin.delete("/admin/users/alice/devices/phone").await.ok();
    assert_eq!(removed["revoked"], 3);
    phone.get("/keypackages/status").await.is_problem(401, ProblemType::Unauthenticated);
    let newest = admin.get("/keypackages/audit?user=alice&limit=1").await.ok()["events"][0].clone();
    assert_eq!((&newest["action"], &newest["actor"]), (&json!("revoke"), &json!(null)));
    admin.delete("/admin/users/alice/devices/phone").await.is_problem(404, ProblemType::UnknownDevice);

    let callers = [
        (&alice, 403, ProblemType::Forbidden),
        (&wrong, 401, ProblemType::Unauthenticated),
        (&server.anyone(), 401, ProblemType::Unauthenticated),
    ];
    refused(&callers, Method::GET, "/admin/pools").await;
    refused(&callers, Method::DELETE, "/admin/users/alice/devices/laptop").await;
    alice.status().await;
}

#[rstest]
#[tokio::test]
async fn the_operator_is_no_device(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let server = TestServer::start_with(db, with_an_admin).await;
    server.anyone().registered("alice", "laptop").await;
    let admin = server.anyone().with_token(ADMIN);
    let callers = [(&admin, 403, ProblemType::Forbidden)];
    for path in ["/keypackages/status", "/keypackages/inventory"] {
        refused(&callers, Method::GET, path).await;
    }
    for path in ["upload", "reserve", "spend", "release", "revoke"] {
        refused(&callers, Method::POST, &format!("/keypackages/{path}")).await;
    }
    refused(&callers, Method::DELETE, "/devices/laptop").await;
    refused(&callers, Method::POST, "/devices/laptop/token").await;
    admin.register("alice", "phone").await.is_problem(403, ProblemType::Forbidden);
    admin.register("nobody", "phone").await.is_problem(403, ProblemType::Forbidden);
}

#[rstest]
#[tokio::test]
async fn without_an_admin_token_nobody_is_the_operator(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let server = TestServer::start(db).await;
    for token in [ADMIN, "null"] {
        let answer = server.anyone().with_token(token).get("/admin/pools").await;
        answer.is_problem(401, ProblemType::Unauthenticated);
    }
}
