//! A database that is restored from a backup, without the reservations since then.

mod groups;
mod tables;

use std::{
    collections::BTreeSet,
    fs,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use keypool_client::{Result, Warning};
use keypool_openapi::ProblemType;
use rstest::rstest;
use serde_json::{Value, json};

use crate::{
    client::helpers::invited,
    support::{Database, Device, Http, Owner, PATIENCE, Party, Place, Postgres, ServerProcess, command, encode},
};

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

async fn fresh(db: Database) -> Place {
    blocking(move || db.fresh()).await
}

/// A server that raises the generation of its database every second.
pub async fn serving(place: &Place) -> ServerProcess {
    ServerProcess::start_with(place, |command| {
        command.env("KEYPOOL_SWEEP_INTERVAL", "1s");
    })
    .await
}

/// Backs a database up that is served, and waits until it has come further than the backup.
pub async fn backed_up(place: Place) -> (Place, tempfile::NamedTempFile) {
    blocking(move || {
        let backup = place.backup();
        if let Some(path) = place.url.strip_prefix("sqlite://") {
            let number = || fs::read_to_string(format!("{path}.generation")).unwrap().trim().parse::<u64>().unwrap();
            let (then, patience) = (number(), Instant::now() + PATIENCE);
            // One may have been under way.
            while number() < then + 2 {
                assert!(Instant::now() < patience, "the generation is not raised");
                thread::sleep(Duration::from_millis(20));
            }
        }
        (place, backup)
    })
    .await
}

/// The server dies, and the database is lost and restored; what serves it then, where the server was.
async fn restored(server: ServerProcess, place: Place, backup: tempfile::NamedTempFile) -> (ServerProcess, Place) {
    let address = server.address().to_owned();
    server.kill();
    let place = blocking(move || place.restored(&backup)).await;
    (ServerProcess::start_at(&place, &address).await, place)
}

/// Runs `keypool-server` with a subcommand, and returns its output.
pub fn operator_runs(place: &Place, subcommand: &str) -> String {
    let output = command("keypool-server").arg(subcommand).env("KEYPOOL_DATABASE_URL", &place.url).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Has so many KeyPackages of a user spent, and answers their refs.
async fn spent(adder: &Http, user: &str, count: usize) -> Vec<String> {
    let mut refs = Vec::new();
    for _ in 0..count {
        let reservation = adder.reserved(user).await;
        refs.push(adder.spend(&reservation, "friends").await.ok()["keypackage_ref"].as_str().unwrap().to_owned());
    }
    refs
}

fn is_whole(report: &Result<keypool_client::RefreshReport>) {
    let report = report.as_ref().unwrap();
    // The device may have seen a checkpoint that is newer than the backup.
    let told = matches!(
        report.warnings[..],
        [Warning::ServerRestored { given_up: 1.. }]
            | [Warning::ServerRestored { given_up: 1.. }, Warning::LogLost { .. }]
    );
    assert!(told && report.pool.fresh == 32 && report.pool.last_resort.present, "{report:?}");
}

#[rstest]
#[tokio::test]
async fn after_a_restore_nothing_spent_is_reserved_and_a_refresh_makes_each_client_whole(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
) {
    let place = fresh(db).await;
    let server = serving(&place).await;
    let base = server.base.clone();
    let users = ["alice", "bob", "carol", "dave"];
    let mut owners = Vec::new();
    for user in users {
        owners.push(Owner::at(&base, user).await);
    }
    let adder = Owner::at(&base, "erin").await;
    let (place, backup) = backed_up(place).await;

    // 100 that the backup has as fresh, and 20 that it has never seen, are spent before the disaster.
    let mut gone = BTreeSet::new();
    for (user, owner) in users.iter().zip(&owners) {
        gone.extend(spent(&adder.http(), user, 25).await);
        if ["alice", "bob"].contains(user) {
            assert_eq!(owner.refresh().await.unwrap().generated, 25);
            gone.extend(spent(&adder.http(), user, 10).await);
        }
    }
    assert_eq!(gone.len(), 120);
    let mut group = adder.create_group(b"before").unwrap();
    let invitation = invited(&adder, &mut group, &"alice".parse().unwrap()).await.unwrap();
    let (server, place) = restored(server, place, backup).await;

    for user in users {
        let reservation = adder.http().reserved(user).await;
        assert_eq!(reservation["last_resort"], true, "{user}: all else may have been handed out");
    }
    for owner in &owners {
        is_whole(&owner.refresh().await);
        // The last resort was used above, so there is a new one; and that was all.
        assert!(owner.refresh().await.unwrap().changed_nothing());
    }
    for (user, owner) in users.iter().zip(&owners) {
        for _ in 0..32 {
            let reservation = adder.http().reserved(user).await;
            let keypackage_ref = reservation["keypackage_ref"].as_str().unwrap();
            assert!(!gone.contains(keypackage_ref), "{keypackage_ref} is handed out again");
            assert!(owner.pool().has_keys(&keypackage_ref.parse().unwrap()).unwrap());
        }
    }
    // A Welcome from before the disaster can still be opened.
    assert_eq!(owners[0].join(&invitation.welcome).await.unwrap().members().count(), 2);
    drop((server, place));
}

/// A KeyPackage that was reserved at the backup may be another adder's by now. A repeated answer must not name it.
#[rstest]
#[tokio::test]
async fn what_was_held_at_the_backup_cannot_be_spent_after_it(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
) {
    let place = fresh(db).await;
    let server = serving(&place).await;
    let anyone = Http::new(&server.base);
    let (alice, bob) = (anyone.registered("alice", "laptop").await, anyone.registered("bob", "phone").await);
    alice.uploaded(&Device::new("alice", "laptop").key_packages(3)).await;
    let bob = bob.with_key("once");
    let held = bob.reserved("alice").await;
    assert_eq!(bob.reserved("alice").await, held);
    let (place, backup) = backed_up(place).await;
    let (server, place) = restored(server, place, backup).await;
    bob.spend(&held, "friends").await.is_problem(409, ProblemType::ReservationLapsed);
    bob.reserve("alice").await.is_problem(404, ProblemType::PoolExhausted);
    let trail = alice.get("/keypackages/audit").await.ok()["events"].clone();
    let revoked = trail.as_array().unwrap().iter().filter(|event| event["action"] == "revoke");
    assert_eq!(revoked.filter(|event| event["actor"].is_null()).count(), 3, "{trail}");
    drop((server, place));
}

/// The backup has no trace of a reservation that was made after it, nor of the device that was reserved of.
#[rstest]
#[tokio::test]
async fn what_was_reserved_after_the_backup_has_lapsed(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let place = fresh(db).await;
    let server = serving(&place).await;
    let anyone = Http::new(&server.base);
    let (alice, bob) = (anyone.registered("alice", "laptop").await, anyone.registered("bob", "phone").await);
    alice.uploaded(&Device::new("alice", "laptop").key_packages(3)).await;
    let made_up = json!({"reservation_id": format!("1-{}", uuid::Uuid::from_bytes([7; 16]))});
    bob.spend(&made_up, "friends").await.is_problem(404, ProblemType::UnknownReservation);
    bob.release(&made_up).await.is_problem(404, ProblemType::UnknownReservation);
    let (place, backup) = backed_up(place).await;
    let late = bob.reserved("alice").await;
    let carol = anyone.registered("carol", "phone").await;
    carol.uploaded(&Device::new("carol", "phone").key_packages(1)).await;
    let new = bob.reserved("carol").await;
    let (server, place) = restored(server, place, backup).await;
    for reservation in [&late, &new] {
        bob.spend(reservation, "friends").await.is_problem(409, ProblemType::ReservationLapsed);
        bob.release(reservation).await.is_problem(409, ProblemType::ReservationLapsed);
    }
    let mut party = Device::new("bob", "phone").founds("friends");
    let (commit, welcome) = party.adds(&[&late]);
    let body =
        json!({"commit": encode(&commit), "welcome": encode(&welcome), "reservations": [late["reservation_id"]]});
    let answer = bob.post(&format!("/groups/{}/commits", party.path()), &body).await;
    answer.is_problem(409, ProblemType::ReservationLapsed);
    drop((server, place));
}

async fn update(http: &Http, party: &mut Party) -> crate::support::Answer {
    let body = json!({"commit": encode(&party.updates()), "recipients": [{"user": "bob", "device": "phone"}]});
    let answer = http.post(&format!("/groups/{}/commits", party.path()), &body).await;
    if answer.status == 200 {
        party.merges();
    } else {
        party.clears();
    }
    answer
}

async fn ids(http: &Http) -> Vec<u64> {
    let page = http.get("/messages").await.ok();
    page["messages"].as_array().unwrap().iter().map(|message| message["id"].as_u64().unwrap()).collect()
}

#[rstest]
#[tokio::test]
async fn groups_go_on_from_the_epoch_that_they_are_in(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let place = fresh(db).await;
    let server = serving(&place).await;
    let anyone = Http::new(&server.base);
    let (alice, bob) = (anyone.registered("alice", "laptop").await, anyone.registered("bob", "phone").await);
    let mut party = Device::new("alice", "laptop").founds("friends");
    update(&alice, &mut party).await.ok();
    let (place, backup) = backed_up(place).await;
    for _ in 0..3 {
        update(&alice, &mut party).await.ok();
    }
    let before = ids(&bob).await;
    let (server, place) = restored(server, place, backup).await;

    // A Commit of the very second of the fence may be from before it.
    while alice.status().await["at"] == alice.status().await["fenced_at"] {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(update(&alice, &mut party).await.ok()["epoch"], 5, "epochs 2 to 4 are lost with the restore");
    assert!(ids(&bob).await.last() > before.last(), "a number of a message is given twice");
    update(&alice, &mut party).await.ok();
    // From then on an epoch follows the one before, as always.
    party.updates();
    party.merges();
    update(&alice, &mut party).await.is_problem(409, ProblemType::StaleEpoch);
    drop((server, place));
}

/// How many fresh ones the owner's pool has, and when it was fenced.
async fn seen(owner: &Http) -> (u64, Value) {
    let status = owner.status().await;
    (status["fresh"].as_u64().unwrap(), status["fenced_at"].clone())
}

#[rstest]
#[tokio::test]
async fn a_restart_a_crash_and_a_second_server_are_no_restore(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
) {
    let postgres = Arc::new(blocking(Postgres::start).await);
    let place = if db == Database::Postgres { Place::at(postgres.url("postgres")) } else { fresh(db).await };
    let server = ServerProcess::start(&place).await;
    let alice = Http::new(&server.base).registered("alice", "laptop").await;
    alice.uploaded(&Device::new("alice", "laptop").key_packages(5)).await;
    // On SQLite, a second server ends by itself (`startup::a_second_server_on_an_sqlite_file_…`).
    let mut second = ServerProcess::spawn(&place);
    match db {
        Database::Postgres => {
            second.ready().await;
            drop(second);
        }
        Database::Sqlite => assert_eq!(second.ended().await.code(), Some(1)),
    }
    let address = server.address().to_owned();
    server.kill();
    let its = Arc::clone(&postgres);
    blocking(move || its.stop("immediate")).await;
    let its = Arc::clone(&postgres);
    blocking(move || its.go_on()).await;
    let server = ServerProcess::start_at(&place, &address).await;
    assert_eq!(seen(&alice).await, (5, Value::Null));
    drop(server);
}

/// A running server, whose connections break and come back to a database that was promoted meanwhile.
#[tokio::test]
async fn a_promotion_is_noticed_by_servers_that_run() {
    let postgres = Arc::new(blocking(Postgres::start).await);
    let place = Place::at(postgres.url("postgres"));
    let mut server = ServerProcess::start(&place).await;
    let mut trusting = ServerProcess::start_with(&Place::at(postgres.url("template1")), |command| {
        command.env("KEYPOOL_ON_RESTORE", "trust");
    })
    .await;
    let mut owners = Vec::new();
    for base in [&server.base, &trusting.base] {
        let alice = Http::new(base).registered("alice", "laptop").await;
        alice.uploaded(&Device::new("alice", "laptop").key_packages(5)).await;
        owners.push(alice);
    }
    blocking(move || {
        postgres.stop("fast");
        postgres.promote();
        // It serves for as long as the test looks at it.
        std::mem::forget(postgres);
    })
    .await;
    server.ready().await;
    trusting.ready().await;
    let (fenced, trusted) = (seen(&owners[0]).await, seen(&owners[1]).await);
    assert!(fenced.0 == 0 && fenced.1.is_string(), "{fenced:?}");
    assert_eq!(trusted, (5, Value::Null));
}

#[rstest]
#[tokio::test]
async fn the_operator_can_fence_by_hand(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let place = fresh(db).await;
    let server = ServerProcess::start(&place).await;
    let device = Device::new("alice", "laptop");
    let alice = Http::new(&server.base).registered("alice", "laptop").await;
    alice.uploaded(&device.key_packages(5)).await;
    alice.uploaded(&[device.last_resort()]).await;
    let said = operator_runs(&place, "fence");
    assert!(said.contains(" is fenced: 5 KeyPackages are withdrawn; "), "{said}");
    let (fresh, first) = seen(&alice).await;
    assert!(fresh == 0 && first.is_string());
    assert!(alice.status().await["last_resort"]["present"].as_bool().unwrap());
    // Another fence is told from the first one, also within the same second.
    assert!(operator_runs(&place, "fence").contains(": 0 KeyPackages"));
    assert_ne!(seen(&alice).await.1, first);
    drop(server);
}

#[tokio::test]
async fn a_file_without_its_generation_was_restored_and_a_damaged_one_is_said_to_be() {
    let place = fresh(Database::Sqlite).await;
    let server = ServerProcess::start(&place).await;
    let address = server.address().to_owned();
    let alice = Http::new(&server.base).registered("alice", "laptop").await;
    alice.uploaded(&Device::new("alice", "laptop").key_packages(5)).await;
    server.kill();
    let generation = format!("{}.generation", place.url.strip_prefix("sqlite://").unwrap());
    let kept = fs::read_to_string(&generation).unwrap();

    fs::write(&generation, "seven").unwrap();
    let mut again = command("keypool-server");
    let refused = again.env("KEYPOOL_DATABASE_URL", &place.url).env("KEYPOOL_LISTEN", &address).output().unwrap();
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("holds no number") && said.contains("trust"), "{said}");

    fs::write(&generation, kept).unwrap();
    let server = ServerProcess::start_at(&place, &address).await;
    assert_eq!(seen(&alice).await, (5, Value::Null), "the right file is taken");
    server.kill();
    fs::remove_file(&generation).unwrap();
    let server = ServerProcess::start_at(&place, &address).await;
    assert_eq!(seen(&alice).await.0, 0);
    drop(server);
}
