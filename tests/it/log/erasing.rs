//! What the log keeps of devices that are removed, and of steps whose trail is forgotten.

use std::time::Duration;

use jiff::SignedDuration;
use keypool_server::config::{Config, Limits};
use keypool_transparency::{
    answers::Found,
    history::Succession,
    key_package::KeyPackageFields,
    leaf::Leaf,
    merkle::{is_included, leaf_hash, path},
    package::PackageId,
    verdict::Verdict,
};
use keypool_validation::key_package::CredentialBinding;
use rstest::rstest;
use serde_json::json;

use super::{
    checks::{Handed, entries, is_whole, leaves, policy, proofs, reserve},
    heads::head,
};
use crate::support::{Database, Device, TestServer, with_the_keys_of};

const BOB: (&str, &str) = ("bob", "phone");
const DAY: SignedDuration = SignedDuration::from_hours(24);

fn short_trail(config: &mut Config) {
    config.audit_retention = Duration::from_hours(24);
    config.limits = Limits::Off;
}

async fn is_fine(handed: &Handed) {
    let verdict = handed.verdict().await;
    assert!(matches!(verdict, Verdict::Fine), "{verdict:?}");
}

/// How many devices of a user have a secret of the log.
fn secrets(server: &TestServer, user: &str) -> i64 {
    server.database().number(&format!(
        "SELECT count(*) AS n FROM log_secrets s JOIN devices d ON d.id = s.device_id WHERE d.user_name = '{user}'"
    ))
}

#[rstest]
#[tokio::test]
async fn a_removed_device_leaves_all_proofs_intact(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let server = TestServer::start(db).await;
    let alice = server.anyone().registered("alice", "laptop").await;
    alice.uploaded(&Device::new("alice", "laptop").key_packages(3)).await;
    let bob = server.anyone().registered(BOB.0, BOB.1).await;
    let mut spent = reserve(&bob, BOB, "alice", "friends").await;
    spent.spend().await;
    let held = reserve(&bob, BOB, "alice", "friends").await;
    is_whole(&server).await;
    is_fine(&spent).await;
    alice.delete("/devices/laptop").await.ok();
    assert_eq!(is_whole(&server).await, 5, "the removal revokes what is held, and what is at rest");
    is_fine(&spent).await;
    is_fine(&held).await;
}

/// A leaf is made from the trail and the owner's secret. Without them it is noise, and its place in the tree is the same.
#[rstest]
#[tokio::test]
async fn a_forgotten_device_leaves_noise(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let server = TestServer::start_with(db, short_trail).await;
    let bob = server.anyone().registered(BOB.0, BOB.1).await;
    let mut owners = Vec::new();
    for owner in ["alice", "carol", "dave"] {
        let caller = server.anyone().registered(owner, "laptop").await;
        caller.uploaded(&Device::new(owner, "laptop").key_packages(2)).await;
        reserve(&bob, BOB, owner, "friends").await.spend().await;
        owners.push(caller);
    }
    let mut old = reserve(&bob, BOB, "alice", "friends").await;
    old.spend().await;
    is_whole(&server).await;
    let (policy, kept) = (policy(&bob).await, head(&bob, None).await.checkpoint);
    let keys = policy.log_keys();
    let of_old = json!([{"reservation_id": old.reservation["reservation_id"]}]);
    let before = proofs(&bob, of_old.clone()).await;
    assert_eq!([secrets(&server, "alice"), secrets(&server, "dave")], [1, 1]);
    owners[0].delete("/devices/laptop").await.ok();
    is_whole(&server).await;
    server.sweep().await;
    assert_eq!(secrets(&server, "alice"), 1, "the trail still needs it");
    is_fine(&old).await;
    server.advance(DAY * 2);
    let mut recent = reserve(&bob, BOB, "carol", "friends").await;
    recent.spend().await;
    is_whole(&server).await;
    server.sweep().await;
    assert_eq!(secrets(&server, "alice"), 0);
    assert_eq!([secrets(&server, "carol"), secrets(&server, "dave")], [1, 1], "they are not removed");
    assert!(proofs(&bob, of_old).await.proofs.is_empty(), "what is forgotten is left out");
    is_fine(&recent).await;
    // What was proven before stays proven, and the leaves are where they were.
    let verdict = old.verdict_of(&before, &[], &policy);
    assert!(matches!(verdict, Verdict::Fine), "{verdict:?}");
    let head = head(&bob, Some(&keys.checkpoint(&kept).unwrap())).await;
    assert_eq!(head.succession(&kept, &keys), Ok(Succession::Continues));
    let newest = keys.checkpoint(&head.checkpoint).unwrap();
    let hashes: Vec<_> = entries(&server).await.iter().map(|entry| leaf_hash(entry)).collect();
    for answer in &before.proofs {
        let Found::Included { leaf, index, .. } = &answer.found else { panic!("{answer:?}") };
        let path = path(&hashes, usize::try_from(*index).unwrap()).unwrap();
        assert!(is_included(&leaf.hash(), *index, newest.size, &newest.root, &path));
    }
}

