//! The directory of signature keys: one of each ciphersuite, changed by a proof alone.

mod lookup;
mod races;

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use keypool_openapi::{ProblemType, signature_key_fingerprint};
use keypool_validation::key_package::CredentialBinding;
use openmls::prelude::Ciphersuite;
use rstest::rstest;
use serde_json::{Value, json};

use crate::support::{ADMIN_TOKEN, Answer, Anywhere, Database, Device, Http, TestServer, encode};

const SUITE_3: Ciphersuite = Ciphersuite::MLS_128_DHKEMX25519_CHACHA20POLY1305_SHA256_Ed25519;

struct Scene {
    server: TestServer,
    alice: Http,
    device: Device,
    bob: Http,
}

async fn scene(db: impl Into<crate::support::Where>) -> Scene {
    let server = TestServer::start(db).await;
    let alice = server.anyone().registered("alice", "laptop").await;
    let bob = server.anyone().registered("bob", "phone").await;
    Scene { server, alice, device: Device::new("alice", "laptop"), bob }
}

/// The directory's entry of a device.
async fn listed(caller: &Http, user: &str, device: &str) -> Value {
    let list = caller.get(&format!("/users/{user}/devices?removed=true")).await.ok();
    let devices = list["devices"].as_array().unwrap().iter();
    devices.clone().find(|one| one["device"] == device).unwrap().clone()
}

/// The keys of a list, without the times.
fn keys(list: &Value) -> Vec<(u64, String)> {
    let key = |one: &Value| (one["ciphersuite"].as_u64().unwrap(), one["signature_key"].as_str().unwrap().to_owned());
    list.as_array().unwrap().iter().map(key).collect()
}

fn key(device: &Device) -> (u64, String) {
    (1, encode(device.signature_key()))
}

async fn registered_at(caller: &Http, user: &str, device: &str) -> Timestamp {
    listed(caller, user, device).await["registered_at"].as_str().unwrap().parse().unwrap()
}

async fn upload_with(caller: &Http, packages: &[Vec<u8>], changes: &[Value]) -> Answer {
    let packages: Vec<_> = packages.iter().map(|bytes| encode(bytes)).collect();
    let body = json!({"keypackages": packages, "signature_key_changes": changes});
    caller.post("/keypackages/upload", &body).await
}

/// Of an upload: the indexes that were accepted, and the reasons of the others.
fn outcome(answer: &Value) -> (Vec<u64>, Vec<&str>) {
    let accepted = answer["accepted"].as_array().unwrap().iter().map(|one| one["index"].as_u64().unwrap());
    let rejected = answer["rejected"].as_array().unwrap().iter().map(|one| one["reason"].as_str().unwrap());
    (accepted.collect(), rejected.collect())
}

async fn trail(caller: &Http) -> Vec<Value> {
    caller.get("/keypackages/audit?limit=1000").await.ok()["events"].as_array().unwrap().clone()
}

#[rstest]
#[tokio::test]
async fn a_device_keeps_the_key_of_its_first_upload(#[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere) {
    let Scene { server: _server, alice, device, bob } = scene(db).await;
    assert_eq!(listed(&bob, "alice", "laptop").await["signature_keys"], json!([]));
    alice.uploaded(&device.key_packages(2)).await;
    let known = listed(&bob, "alice", "laptop").await;
    assert_eq!(keys(&known["signature_keys"]), [key(&device)]);
    assert!(known["signature_keys"][0]["since"].is_string());
    assert_eq!((&known["previous_signature_keys"], &known["removed_at"]), (&json!([]), &Value::Null));

    let other = Device::new("alice", "laptop").with_new_key();
    let answer = alice.upload(&[other.key_package(), device.key_package(), other.last_resort()]).await.ok();
    assert_eq!(outcome(&answer), (vec![1], vec!["signature-key-mismatch"; 2]));
    let detail = answer["rejected"][0]["detail"].as_str().unwrap();
    for part in [
        signature_key_fingerprint(device.signature_key()),
        signature_key_fingerprint(other.signature_key()),
        "signature_key_changes".to_owned(),
        "register it anew".to_owned(),
    ] {
        assert!(detail.contains(&part), "{part} is not in {detail}");
    }
    // Nothing that becomes of the KeyPackages ends the key.
    alice.post("/keypackages/revoke", &json!({"all": true})).await.ok();
    assert_eq!(outcome(&alice.upload(&[other.key_package()]).await.ok()).1, ["signature-key-mismatch"]);
    assert_eq!(listed(&alice, "alice", "laptop").await["signature_keys"], known["signature_keys"]);
    alice.uploaded(&[device.key_package()]).await;
}

