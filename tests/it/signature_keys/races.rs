//! Keys that are set, changed and handed out at the same moment.

use std::collections::BTreeSet;

use keypool_server::config::Limits;
use rstest::rstest;
use serde_json::json;

use super::{key, keys, listed, outcome, registered_at, upload_with};
use crate::support::{Anywhere, Database, Device, TestServer};

#[rstest]
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_several_first_uploads_at_once_one_key_wins(#[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere) {
    let server = TestServer::start(db).await;
    for round in 0..5 {
        let user = format!("user-{round}");
        let caller = server.anyone().registered(&user, "laptop").await;
        let uploads: Vec<_> = (0..6)
            .map(|_| {
                let (caller, device) = (caller.at(&server.base), Device::new(&user, "laptop").with_new_key());
                let packages = device.key_packages(2);
                tokio::spawn(async move { (key(&device), caller.upload(&packages).await.ok()) })
            })
            .collect();
        let mut won = Vec::new();
        for upload in uploads {
            let (key, answer) = upload.await.unwrap();
            match outcome(&answer) {
                (accepted, rejected) if accepted.len() == 2 && rejected.is_empty() => won.push(key),
                (accepted, rejected) => assert_eq!((accepted, rejected), (vec![], vec!["signature-key-mismatch"; 2])),
            }
        }
        assert_eq!(won, keys(&listed(&caller, &user, "laptop").await["signature_keys"]));
        assert_eq!(won.len(), 1);
    }
}

#[rstest]
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_several_changes_at_once_one_is_made(#[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere) {
    let server = TestServer::start(db).await;
    let (alice, device) = (server.anyone().registered("alice", "laptop").await, Device::new("alice", "laptop"));
    alice.uploaded(&[device.key_package()]).await;
    let at = registered_at(&alice, "alice", "laptop").await;
    let changes: Vec<_> = (0..6)
        .map(|_| {
            let (caller, new) = (alice.at(&server.base), Device::new("alice", "laptop").with_new_key());
            let (package, change) = (new.key_package(), device.change_to(&new, at));
            tokio::spawn(async move { (key(&new), upload_with(&caller, &[package], &[change]).await.ok()) })
        })
        .collect();
    let mut won = Vec::new();
    for change in changes {
        let (key, answer) = change.await.unwrap();
        if answer["changed_signature_keys"] == json!([1]) {
            assert_eq!(outcome(&answer), (vec![0], vec![]));
            won.push(key);
        } else {
            assert_eq!(outcome(&answer), (vec![], vec!["signature-key-mismatch"]));
        }
    }
    let known = listed(&alice, "alice", "laptop").await;
    assert_eq!((won.len(), &won), (1, &keys(&known["signature_keys"])));
    assert_eq!(keys(&known["previous_signature_keys"]), [key(&device)]);
    assert_eq!(alice.status().await["fresh"], 1);
}

#[rstest]
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_adder_gets_an_old_package_after_a_change(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let server = TestServer::start_with(db, |config| config.limits = Limits::Off).await;
    let (alice, bob) =
        (server.anyone().registered("alice", "laptop").await, server.anyone().registered("bob", "phone").await);
    let mut device = Device::new("alice", "laptop");
    alice.uploaded(&device.key_packages(10)).await;
    let at = registered_at(&alice, "alice", "laptop").await;
    for _ in 0..5 {
        let adders: Vec<_> = (0..4)
            .map(|_| {
                let bob = bob.at(&server.base);
                tokio::spawn(async move {
                    for _ in 0..10 {
                        let answer = bob.reserve("alice").await;
                        if answer.status == 200 {
                            bob.release(&answer.json["reservations"][0]).await;
                        }
                    }
                })
            })
            .collect();
        let new = Device::new("alice", "laptop").with_new_key();
        let answer = upload_with(&alice, &new.key_packages(10), &[device.change_to(&new, at)]).await.ok();
        assert_eq!(answer["changed_signature_keys"], json!([1]), "{answer}");
        let current: BTreeSet<_> =
            answer["accepted"].as_array().unwrap().iter().map(|one| one["keypackage_ref"].to_string()).collect();
        for adder in adders {
            adder.await.unwrap();
        }
        for _ in 0..current.len() {
            let reservation = bob.reserved("alice").await;
            assert!(current.contains(&reservation["keypackage_ref"].to_string()), "{reservation}");
        }
        assert_eq!(bob.reserve("alice").await.status, 404, "there is more than the new ones");
        device = new;
    }
}
