//! Bodies that are too large, too deep or too long are refused before they cost anything.

use std::{
    io::{BufRead, BufReader, Write},
    net::TcpStream,
    sync::mpsc,
    thread,
    time::Duration,
};

use keypool_openapi::ProblemType;
use reqwest::Method;
use rstest::rstest;
use serde_json::json;

use crate::support::{Anywhere, Database, Device, Http, TestServer};

/// Sends a request's head and nothing of its body.
fn head(caller: &Http, path: &str, length: u64) -> TcpStream {
    let address = caller.base.trim_start_matches("http://");
    let mut stream = TcpStream::connect(address).unwrap();
    let bearer = caller.token.as_ref().map_or_else(String::new, |token| format!("Authorization: Bearer {token}\r\n"));
    write!(
        stream,
        "POST {path} HTTP/1.1\r\nHost: {address}\r\n{bearer}Content-Type: application/json\r\n\
         Content-Length: {length}\r\n\r\n"
    )
    .unwrap();
    stream
}

/// The status of the answer.
fn status(stream: TcpStream) -> String {
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).expect("the server waits for a body that it will refuse");
    line.split(' ').nth(1).unwrap_or_default().to_owned()
}

fn status_of_a_head(caller: &Http, path: &str, length: u64) -> String {
    let stream = head(caller, path, length);
    // A server that waited for the body would wait for ever.
    stream.set_read_timeout(Some(Duration::from_secs(4))).unwrap();
    status(stream)
}

#[rstest]
#[tokio::test]
async fn a_large_body_is_refused_by_its_length_alone(#[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere) {
    let server = TestServer::start(db).await;
    let alice = server.anyone().registered("alice", "laptop").await;
    let small = 128 * 1024;
    for path in
        ["/devices", "/keypackages/reserve", "/keypackages/spend", "/keypackages/release", "/keypackages/revoke"]
    {
        assert_eq!(status_of_a_head(&alice, path, small + 1), "413", "{path}");
    }
    let upload = 100 * 64 * 1024 * 4 / 3 + 64 * 1024;
    assert_eq!(status_of_a_head(&alice, "/keypackages/upload", upload + 1), "413");
    // An unknown caller gets 401 before the server reads the body.
    let anyone = server.anyone();
    assert_eq!(status_of_a_head(&anyone, "/keypackages/upload", upload), "401");
    assert_eq!(status_of_a_head(&anyone, "/devices", u64::MAX / 2), "413");
}

#[tokio::test]
async fn large_bodies_have_room_for_some_at_the_same_time_and_small_ones_always() {
    let server = TestServer::start_with(Database::Sqlite, |config| config.memory = Some(1_024)).await;
    let alice = server.anyone().registered("alice", "laptop").await;
    let upload = 100 * 64 * 1024 * 4 / 3;
    // A quarter of the memory is for bodies, and of that a quarter for those that are not so large: 192 MiB have room for eleven,
    // each with its parsed form. Two of thirteen are refused.
    let begun: Vec<_> = (0..13).map(|_| head(&alice, "/keypackages/upload", upload)).collect();
    let (said, answers) = mpsc::channel();
    let mut streams: Vec<_> = begun.iter().map(|stream| Some(stream.try_clone().unwrap())).collect();
    let listeners: Vec<_> = begun
        .into_iter()
        .enumerate()
        .map(|(n, stream)| {
            let said = said.clone();
            thread::spawn(move || said.send((n, status(stream))).unwrap())
        })
        .collect();
    for _ in 0..2 {
        let (n, status) = answers.recv().unwrap();
        assert_eq!(status, "503");
        streams[n] = None;
    }
    alice.uploaded(&Device::new("alice", "laptop").key_packages(2)).await;
    // An answered request frees its memory.
    for stream in streams.iter_mut().flatten() {
        stream.write_all(&vec![b' '; usize::try_from(upload).unwrap()]).unwrap();
    }
    for _ in 0..11 {
        assert_eq!(answers.recv().unwrap().1, "400");
    }
    for listener in listeners {
        listener.join().unwrap();
    }
    let empty = Some(" ".repeat(usize::try_from(upload).unwrap()));
    assert_eq!(alice.try_send(Method::POST, "/keypackages/upload", empty).await.unwrap().status, 400);
}

#[rstest]
#[tokio::test]
async fn a_body_just_within_its_bounds_is_read(#[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere) {
    let server = TestServer::start(db).await;
    let alice = server.anyone().registered("alice", "laptop").await;
    let body = |bytes: usize| {
        let rest = r#"{"target_user":"alice"}"#;
        Some(format!("{rest}{}", " ".repeat(bytes - rest.len())))
    };
    let send = async |bytes| alice.try_send(Method::POST, "/keypackages/reserve", body(bytes)).await.unwrap();
    send(128 * 1024).await.is_problem(404, ProblemType::PoolExhausted);
    send(128 * 1024 + 1).await.is_problem(413, ProblemType::PayloadTooLarge);
    // A hundred of the largest KeyPackages fit.
    let large = Device::new("alice", "laptop").with_extension(65_000, true).key_package();
    assert!(large.len() > 65_000);
    let answer = alice.upload(&vec![large; 100]).await.ok();
    assert_eq!(
        (answer["accepted"].as_array().unwrap().len(), &answer["rejected"][0]["reason"]),
        (1, &json!("duplicate"))
    );
}

#[rstest]
#[tokio::test]
async fn deep_and_long_json_is_refused(#[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere) {
    let server = TestServer::start(db).await;
    let alice = server.anyone().registered("alice", "laptop").await;
    let deep = |open: &str, close: &str, depth| format!("{}{}", open.repeat(depth), close.repeat(depth));
    let arrays = deep("[", "]", 20_000);
    for (path, body) in [
        ("/keypackages/reserve", arrays.clone()),
        ("/keypackages/reserve", format!(r#"{{"targets":{arrays}}}"#)),
        ("/keypackages/reserve", format!(r#"{{"group_id":{arrays}}}"#)),
        ("/keypackages/reserve", format!("{}1{}", r#"{"a":"#.repeat(15_000), "}".repeat(15_000))),
        ("/keypackages/upload", format!(r#"{{"keypackages":{arrays}}}"#)),
        ("/keypackages/revoke", format!(r#"{{"refs":{arrays}}}"#)),
        ("/devices", deep("[", "]", 4_000)),
    ] {
        let answer = alice.try_send(Method::POST, path, Some(body)).await.unwrap();
        answer.is_problem(400, ProblemType::MalformedRequest);
    }
    let refs = vec!["ab".repeat(32); 1_001];
    for (path, body, most) in [
        ("upload", json!({"keypackages": vec![""; 101]}), 100),
        ("reserve", json!({"targets": vec!["alice"; 101]}), 100),
        ("revoke", json!({"refs": refs}), 1_000),
    ] {
        let answer = alice.post(&format!("/keypackages/{path}"), &body).await;
        answer.is_problem(400, ProblemType::MalformedRequest);
        assert!(answer.text.contains(&format!("more than {most} items")), "{}", answer.text);
    }
    alice.post("/keypackages/revoke", &json!({"refs": refs[1..]})).await.ok();
    alice.status().await;
}
