//! A client compares what it knows with the log of an honest server, and accuses nobody.

use std::{fs, process::Command, sync::Arc};

use jiff::SignedDuration;
use keypool_client::{Error, KeyPackagePoolConfig, LastResortForm, LogError, MlsClient, Settings};
use keypool_server::config::Limits;
use rstest::rstest;
use serde_json::Value;
use tokio::runtime::Handle;

use super::{
    command::Shell,
    helpers::{behind_a_proxy, invite, invited, start, user},
};
use crate::support::{
    Anywhere, Database, Device, Owner, ServerProcess, TestServer, binary, data_directory, new_device,
};

/// Lets so much time pass for all.
fn later(server: &TestServer, owners: [&Owner; 2]) {
    let span = SignedDuration::from_mins(5);
    server.advance(span);
    for owner in owners {
        owner.advance(span);
    }
}

/// A refresh that finds all as it has to be. How much it has compared.
async fn checked(owner: &Owner) -> usize {
    let report = owner.refresh().await.unwrap();
    assert_eq!(report.warnings, []);
    let log = report.log.unwrap();
    assert_eq!((log.waiting, log.unknown), (0, 0));
    log.checked
}

#[rstest]
#[tokio::test]
async fn adders_and_owners_find_each_hand_out_in_the_log(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let server = start(db).await;
    let (proxy, alice) = behind_a_proxy(&server, "alice").await;
    let bob = Owner::of(&server, "bob").await;
    let group = alice.membership().create_named_group("friends").unwrap();
    invite(&alice, &group, &["bob"]).await;
    bob.hears().await;
    server.sequence().await;
    assert_eq!((checked(&alice).await, checked(&bob).await), (1, 1), "the adder's hand-out, and the owner's Welcome");
    proxy.seen();
    assert_eq!((checked(&alice).await, checked(&bob).await), (0, 0), "nothing is checked twice");
    let asked = proxy.seen();
    let is_status = |request: &String| request.starts_with("GET /keypackages/status?log_origin=");
    assert!(asked.len() == 1 && asked.iter().all(is_status), "with nothing to check, nothing more is asked: {asked:?}");

    // One that lapses, one that is given back, and one that is spent late.
    let held = alice.reserve(&user("bob"), None, None, None).await.unwrap().reservations.remove(0);
    let given_back = alice.reserve(&user("bob"), None, None, None).await.unwrap().reservations.remove(0);
    alice.release(given_back.reservation_id).await.unwrap();
    later(&server, [&alice, &bob]);
    server.sweep().await;
    server.sequence().await;
    assert_eq!(checked(&alice).await, 2);
    let spent = alice.spend(held.reservation_id, b"others").await.unwrap();
    assert_eq!(spent.handout, Some(1), "a late spend is one more hand-out");
    server.sequence().await;
    assert_eq!(checked(&alice).await, 1);
    assert_eq!(checked(&bob).await, 1, "one that was spent");
    let state = alice.log().state().unwrap();
    assert_eq!((state.hand_outs.fine, state.hand_outs.due, state.findings.len()), (3, 0, 0));
    assert!(state.size > 0 && state.checked_at.is_some() && state.key == state.first_key);
}

/// The processor's time that this thread has used, in milliseconds. The server has threads of its own.
fn used() -> u64 {
    let text = fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    text.split(' ').next().unwrap().parse::<u64>().unwrap() / 1_000_000
}

#[rstest]
#[tokio::test]
async fn a_thousand_hand_outs_are_checked_in_one_request(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let server = TestServer::start_with(db, |config| config.limits = Limits::Off).await;
    let alice = server.anyone().registered("alice", "laptop").await;
    let device = Device::new("alice", "laptop");
    let (proxy, bob) = behind_a_proxy(&server, "bob").await;
    for _ in 0..10 {
        alice.uploaded(&device.key_packages(100)).await;
        for _ in 0..100 {
            let held = bob.reserve(&user("alice"), None, None, None).await.unwrap().reservations.remove(0);
            bob.release(held.reservation_id).await.unwrap();
        }
    }
    server.sequence().await;
    proxy.seen();
    let before = used();
    assert_eq!(checked(&bob).await, 1_000);
    let with_checks = used() - before;
    let asked = proxy.seen();
    assert_eq!(asked.iter().filter(|request| request.starts_with("POST /log/proofs")).count(), 1, "{asked:?}");
    let before = used();
    assert_eq!(checked(&bob).await, 0);
    println!("a thousand checks took {with_checks} ms of the client's time, and none {} ms", used() - before);
}

/// The Commit that adds the device comes after the reservation has lapsed, and nobody else has reserved the KeyPackage.
#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn a_late_commit_is_no_lie(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
    #[values(false, true)] own_delivery: bool,
) {
    let server = Arc::new(start(db).await);
    let (proxy, alice) = behind_a_proxy(&server, "alice").await;
    let bob = Owner::of(&server, "bob").await;
    if own_delivery {
        let mut group = alice.create_group(b"own").unwrap();
        let invitation = alice.prepare_invitation(&mut group, &user("bob")).await.unwrap();
        later(&server, [&alice, &bob]);
        server.sweep().await;
        assert_eq!(alice.confirm_invitation(&mut group, &invitation).await.unwrap(), []);
        bob.join(&invitation.welcome).await.unwrap();
    } else {
        let group = alice.membership().create_named_group("friends").unwrap();
        let its = Arc::clone(&server);
        proxy.lies("POST /keypackages/reserve", move |_| {
            its.advance(SignedDuration::from_mins(5));
            tokio::task::block_in_place(|| Handle::current().block_on(its.sweep()));
        });
        invite(&alice, &group, &["bob"]).await;
        proxy.is_honest();
        for owner in [&alice, &bob] {
            owner.advance(SignedDuration::from_mins(5));
        }
        bob.hears().await;
    }
    server.sequence().await;
    assert_eq!((checked(&alice).await, checked(&bob).await), (1, 1));
}

