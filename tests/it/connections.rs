//! Nobody wears the service out by connections: clients that do not read, do not write or wait for ever cost little, and others
//! are served.

use std::{
    fs,
    io::{ErrorKind, Read, Write},
    net::TcpStream,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::future::{join_all, select_all};
use keypool_openapi::ProblemType;
use reqwest::Method;
use rstest::rstest;
use serde_json::{Value, json};
use tempfile::{NamedTempFile, TempDir};
use tokio::task::JoinSet;

use crate::support::{
    Answer, Anywhere, Database, Device, Http, PATIENCE, Place, ServerProcess, TestServer, binary, encode, hot_client,
};

/// The longest that a small request waits for its answer during an attack.
const SOON: Duration = Duration::from_secs(10);

const MEGABYTE: u64 = 1_000_000;

/// A server as docker-compose.yml limits it.
async fn small_server(place: &Place) -> ServerProcess {
    ServerProcess::start_with(place, |command| {
        command.env("KEYPOOL_MEMORY", "256").stderr(Stdio::null());
    })
    .await
}

/// The server's program, which may open so many files: at first, and at most.
fn with_files(soft: u32, hard: u32) -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let program = directory.path().join("server");
    let server = binary("keypool-server");
    let script =
        format!("#!/bin/sh\nulimit -S -n {soft} && ulimit -H -n {hard} && exec '{}' \"$@\"\n", server.display());
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    (directory, program)
}

/// A line of its `/proc/PID/status`, in bytes.
fn memory(server: &ServerProcess, line: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", server.id())).unwrap();
    let found = status.lines().find_map(|text| text.strip_prefix(line)).unwrap();
    found.trim_matches([':', ' ', '\t']).strip_suffix(" kB").unwrap().trim().parse::<u64>().unwrap() * 1024
}

/// Sends a request, and reads nothing.
fn unread(caller: &Http, request: &str) -> TcpStream {
    let address = caller.base.trim_start_matches("http://");
    let mut stream = TcpStream::connect(address).unwrap();
    let bearer = caller.token.as_ref().map_or_else(String::new, |token| format!("Authorization: Bearer {token}\r\n"));
    write!(stream, "{request} HTTP/1.1\r\nHost: {address}\r\n{bearer}\r\n").unwrap();
    stream
}

