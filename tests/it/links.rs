//! A device makes a code, and another device of the same user registers with it.

use jiff::SignedDuration;
use keypool_openapi::ProblemType;
use keypool_server::config::{Config, Limits, Registration};
use rstest::rstest;
use serde_json::{Value, json};

use crate::support::{Database, Http, TestServer};

fn by_token(config: &mut Config) {
    (config.registration, config.limits) = (Registration::Token, Limits::Off);
}

async fn code(maker: &Http) -> String {
    let answer = maker.post("/devices/links", &json!({})).await;
    assert_eq!(answer.status, 201, "{}", answer.text);
    answer.json["code"].as_str().unwrap().to_owned()
}

/// A device without a token of its own, which shows a code.
fn with_code(server: &TestServer, code: &str) -> Http {
    server.anyone().with_token(&format!("keypool_link_{code}"))
}

async fn links(of: &Http) -> Vec<Value> {
    of.get("/devices/links").await.ok()["links"].as_array().unwrap().clone()
}

async fn states(of: &Http) -> Vec<Value> {
    links(of).await.into_iter().map(|link| link["state"].clone()).collect()
}

async fn first(server: &TestServer, user: &str) -> Http {
    server.anyone().with_token(&server.enrol(user, SignedDuration::from_hours(1))).registered(user, "laptop").await
}

#[rstest]
#[tokio::test]
async fn a_code_lets_one_device_in(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let server = TestServer::start_with(db, by_token).await;
    let alice = first(&server, "alice").await;
    let code = code(&alice).await;
    assert_eq!(states(&alice).await, ["open"]);
    let typed = with_code(&server, &code.to_lowercase().replace('-', " "));
    let phone = typed.registered("alice", "phone").await;
    phone.status().await;
    let told = links(&phone).await;
    assert_eq!(
        (&told[0]["made_by"], &told[0]["state"], &told[0]["device"]),
        (&json!("laptop"), &json!("used"), &json!("phone"))
    );
    // Once.
    typed.register("alice", "tablet").await.is_problem(401, ProblemType::Unauthenticated);
    // It opens nothing but the registration.
    for path in ["/keypackages/status", "/devices/links", "/users/alice/devices"] {
        with_code(&server, &code).get(path).await.is_problem(401, ProblemType::Unauthenticated);
    }
    let hash = server.database().number("SELECT count(*) AS n FROM device_links WHERE length(code_hash) = 32");
    assert_eq!(hash, 1);
    server.advance(SignedDuration::from_mins(10));
    server.sweep().await;
    assert_eq!(links(&alice).await, [Value::Null; 0]);
}

#[rstest]
#[tokio::test]
async fn a_lost_answer_is_repeated_and_a_refused_registration_spends_no_code(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
) {
    let server = TestServer::start_with(db, by_token).await;
    let alice = first(&server, "alice").await;
    let linked = with_code(&server, &code(&alice).await);
    linked.register("alice", "laptop").await.is_problem(409, ProblemType::AlreadyRegistered);
    let key = "0".repeat(32);
    let once = linked.with_key(&key).registered("alice", "phone").await;
    let again = linked.with_key(&key).registered("alice", "phone").await;
    assert_eq!(once.token, again.token);
}

#[rstest]
#[tokio::test]
async fn a_code_ends_with_its_time_and_with_the_next_one(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let server = TestServer::start_with(db, by_token).await;
    let alice = first(&server, "alice").await;
    let (earlier, late) = (code(&alice).await, code(&alice).await);
    with_code(&server, &earlier).register("alice", "phone").await.is_problem(401, ProblemType::Unauthenticated);
    server.advance(SignedDuration::from_secs(599));
    assert_eq!(states(&alice).await, ["open"]);
    server.advance(SignedDuration::from_secs(1));
    assert_eq!(states(&alice).await, ["over"]);
    with_code(&server, &late).register("alice", "phone").await.is_problem(401, ProblemType::Unauthenticated);
    // In its time, it lets one in.
    with_code(&server, &code(&alice).await).registered("alice", "phone").await;
}