#[rstest]
#[tokio::test]
async fn a_last_resort_is_found_in_the_log(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
    #[values(LastResortForm::Extension, LastResortForm::Component)] last_resort_form: LastResortForm,
) {
    let server = start(db).await;
    let alice = Owner::of(&server, "alice").await;
    let one = KeyPackagePoolConfig {
        target_pool_size: 1,
        low_watermark: 1,
        last_resort_form,
        ..KeyPackagePoolConfig::DEFAULT
    };
    let (bob, _) = Owner::with(&server, &new_device(&server.base, "bob"), one).await;
    // Two Welcomes are for the last resort, whose keys have to be there after the first of them.
    for number in 0..3_u8 {
        let mut group = alice.create_group(&[number]).unwrap();
        let invitation = invited(&alice, &mut group, &user("bob")).await.unwrap();
        assert_eq!(invitation.added[0].last_resort, number > 0);
        bob.join(&invitation.welcome).await.unwrap();
        if number == 1 {
            server.sequence().await;
        }
    }
    let early = bob.refresh().await.unwrap();
    assert_eq!(early.warnings, [], "a spend that is not in the log yet is no lie");
    server.sequence().await;
    assert_eq!(checked(&alice).await, 3);
    // The server's own sequencer may have come before the first refresh.
    assert!(early.log.unwrap().checked + checked(&bob).await > 0);
    assert_eq!(bob.log().state().unwrap().own.due, 0);
}

#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn a_strict_device_uses_only_what_is_logged(#[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere) {
    let server = start(db).await;
    let bob = Shell::of(&server.base, "bob", &[]);
    let alice = Shell::of(&server.base, "alice", &["--strict"]);
    alice.text(&["group", "create", "friends"]);
    let invited = alice.json(&["--strict", "group", "invite", "friends", "bob"]);
    assert_eq!(invited["added"][0]["user"], "bob");
    let state = alice.json(&["log"]);
    assert!(state["size"].as_u64().unwrap() > 0, "{state}");
    assert!(bob.text(&["receive"]).contains("alice"));
}

/// A log is on by default with SQLite.
#[tokio::test]
async fn a_strict_device_refuses_a_server_without_a_log() {
    let place = Database::Postgres.migrated();
    let server = ServerProcess::start_with(&place, |command| {
        command.env_remove("KEYPOOL_LOG_KEY");
    })
    .await;
    let directory = data_directory();
    let settings = || Settings { strict: true, ..Settings::default() };
    let refused = MlsClient::init(directory.path(), &new_device(&server.base, "alice"), settings(), &|_| {}).await;
    assert!(matches!(refused, Err(Error::Log(LogError::Missing))), "{refused:?}");
    let client = MlsClient::open(directory.path()).unwrap();
    let report = client.refresh_key_packages(&|_| {}).await.unwrap();
    assert_eq!((report.log, report.warnings.len()), (None, 0));
}

/// What the command exports is what `keypool-verify` accepts, and nothing else is.
#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn what_the_command_exports_others_can_check(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let server = TestServer::start_with(db, |config| config.limits = Limits::Off).await;
    let (alice, bob) = (Shell::of(&server.base, "alice", &[]), Shell::of(&server.base, "bob", &[]));
    let reserved = alice.json(&["reserve", "bob"]);
    let id = reserved["reservations"][0]["reservation_id"].as_str().unwrap();
    alice.text(&["spend", id, "--group", "friends"]);
    server.sequence().await;
    assert!(alice.text(&["refresh"]).contains("1 checked"));
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("proofs");
    let path = path.to_str().unwrap();
    let verified = |exported: &Value| {
        for command in exported["commands"].as_array().unwrap() {
            let words: Vec<_> = command.as_str().unwrap().split(' ').collect();
            let output = Command::new(binary(words[0])).args(&words[1..]).output().unwrap();
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            assert_eq!(output.status.code(), Some(0), "{command}: {said}");
        }
    };
    let exported = alice.json(&["log", "export", path, "--reservation", id]);
    verified(&exported);
    let exported = bob.json(&["log", "export", path]);
    verified(&exported);
    let file = exported["files"][0].as_str().unwrap();
    let changed = fs::read_to_string(file).unwrap().replace("alice/laptop", "alice/lapdog");
    fs::write(file, changed).unwrap();
    let words: Vec<_> = exported["commands"][0].as_str().unwrap().split(' ').collect();
    let output = Command::new(binary(words[0])).args(&words[1..]).output().unwrap();
    assert_ne!(output.status.code(), Some(0), "another adder is believed");

    let checks = bob.json(&["audit", "--verify"]);
    assert_eq!(checks.as_array().unwrap().len(), 1);
    assert_eq!((&checks[0]["agrees"], &checks[0]["events"]), (&Value::Bool(true), &Value::from(2)));
    assert!(bob.text(&["audit", "--verify"]).contains("1 KeyPackages agree"));
    assert!(alice.text(&["log"]).contains("1 as they have to be"));
    let (code, said) = alice.failure(&["log", "trust", "nonsense"]);
    assert_eq!(code, Some(1), "{said}");
    let (_, said) = alice.failure(&["log", "export", path, "--reservation", "1f-67e55044-10b1-426f-9247-bb680e5fe0c8"]);
    assert!(said.contains("does not know the reservation"), "{said}");
}
