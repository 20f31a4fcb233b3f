//! The operator decides which callers read the log.

use keypool_openapi::ProblemType;
use keypool_server::config::LogAccess;
use rstest::rstest;

use super::checks::{entries, is_whole};
use crate::support::{Database, Device, TestServer};

#[rstest]
#[tokio::test]
async fn anybody_reads_tiles_that_never_change(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let server = TestServer::start_with(db, |config| config.limits = keypool_server::config::Limits::Off).await;
    let alice = server.anyone().registered("alice", "laptop").await;
    let bob = server.anyone().registered("bob", "phone").await;
    for _ in 0..3 {
        alice.uploaded(&Device::new("alice", "laptop").key_packages(100)).await;
    }
    let anyone = server.anyone();
    let path = anyone.get("/log").await.ok()["origin"]["path"].as_str().unwrap().to_owned();
    for _ in 0..260 {
        bob.reserved("alice").await;
    }
    is_whole(&server).await;
    assert!(entries(&server).await.len() > 256);
    let newest = anyone.get("/log/checkpoint").await;
    assert_eq!(
        (newest.status, newest.header("location").map(|to| format!("/log/{to}"))),
        (307, Some(format!("/{path}/checkpoint")))
    );
    let full = anyone.get(&format!("/{path}/tile/0/000")).await;
    assert_eq!((full.status, full.header("cache-control")), (200, Some("public, max-age=31536000, immutable")));
    let hashes = anyone.bytes(&format!("/{path}/tile/0/000")).await;
    assert_eq!(hashes.len(), 256 * 32);
    assert_eq!(anyone.bytes(&format!("/{path}/tile/0/000.p/5")).await, hashes[..5 * 32], "a part of what has grown");
    for missing in ["tile/0/001.p/255", "tile/0/999", "tile/5/000", "tile/entries/002", "tile/x", "tile/0/000.p/256"] {
        anyone.get(&format!("/{path}/{missing}")).await.is_problem(404, ProblemType::NotFound);
    }
    anyone.get("/log/1-00000000/checkpoint").await.is_problem(404, ProblemType::NotFound);
}

#[rstest]
#[tokio::test]
async fn the_operator_says_who_reads_the_log(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    for (access, anyone, device) in [(LogAccess::Registered, 401, 200), (LogAccess::Off, 404, 404)] {
        let server = TestServer::start_with(db, |config| config.log_access = access).await;
        let bob = server.anyone().registered("bob", "phone").await;
        assert_eq!((server.anyone().get("/log").await.status, bob.get("/log").await.status), (anyone, device));
    }
}
