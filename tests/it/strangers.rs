//! Input of strangers at the port makes no line in the log.

use std::{
    fs,
    io::{Read, Write},
    net::{Shutdown, TcpStream},
    sync::Arc,
    time::{Duration, Instant},
};

use reqwest::Method;
use rstest::rstest;
use rustls::{ClientConfig, ClientConnection, RootCertStore, crypto::ring, pki_types::ServerName};
use tempfile::NamedTempFile;

use crate::{
    process::Certificate,
    support::{Database, Http, PATIENCE, ServerProcess, hot_client},
};

/// The first message of a TLS client.
fn hello() -> Vec<u8> {
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let config = config.with_safe_default_protocol_versions().unwrap();
    let config = config.with_root_certificates(RootCertStore::empty()).with_no_client_auth();
    let mut client = ClientConnection::new(Arc::new(config), ServerName::try_from("keypool.test").unwrap()).unwrap();
    let mut hello = Vec::new();
    client.write_tls(&mut hello).unwrap();
    hello
}

fn garbage() -> Vec<Vec<u8>> {
    let (hello, request) = (hello(), b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n".to_vec());
    vec![
        hello[..hello.len() / 2].to_vec(),
        [hello.clone(), b"\x16\x03\x03\x00\x02ab".to_vec()].concat(),
        hello,
        b"this is not HTTP\r\n\r\n".to_vec(),
        b"SSH-2.0-OpenSSH_9.2\r\n".to_vec(),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        (0..=255).rev().collect(),
        vec![0; 100_000],
        [request.clone(), vec![0xff; 100]].concat(),
        request,
        format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "a".repeat(200_000)).into_bytes(),
        b"POST /devices HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n".to_vec(),
        b"POST /devices HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{".to_vec(),
        Vec::new(),
    ]
}

/// Sends these bytes, closes the sending side, and reads until the server has closed its side, too.
fn send(address: &str, bytes: &[u8]) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    // The server may close before it has all of a long one.
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(Shutdown::Write);
    if let Err(error) = stream.read_to_end(&mut Vec::new()) {
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}");
    }
}

#[rstest]
#[tokio::test]
async fn what_strangers_send_fills_no_log(#[values(false, true)] speaks_tls: bool) {
    let (place, certificate) = (Database::Sqlite.fresh(), Certificate::new());
    let (out, log) = (NamedTempFile::new().unwrap(), NamedTempFile::new().unwrap());
    let server = ServerProcess::spawn_with(&place, |command| {
        command.env("KEYPOOL_LOG", "info").stdout(out.reopen().unwrap()).stderr(log.reopen().unwrap());
        if speaks_tls {
            certificate.configure(command);
        }
    });
    let address = server.address().to_owned();
    let patience = Instant::now() + PATIENCE;
    while !fs::read_to_string(out.path()).unwrap().contains(&format!("://{address} ")) {
        assert!(Instant::now() < patience, "it does not serve after {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let said = || fs::read_to_string(log.path()).unwrap();
    let before = said();
    assert!(before.contains("INFO"), "{before}");
    let its = address.clone();
    tokio::task::spawn_blocking(move || garbage().iter().for_each(|bytes| send(&its, bytes))).await.unwrap();
    // A client that refuses the certificate, or speaks TLS to the plain port.
    let tls = Http::over(hot_client(), &format!("https://{address}"));
    assert!(tls.try_send(Method::GET, "/healthz", None).await.is_err());
    assert_eq!(said(), before);
    server.signal("TERM");
    assert_eq!(server.ended().await.code(), Some(0));
}
