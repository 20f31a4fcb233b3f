//! Enrolment tokens: registration with one, and the way back for a user without any device.

use jiff::SignedDuration;
use keypool_openapi::ProblemType;
use keypool_server::config::{Config, Registration};
use rstest::rstest;

use crate::support::{Answer, Database, TestServer};

fn by_token(config: &mut Config) {
    config.registration = Registration::Token;
}

/// An answer without these names of the request.
fn without(answer: &Answer, names: &[&str]) -> (u16, String) {
    (answer.status, names.iter().fold(answer.text.clone(), |text, name| text.replace(name, "?")))
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
    // A token that was refused for another user is still valid for its own.
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
    assert_eq!(first.token, again.token);
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