#[rstest]
#[tokio::test]
async fn each_ciphersuite_has_its_own_key(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let server = TestServer::start_with(db, |config| config.ciphersuites = vec![1, 3]).await;
    let alice = server.anyone().registered("alice", "laptop").await;
    let (one, three) = (Device::new("alice", "laptop"), Device::new("alice", "laptop").of_suite(SUITE_3));
    alice.uploaded(&[three.key_package(), one.key_package()]).await;
    let known = listed(&alice, "alice", "laptop").await;
    assert_eq!(keys(&known["signature_keys"]), [key(&one), (3, encode(three.signature_key()))]);
    // One changes, and the other stays with all that is under it.
    let new = Device::new("alice", "laptop").of_suite(SUITE_3).with_new_key();
    let at = registered_at(&alice, "alice", "laptop").await;
    let answer = upload_with(&alice, &[new.key_package()], &[three.change_to(&new, at)]).await.ok();
    assert_eq!(answer["changed_signature_keys"], json!([3]));
    let known = listed(&alice, "alice", "laptop").await;
    assert_eq!(keys(&known["signature_keys"]), [key(&one), (3, encode(new.signature_key()))]);
    assert_eq!(keys(&known["previous_signature_keys"]), [(3, encode(three.signature_key()))]);
    assert_eq!((&answer["pool"]["fresh"], &answer["pool"]["revoked"]), (&json!(2), &json!(1)));
}

#[rstest]
#[tokio::test]
async fn a_change_takes_new_packages_in_and_old_ones_out(#[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere) {
    let Scene { server: _server, alice, device, bob } = scene(db).await;
    alice.uploaded(&device.key_packages(4)).await;
    alice.uploaded(&[device.last_resort()]).await;
    let held = bob.reserved("alice").await;
    let given_back = bob.reserved("alice").await;
    bob.release(&given_back).await.ok();

    let new = Device::new("alice", "laptop").with_new_key();
    let at = registered_at(&alice, "alice", "laptop").await;
    let (packages, changes) =
        ([new.key_packages(2), vec![device.key_package()]].concat(), [device.change_to(&new, at)]);
    let answer = upload_with(&alice, &packages, &changes).await.ok();
    assert_eq!(outcome(&answer), (vec![0, 1], vec!["signature-key-mismatch"]));
    assert_eq!(answer["changed_signature_keys"], json!([1]));
    let pool = &answer["pool"];
    let counts = ["fresh", "lapsed", "reserved", "revoked"].map(|count| pool[count].as_u64().unwrap());
    assert_eq!((counts, &pool["last_resort"]["present"]), ([2, 0, 1, 3], &json!(false)));
    let known = listed(&bob, "alice", "laptop").await;
    assert_eq!(keys(&known["signature_keys"]), [key(&new)]);
    assert_eq!(keys(&known["previous_signature_keys"]), [key(&device)]);
    let (since, until) = (&known["signature_keys"][0]["since"], &known["previous_signature_keys"][0]["until"]);
    assert_eq!(since, until);

    let events = trail(&alice).await;
    let change = &events[0];
    assert_eq!((&change["action"], &change["until"]), (&json!("signature-key-changed"), &Value::Null));
    assert_eq!(change["keypackage_ref"], answer["accepted"][0]["keypackage_ref"]);
    assert_eq!(change["signature_key"], encode(new.signature_key()));
    assert_eq!(change["actor"], json!({"user": "alice", "device": "laptop"}));
    let revoked = events.iter().filter(|event| event["action"] == "revoke").count();
    assert_eq!(revoked, 4, "three, and the last resort");

    // The answer was lost: the same again changes nothing.
    let again = upload_with(&alice, &packages, &changes).await.ok();
    assert_eq!((&again["accepted"], &again["changed_signature_keys"]), (&answer["accepted"], &json!([1])));
    assert_eq!(trail(&alice).await.len(), events.len());
    bob.spend(&held, "friends").await.ok();
    alice.uploaded(&[new.last_resort()]).await;
}

