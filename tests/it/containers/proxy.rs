//! What the proxy answers by itself.

use std::{
    io::{Read, Write},
    net::TcpStream,
};

use serde_json::{Value, json};

use crate::support::{Anywhere, PATIENCE, TestServer};

#[tokio::test]
#[ignore = "needs containers"]
async fn what_is_not_http_is_answered_with_a_problem_by_the_proxy() {
    let server = TestServer::start(Anywhere::Postgres).await;
    for request in [
        "this is not HTTP\r\n\r\n".to_owned(),
        "GET /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n".to_owned(),
        format!("GET /healthz HTTP/1.1\r\nHost: x\r\nX-Long: {}\r\n\r\n", "a".repeat(200_000)),
    ] {
        let mut stream = TcpStream::connect(server.base.trim_start_matches("http://")).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        // It may close before it has all of a long one.
        let _ = stream.write_all(request.as_bytes());
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        assert!(answer.starts_with("HTTP/1.1 400 "), "{request:.60}: {answer}");
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.contains("content-type: application/problem+json\r\n"), "{head}");
        let problem: Value = serde_json::from_str(body).unwrap();
        assert_eq!((&problem["type"], &problem["status"]), (&json!("malformed-request"), &json!(400)), "{body}");
    }
}
