//! The key file: made once, and never another one.

use std::fs;

use keypool_server::config::Config;
use rstest::rstest;

use crate::support::{Database, Http, Place, ServerProcess, TestServer};

/// What `keypool-server` says where it does not start.
async fn refusal(place: &Place, change: impl FnOnce(&mut Config)) -> String {
    let clock = std::sync::Arc::new(keypool_server::clock::SystemClock);
    let mut config = Config {
        listen: "127.0.0.1:0".parse().unwrap(),
        database_url: place.url.clone().into(),
        log_key: place.log_key(),
        ..Config::default()
    };
    change(&mut config);
    match keypool_server::Server::start(config, clock).await {
        Ok(_) => panic!("it started"),
        Err(error) => format!("{error:#}"),
    }
}

#[rstest]
#[tokio::test]
async fn another_key_or_none_is_refused(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let server = TestServer::start(db).await;
    let log = server.anyone().get("/log").await.ok();
    let place = server.stopped_at();
    let directory = tempfile::tempdir().unwrap();
    let other = directory.path().join("other");
    fs::write(&other, "ab".repeat(32)).unwrap();
    let error = refusal(&place, |config| config.log_key = Some(other.clone())).await;
    assert!(error.contains(log["origin"]["key"].as_str().unwrap()) && error.contains("other"), "{error}");
    let missing = directory.path().join("missing");
    let error = refusal(&place, |config| config.log_key = Some(missing.clone())).await;
    assert!(error.contains("missing does not exist") && !missing.exists(), "{error}");
    if let Database::Postgres = db {
        let error = refusal(&place, |config| config.log_key = None).await;
        assert!(error.contains("set log_key"), "{error}");
    }
    let server = TestServer::start_at(place, |_| {}).await;
    assert_eq!(server.anyone().get("/log").await.ok(), log);
}

#[tokio::test]
async fn without_a_key_file_postgresql_has_no_log() {
    let place = Database::Postgres.migrated();
    let mut server = ServerProcess::spawn_with(&place, |command| {
        command.env_remove("KEYPOOL_LOG_KEY");
    });
    server.ready().await;
    let anyone = Http::new(&server.base);
    anyone.get("/log").await.is_problem(404, keypool_openapi::ProblemType::NotFound);
    let bob = anyone.registered("bob", "phone").await;
    assert!(bob.status().await.get("log").is_none());
    assert!(bob.get("/keypackages/audit").await.ok().get("log").is_none());
    let proofs = bob.post("/log/proofs", &serde_json::json!({"of": []})).await;
    proofs.is_problem(404, keypool_openapi::ProblemType::NotFound);
    let shown = bob.post("/log/checkpoint", &serde_json::json!({"checkpoint": ""})).await;
    shown.is_problem(404, keypool_openapi::ProblemType::NotFound);
}
