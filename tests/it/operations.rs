//! The endpoints for operators and other people's clients.

use keypool_openapi::ProblemType;
use keypool_server::{app::openapi_json, config::Config};
use reqwest::Method;
use rstest::rstest;
use serde_json::json;

use crate::support::{Anywhere, TestServer};

#[rstest]
#[tokio::test]
async fn what_cannot_be_read_is_a_problem(#[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere) {
    let server = TestServer::start(db).await;
    let alice = server.anyone().registered("alice", "laptop").await;
    for body in ["{", r#"{"user":"a","device":"b/c"}"#, r#"{"user":"a"}"#, r#"{"user":"a","device":"b","admin":true}"#]
    {
        let answer = alice.try_send(Method::POST, "/devices", Some(body.to_owned())).await.unwrap();
        answer.is_problem(400, ProblemType::MalformedRequest);
    }
    alice.get("/nowhere").await.is_problem(404, ProblemType::NotFound);
    let large = json!({"keypackages": ["A".repeat(9 * 1024 * 1024)]});
    alice.post("/keypackages/upload", &large).await.is_problem(413, ProblemType::PayloadTooLarge);
}

#[rstest]
#[tokio::test]
async fn the_server_shows_how_it_is_and_what_it_offers(#[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere) {
    let server = TestServer::start(db).await;
    let anyone = server.anyone();
    for path in ["/healthz", "/readyz"] {
        assert_eq!(anyone.get(path).await.status, 200, "{path}");
    }
    let document = anyone.get("/openapi.json").await.ok();
    assert_eq!(document["components"]["securitySchemes"]["bearer"]["scheme"], "bearer");
    assert!(document["paths"]["/keypackages/reserve"]["post"].is_object());
    let page = anyone.get("/swagger-ui/").await;
    assert_eq!(page.status, 200);
    assert!(!page.text.contains("//cdn") && !page.text.contains("https://"), "assets come from elsewhere");
    assert_eq!(anyone.get("/swagger-ui/swagger-ui-bundle.js").await.status, 200);
}

#[rstest]
#[tokio::test]
async fn what_can_be_got_can_be_asked_for_its_head(#[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere) {
    let server = TestServer::start(db).await;
    let alice = server.anyone().registered("alice", "laptop").await;
    let head = async |path| alice.try_send(Method::HEAD, path, None).await.unwrap();
    for path in ["/healthz", "/openapi.json", "/users/alice/devices"] {
        let (whole, head) = (alice.get(path).await, head(path).await);
        assert_eq!((head.status, head.text.as_str()), (200, ""), "{path}");
        assert_eq!(head.header("content-type"), whole.header("content-type"), "{path}");
        assert_eq!(head.header("content-length"), Some(whole.text.len().to_string().as_str()), "{path}");
    }
    assert_eq!(head("/users/nobody/devices").await.status, 404);
    let answer = head("/keypackages/reserve").await;
    assert_eq!((answer.status, answer.header("allow")), (405, Some("POST")));
}

#[test]
fn the_committed_document_is_current() {
    let committed = concat!(env!("CARGO_MANIFEST_DIR"), "/../openapi/openapi.json");
    let committed = std::fs::read_to_string(committed).unwrap_or_default();
    assert!(
        committed == openapi_json(&Config::default()).unwrap(),
        "openapi/openapi.json is stale: cargo run --bin keypool-server -- openapi > openapi/openapi.json"
    );
}