#[rstest]
#[tokio::test]
async fn what_was_reserved_under_the_old_key_is_handed_out_to_nobody_else(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
) {
    let Scene { server, alice, device, bob } = scene(db).await;
    alice.uploaded(&device.key_packages(3)).await;
    let (released, lapsed, late) =
        (bob.reserved("alice").await, bob.reserved("alice").await, bob.reserved("alice").await);
    let new = Device::new("alice", "laptop").with_new_key();
    let at = registered_at(&alice, "alice", "laptop").await;
    let answer = upload_with(&alice, &[new.key_package()], &[device.change_to(&new, at)]).await.ok();
    assert_eq!(answer["changed_signature_keys"], json!([1]));
    bob.release(&released).await.ok();
    let next = bob.reserved("alice").await;
    assert_eq!(next["keypackage_ref"], answer["accepted"][0]["keypackage_ref"]);
    assert_eq!(bob.reserve("alice").await.status, 404);
    bob.spend(&next, "friends").await.ok();
    server.advance(SignedDuration::from_secs(90));
    assert_eq!(bob.reserve("alice").await.status, 404, "one that lapsed under the old key was handed out");
    server.sweep().await;
    assert_eq!(bob.reserve("alice").await.status, 404, "{lapsed}");
    // Its adder was slow, and has committed: nobody else can have got it.
    bob.spend(&late, "friends").await.ok();
}

#[rstest]
#[tokio::test]
async fn only_the_old_key_makes_a_change(#[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere) {
    let Scene { server: _server, alice, device, bob: _bob } = scene(db).await;
    let phone = alice.registered("alice", "phone").await;
    phone.uploaded(&[Device::new("alice", "phone").key_package()]).await;
    alice.uploaded(&device.key_packages(2)).await;
    let before = listed(&alice, "alice", "laptop").await;
    let at = registered_at(&alice, "alice", "laptop").await;
    let new = Device::new("alice", "laptop").with_new_key();
    let other = Device::new("alice", "laptop").with_new_key();
    let good = device.change_to(&new, at);
    let with = |field: &str, value: Value| {
        let mut change = good.clone();
        change[field] = value;
        change
    };
    let second = SignedDuration::from_secs(1);
    for bad in [
        new.change_to(&new, at),
        other.change_to(&new, at),
        Device::new("alice", "phone").change_to(&new, at),
        device.change_to(&new, at + second),
        with("signature_key", json!(encode(other.signature_key()))),
        with("ciphersuite", json!(3)),
        with("signature", json!("")),
        with("signature", json!(encode(&[0; 64]))),
    ] {
        let answer = upload_with(&alice, &[new.key_package()], std::slice::from_ref(&bad)).await.ok();
        assert_eq!(outcome(&answer), (vec![], vec!["signature-key-mismatch"]), "{bad}");
        assert_eq!(answer["changed_signature_keys"], json!([]), "{bad}");
        assert_eq!(answer["pool"]["fresh"], 2, "{bad}: something was revoked");
    }
    let answer = upload_with(&alice, &[new.key_package()], &[other.change_to(&new, at)]).await.ok();
    let detail = answer["rejected"][0]["detail"].as_str().unwrap();
    assert!(detail.contains("signature is not by the old key"), "{detail}");
    // Without a KeyPackage under the new key nothing changes.
    let answer = upload_with(&alice, &[device.key_package()], std::slice::from_ref(&good)).await.ok();
    assert_eq!((outcome(&answer), &answer["changed_signature_keys"]), ((vec![0], vec![]), &json!([])));
    assert_eq!(listed(&alice, "alice", "laptop").await, before);
    // Nor does another device of the user change it, or the same change twice in one upload.
    let answer = upload_with(&phone, &[new.key_package()], std::slice::from_ref(&good)).await.ok();
    assert_eq!(outcome(&answer).1, ["credential-mismatch"]);
    let twice = upload_with(&alice, &[new.key_package()], &[good.clone(), good.clone()]).await;
    twice.is_problem(400, ProblemType::MalformedRequest);
    assert_eq!(listed(&alice, "alice", "laptop").await, before);
    let answer = upload_with(&alice, &[new.key_package()], &[good]).await.ok();
    assert_eq!(answer["changed_signature_keys"], json!([1]));
}

