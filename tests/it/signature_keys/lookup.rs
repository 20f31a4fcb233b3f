//! How others learn of keys: look-ups, and the user's other devices.

use std::time::Duration;

use keypool_openapi::ProblemType;
use rstest::rstest;
use serde_json::{Value, json};

use super::{Scene, registered_at, scene, upload_with};
use crate::support::{Anywhere, Database, Device, Http};

#[rstest]
#[tokio::test]
async fn many_are_looked_up_at_once(#[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere) {
    let Scene { server: _server, alice, device, bob } = scene(db).await;
    alice.uploaded(&[device.key_package()]).await;
    let second = alice.registered("alice", "lookup").await;
    second.uploaded(&[Device::new("alice", "lookup").key_package()]).await;
    alice.delete("/devices/lookup").await.ok();
    let look = async |users: Value, removed: bool| {
        bob.post("/devices/lookup", &json!({"users": users, "removed": removed})).await
    };
    let answer = look(json!(["zoe", "bob", "alice", "alice"]), false).await.ok();
    assert_eq!((&answer["unknown"], &answer["remaining"]), (&json!(["zoe"]), &json!([])));
    let users = answer["users"].as_array().unwrap();
    assert_eq!(users[0], bob.get("/users/alice/devices").await.ok());
    assert_eq!(users[1], bob.get("/users/bob/devices").await.ok());
    assert_eq!(users.len(), 2);
    let with_removed = look(json!(["alice"]), true).await.ok();
    assert_eq!(with_removed["users"][0], bob.get("/users/alice/devices?removed=true").await.ok());
    assert_eq!(with_removed["users"][0]["devices"].as_array().unwrap().len(), 2);
    look(json!([]), false).await.is_problem(400, ProblemType::MalformedRequest);
    let many: Vec<_> = (0..1_001).map(|number| format!("user-{number}")).collect();
    look(json!(many), false).await.is_problem(400, ProblemType::MalformedRequest);
    assert_eq!(look(json!(many[..1_000]), false).await.ok()["unknown"].as_array().unwrap().len(), 1_000);
}

#[rstest]
#[tokio::test]
async fn a_look_up_ends_after_four_mebibytes(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let Scene { server, alice: _alice, device: _device, bob } = scene(db).await;
    let bytes = if db == Database::Postgres { "convert_to('key-' || n, 'UTF8')" } else { "CAST('key-' || n AS BLOB)" };
    server.database().run(&format!(
        "WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < 30000) \
         INSERT INTO signature_keys (device_id, registered_at, ciphersuite, signature_key, since, until) \
         SELECT id, created_at, 1, {bytes}, n, n FROM devices, numbers WHERE user_name = 'alice'"
    ));
    let look = async |users: &[&str]| bob.post("/devices/lookup", &json!({"users": users})).await;
    let answer = look(&["alice", "bob", "zoe"]).await;
    assert!(answer.text.len() < 5 * 1024 * 1024, "{} bytes", answer.text.len());
    let answer = answer.ok();
    let users: Vec<_> = answer["users"].as_array().unwrap().iter().map(|list| list["user"].clone()).collect();
    assert_eq!(
        (users, &answer["unknown"], &answer["remaining"]),
        (vec![json!("alice")], &json!(["zoe"]), &json!(["bob"]))
    );
    assert_eq!(look(&["bob"]).await.ok()["remaining"], json!([]));
}

#[rstest]
#[tokio::test]
async fn the_users_other_devices_are_told(#[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere) {
    let Scene { server: _server, alice, device, bob } = scene(db).await;
    alice.uploaded(&[device.key_package()]).await;
    let phone = alice.registered("alice", "phone").await;
    let version = async |caller: &Http| caller.get("/messages").await.ok()["devices_version"].as_u64().unwrap();
    let bobs = version(&bob).await;
    let at = registered_at(&alice, "alice", "laptop").await;
    let new = Device::new("alice", "laptop").with_new_key();
    let mut known = version(&phone).await;
    let mut tablet = None;
    for event in 0..3 {
        let waits = {
            let phone = phone.clone();
            tokio::spawn(async move { phone.get(&format!("/messages?wait=30&devices_version={known}")).await.ok() })
        };
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(!waits.is_finished(), "nothing has happened");
        match event {
            0 => {
                let answer = upload_with(&alice, &[new.key_package()], &[device.change_to(&new, at)]).await.ok();
                assert_eq!(answer["changed_signature_keys"], json!([1]));
            }
            1 => tablet = Some(alice.registered("alice", "tablet").await),
            _ => drop(alice.delete("/devices/tablet").await.ok()),
        }
        let page = tokio::time::timeout(Duration::from_secs(10), waits).await.unwrap().unwrap();
        assert_ne!(page["devices_version"], known, "{event}");
        known = page["devices_version"].as_u64().unwrap();
        assert_eq!(known, version(&phone).await);
    }
    drop(tablet);
    // A device with an earlier version gets an answer at once; a device with the current one waits.
    let page = phone.get("/messages?wait=30&devices_version=0").await.ok();
    assert_eq!((&page["devices_version"], &page["messages"]), (&json!(known), &json!([])));
    alice.uploaded(&[new.key_package()]).await;
    assert_eq!(version(&phone).await, known, "an upload is no news");
    assert_eq!(version(&bob).await, bobs, "another user's devices are no news");
}
