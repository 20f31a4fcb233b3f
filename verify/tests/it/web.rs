//! Audits over HTTP.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::TcpListener,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use rstest::rstest;
use rustls::{ServerConfig, ServerConnection, StreamOwned, pki_types::PrivateKeyDer};

use crate::{
    program::{Answer, Files, append, write_log},
    support::Log,
};

/// How the server answers.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Manner {
    KeepsOpen,
    Closes,
    Chunked,
    /// Closes each connection after some requests, without saying so.
    Drops,
    Redirects,
    /// Redirects to another server.
    RedirectsAway,
    /// Answers 503 to every fifth request.
    Busy,
}

/// Serves a directory, and counts connections.
fn serve(directory: PathBuf, manner: Manner) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/log", listener.local_addr().unwrap());
    let connections = Arc::new(AtomicUsize::new(0));
    let (counted, requests) = (Arc::clone(&connections), Arc::new(AtomicUsize::new(0)));
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            counted.fetch_add(1, Ordering::Relaxed);
            let (directory, requests) = (directory.clone(), Arc::clone(&requests));
            thread::spawn(move || connection(stream, &directory, manner, &requests));
        }
    });
    (url, connections)
}

fn connection(stream: impl Read + Write, directory: &std::path::Path, manner: Manner, requests: &AtomicUsize) {
    let mut reader = BufReader::new(stream);
    for served in 0.. {
        let mut request = String::new();
        if reader.read_line(&mut request).unwrap_or(0) == 0 || manner == Manner::Drops && served == 7 {
            return;
        }
        loop {
            let mut header = String::new();
            reader.read_line(&mut header).unwrap();
            if header == "\r\n" {
                break;
            }
        }
        let path = request.split(' ').nth(1).unwrap().strip_prefix("/log/").unwrap_or("none").to_owned();
        let number = requests.fetch_add(1, Ordering::Relaxed);
        let answer = answer(directory, &path, manner, number);
        let writer = reader.get_mut();
        if writer.write_all(&answer).and_then(|()| writer.flush()).is_err() || manner == Manner::Closes {
            return;
        }
    }
}

fn answer(directory: &std::path::Path, path: &str, manner: Manner, number: usize) -> Vec<u8> {
    if manner == Manner::Redirects && !path.starts_with("moved/") {
        let location = format!("Location: /log/moved/{path}\r\n");
        return format!("HTTP/1.1 302 Found\r\n{location}Content-Length: 0\r\n\r\n").into_bytes();
    }
    if manner == Manner::RedirectsAway {
        let location = format!("Location: http://elsewhere.example/log/{path}\r\n");
        return format!("HTTP/1.1 302 Found\r\n{location}Content-Length: 0\r\n\r\n").into_bytes();
    }
    if manner == Manner::Busy && number % 100 == 50 {
        return b"HTTP/1.1 503 Busy\r\nRetry-After: 1\r\nContent-Length: 4\r\n\r\nbusy".to_vec();
    }
    let Ok(body) = fs::read(directory.join(path.trim_start_matches("moved/"))) else {
        return b"HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n\r\nnone".to_vec();
    };
    match manner {
        Manner::Chunked => {
            let mut answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
            for chunk in body.chunks(1000) {
                answer.extend(format!("{:x}\r\n", chunk.len()).bytes());
                answer.extend(chunk);
                answer.extend(b"\r\n");
            }
            answer.extend(b"0\r\n\r\n");
            answer
        }
        _ => [format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len()).as_bytes(), &body].concat(),
    }
}

#[rstest]
fn a_log_is_followed_over_http(
    #[values(Manner::KeepsOpen, Manner::Closes, Manner::Chunked, Manner::Drops, Manner::Redirects, Manner::Busy)]
    manner: Manner,
) {
    let files = Files::new();
    let mut log = Log::new(1);
    append(&mut log, 0..20_000);
    write_log(&files.path("log"), &log, &log.checkpoint());
    let (url, connections) = serve(files.path("log"), manner);
    let key = log.key.verifier().to_string();
    let audit = ["audit", "--log", &url, "--state", "state", "--vkey", &key];
    let answer = files.run(&audit);
    assert_eq!(answer.is(0, "good", "").json["new"], 20_000);
    let count = connections.load(Ordering::Relaxed);
    match manner {
        Manner::KeepsOpen | Manner::Chunked | Manner::Busy => assert!(count <= 9, "{count} connections"),
        Manner::Closes => assert!(count > 100, "{count} connections"),
        Manner::Drops | Manner::Redirects | Manner::RedirectsAway => {}
    }
    append(&mut log, 30_000..30_100);
    write_log(&files.path("log"), &log, &log.checkpoint());
    assert_eq!(files.run(&audit).is(0, "good", "").json["new"], 100);
    fs::remove_file(files.path("log/checkpoint")).unwrap();
    files.run(&audit).is(3, "cannot-tell", "checkpoint is missing");
}

#[test]
fn a_server_that_is_away_is_named() {
    let files = Files::new();
    let key = Log::new(1).key.verifier().to_string();
    let audit = |url: &str| files.run(&["audit", "--log", url, "--state", "state", "--vkey", &key]);
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    audit(&format!("http://{free}/")).is(3, "cannot-tell", "/checkpoint: Connection refused");
    audit("http://").is(3, "cannot-tell", "is no http:// or https:// URL");
    let (url, _) = serve(files.path("log"), Manner::RedirectsAway);
    audit(&url).is(3, "cannot-tell", "redirects to another server");
    let (url, _) = serve(files.path("log"), Manner::KeepsOpen);
    audit(&url.replace("http:", "https:")).is(3, "cannot-tell", "checkpoint:");
}

/// Serves a directory over TLS; gives the URL and the server's certificate.
fn serve_tls(directory: PathBuf) -> (String, String) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let config = Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("https://localhost:{}/log", listener.local_addr().unwrap().port());
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let (directory, session) = (directory.clone(), ServerConnection::new(Arc::clone(&config)).unwrap());
            thread::spawn(move || {
                connection(StreamOwned::new(session, stream), &directory, Manner::KeepsOpen, &AtomicUsize::new(0));
            });
        }
    });
    (url, made.cert.pem())
}

#[test]
fn a_log_is_followed_over_https_if_the_certificate_is_trusted() {
    let files = Files::new();
    let mut log = Log::new(1);
    append(&mut log, 0..3000);
    write_log(&files.path("log"), &log, &log.checkpoint());
    let (url, certificate) = serve_tls(files.path("log"));
    let (_, other) = serve_tls(files.path("log"));
    let key = log.key.verifier().to_string();
    let audit = |trusted: &str| {
        let mut command = files.command(&["audit", "--log", &url, "--state", "state", "--vkey", &key, "--json"]);
        Answer::of(&command.env("SSL_CERT_FILE", files.write("trusted.pem", trusted)).output().unwrap())
    };
    audit(&other).is(3, "cannot-tell", "certificate");
    assert_eq!(audit(&certificate).is(0, "good", "").json["new"], 3000);
}