/// A device that has nothing in the trail is forgotten at once.
#[rstest]
#[tokio::test]
async fn a_device_without_a_trail_is_forgotten_with_its_removal(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
) {
    let server = TestServer::start_with(db, short_trail).await;
    let alice = server.anyone().registered("alice", "laptop").await;
    alice.uploaded(&Device::new("alice", "laptop").key_packages(1)).await;
    let bob = server.anyone().registered(BOB.0, BOB.1).await;
    reserve(&bob, BOB, "alice", "friends").await.spend().await;
    is_whole(&server).await;
    server.advance(DAY * 2);
    server.sweep().await;
    assert_eq!(secrets(&server, "alice"), 1);
    alice.delete("/devices/laptop").await.ok();
    assert_eq!(secrets(&server, "alice"), 0);
}

/// A lapse that is recorded late is older than the trail goes back.
#[rstest]
#[tokio::test]
async fn no_step_is_forgotten_before_it_is_in_the_log(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let server = TestServer::start_with(db, short_trail).await;
    let alice = server.anyone().registered("alice", "laptop").await;
    alice.uploaded(&Device::new("alice", "laptop").key_packages(1)).await;
    let bob = server.anyone().registered(BOB.0, BOB.1).await;
    is_whole(&server).await;
    // The sequencer cannot write.
    server.database().run("ALTER TABLE log_tiles RENAME TO lost");
    reserve(&bob, BOB, "alice", "friends").await;
    server.advance(DAY * 3);
    server.sweep().await;
    let steps = || server.database().number("SELECT count(*) AS n FROM audit_events WHERE step IS NOT NULL");
    assert_eq!(steps(), 2, "a step that is not in the log is gone");
    server.database().run("ALTER TABLE lost RENAME TO log_tiles");
    assert_eq!(is_whole(&server).await, 2);
    server.sweep().await;
    assert_eq!(steps(), 0);
}

/// Else an honest log would repeat the tags of the first hand-outs.
#[rstest]
#[tokio::test]
async fn a_removed_device_does_not_give_its_packages_back(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
) {
    let change = |config: &mut Config| {
        short_trail(config);
        config.credential_binding = CredentialBinding::Off;
    };
    let server = TestServer::start_with(db, change).await;
    let phone = server.anyone().registered("alice", "phone").await;
    let laptop = phone.registered("alice", "laptop").await;
    let mallory = server.anyone().registered("mallory", "phone").await;
    let bob = server.anyone().registered(BOB.0, BOB.1).await;
    let device = Device::new("alice", "laptop");
    let package = device.key_package();
    laptop.uploaded(&[&package]).await;
    reserve(&bob, BOB, "alice", "friends").await.release().await;
    is_whole(&server).await;
    phone.delete("/devices/laptop").await.ok();
    let laptop = phone.registered("alice", "laptop").await;
    // The trail is forgotten on the second day; the KeyPackage is valid for some days more.
    for _ in 0..4 {
        for caller in [&laptop, &mallory] {
            let answer = caller.upload(&[&package]).await.ok();
            assert_eq!(answer["rejected"][0]["reason"], "duplicate", "{answer}");
        }
        server.advance(DAY * 2);
        server.sweep().await;
    }
    // The same init key in another KeyPackage has another name in the log.
    let other = with_the_keys_of(&package, &device);
    let name = |bytes: &[u8]| PackageId::of(&KeyPackageFields::parse(bytes).unwrap());
    assert_ne!(name(&package), name(&other));
    let answer = laptop.upload(&[&other]).await.ok();
    assert_eq!(answer["rejected"][0]["reason"], "init-key-reused", "{answer}");
    is_whole(&server).await;
    assert!(leaves(&server).await.iter().map(Leaf::tag).count() > 0, "no tag repeats");
    for days in [8, 30] {
        server.advance(DAY * days);
        server.sweep().await;
        for caller in [&laptop, &mallory] {
            let answer = caller.upload(&[&package]).await.ok();
            assert_eq!(answer["rejected"][0]["reason"], "lifetime-expired", "{answer}");
        }
    }
}