#[rstest]
#[tokio::test]
async fn a_key_never_comes_back(#[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere) {
    let Scene { server: _server, alice, device: first, bob: _bob } = scene(db).await;
    let [second, third] = [(); 2].map(|()| Device::new("alice", "laptop").with_new_key());
    alice.uploaded(&[first.key_package()]).await;
    let at = registered_at(&alice, "alice", "laptop").await;
    let replayed = first.change_to(&second, at);
    for (old, new) in [(&first, &second), (&second, &third)] {
        let answer = upload_with(&alice, &[new.key_package()], &[old.change_to(new, at)]).await.ok();
        assert_eq!(answer["changed_signature_keys"], json!([1]));
    }
    for (new, change) in
        [(&second, replayed), (&second, third.change_to(&second, at)), (&first, third.change_to(&first, at))]
    {
        let answer = upload_with(&alice, &[new.key_package()], &[change]).await.ok();
        assert_eq!(outcome(&answer), (vec![], vec!["signature-key-mismatch"]));
        let detail = answer["rejected"][0]["detail"].as_str().unwrap();
        assert!(detail.contains("had this key before"), "{detail}");
    }
    let known = listed(&alice, "alice", "laptop").await;
    assert_eq!(keys(&known["signature_keys"]), [key(&third)]);
    assert_eq!(keys(&known["previous_signature_keys"]).len(), 2);
}

#[rstest]
#[tokio::test]
async fn a_change_makes_room_for_a_full_pool(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let server = TestServer::start_with(db, |config| config.pool_capacity = 3).await;
    let (alice, bob) =
        (server.anyone().registered("alice", "laptop").await, server.anyone().registered("bob", "phone").await);
    let (device, new) = (Device::new("alice", "laptop"), Device::new("alice", "laptop").with_new_key());
    alice.uploaded(&device.key_packages(3)).await;
    bob.reserved("alice").await;
    let at = registered_at(&alice, "alice", "laptop").await;
    let answer = upload_with(&alice, &new.key_packages(3), &[device.change_to(&new, at)]).await.ok();
    // The one that is reserved still counts.
    assert_eq!(outcome(&answer), (vec![0, 1], vec!["pool-full"]));
    assert_eq!(answer["pool"]["revoked"], 2);
}

