//! The inventory, and the digest over it.

use jiff::SignedDuration;
use rstest::rstest;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::{
    audit::{Scene, scene},
    support::{Database, Device, group},
};

#[rstest]
#[tokio::test]
async fn the_inventory_shows_where_each_is(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let Scene { server, alice, device, bob } = scene(db).await;
    alice.uploaded(&device.key_packages(3)).await;
    let (spent, held) = (bob.reserved("alice").await, bob.reserved("alice").await);
    let spending = bob.spend(&spent, "friends").await.ok();
    let inventory = async || {
        let page = alice.get("/keypackages/inventory").await.ok();
        let items = page["keypackages"].as_array().unwrap().clone();
        move |reservation: &Value| {
            let of = |item: &&Value| item["keypackage_ref"] == reservation["keypackage_ref"];
            items.iter().find(of).unwrap().clone()
        }
    };
    let now = inventory().await;
    let actor = json!({"user": "bob", "device": "phone"});
    let item = |reservation: &Value, state: &str, (spent_at, group_id): (Value, Value)| {
        json!({"keypackage_ref": reservation["keypackage_ref"], "state": state, "ciphersuite": 1,
            "not_after": reservation["not_after"], "last_resort": false, "reserved_by": actor,
            "reservation_id": reservation["reservation_id"], "reserved_until": reservation["expires_at"],
            "spent_at": spent_at, "group_id": group_id})
    };
    assert_eq!(now(&spent), item(&spent, "spent", (spending["spent_at"].clone(), json!(group("friends")))));
    assert_eq!(now(&held), item(&held, "reserved", (json!(null), json!(null))));
    server.advance(SignedDuration::from_secs(60));
    assert_eq!(inventory().await(&held), item(&held, "available", (json!(null), json!(null))));
}

/// SHA-256 over the sorted refs, computed here from what the test knows.
fn digest(refs: &[&Value]) -> String {
    let mut refs: Vec<_> = refs.iter().map(|one| hex::decode(one.as_str().unwrap()).unwrap()).collect();
    refs.sort_unstable();
    hex::encode(Sha256::digest(refs.concat()))
}

#[rstest]
#[tokio::test]
async fn the_digest_is_of_what_is_live_at_each_step(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let Scene { server, alice, device, bob } = scene(db).await;
    let stated = async || alice.status().await["inventory_digest"].as_str().unwrap().to_owned();
    assert_eq!(stated().await, digest(&[]));
    let mut batch = device.key_packages(3);
    batch.push(device.last_resort());
    let accepted = alice.upload(&batch).await.ok()["accepted"].clone();
    let end = server.now() + SignedDuration::from_mins(90);
    let short = Device::new("alice", "laptop").valid_until(end).key_package();
    let expiring = alice.upload(&[short]).await.ok();
    let expiring = &expiring["accepted"][0]["keypackage_ref"];
    let mut live: Vec<_> = accepted.as_array().unwrap().iter().map(|one| &one["keypackage_ref"]).collect();
    live.push(expiring);
    assert_eq!(stated().await, digest(&live));

    // Leave the KeyPackage that ends first: it has to expire.
    let mut reservation = bob.reserved("alice").await;
    while reservation["keypackage_ref"] == *expiring {
        reservation = bob.reserved("alice").await;
    }
    assert_eq!(stated().await, digest(&live), "what is reserved is still there");
    bob.spend(&reservation, "friends").await.ok();
    live.retain(|one| **one != reservation["keypackage_ref"]);
    assert_eq!(stated().await, digest(&live));
    let revoked = live.iter().find(|one| **one != expiring).copied().unwrap();
    alice.post("/keypackages/revoke", &json!({"refs": [revoked]})).await.ok();
    live.retain(|one| *one != revoked);
    assert_eq!(stated().await, digest(&live));
    server.advance(SignedDuration::from_mins(90));
    live.retain(|one| *one != expiring);
    assert_eq!(stated().await, digest(&live), "what has expired counts until it is swept");
    server.sweep().await;
    assert_eq!(stated().await, digest(&live));
    assert_eq!(live.len(), 2);
}
