//! Old entries of the log are forgotten, and no proof with them.

use std::time::Duration;

use jiff::SignedDuration;
use keypool_server::config::Limits;
use keypool_transparency::{
    checkpoint::Checkpoint,
    history::{Succession, succession},
};
use rstest::rstest;
use serde_json::{Value, json};

use super::{
    checks::{policy, reserve},
    heads::head,
    tool::verify,
};
use crate::support::{Database, Device, Http, TestServer};

const DAY: SignedDuration = SignedDuration::from_hours(24);

/// So many steps: KeyPackages that are withdrawn.
async fn steps(owner: &Http, hundreds: usize) {
    for _ in 0..hundreds {
        owner.uploaded(&Device::new("alice", "laptop").key_packages(100)).await;
        owner.post("/keypackages/revoke", &json!({"all": true})).await.ok();
    }
}

async fn log(caller: &Http) -> Value {
    caller.get("/log").await.ok()["origin"].clone()
}

#[rstest]
#[case::as_adders_need_it(90, 120)]
#[case::as_long_as_the_trail(400, 400)]
#[tokio::test(flavor = "multi_thread")]
async fn entries_are_kept_as_long_as_anybody_may_need_them(
    #[case] trail: u64,
    #[case] kept: i64,
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
) {
    let server = TestServer::start_with(db, |config| {
        config.limits = Limits::Off;
        config.audit_retention = Duration::from_hours(24 * trail);
    })
    .await;
    let alice = server.anyone().registered("alice", "laptop").await;
    let bob = server.anyone().registered("bob", "phone").await;
    steps(&alice, 3).await;
    server.sequence().await;
    let places = || server.database().number("SELECT count(*) AS n FROM log_positions");
    assert!(places() >= 2, "{}", places());
    let early_note = head(&bob, None).await.checkpoint;
    let early = Checkpoint::unverified(&early_note).unwrap();
    assert!(early.size > 300);
    server.advance(DAY);
    alice.uploaded(&Device::new("alice", "laptop").key_packages(1)).await;
    reserve(&bob, ("bob", "phone"), "alice", "friends").await.spend().await;
    server.sequence().await;

    server.advance(DAY * (i32::try_from(kept).unwrap() - 2));
    server.sweep().await;
    let bundles = || server.database().number("SELECT count(*) AS n FROM log_tiles WHERE level = -1");
    let before = bundles();
    assert_eq!(log(&alice).await["first_entry"], 0);
    server.advance(DAY + DAY);
    server.sweep().await;
    let path = log(&alice).await["path"].as_str().unwrap().to_owned();
    let first = alice.get(&format!("/{path}/tile/entries/000")).await;
    assert_eq!((log(&alice).await["first_entry"].as_u64(), first.status, bundles()), (Some(256), 404, before - 1));

    // The hash tiles are there: each older checkpoint is continued, and what was handed out later is proven.
    assert_eq!(alice.get(&format!("/{path}/tile/0/000")).await.status, 200);
    let newest = head(&bob, Some(&early)).await;
    let keys = policy(&bob).await.log_keys();
    let continued = succession(&early_note, &newest.checkpoint, &newest.consistency, &keys).unwrap();
    assert!(matches!(continued, Succession::Continues), "{continued:?}");
    // A stranger reads the rest.
    let directory = tempfile::tempdir().unwrap();
    let (url, key) = (format!("{}/{path}", server.base), log(&bob).await["key"].as_str().unwrap().to_owned());
    let (code, said) = verify(directory.path(), &["audit", "--log", &url, "--state", "state", "--vkey", &key]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("first: 256"), "{said}");

    // The places of forgotten events go with the trail.
    server.advance(DAY * 2);
    let (hour, now) = (SignedDuration::from_hours(1), server.now());
    alice.uploaded(&Device::new("alice", "laptop").valid_between(now - hour, now + DAY).key_packages(1)).await;
    server.sweep().await;
    assert!(places() <= 1, "{}", places());
}
