//! Who is there, and who may say so.

use keypool_openapi::ProblemType;
use rstest::rstest;
use serde_json::json;

use crate::support::{Anywhere, TestServer};

#[rstest]
#[tokio::test]
async fn a_device_is_registered_once(#[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere) {
    let server = TestServer::start(db).await;
    let answer = server.anyone().register("alice", "laptop").await;
    assert_eq!(answer.status, 201, "{}", answer.text);
    let alice = server.anyone().with_token(answer.json["token"].as_str().unwrap());
    alice.register("alice", "laptop").await.is_problem(409, ProblemType::AlreadyRegistered);
    let listed = alice.get("/users/alice/devices").await;
    assert!(!listed.text.contains(alice.token.as_deref().unwrap()), "the token is shown twice");
    assert_eq!(listed.ok()["devices"][0]["device"], "laptop");
}

#[rstest]
#[tokio::test]
async fn a_further_device_needs_a_token_of_its_user(#[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere) {
    let server = TestServer::start(db).await;
    let alice = server.anyone().registered("alice", "laptop").await;
    let mallory = server.anyone().registered("mallory", "phone").await;
    server.anyone().register("alice", "phone").await.is_problem(401, ProblemType::Unauthenticated);
    mallory.register("alice", "phone").await.is_problem(403, ProblemType::Forbidden);
    assert_eq!(alice.register("alice", "phone").await.status, 201);
    let devices = mallory.get("/users/alice/devices").await.ok();
    let names: Vec<_> = devices["devices"].as_array().unwrap().iter().map(|device| device["device"].clone()).collect();
    assert_eq!(names, [json!("laptop"), json!("phone")]);
    mallory.get("/users/nobody/devices").await.is_problem(404, ProblemType::UnknownUser);
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
