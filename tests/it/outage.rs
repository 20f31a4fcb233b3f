//! The database goes away and comes back: nobody waits long, nothing is lost, and no restart is needed.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::future::{join_all, select_all};
use keypool_openapi::ProblemType;
use reqwest::{Method, header};
use rstest::rstest;
use serde_json::json;

use crate::support::{Database, Device, Http, Place, Postgres, ServerProcess, TestServer, binary, group, hot_client};

/// Within this, all of many requests at once are answered that the database is away.
const BOUND: Duration = Duration::from_secs(5);

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

/// An adder that reserves and releases all the time, and counts the answers by status.
async fn busy(caller: Http, stop: Arc<AtomicBool>) -> BTreeMap<u16, usize> {
    let mut answers = BTreeMap::new();
    while !stop.load(Ordering::Relaxed) {
        let answer = caller.reserve("alice").await;
        *answers.entry(answer.status).or_default() += 1;
        if answer.status == 200 {
            let released = caller.release(&answer.json["reservations"][0]).await;
            *answers.entry(released.status).or_default() += 1;
        }
    }
    answers
}

#[rstest]
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_database_that_is_away_is_said_to_be_and_found_again(#[values("fast", "immediate")] mode: &'static str) {
    let postgres = Arc::new(blocking(Postgres::start).await);
    let place = Place::at(postgres.url("postgres"));
    let log = tempfile::NamedTempFile::new().unwrap();
    let stderr = log.reopen().unwrap();
    let server = ServerProcess::start_with(&place, |command| {
        command.stderr(stderr);
    })
    .await;
    let anyone = Http::over(hot_client(), &server.base);
    let alice = anyone.registered("alice", "laptop").await;
    let bob = anyone.registered("bob", "phone").await;
    let device = Device::new("alice", "laptop");
    alice.uploaded(&device.key_packages(40)).await;
    alice.uploaded(&[device.last_resort()]).await;
    let reservation = bob.reserved("alice").await;

    let stop = Arc::new(AtomicBool::new(false));
    let busy: Vec<_> = (0..8).map(|_| tokio::spawn(busy(bob.clone(), Arc::clone(&stop)))).collect();
    let its = Arc::clone(&postgres);
    blocking(move || its.stop(mode)).await;

    let begun = Instant::now();
    let one = Device::new("alice", "laptop").key_package();
    let requests = (0..50).map(|n| {
        let (alice, bob, anyone, reservation, one) =
            (alice.clone(), bob.clone(), anyone.clone(), reservation.clone(), one.clone());
        tokio::spawn(async move {
            match n % 5 {
                0 => bob.reserve("alice").await,
                1 => bob.spend(&reservation, "friends").await,
                2 => alice.upload(&[one]).await,
                3 => alice.get("/keypackages/status").await,
                _ => anyone.register("carol", &format!("device-{n}")).await,
            }
        })
    });
    for request in requests.collect::<Vec<_>>() {
        let answer = request.await.unwrap();
        answer.is_problem(503, ProblemType::Unavailable);
        let wait = answer.headers[header::RETRY_AFTER].to_str().unwrap().parse::<u64>().unwrap();
        assert!((1..=60).contains(&wait), "{wait}");
    }
    assert!(begun.elapsed() < BOUND, "50 requests at once took {:?}", begun.elapsed());
    anyone.get("/readyz").await.is_problem(503, ProblemType::Unavailable);
    assert_eq!(anyone.get("/healthz").await.status, 200);
    assert_eq!(anyone.get("/metrics").await.status, 200);

    let its = Arc::clone(&postgres);
    blocking(move || its.go_on()).await;
    let mut server = server;
    server.ready().await;
    stop.store(true, Ordering::Relaxed);
    for one in busy {
        let answers = one.await.unwrap();
        assert!(answers.keys().all(|status| [200, 503].contains(status)), "{answers:?}");
        assert!(answers.contains_key(&503), "{answers:?}");
    }
    assert_eq!(bob.spend(&reservation, "friends").await.ok()["keypackage_ref"], reservation["keypackage_ref"]);
    bob.reserved("alice").await;
    let body = json!({"target_user": "alice", "group_id": group("friends")}).to_string();
    assert_eq!(bob.try_send(Method::POST, "/keypackages/reserve", Some(body)).await.unwrap().status, 200);
    drop(server);
    let log = fs::read_to_string(log.path()).unwrap();
    assert!(!log.contains("panicked") && log.contains("the database cannot answer now"), "{log}");
}

/// A connection is not asked whether it is there right after it has shown it: that it was closed since is seen all the same.
#[tokio::test]
async fn connections_that_are_cut_in_between_cost_nobody_a_request() {
    let server = TestServer::start(Database::Postgres).await;
    let anyone = server.anyone();
    let (alice, bob) = (anyone.registered("alice", "laptop").await, anyone.registered("bob", "phone").await);
    alice.uploaded(&Device::new("alice", "laptop").key_packages(3)).await;
    for _ in 0..3 {
        bob.reserved("alice").await;
        server.database().end_others();
        alice.status().await;
    }
}

