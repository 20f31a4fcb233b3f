//! The proxy speaks TLS and HTTP/2 as soon as it gets the line of the operator's page.

use std::{fs, os::unix::fs::PermissionsExt, path::Path, time::Instant};

use reqwest::{Client, Version};
use tempfile::TempDir;

use crate::support::{
    Database, Http, PATIENCE, builder,
    compose::{docker, lend},
    free_port, repository,
};

const HOST: &str = "keypool.test";

/// The operator's page tells to add this line.
const BIND: &str = "bind :8443 ssl crt /etc/haproxy/keypool.pem alpn h2,http/1.1";

/// A container that goes when the test ends.
struct Container(String);

impl Drop for Container {
    fn drop(&mut self) {
        docker(&["rm", "--force", &self.0]);
    }
}

/// Writes the proxy's files with TLS, and returns the certificate.
fn configure(directory: &Path) -> String {
    let page = fs::read_to_string(repository().join("docs/operations.md")).unwrap();
    assert!(page.contains(BIND), "the operator's page does not have the line: {BIND}");
    let shipped = fs::read_to_string(repository().join("deploy/proxy/haproxy.cfg")).unwrap();
    let with_tls = shipped.replacen("  bind :8080\n", &format!("  bind :8080\n  {BIND}\n"), 1);
    assert_ne!(with_tls, shipped);
    let made = rcgen::generate_simple_self_signed([HOST.to_owned()]).unwrap();
    let certificate = made.cert.pem();
    let pair = format!("{certificate}{}", made.signing_key.serialize_pem());
    for (name, text) in [("haproxy.cfg", &with_tls), ("keypool.pem", &pair)] {
        fs::write(directory.join(name), text).unwrap();
    }
    // The proxy in the container is another user.
    fs::set_permissions(directory, fs::Permissions::from_mode(0o755)).unwrap();
    certificate
}

fn client(certificate: &str, port: u16) -> Client {
    let trusted = reqwest::Certificate::from_pem(certificate.as_bytes()).unwrap();
    builder().tls_certs_only([trusted]).resolve(HOST, ([127, 0, 0, 1], port).into()).build().unwrap()
}

#[tokio::test]
#[ignore = "needs containers"]
async fn the_proxy_speaks_http2_with_the_line_of_the_operators_page() {
    let deployment = lend(Database::Postgres).await;
    let (directory, port) = (TempDir::new().unwrap(), free_port());
    let certificate = configure(directory.path());
    let mounted = |name: &str| format!("{}:/etc/haproxy/{name}:ro", directory.path().join(name).display());
    let proxy = docker(&[
        "run",
        "--detach",
        "--network",
        &deployment.network,
        "--publish",
        &format!("127.0.0.1:{port}:8443"),
        "--volume",
        &mounted("haproxy.cfg"),
        "--volume",
        &mounted("keypool.pem"),
        "keypool-proxy",
    ]);
    let proxy = Container(proxy.trim().to_owned());
    let (client, base) = (client(&certificate, port), format!("https://{HOST}:{port}"));
    let anyone = Http::over(client.clone(), &base);
    let patience = Instant::now() + PATIENCE;
    while !anyone.is_ready().await {
        assert!(Instant::now() < patience, "the proxy is not ready: {}", docker(&["logs", &proxy.0]));
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    let answer = client.get(format!("{base}/readyz")).send().await.unwrap();
    assert_eq!((answer.version(), answer.status().as_u16()), (Version::HTTP_2, 200));
    // One connection carries a wait and what ends it.
    let alice = anyone.registered("alice", "laptop").await;
    let known = alice.get("/messages").await.ok()["devices_version"].as_u64().unwrap();
    let wait = format!("/messages?wait=60&devices_version={known}");
    let (page, _) = tokio::join!(alice.get(&wait), alice.registered("alice", "tablet"));
    assert_eq!(page.ok()["devices_version"], known + 1);
}