#[rstest]
#[tokio::test]
async fn a_code_ends_with_the_token_of_its_device(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let server = TestServer::start_with(db, by_token).await;
    let alice = first(&server, "alice").await;
    let phone = with_code(&server, &code(&alice).await).registered("alice", "phone").await;
    // A thief has made it with the token of the phone.
    let stolen = code(&phone).await;
    alice.post("/devices/phone/token", &json!({})).await.ok();
    assert_eq!(states(&alice).await, ["used", "over"]);
    with_code(&server, &stolen).register("alice", "tablet").await.is_problem(401, ProblemType::Unauthenticated);
    let laptops = code(&alice).await;
    let tablet = with_code(&server, &laptops).registered("alice", "tablet").await;
    let removed = code(&tablet).await;
    alice.delete("/devices/tablet").await.ok();
    with_code(&server, &removed).register("alice", "watch").await.is_problem(401, ProblemType::Unauthenticated);
    // Nor does it come back with a new device of that name.
    with_code(&server, &code(&alice).await).registered("alice", "tablet").await;
    with_code(&server, &removed).register("alice", "watch").await.is_problem(401, ProblemType::Unauthenticated);
}

/// The answers say nothing about users, devices and codes.
#[rstest]
#[tokio::test]
async fn a_code_is_of_one_user_and_a_stranger_learns_nothing(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
) {
    let server = TestServer::start_with(db, by_token).await;
    let (alice, mallory) = (first(&server, "alice").await, first(&server, "mallory").await);
    let (code, foreign) = (code(&alice).await, code(&mallory).await);
    let mut said = Vec::new();
    for (shown, user) in [(&code, "mallory"), (&foreign, "alice"), (&"0".repeat(12), "alice"), (&code, "nobody")] {
        let answer = with_code(&server, shown).register(user, "phone").await;
        answer.is_problem(401, ProblemType::Unauthenticated);
        said.push(answer.text.replace(user, "?"));
    }
    said.dedup();
    assert_eq!(said.len(), 1, "{said:?}");
    assert_eq!(links(&mallory).await.len(), 1, "only those of the caller's user");
    assert_eq!(server.database().number("SELECT count(*) AS n FROM users WHERE name = 'nobody'"), 0);
    with_code(&server, &code).registered("alice", "phone").await;
}

#[rstest]
#[tokio::test]
async fn a_hundred_wrong_codes_end_those_of_the_user(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let server = TestServer::start_with(db, by_token).await;
    let (alice, bob) = (first(&server, "alice").await, first(&server, "bob").await);
    let (ended, bobs) = (code(&alice).await, code(&bob).await);
    let guesser = with_code(&server, &"7".repeat(12));
    for _ in 0..99 {
        guesser.register("alice", "phone").await.is_problem(401, ProblemType::Unauthenticated);
    }
    assert_eq!(states(&alice).await, ["open"]);
    guesser.register("alice", "phone").await.is_problem(401, ProblemType::Unauthenticated);
    assert_eq!((states(&alice).await, states(&bob).await), (vec![json!("over")], vec![json!("open")]));
    with_code(&server, &ended).register("alice", "phone").await.is_problem(401, ProblemType::Unauthenticated);
    with_code(&server, &bobs).registered("bob", "phone").await;
    // Another code begins anew.
    with_code(&server, &code(&alice).await).registered("alice", "phone").await;
}

/// Both servers get the code in the same moment.
#[rstest]
#[tokio::test]
async fn of_many_who_show_one_code_one_comes_in(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let server = TestServer::start_with(db, by_token).await;
    let alice = first(&server, "alice").await;
    let linked = with_code(&server, &code(&alice).await);
    let names: Vec<_> = (0..16).map(|number| format!("device-{number}")).collect();
    let answers = futures_util::future::join_all(names.iter().map(|name| linked.register("alice", name))).await;
    assert_eq!(answers.iter().filter(|answer| answer.status == 201).count(), 1);
}
