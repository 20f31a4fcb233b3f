//! The server as a process: its end, its messages to operators, and the secrets that it keeps.

use std::{
    ffi::OsStr,
    fs,
    os::unix::{ffi::OsStrExt, fs::PermissionsExt},
    path::Path,
    process::{Command, Output, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use keypool_openapi::ProblemType;
use reqwest::{Client, Method, header, tls::Version};
use rstest::rstest;
use serde_json::{Value, json};
use tempfile::{NamedTempFile, TempDir};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::support::{
    Anywhere, Database, Device, GUARDED, Http, PATIENCE, ServerProcess, TestServer, builder, command, encode,
    hot_client,
};

/// The name in the certificates of these tests: not the address that the server listens on.
const HOST: &str = "keypool.test";

/// A request that has begun and is not finished.
struct Unfinished {
    stream: TcpStream,
    rest: Vec<u8>,
}

impl Unfinished {
    /// Registers a device, and stops in the middle.
    async fn register(address: &str, user: &str) -> Self {
        let body = json!({"user": user, "device": "slow"}).to_string().into_bytes();
        let (half, rest) = body.split_at(body.len() / 2);
        let mut stream = TcpStream::connect(address).await.unwrap();
        let head = format!("POST /devices HTTP/1.1\r\nHost: {address}\r\nContent-Length: {}\r\n\r\n", body.len());
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(half).await.unwrap();
        Self { stream, rest: rest.to_vec() }
    }

    /// Sends the rest, and answers all that comes until the connection is closed.
    async fn finish(mut self) -> String {
        self.stream.write_all(&self.rest).await.unwrap();
        let mut answer = String::new();
        self.stream.read_to_string(&mut answer).await.unwrap();
        answer
    }
}

/// Waits until the server accepts no more; says whether it said before that it is not ready.
async fn closed(anyone: &Http) -> bool {
    let (patience, mut was_unready) = (Instant::now() + PATIENCE, false);
    while let Ok(answer) = anyone.try_send(Method::GET, "/readyz", None).await {
        if answer.status != 200 {
            answer.is_problem(503, ProblemType::Unavailable);
            if let Ok(lives) = anyone.try_send(Method::GET, "/healthz", None).await {
                assert_eq!(lives.status, 200);
            }
            was_unready = true;
        }
        assert!(Instant::now() < patience, "the server still accepts after {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    was_unready
}

#[rstest]
#[tokio::test]
async fn a_stopping_server_finishes_what_runs(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let place = db.fresh();
    let server = ServerProcess::start_with(&place, |command| {
        command.stderr(Stdio::null());
    })
    .await;
    let anyone = Http::new(&server.base);
    let unfinished = Unfinished::register(server.address(), "alice").await;
    // A connection without a request does not hold it up.
    let idle = TcpStream::connect(server.address()).await.unwrap();
    server.signal(if db == Database::Postgres { "TERM" } else { "INT" });
    assert!(closed(&anyone).await, "it accepted no more before it said that it is not ready");
    let answer = unfinished.finish().await;
    assert!(answer.starts_with("HTTP/1.1 201 ") && answer.contains("\"token\""), "{answer}");
    assert_eq!(server.ended().await.code(), Some(0));
    drop(idle);
    let server = ServerProcess::start(&place).await;
    Http::new(&server.base).register("alice", "slow").await.is_problem(401, ProblemType::Unauthenticated);
}

#[tokio::test]
async fn a_second_signal_stops_at_once() {
    let place = Database::Sqlite.fresh();
    let server = ServerProcess::start_with(&place, |command| {
        command.env("KEYPOOL_SHUTDOWN_DELAY", "0s").stderr(Stdio::null());
    })
    .await;
    let unfinished = Unfinished::register(server.address(), "alice").await;
    server.signal("TERM");
    closed(&Http::new(&server.base)).await;
    let begun = Instant::now();
    server.signal("TERM");
    assert_eq!(server.ended().await.code(), Some(1));
    assert!(begun.elapsed() < Duration::from_secs(10), "it took {:?}", begun.elapsed());
    drop(unfinished);
}

/// A certificate for the test's host and its key, in files.
pub struct Certificate {
    directory: TempDir,
    pem: String,
}

impl Certificate {
    pub fn new() -> Self {
        let made = rcgen::generate_simple_self_signed([HOST.to_owned()]).unwrap();
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("certificate.pem"), made.cert.pem()).unwrap();
        fs::write(directory.path().join("key.pem"), made.signing_key.serialize_pem()).unwrap();
        Self { directory, pem: made.cert.pem() }
    }

    pub fn configure(&self, command: &mut Command) {
        for (name, file) in [("KEYPOOL_TLS_CERTIFICATE", "certificate.pem"), ("KEYPOOL_TLS_KEY", "key.pem")] {
            command.env(name, self.directory.path().join(file));
        }
    }

    /// A client that trusts this certificate alone, and finds its host at this address.
    fn client(&self, address: &str, version: Version) -> Client {
        builder()
            .tls_certs_only([reqwest::Certificate::from_pem(self.pem.as_bytes()).unwrap()])
            .tls_version_min(version)
            .tls_version_max(version)
            .resolve(HOST, address.parse().unwrap())
            .build()
            .unwrap()
    }
}

/// Runs a subcommand to its end, with these settings and no others.
pub async fn run(subcommand: &'static str, settings: impl FnOnce(&mut Command) + Send + 'static) -> Output {
    let run = move || {
        let mut program = command("keypool-server");
        program.arg(subcommand).stdin(Stdio::null());
        settings(&mut program);
        program.output().unwrap()
    };
    tokio::task::spawn_blocking(run).await.unwrap()
}

pub fn said(output: &Output) -> String {
    [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned()).concat()
}

#[tokio::test]
async fn https_is_spoken_where_there_is_a_certificate() {
    let place = Database::Sqlite.fresh();
    let certificate = Arc::new(Certificate::new());
    let out = NamedTempFile::new().unwrap();
    let log = NamedTempFile::new().unwrap();
    let (stdout, stderr) = (out.reopen().unwrap(), log.reopen().unwrap());
    let server = ServerProcess::spawn_with(&place, |command| {
        certificate.configure(command);
        command.stdout(stdout).stderr(stderr).env("KEYPOOL_LOG", "trace");
    });
    let mut secrets = Vec::new();
    let address = server.address().to_owned();
    let patience = Instant::now() + PATIENCE;
    let healthy = loop {
        let (its, listen) = (Arc::clone(&certificate), address.clone());
        let output = run("healthcheck", move |command| its.configure(command.env("KEYPOOL_LISTEN", listen))).await;
        if output.status.success() || Instant::now() > patience {
            break output;
        }
        let complaints = ["no server answers at https://", "the server is not ready: https://"];
        assert!(complaints.iter().any(|one| said(&output).contains(one)), "{}", said(&output));
    };
    assert!(healthy.status.success(), "{}", said(&healthy));
    for (version, user) in [(Version::TLS_1_2, "alice"), (Version::TLS_1_3, "bob")] {
        let base = format!("https://{HOST}:{}", address.rsplit_once(':').unwrap().1);
        let caller = Http::over(certificate.client(&address, version), &base).registered(user, "laptop").await;
        let packages = Device::new(user, "laptop").key_packages(1);
        caller.uploaded(&packages).await;
        secrets.extend([caller.token.unwrap(), encode(&packages[0][..96])]);
    }
    assert!(Http::new(&server.base).try_send(Method::GET, "/healthz", None).await.is_err(), "it speaks HTTP as well");
    let said = fs::read_to_string(out.path()).unwrap();
    assert!(said.starts_with(&format!("keypool-server listening on https://{address} ")), "{said}");
    server.signal("TERM");
    assert_eq!(server.ended().await.code(), Some(0));
    let log = fs::read_to_string(log.path()).unwrap();
    for secret in secrets {
        assert!(!log.contains(&secret), "the log has {secret}");
    }
}

#[tokio::test]
async fn what_is_wrong_with_a_certificate_is_said() {
    let (one, other) = (Certificate::new(), Certificate::new());
    let file = |certificate: &Certificate, name: &str| certificate.directory.path().join(name);
    let (certificate, key) = (file(&one, "certificate.pem"), file(&one, "key.pem"));
    for (certificate, key, complaint) in [
        (file(&one, "nothing.pem"), key.clone(), "cannot read the setting tls_certificate's file"),
        (certificate.clone(), file(&one, "nothing.pem"), "cannot read the setting tls_key's file"),
        (key.clone(), key.clone(), "has no certificate in it"),
        (certificate.clone(), certificate.clone(), "has no private key in it"),
        (certificate.clone(), file(&other, "key.pem"), "does not go with the first certificate"),
    ] {
        let path = if complaint.contains("certificate") { &certificate } else { &key };
        let path = path.display().to_string();
        let set = move |command: &mut Command| {
            command.env("KEYPOOL_TLS_CERTIFICATE", certificate).env("KEYPOOL_TLS_KEY", key);
        };
        let output = run("serve", set).await;
        let said = said(&output);
        assert!(!output.status.success() && said.contains(complaint) && said.contains(&path), "{said}");
    }
}

#[rstest]
#[tokio::test]
async fn every_answer_carries_the_id_of_its_request(#[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere) {
    let server = TestServer::start(db).await;
    let client = hot_client();
    for (method, path, status) in [
        (Method::GET, "/healthz", 200),
        (Method::GET, "/openapi.json", 200),
        (Method::GET, "/keypackages/status", 401),
        (Method::POST, "/devices", 400),
        (Method::GET, "/nowhere", 404),
    ] {
        let ask = |id: Option<&'static str>| {
            let mut request = client.request(method.clone(), format!("{}{path}", server.base));
            if let Some(id) = id {
                request = request.header("X-Request-Id", id);
            }
            async move {
                let response = request.send().await.unwrap();
                assert_eq!(response.status(), status, "{path}");
                response.headers()["X-Request-Id"].to_str().unwrap().to_owned()
            }
        };
        assert_eq!(ask(Some("trace.7_a-B")).await, "trace.7_a-B", "{path}");
        let (made, other) = (ask(None).await, ask(Some("not an id")).await);
        assert!(uuid::Uuid::parse_str(&made).is_ok() && uuid::Uuid::parse_str(&other).is_ok(), "{made} {other}");
        assert_ne!(made, other);
    }
}

#[rstest]
#[tokio::test]
async fn the_metrics_show_what_was_asked(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let server = TestServer::start(db).await;
    let anyone = server.anyone();
    let alice = anyone.registered("alice", "laptop").await;
    let bob = anyone.registered("bob", "phone").await;
    alice.uploaded(&Device::new("alice", "laptop").key_packages(2)).await;
    bob.reserved("alice").await;
    bob.get("/users/alice/devices").await.ok();
    bob.get("/users/bob/devices").await.ok();
    bob.get("/no/such/path").await.is_problem(404, ProblemType::NotFound);
    let odd = Method::from_bytes(b"ODD").unwrap();
    bob.try_send(odd, "/no/such/path", None).await.unwrap();
    let answer = anyone.get("/metrics").await;
    assert_eq!(answer.headers[header::CONTENT_TYPE], "text/plain; version=0.0.4");
    for line in [
        r#"keypool_http_requests_total{method="POST",route="/devices",status="201"} 2"#,
        r#"keypool_http_requests_total{method="POST",route="/keypackages/upload",status="200"} 1"#,
        r#"keypool_http_requests_total{method="POST",route="/keypackages/reserve",status="200"} 1"#,
        r#"keypool_http_requests_total{method="GET",route="/users/{user}/devices",status="200"} 2"#,
        r#"keypool_http_requests_total{method="GET",route="unmatched",status="404"} 1"#,
        r#"keypool_http_requests_total{method="OTHER",route="unmatched",status="404"} 1"#,
        r#"keypool_http_request_duration_seconds_count{method="POST",route="/devices"} 2"#,
        // This very request.
        "keypool_http_requests_in_flight 1",
    ] {
        assert!(answer.text.lines().any(|found| found == line), "no {line} in\n{}", answer.text);
    }
    let waits = answer.text.lines().find_map(|line| line.strip_prefix("keypool_connection_wait_seconds_count "));
    assert!(waits.unwrap().parse::<u64>().unwrap() >= 6, "{}", answer.text);
    for family in answer.text.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        let name = family.split(' ').next().unwrap();
        assert!(answer.text.contains(&format!("# HELP {name} ")), "{name}");
    }
}

#[rstest]
#[tokio::test]
async fn the_log_tells_what_happened_and_no_secret(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let (password, admin) = ("correct-horse-battery", "staple-".repeat(6));
    let mut place = db.fresh();
    place.url = place.url.replace("postgres@", &format!("postgres:{password}@"));
    let log = NamedTempFile::new().unwrap();
    let server = ServerProcess::start_with(&place, |command| {
        command.env("KEYPOOL_LOG", "trace").env("KEYPOOL_LOG_FORMAT", "json").env("KEYPOOL_ADMIN_TOKEN", &admin);
        command.stderr(log.reopen().unwrap());
    })
    .await;
    let anyone = Http::over(hot_client(), &server.base);
    let alice = anyone.registered("alice", "laptop").await;
    let bob = anyone.registered("bob", "phone").await;
    let packages = Device::new("alice", "laptop").key_packages(3);
    alice.uploaded(&packages).await;
    let reservation = bob.reserved("alice").await;
    bob.spend(&reservation, "friends").await.ok();
    bob.spend(&reservation, "others").await.is_problem(409, ProblemType::AlreadySpent);
    bob.get("/users/alice/devices").await.ok();
    assert_eq!(bob.get("/healthz?marker-in-query").await.status, 200);
    bob.get("/keypackages/status?marker-in-query").await.is_problem(400, ProblemType::MalformedRequest);
    anyone.get("/marker-in-path?marker-in-query").await.is_problem(404, ProblemType::NotFound);
    anyone.with_token("marker-in-token").get("/keypackages/status").await.is_problem(401, ProblemType::Unauthenticated);
    anyone.with_token(&admin).get("/keypackages/status").await;
    for body in [r#"{"marker-in-body":1}"#, r#"{"user":" marker-in-body","device":"d"}"#, "marker-in-body"] {
        let answer = anyone.try_send(Method::POST, "/devices", Some(body.to_owned())).await.unwrap();
        answer.is_problem(400, ProblemType::MalformedRequest);
    }
    server.signal("TERM");
    assert_eq!(server.ended().await.code(), Some(0));

    let log = fs::read_to_string(log.path()).unwrap();
    let mut secrets = vec![password.to_owned(), admin, "marker-in".to_owned(), "Bearer".to_owned()];
    secrets.extend([&alice, &bob].map(|caller| caller.token.clone().unwrap()));
    secrets.extend(packages.iter().map(|package| encode(&package[..96])));
    secrets.extend(["SELECT ", "UPDATE ", "INSERT ", "/users/alice"].map(str::to_owned));
    for secret in secrets {
        let line = log.lines().find(|line| line.contains(&secret));
        assert!(line.is_none(), "the log has {secret}: {}", line.unwrap_or_default());
    }
    let lines: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
    let answered = |route: &str, status: u16| {
        lines.iter().any(|line| {
            line["fields"]["message"] == "answered"
                && line["fields"]["status"] == status
                && line["fields"]["seconds"].as_f64().is_some_and(|time| time > 0.0)
                && line["span"]["route"] == route
                && line["span"]["request_id"].as_str().is_some_and(|id| !id.is_empty())
        })
    };
    for (route, status) in [
        ("/devices", 201),
        ("/devices", 400),
        ("/keypackages/spend", 409),
        ("/keypackages/status", 401),
        ("/users/{user}/devices", 200),
        ("unmatched", 404),
    ] {
        assert!(answered(route, status), "the log does not say that {route} answered {status}:\n{log}");
    }
}

fn settings(output: &Output) -> String {
    assert!(output.status.success(), "{}", said(output));
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn set_file(file: &Path) -> impl FnOnce(&mut Command) + Send + 'static + use<> {
    let file = file.to_owned();
    move |command| {
        command.arg("--config").arg(file).env("KEYPOOL_LOG", "warn");
    }
}

#[tokio::test]
async fn the_settings_are_printed_without_secrets_and_can_be_read_again() {
    let admin = "staple-".repeat(6);
    let secret = admin.clone();
    let shown = run("config", move |command| {
        command.env("KEYPOOL_ADMIN_TOKEN", secret).env("KEYPOOL_DATABASE_URL", "postgres://me:battery@db/keypool");
    });
    let shown = settings(&shown.await);
    assert!(!shown.contains(&admin) && !shown.contains("battery"), "{shown}");
    for line in [
        r#"database_url = "postgres://me:***@db/keypool""#,
        r#"admin_token = "***""#,
        r#"listen = "127.0.0.1:8080""#,
        "# tls_key is not set",
    ] {
        assert!(shown.lines().any(|found| found == line), "no {line} in\n{shown}");
    }

    let file = NamedTempFile::new().unwrap();
    fs::write(file.path(), "pool_target = 40\nshutdown_delay = '7s'\n").unwrap();
    let first = settings(&run("config", set_file(file.path())).await);
    assert!(first.contains("pool_target = 40\n") && first.contains("log = \"warn\"\n"), "{first}");
    fs::write(file.path(), &first).unwrap();
    assert_eq!(settings(&run("config", set_file(file.path())).await), first);
}

#[tokio::test]
async fn a_misspelt_setting_is_told_and_no_secret_is_shown() {
    let shown = run("config", |command| {
        command.env("KEYPOOL_REGISTRATOIN", "battery").env("KEYPOOL_PORT_8080_TCP_ADDR", "10.0.0.1");
    });
    let shown = settings(&shown.await);
    let last = shown.lines().last();
    assert_eq!(last, Some("# the variable KEYPOOL_REGISTRATOIN is not a setting"), "{shown}");
    let log = run("serve", |command| {
        command.env("KEYPOOL_REGISTRATOIN", "battery").env("KEYPOOL_DATABASE_URL", "sqlite:///none/keypool.db");
    });
    let log = said(&log.await);
    assert!(log.contains("KEYPOOL_REGISTRATOIN") && !log.contains("battery"), "{log}");

    let secret = NamedTempFile::new().unwrap();
    fs::write(secret.path(), "postgres://me:battery@db/keypool\n").unwrap();
    let path = secret.path().to_owned();
    let shown = run("config", move |command| {
        command.env("KEYPOOL_DATABASE_URL_FILE", path);
    });
    assert!(settings(&shown.await).contains(r#"database_url = "postgres://me:***@db/keypool""#));

    let not_utf8 = OsStr::from_bytes(b"postgres://me:battery\xff@db/keypool");
    let refused = run("config", move |command| {
        command.env("KEYPOOL_DATABASE_URL", not_utf8);
    });
    let refused = refused.await;
    assert!(!refused.status.success() && !said(&refused).contains("battery"), "{}", said(&refused));

    let refused = run("config", |command| {
        command.env("KEYPOOL_TLS_CERTIFICATE", "/none/chain.pem").env("KEYPOOL_TLS_KEY", "/none/key.pem");
    });
    let refused = refused.await;
    assert!(!refused.status.success() && said(&refused).contains("/none/chain.pem"), "{}", said(&refused));
}

/// A password is proven by OpenSSL, which once was taken down at the end under a connection that the pool was just making: of
/// these commands, which are done at any moment of that, some crashed.
#[tokio::test]
async fn a_command_that_has_done_its_work_ends_well() {
    let place = Database::Postgres.fresh();
    let url = place.url.replace("postgres@", &format!("{GUARDED}:battery@"));
    place.open().run(&format!("CREATE ROLE {GUARDED} SUPERUSER LOGIN PASSWORD 'battery'"));
    let ends_well = async |subcommand, arguments: &'static [&str]| {
        let url = url.clone();
        let output = run(subcommand, move |command| {
            command.args(arguments).env("KEYPOOL_DATABASE_URL", url);
        });
        let output = output.await;
        assert!(output.status.success(), "{subcommand}: {}, {}", output.status, said(&output));
    };
    ends_well("migrate", &[]).await;
    place.open().run(
        "CREATE FUNCTION take_a_while() RETURNS trigger LANGUAGE plpgsql
             AS 'BEGIN PERFORM pg_sleep(random() * 0.02); RETURN NEW; END';
         CREATE TRIGGER slow BEFORE INSERT ON enrolments FOR EACH ROW EXECUTE FUNCTION take_a_while()",
    );
    for _ in 0..100 {
        ends_well("enrol", &["--user", "alice"]).await;
    }
}

/// Others on the machine read nothing of a database, nor of what was made before.
#[tokio::test]
async fn the_files_of_a_database_are_its_owners_alone() {
    let place = Database::Sqlite.fresh();
    let path = std::path::PathBuf::from(place.url.strip_prefix("sqlite://").unwrap());
    let modes = || -> Vec<_> {
        let entries = fs::read_dir(path.parent().unwrap()).unwrap().map(Result::unwrap);
        entries.map(|entry| (entry.file_name(), entry.metadata().unwrap().permissions().mode() & 0o777)).collect()
    };
    let server = ServerProcess::start(&place).await;
    Http::new(&server.base).registered("alice", "laptop").await;
    let made = modes();
    assert!(made.len() >= 4 && made.iter().all(|(_, mode)| *mode == 0o600), "{made:?}");
    server.signal("TERM");
    assert_eq!(server.ended().await.code(), Some(0));
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    let server = ServerProcess::start(&place).await;
    Http::new(&server.base).registered("bob", "laptop").await;
    assert!(modes().iter().all(|(_, mode)| *mode == 0o600), "{:?}", modes());
}

#[tokio::test]
async fn keys_of_the_identity_provider_over_plain_http_are_warned_of() {
    for (url, warns) in [("http://keys.invalid/jwks", true), ("https://keys.invalid/jwks", false)] {
        let place = Database::Sqlite.fresh();
        let log = NamedTempFile::new().unwrap();
        let stderr = log.reopen().unwrap();
        let _server = ServerProcess::start_with(&place, |command| {
            command.env("KEYPOOL_REGISTRATION", "jwt").env("KEYPOOL_JWT_ISSUER", "i").env("KEYPOOL_JWT_AUDIENCE", "a");
            command.env("KEYPOOL_JWT_JWKS", url).stderr(stderr);
        })
        .await;
        let log = fs::read_to_string(log.path()).unwrap();
        assert_eq!(log.contains("come over plain HTTP"), warns, "{log}");
    }
}