#[rstest]
#[tokio::test]
async fn a_new_registration_begins_anew(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let Scene { server, alice, device, bob } = scene(db).await;
    let phone = alice.registered("alice", "phone").await;
    alice.uploaded(&[device.key_package()]).await;
    let first_at = registered_at(&alice, "alice", "laptop").await;
    server.advance(SignedDuration::from_secs(10));
    phone.delete("/devices/laptop").await.ok();
    let removed = listed(&bob, "alice", "laptop").await;
    assert_eq!(
        (&removed["signature_keys"], keys(&removed["previous_signature_keys"])),
        (&json!([]), vec![key(&device)])
    );
    assert_eq!(removed["removed_at"], removed["previous_signature_keys"][0]["until"]);
    let present = bob.get("/users/alice/devices").await.ok();
    assert_eq!(present["devices"].as_array().unwrap().len(), 1, "{present}");

    let new = Device::new("alice", "laptop").with_new_key();
    for span in [0, 10] {
        server.advance(SignedDuration::from_secs(span));
        let laptop = phone.registered("alice", "laptop").await;
        assert_eq!(keys(&listed(&bob, "alice", "laptop").await["previous_signature_keys"])[0].1, key(&device).1);
        // A change that was signed for the registration before is void, for every key.
        laptop.uploaded(&[device.key_package()]).await;
        let stale = device.change_to(&new, first_at);
        let answer = upload_with(&laptop, &[new.key_package()], &[stale]).await.ok();
        assert_eq!(outcome(&answer).1, ["signature-key-mismatch"]);
        phone.delete("/devices/laptop").await.ok();
    }
    let laptop = phone.registered("alice", "laptop").await;
    laptop.uploaded(&[new.key_package()]).await;
    let known = listed(&bob, "alice", "laptop").await;
    assert_eq!(keys(&known["signature_keys"]), [key(&new)]);
    assert_eq!(known["removed_at"], Value::Null);
}

#[rstest]
#[tokio::test]
async fn no_call_of_the_operator_changes_a_key(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let server = TestServer::start_with(db, |config| config.admin_token = Some(ADMIN_TOKEN.into())).await;
    let alice = server.anyone().registered("alice", "laptop").await;
    let (device, bob) = (Device::new("alice", "laptop"), server.anyone().registered("bob", "phone").await);
    alice.uploaded(&[device.key_package()]).await;
    let admin = server.anyone().with_token(ADMIN_TOKEN);
    let new = Device::new("alice", "laptop").with_new_key();
    let at = registered_at(&alice, "alice", "laptop").await;
    let upload = upload_with(&admin, &[new.key_package()], &[device.change_to(&new, at)]).await;
    upload.is_problem(403, ProblemType::Forbidden);
    alice.post("/devices/laptop/token", &json!({})).await.ok();
    assert_eq!(keys(&listed(&bob, "alice", "laptop").await["signature_keys"]), [key(&device)]);
    admin.delete("/admin/users/alice/devices/laptop").await.ok();
    assert_eq!(listed(&bob, "alice", "laptop").await["signature_keys"], json!([]));
}

#[rstest]
#[tokio::test]
async fn where_credentials_are_not_bound_no_key_is_kept(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let off = |config: &mut keypool_server::config::Config| config.credential_binding = CredentialBinding::Off;
    let server = TestServer::start_with(db, off).await;
    let alice = server.anyone().registered("alice", "laptop").await;
    let [one, other] = [(); 2].map(|()| Device::new("alice", "laptop").with_new_key());
    alice.uploaded(&[one.key_package(), other.key_package()]).await;
    let at = registered_at(&alice, "alice", "laptop").await;
    let answer = upload_with(&alice, &[other.key_package()], &[one.change_to(&other, at)]).await.ok();
    assert_eq!((outcome(&answer), &answer["changed_signature_keys"]), ((vec![0], vec![]), &json!([])));
    let known = listed(&alice, "alice", "laptop").await;
    assert_eq!((&known["signature_keys"], &known["previous_signature_keys"]), (&json!([]), &json!([])));
    assert_eq!(server.database().number("SELECT count(*) AS n FROM signature_keys"), 0);
}