/// All that comes until the server closes.
fn rest(mut stream: TcpStream) -> String {
    stream.set_read_timeout(Some(SOON)).unwrap();
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
        Err(error) => panic!("the server does not close: {error}"),
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Waits until the server has read what was sent: until it has so many connections, by what it has open.
async fn is_asked_for_soon(anyone: &Http) {
    let begun = Instant::now();
    for path in ["/readyz", "/healthz"] {
        let answer = tokio::time::timeout(SOON, anyone.get(path)).await;
        assert_eq!(answer.unwrap_or_else(|_| panic!("{path} is not answered")).status, 200, "{path}");
    }
    assert!(begun.elapsed() < SOON, "it took {:?}", begun.elapsed());
}

/// Queues four messages of almost 1 MiB each for these users' phones, from a user of their own.
async fn four_large_messages(anyone: &Http, recipients: &[String]) {
    let sender = anyone.registered("sender", "phone").await;
    let mut party = Device::new("sender", "phone").founds("friends");
    let founded = json!({"commit": encode(&party.updates()), "recipients": []});
    let path = format!("/groups/{}", party.path());
    sender.post(&format!("{path}/commits"), &founded).await.ok();
    party.merges();
    let to: Vec<_> = recipients.iter().map(|user| json!({"user": user, "device": "phone"})).collect();
    let large = "x".repeat(1_000 * 1_000);
    for _ in 0..4 {
        let body = json!({"message": encode(&party.says(&large)), "recipients": to});
        assert_eq!(sender.post(&format!("{path}/messages"), &body).await.ok()["undelivered"], json!([]));
    }
}

fn messages(answer: Answer) -> Vec<Value> {
    answer.ok()["messages"].as_array().unwrap().clone()
}

#[tokio::test]
async fn who_reads_none_of_its_messages_costs_two_answers() {
    let place = Database::Sqlite.fresh();
    let server = small_server(&place).await;
    let anyone = Http::new(&server.base);
    let alice = anyone.registered("alice", "phone").await;
    four_large_messages(&anyone, &["alice".to_owned()]).await;
    assert_eq!(messages(alice.get("/messages").await).len(), 4);
    let before = memory(&server, "VmHWM");
    let unread: Vec<_> = (0..42).map(|_| unread(&alice, "GET /messages")).collect();
    // Each unread fetch displaces an earlier one: with an empty page before its answer, or else by closing its connection. A
    // fetch that gets the messages came after all of them.
    let fetched = || alice.try_send(Method::GET, "/messages", None);
    let begun = Instant::now();
    while fetched().await.ok().is_none_or(|answer| messages(answer).is_empty()) {
        assert!(begun.elapsed() < SOON, "further fetches are displaced by those that nobody reads");
    }
    let grown = memory(&server, "VmHWM") - before;
    assert!(grown < 60 * MEGABYTE, "the server has grown by {} MB", grown / MEGABYTE);
    drop(unread);
}

/// Each takes only two answers, so it takes many: those that take the least are cut off for new ones.
#[tokio::test]
async fn many_who_read_none_of_their_messages_leave_room_for_others() {
    let place = Database::Sqlite.fresh();
    let server = small_server(&place).await;
    let anyone = Http::over(hot_client(), &server.base);
    let users: Vec<_> = (0..20).map(|number| format!("user-{number}")).collect();
    let callers = join_all(users.iter().map(|user| anyone.registered(user, "phone"))).await;
    four_large_messages(&anyone, &users).await;
    let (other, attackers) = callers.split_last().unwrap();
    let before = memory(&server, "VmHWM");
    let unread: Vec<_> =
        attackers.iter().flat_map(|caller| [(); 2].map(|()| unread(caller, "GET /messages"))).collect();
    for _ in 0..5 {
        // On a slow machine the server may say that it needs a moment.
        let fetched = async {
            loop {
                let answer = other.get("/messages").await;
                if answer.status != 503 {
                    return messages(answer);
                }
                assert!(answer.header("retry-after").is_some(), "{}", answer.text);
            }
        };
        assert!(!tokio::time::timeout(SOON * 3, fetched).await.unwrap().is_empty());
    }
    let grown = memory(&server, "VmHWM") - before;
    assert!(grown < 90 * MEGABYTE, "the server has grown by {} MB", grown / MEGABYTE);
    drop(unread);
}

#[tokio::test]
async fn strangers_who_read_none_of_a_document_cost_little() {
    let place = Database::Sqlite.fresh();
    let server = small_server(&place).await;
    let anyone = Http::new(&server.base);
    assert_eq!(anyone.get("/swagger-ui/swagger-ui-bundle.js").await.status, 200);
    let before = memory(&server, "VmHWM");
    let unread: Vec<_> = (0..1_500)
        .map(|n| unread(&anyone, if n % 2 == 0 { "GET /openapi.json" } else { "GET /swagger-ui/swagger-ui-bundle.js" }))
        .collect();
    is_asked_for_soon(&anyone).await;
    let grown = memory(&server, "VmHWM") - before;
    assert!(grown < 60 * MEGABYTE, "the server has grown by {} MB", grown / MEGABYTE);
    drop(unread);
}

#[tokio::test]
async fn strangers_who_send_without_end_cost_little() {
    let place = Database::Sqlite.fresh();
    let server = small_server(&place).await;
    let anyone = Http::new(&server.base);
    let before = memory(&server, "VmHWM");
    let long = "a".repeat(120_000);
    let mut sent = Vec::new();
    for number in 0..1_000 {
        let mut stream = TcpStream::connect(server.address()).unwrap();
        stream.set_nonblocking(true).unwrap();
        let head = "GET /healthz HTTP/1.1\r\nHost: x\r\n";
        let beginning = match number % 4 {
            // A head that does not end, and one that is behind a request.
            0 => format!("{head}X-Long: "),
            1 => format!("{head}\r\n{head}X-Long: "),
            // Bodies that are refused by their length, or when they are too long.
            2 => "POST /devices HTTP/1.1\r\nHost: x\r\nContent-Length: 131000\r\n\r\n".to_owned(),
            _ => "POST /devices HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1fff8\r\n".to_owned(),
        };
        // As much as the kernel takes.
        let _ = stream.write(format!("{beginning}{long}").as_bytes());
        sent.push(stream);
    }
    is_asked_for_soon(&anyone).await;
    let grown = memory(&server, "VmHWM") - before;
    assert!(grown < 60 * MEGABYTE, "the server has grown by {} MB", grown / MEGABYTE);
    drop(sent);
}

#[tokio::test]
async fn devices_that_wait_leave_descriptors_for_short_calls() {
    let place = Database::Sqlite.fresh();
    let (_directory, program) = with_files(1_024, 1_024);
    let server = ServerProcess::start_program(&program, &place).await;
    let anyone = Http::over(hot_client(), &server.base);
    let alice = anyone.registered("alice", "phone").await;
    let mut callers = Vec::new();
    for number in 0..500 {
        callers.push(anyone.registered(&format!("user-{number}"), "phone").await);
    }
    let waiting: Vec<_> =
        callers.iter().flat_map(|caller| [(); 2].map(|()| unread(caller, "GET /messages?wait=55"))).collect();
    is_asked_for_soon(&Http::new(&server.base)).await;
    // One more does not wait: too many do already.
    let one_more = tokio::time::timeout(SOON, alice.get("/messages?wait=55")).await;
    assert_eq!(messages(one_more.expect("a further request waits, too")), [] as [Value; 0]);
    drop(waiting);
}

/// Whether they never ask for anything, have asked, or do not go on.
#[rstest]
#[case("")]
#[case("GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")]
#[case("GET /healthz HTTP/1.1\r\nHost: x\r\n\r\nGET /hea")]
#[case("POST /devices HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n{")]
#[tokio::test]
async fn strangers_who_keep_connections_leave_descriptors_for_others(#[case] said: &str) {
    let place = Database::Sqlite.fresh();
    let (_directory, program) = with_files(256, 256);
    let server = ServerProcess::start_program(&program, &place).await;
    let mut kept = Vec::new();
    for _ in 0..400 {
        let mut stream = TcpStream::connect(server.address()).unwrap();
        let _ = stream.write(said.as_bytes());
        kept.push(stream);
    }
    is_asked_for_soon(&Http::new(&server.base)).await;
    drop(kept);
}

/// More than the server has connections for ask, and go on asking.
#[tokio::test]
async fn all_of_those_who_go_on_asking_have_their_turn() {
    const CROWD: usize = 400;
    let place = Database::Sqlite.fresh();
    let (_directory, program) = with_files(256, 256);
    let server = ServerProcess::start_program(&program, &place).await;
    let answered = Arc::new(AtomicUsize::new(0));
    let mut crowd = JoinSet::new();
    for _ in 0..CROWD {
        let (caller, answered) = (Http::over(hot_client(), &server.base), Arc::clone(&answered));
        crowd.spawn(async move {
            let mut is_answered = false;
            loop {
                let answer = caller.try_send(Method::GET, "/healthz", None).await;
                if answer.is_ok() && !std::mem::replace(&mut is_answered, true) {
                    answered.fetch_add(1, Ordering::Relaxed);
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        });
    }
    let all = async {
        while answered.load(Ordering::Relaxed) < CROWD {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let waited = tokio::time::timeout(PATIENCE, all).await;
    assert!(waited.is_ok(), "of {CROWD}, only {} are answered", answered.load(Ordering::Relaxed));
}

#[tokio::test]
async fn the_server_raises_its_number_of_files_and_says_so() {
    let place = Database::Sqlite.fresh();
    let (_directory, program) = with_files(300, 1_200);
    let log = NamedTempFile::new().unwrap();
    let stderr = log.reopen().unwrap();
    let server = ServerProcess::start_program_with(&program, &place, |command| {
        command.env("KEYPOOL_LOG", "info").stderr(stderr);
    })
    .await;
    let limits = fs::read_to_string(format!("/proc/{}/limits", server.id())).unwrap();
    let files = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    assert_eq!(files.split_whitespace().nth(3), Some("1200"), "{files}");
    let log = fs::read_to_string(log.path()).unwrap();
    let line = log.lines().find(|line| line.contains("file descriptors")).unwrap();
    assert!(line.contains("300") && line.contains("1200"), "{line}");
}

#[rstest]
#[tokio::test]
async fn a_poll_whose_client_has_gone_ends(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let server = TestServer::start(db).await;
    let alice = server.anyone().registered("alice", "phone").await;
    let waiting = unread(&alice, "GET /messages?wait=60");
    server.waits_for_a_message().await;
    drop(waiting);
    let begun = Instant::now();
    let aborted = r#"keypool_http_requests_total{method="GET",route="/messages",status="aborted"} 1"#;
    while !server.anyone().get("/metrics").await.text.lines().any(|line| line == aborted) {
        assert!(begun.elapsed() < SOON, "it waits on");
    }
}

#[rstest]
#[tokio::test]
async fn of_three_fetches_of_a_device_one_ends(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let server = TestServer::start(db).await;
    let alice = server.anyone().registered("alice", "phone").await;
    // Which of them comes first, the network decides.
    let three = [(); 3].map(|()| Box::pin(alice.get("/messages?wait=60")));
    let (answer, _, others) = tokio::time::timeout(SOON, select_all(three)).await.expect("all three wait");
    assert_eq!((messages(answer).len(), others.len()), (0, 2));
}

#[rstest]
#[tokio::test]
async fn what_is_not_http_is_answered_with_a_problem(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let server = TestServer::start(db).await;
    let address = server.base.trim_start_matches("http://");
    for request in [
        "this is not HTTP\r\n\r\n".to_owned(),
        "GET /healthz HTTP/1.1\r\n\r\n".to_owned(),
        "GET /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n".to_owned(),
        "POST /devices HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n".to_owned(),
        format!("GET /healthz HTTP/1.1\r\nHost: x\r\nX-Long: {}\r\n\r\n", "a".repeat(200_000)),
        // Behind one that is answered.
        "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\nthis is not HTTP\r\n\r\n".to_owned(),
    ] {
        let mut stream = TcpStream::connect(address).unwrap();
        // It may close before it has all of a long one.
        let _ = stream.write_all(request.as_bytes());
        let answer = rest(stream);
        let (_, last) = answer.rsplit_once("HTTP/1.1 400 ").unwrap_or_else(|| panic!("{request:.60}: {answer}"));
        let (head, body) = last.split_once("\r\n\r\n").unwrap();
        let head = head.to_lowercase();
        assert!(head.contains("\r\ncontent-type: application/problem+json\r\n"), "{head}");
        let id = head.split("\r\nx-request-id: ").nth(1).unwrap().lines().next().unwrap();
        assert!(uuid::Uuid::parse_str(id).is_ok(), "{id}");
        let problem: Value = serde_json::from_str(body).unwrap();
        assert_eq!((&problem["type"], &problem["status"]), (&json!("malformed-request"), &json!(400)), "{body}");
        assert!(problem["detail"].as_str().is_some_and(|detail| !detail.is_empty()), "{body}");
    }
}

/// Everything that a client sends may be cut into pieces, and come late.
#[rstest]
#[tokio::test]
async fn a_request_in_pieces_is_answered(#[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere) {
    let server = TestServer::start(db).await;
    let alice = server.anyone().registered("alice", "phone").await;
    let token = alice.token.as_ref().unwrap();
    let body = r#"{"all":true}"#;
    let head = format!(
        "POST /keypackages/revoke HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nConnection: close\r\n\
         Content-Length: {}\r\n\r\n",
        body.len()
    );
    let mut stream = TcpStream::connect(server.base.trim_start_matches("http://")).unwrap();
    stream.set_nodelay(true).unwrap();
    for byte in head.bytes().chain(body.bytes()) {
        stream.write_all(&[byte]).unwrap();
    }
    let answer = rest(stream);
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    // A head of 15 kB is one that proxies let pass.
    let long = "a".repeat(15_000);
    let answer = unread(&alice, &format!("GET /healthz?{long}"));
    answer.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut beginning = [0; 15];
    (&answer).read_exact(&mut beginning).unwrap();
    assert_eq!(&beginning, b"HTTP/1.1 200 OK");
    alice.get("/nowhere").await.is_problem(404, ProblemType::NotFound);
}
