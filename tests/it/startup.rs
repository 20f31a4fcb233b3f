//! A server that starts: it waits for its database, answers meanwhile, and is the only one on an SQLite file.

use std::{
    fs,
    net::TcpListener,
    os::unix::fs::symlink,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use keypool_openapi::ProblemType;
use reqwest::Method;
use rstest::rstest;
use tempfile::NamedTempFile;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{
    process::{run, said},
    support::{Database, GUARDED, Http, PATIENCE, Place, Postgres, Raw, ServerProcess, command, free_port, hot_client},
};

const WAITS: &str = "waiting for the database";

/// The lines that a process writes to its log.
struct Log(NamedTempFile);

impl Log {
    fn new() -> Self {
        Self(NamedTempFile::new().unwrap())
    }

    fn of(&self, command: &mut Command) {
        command.env("KEYPOOL_LOG", "info").stderr(self.0.reopen().unwrap());
    }

    fn text(&self) -> String {
        fs::read_to_string(self.0.path()).unwrap()
    }

    fn lines(&self, words: &str) -> Vec<String> {
        self.text().lines().filter(|line| line.contains(words)).map(str::to_owned).collect()
    }

    /// Waits for a line with these words.
    async fn says(&self, words: &str) {
        let patience = Instant::now() + PATIENCE;
        while self.lines(words).is_empty() {
            assert!(Instant::now() < patience, "no line says {words}:\n{}", self.text());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

fn nobody_listens_there() -> String {
    format!("postgres://keypool:battery@127.0.0.1:{}/keypool", free_port())
}

async fn is_not_open(anyone: &Http) {
    assert_eq!(anyone.get("/healthz").await.status, 200);
    assert_eq!(anyone.try_send(Method::HEAD, "/healthz", None).await.unwrap().status, 200);
    let paths = ["/readyz", "/metrics", "/", "/keypackages/status", "/nowhere"];
    let (answers, registered) =
        tokio::join!(join_all(paths.map(|path| anyone.get(path))), anyone.register("alice", "laptop"));
    for answer in answers.iter().chain([&registered]) {
        answer.is_problem(503, ProblemType::Unavailable);
        assert!(answer.json["detail"].as_str().unwrap().contains("database"), "{}", answer.text);
        assert!(answer.header("x-request-id").is_some(), "{:?}", answer.headers);
    }
}

/// How PostgreSQL is not there: nobody listens, or it takes no connections yet (SQLSTATE 57P03).
#[rstest]
#[tokio::test]
async fn a_server_waits_for_its_postgresql(#[values(false, true)] is_starting_up: bool) {
    let postgres = Arc::new(blocking(Postgres::start).await);
    let place = Place::at(postgres.url("postgres"));
    let its = Arc::clone(&postgres);
    blocking(move || {
        its.stop("fast");
        if is_starting_up {
            its.go_on_closed();
        }
    })
    .await;
    let log = Log::new();
    let mut server = ServerProcess::spawn_with(&place, |command| log.of(command));
    log.says(WAITS).await;
    let anyone = Http::new(&server.base);
    is_not_open(&anyone).await;
    blocking(move || {
        if is_starting_up {
            postgres.open();
        } else {
            postgres.go_on();
        }
        // It serves for as long as the test looks at it.
        std::mem::forget(postgres);
    })
    .await;
    server.ready().await;
    anyone.registered("alice", "laptop").await;
    let waits = log.lines(WAITS);
    assert!(
        waits.len() == 1 && waits[0].contains("1m") && waits[0].contains("postgres://postgres@127.0.0.1:"),
        "{waits:?}"
    );
    let reason = if is_starting_up { "the database system is" } else { "Connection refused" };
    assert!(waits[0].contains(reason) && waits[0].contains("WARN"), "{waits:?}");
    assert_eq!(log.lines("the database is there").len(), 1, "{}", log.text());
    // That line alone announces the requests that were refused meanwhile.
    assert_eq!((log.lines("WARN").len(), log.lines("ERROR").len()), (1, 0), "{}", log.text());
}

#[rstest]
#[case("serve", &[])]
#[case("migrate", &[])]
#[case("fence", &[])]
#[case("enrol", &["--user", "alice"])]
#[tokio::test]
async fn a_wait_ends_with_what_to_do(#[case] subcommand: &'static str, #[case] arguments: &'static [&'static str]) {
    let ends = async |url: String, wait: &'static str| {
        let output = run(subcommand, move |command| {
            command.args(arguments).env("KEYPOOL_DATABASE_URL", url).env("KEYPOOL_DATABASE_WAIT", wait);
            command.env("KEYPOOL_LISTEN", "127.0.0.1:0");
        });
        let output = output.await;
        let said = said(&output);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(!said.contains("battery"), "{said}");
        said
    };
    for (url, why) in [
        (nobody_listens_there(), "Connection refused"),
        ("postgres://db.invalid/keypool".to_owned(), "could not translate host name \"db.invalid\""),
    ] {
        let said = ends(url.clone(), "1s").await;
        assert_eq!(said.matches(WAITS).count(), 1, "{said}");
        let error = said.lines().find(|line| line.starts_with("error: cannot open postgres://")).unwrap();
        assert!(error.contains("waited 1s") && error.contains("KEYPOOL_DATABASE_URL") && error.contains(why), "{said}");
        let said = ends(url, "0s").await;
        assert!(!said.contains(WAITS) && said.contains(why), "{said}");
    }
}

#[tokio::test]
async fn what_waiting_does_not_cure_ends_at_once() {
    let place = blocking(|| Database::Postgres.fresh()).await;
    let _ = place.open().try_run(&format!("CREATE ROLE {GUARDED} LOGIN PASSWORD 'battery'"));
    for (url, why) in [
        (place.url.replace("postgres@", &format!("{GUARDED}:wrong@")), "password authentication failed"),
        (format!("{}_missing", place.url), "does not exist"),
        (format!("{}?sslmode=require", place.url), "does not support SSL"),
    ] {
        let output = run("serve", move |command| {
            command.env("KEYPOOL_DATABASE_URL", url).env("KEYPOOL_LISTEN", "127.0.0.1:0");
        });
        let output = output.await;
        let said = said(&output);
        assert!(output.status.code() == Some(1) && said.contains(why) && !said.contains(WAITS), "{why}: {said}");
    }
}

#[rstest]
#[case("serve", 0)]
#[case("migrate", 1)]
#[tokio::test]
async fn a_signal_ends_the_wait_at_once(#[case] subcommand: &str, #[case] code: i32) {
    let log = Log::new();
    let server = ServerProcess::spawn_with(&Place::at(nobody_listens_there()), |command| {
        log.of(command.arg(subcommand).env("KEYPOOL_DATABASE_WAIT", "1h"));
    });
    log.says(WAITS).await;
    server.signal("TERM");
    assert_eq!(server.ended().await.code(), Some(code), "{}", log.text());
    assert!(log.text().contains("SIGTERM"), "{}", log.text());
}

#[tokio::test]
async fn a_port_that_is_in_use_is_found_before_the_database_is_touched() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let place = Database::Sqlite.fresh();
    let url = place.url.clone();
    let listen = address.clone();
    let output = run("serve", move |command| {
        command.env("KEYPOOL_DATABASE_URL", url).env("KEYPOOL_LISTEN", listen);
    });
    let said = said(&output.await);
    assert!(said.contains(&format!("cannot listen on {address}")), "{said}");
    assert!(!fs::exists(place.url.strip_prefix("sqlite://").unwrap()).unwrap(), "it has made the database");
}

/// Keeps the first migration of an empty database from going on until it ends.
fn hold_the_first_migration(place: &Place) -> Raw {
    let mut database = place.open();
    match &database {
        Raw::Postgres(_) => database.run("BEGIN; CREATE TABLE users (name text)"),
        Raw::Sqlite(_) => database.run("PRAGMA journal_mode = WAL; BEGIN IMMEDIATE"),
    }
    database
}

/// Asks again and again until the server is ready, and for some time after that. Every request has to be answered.
async fn asks_without_end(anyone: Http, refused: Arc<AtomicUsize>) {
    let patience = Instant::now() + PATIENCE;
    let mut ready = 0;
    while ready < 20 {
        assert!(Instant::now() < patience, "it is not ready after {PATIENCE:?}");
        let answer = anyone.try_send(Method::GET, "/readyz", None).await.expect("a request is lost");
        if answer.status == 200 {
            ready += 1;
        } else {
            assert_eq!(ready, 0, "it was ready before");
            answer.is_problem(503, ProblemType::Unavailable);
            refused.fetch_add(1, Ordering::SeqCst);
        }
    }
}

#[rstest]
#[tokio::test]
async fn a_server_lives_while_it_migrates_and_loses_no_request(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
) {
    let place = blocking(move || db.fresh()).await;
    let mut migration = hold_the_first_migration(&place);
    let mut server = ServerProcess::spawn(&place);
    server.listens().await;
    let anyone = Http::new(&server.base);
    is_not_open(&anyone).await;
    let refused = Arc::new(AtomicUsize::new(0));
    // With a connection for each request, and with connections that stay.
    let clients: Vec<_> = (0..4)
        .map(|number| if number % 2 == 0 { Http::new(&server.base) } else { Http::over(hot_client(), &server.base) })
        .map(|anyone| tokio::spawn(asks_without_end(anyone, Arc::clone(&refused))))
        .collect();
    let patience = Instant::now() + PATIENCE;
    while refused.load(Ordering::SeqCst) < 40 {
        assert!(Instant::now() < patience && clients.iter().all(|client| !client.is_finished()));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    migration.run("ROLLBACK");
    for client in clients {
        client.await.unwrap();
    }
    anyone.registered("alice", "laptop").await;
}

/// A proxy may send it before its first check.
#[rstest]
#[tokio::test]
async fn a_request_waits_for_a_database_that_opens_soon(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let place = blocking(move || db.migrated()).await;
    let mut other = place.open();
    match db {
        Database::Postgres => other.run("BEGIN; LOCK TABLE __diesel_schema_migrations IN ACCESS EXCLUSIVE MODE"),
        Database::Sqlite => other.run("PRAGMA journal_mode = WAL; BEGIN IMMEDIATE"),
    }
    let mut server = ServerProcess::spawn(&place);
    server.listens().await;
    let mut early = TcpStream::connect(server.address()).await.unwrap();
    early.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
    let anyone = Http::new(&server.base);
    anyone.get("/readyz").await.is_problem(503, ProblemType::Unavailable);
    other.run("ROLLBACK");
    let mut answer = String::new();
    early.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
}

#[tokio::test]
async fn a_second_server_on_an_sqlite_file_is_refused_and_harms_nothing() {
    let place = Database::Sqlite.fresh();
    let path = place.url.strip_prefix("sqlite://").unwrap().to_owned();
    let first = ServerProcess::start(&place).await;
    let link = format!("{path}.link");
    symlink(&path, &link).unwrap();
    for path in [&path, &link] {
        let url = format!("sqlite://{path}");
        let output = run("serve", move |command| {
            command.env("KEYPOOL_DATABASE_URL", url).env("KEYPOOL_LISTEN", "127.0.0.1:0");
        });
        let output = output.await;
        let said = said(&output);
        assert!(output.status.code() == Some(1) && said.contains("another server uses this file"), "{said}");
        assert!(said.contains(&format!("cannot open sqlite://{path}")) && said.contains("PostgreSQL"), "{said}");
    }
    // Commands of the operator run beside the server.
    for arguments in [&["migrate"][..], &["enrol", "--user", "alice"], &["fence"]] {
        let output =
            command("keypool-server").args(arguments).env("KEYPOOL_DATABASE_URL", &place.url).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", said(&output));
    }
    Http::new(&first.base).registered("bob", "phone").await;
    // The lock ends with its process, also after SIGKILL.
    first.kill();
    drop(ServerProcess::start(&place).await);
}