#[rstest]
#[tokio::test]
async fn pools_from_before_keep_the_key_of_their_oldest_package(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
) {
    let place = Arc::new(tokio::task::spawn_blocking(move || db.fresh()).await.unwrap());
    let off = |config: &mut keypool_server::config::Config| config.credential_binding = CredentialBinding::Off;
    let old = TestServer::start_at(Arc::clone(&place), off).await;
    let alice = old.anyone().registered("alice", "laptop").await;
    let bob = old.anyone().registered("bob", "phone").await;
    let [gone, oldest, other] = [(); 3].map(|()| Device::new("alice", "laptop").with_new_key());
    alice.uploaded(&[gone.key_package()]).await;
    alice.post("/keypackages/revoke", &json!({"all": true})).await.ok();
    alice.uploaded(&[oldest.key_package()]).await;
    // It ends sooner, and came later.
    alice.uploaded(&[other.valid_for(SignedDuration::from_hours(48)).key_package()]).await;
    let bobs = Device::new("bob", "phone");
    bob.uploaded(&[bobs.key_package()]).await;
    drop(old);

    let server = TestServer::start_at(Arc::clone(&place), |_| ()).await;
    let (alice, bob) = (alice.at(&server.base), bob.at(&server.base));
    assert_eq!(keys(&listed(&bob, "alice", "laptop").await["signature_keys"]), [key(&oldest)]);
    assert_eq!(keys(&listed(&bob, "bob", "phone").await["signature_keys"]), [key(&bobs)]);
    let refused = Device::new("alice", "laptop").with_new_key();
    assert_eq!(outcome(&alice.upload(&[refused.key_package()]).await.ok()).1, ["signature-key-mismatch"]);
    alice.uploaded(&[oldest.key_package()]).await;

    // A server of the version before, beside this one, records no keys.
    server.database().run("DELETE FROM signature_keys");
    assert_eq!(
        outcome(&bob.upload(&[Device::new("bob", "phone").with_new_key().key_package()]).await.ok()).1,
        ["signature-key-mismatch"]
    );
    assert_eq!(keys(&listed(&bob, "bob", "phone").await["signature_keys"]), [key(&bobs)]);
}

#[rstest]
#[tokio::test]
async fn a_registration_by_the_version_before_begins_anew(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
) {
    let Scene { server, alice, device, bob } = scene(db).await;
    alice.uploaded(&[device.key_package()]).await;
    // It removes the device, and registers it anew, and does not know of keys.
    let later = server.now().as_second() + 7;
    server.database().run(&format!("UPDATE devices SET created_at = {later} WHERE user_name = 'alice'"));
    server.database().run("DELETE FROM key_packages");
    server.advance(SignedDuration::from_mins(1));
    let known = listed(&bob, "alice", "laptop").await;
    assert_eq!((&known["signature_keys"], keys(&known["previous_signature_keys"])), (&json!([]), vec![key(&device)]));
    let new = Device::new("alice", "laptop").with_new_key();
    alice.uploaded(&[new.key_package()]).await;
    let known = listed(&bob, "alice", "laptop").await;
    assert_eq!(keys(&known["signature_keys"]), [key(&new)]);
    assert_eq!(known["previous_signature_keys"][0]["until"], known["registered_at"]);
}

#[rstest]
#[tokio::test]
async fn a_token_that_is_remembered_and_no_longer_valid_sets_no_key(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
) {
    let place = Arc::new(tokio::task::spawn_blocking(move || db.fresh()).await.unwrap());
    let here = TestServer::start_at(Arc::clone(&place), |_| ()).await;
    let there = TestServer::start_at(Arc::clone(&place), |_| ()).await;
    let stolen = here.anyone().registered("alice", "laptop").await;
    let phone = stolen.registered("alice", "phone").await;
    // The other server remembers the token from here on.
    stolen.at(&there.base).status().await;
    phone.delete("/devices/laptop").await.ok();
    let laptop = phone.registered("alice", "laptop").await;
    let forged = Device::new("alice", "laptop").with_new_key();
    let upload = stolen.at(&there.base).upload(&[forged.key_package()]).await;
    upload.is_problem(401, ProblemType::Unauthenticated);
    laptop.uploaded(&[Device::new("alice", "laptop").key_package()]).await;
    assert_eq!(
        keys(&listed(&phone, "alice", "laptop").await["signature_keys"]),
        [key(&Device::new("alice", "laptop"))]
    );
}