#[rstest]
#[tokio::test]
async fn a_server_that_has_too_much_to_do_is_still_ready(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let server = TestServer::start(db).await;
    let narrow = server.beside(|config| config.max_waiting_requests = 1).await;
    let alice = narrow.anyone().registered("alice", "laptop").await;
    let mut database = server.database();
    database.hold_all();
    // One of them waits in the one place that there is.
    let removals = (0..4).map(|_| Box::pin(alice.delete("/devices/laptop")));
    let (refused, _, waiting) = select_all(removals).await;
    refused.is_problem(503, ProblemType::Unavailable);
    assert_eq!(narrow.anyone().get("/readyz").await.status, 200);
    database.run("COMMIT");
    let removed = join_all(waiting).await;
    assert_eq!(removed.iter().filter(|answer| answer.status == 200).count(), 1, "{removed:?}");
}

/// Keeps a database from taking writes, and lets it take them again.
enum Refusal {
    Postgres(Place),
    /// The server's files may not grow: its number, and what it was allowed.
    Sqlite(u32),
}

impl Refusal {
    fn limit_files(server: u32, limit: &str) {
        let status = std::process::Command::new("prlimit").args(["--pid", &server.to_string(), limit]).status();
        assert!(status.unwrap().success());
    }

    fn begin(&self) {
        match self {
            Self::Postgres(place) => {
                let mut database = place.open();
                database.run(&format!("ALTER DATABASE {} SET default_transaction_read_only = on", name(place)));
                database.end_others();
            }
            Self::Sqlite(server) => Self::limit_files(*server, "--fsize=4096:unlimited"),
        }
    }

    fn end(&self) {
        match self {
            Self::Postgres(place) => {
                let mut database = place.open();
                database.run("SET default_transaction_read_only = off");
                database.run(&format!("ALTER DATABASE {} RESET default_transaction_read_only", name(place)));
            }
            Self::Sqlite(server) => Self::limit_files(*server, "--fsize=unlimited:unlimited"),
        }
    }
}

fn name(place: &Place) -> &str {
    place.url.rsplit_once('/').unwrap().1
}

/// The server's program, which is not ended when a file of its may not grow.
fn program_whose_files_may_be_limited() -> (tempfile::TempDir, std::path::PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let program = directory.path().join("server");
    fs::write(&program, format!("#!/bin/sh\ntrap '' XFSZ\nexec '{}'\n", binary("keypool-server").display())).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    (directory, program)
}

#[rstest]
#[tokio::test]
async fn a_database_that_takes_no_writes_is_an_outage_that_heals_by_itself(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
) {
    let place = blocking(move || db.fresh()).await;
    let log = tempfile::NamedTempFile::new().unwrap();
    let stderr = log.reopen().unwrap();
    let (_directory, program) = program_whose_files_may_be_limited();
    let mut server = ServerProcess::start_program_with(&program, &place, |command| {
        command.stderr(stderr);
    })
    .await;
    let anyone = Http::over(hot_client(), &server.base);
    let (alice, bob) = (anyone.registered("alice", "laptop").await, anyone.registered("bob", "phone").await);
    alice.uploaded(&Device::new("alice", "laptop").key_packages(4)).await;
    let reservation = bob.reserved("alice").await;
    let refusal = match db {
        Database::Postgres => Refusal::Postgres(Place::at(place.url.clone())),
        Database::Sqlite => Refusal::Sqlite(server.id()),
    };

    refusal.begin();
    for answer in [
        bob.reserve("alice").await,
        bob.spend(&reservation, "friends").await,
        alice.upload(&[Device::new("alice", "laptop").key_package()]).await,
        anyone.register("carol", "phone").await,
        alice.post("/keypackages/revoke", &json!({"all": true})).await,
        bob.delete("/devices/phone").await,
        anyone.get("/readyz").await,
        anyone.get("/readyz").await,
    ] {
        answer.is_problem(503, ProblemType::Unavailable);
    }
    assert_eq!(anyone.get("/healthz").await.status, 200);
    let metrics = anyone.get("/metrics").await.text;
    assert!(metrics.contains("\nkeypool_database_writable 0\n"), "{metrics}");

    refusal.end();
    server.ready().await;
    assert_eq!(bob.spend(&reservation, "friends").await.ok()["keypackage_ref"], reservation["keypackage_ref"]);
    bob.reserved("alice").await;
    assert_eq!(alice.status().await["fresh"], 2);
    drop(server);
    let log = fs::read_to_string(log.path()).unwrap();
    let lines: Vec<_> = log.lines().filter(|line| line.contains("the database takes no writes")).collect();
    assert_eq!(lines.len(), 1, "{log}");
    assert!(lines[0].contains("read-only") && lines[0].contains("disk is full"), "{}", lines[0]);
}

/// While somebody reads for long, SQLite's log can only grow. After it, it does not stay so.
#[tokio::test]
async fn the_log_of_sqlite_does_not_stay_large() {
    let server = TestServer::start(Database::Sqlite).await;
    let log = || fs::metadata(server.wal()).unwrap().len();
    let mut reader = server.database();
    reader.run("BEGIN; SELECT count(*) FROM users");
    let mut writer = server.database();
    writer.run("PRAGMA journal_mode = WAL; CREATE TABLE large (bytes BLOB)");
    for _ in 0..12 {
        writer.run("INSERT INTO large VALUES (zeroblob(8 * 1024 * 1024))");
    }
    assert!(log() > 90 * 1024 * 1024, "{} bytes", log());
    reader.run("COMMIT");
    // The server's own commits copy it, and begin it anew.
    let anyone = server.anyone();
    for number in 0..4 {
        anyone.registered(&format!("user-{number}"), "phone").await;
    }
    assert!(log() <= 65 * 1024 * 1024, "{} bytes", log());
}
