//! The needs of browsers: CORS for pages of other origins, a page at the root, and documents that work behind a path prefix.

use keypool_openapi::ProblemType;
use keypool_server::config::{Config, CorsOrigins, Registration};
use reqwest::Method;
use rstest::rstest;
use serde_json::json;

use crate::support::{Answer, Anywhere, Database, Device, Http, TestServer, free_port, tools};

const ORIGIN: &str = "https://chat.example";

fn origins(names: &[&str]) -> impl Fn(&mut Config) {
    let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
    move |config| config.cors_origins = CorsOrigins::try_from(names.clone()).unwrap()
}

/// A browser's preflight request for a page of this origin, with this method and these headers.
async fn preflight(caller: &Http, origin: &str, method: &str, headers: &str) -> Answer {
    let caller = caller.with_header("origin", origin).with_header("access-control-request-method", method);
    let caller = caller.with_header("access-control-request-headers", headers);
    caller.try_send(Method::OPTIONS, "/keypackages/reserve", None).await.unwrap()
}

#[rstest]
#[tokio::test]
async fn pages_of_named_origins_may_call(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let server = TestServer::start_with(db, origins(&[ORIGIN, "capacitor://localhost"])).await;
    let anyone = server.anyone();
    for origin in [ORIGIN, "capacitor://localhost"] {
        let headers = "authorization, content-type, idempotency-key, x-request-id";
        for method in ["GET", "POST", "DELETE"] {
            let answer = preflight(&anyone, origin, method, headers).await;
            assert_eq!((answer.status, answer.header("access-control-allow-origin")), (200, Some(origin)));
            assert_eq!(answer.header("access-control-max-age"), Some("86400"));
            let vary = answer.header("vary").unwrap().to_ascii_lowercase();
            assert!(vary.contains("origin"), "{vary}");
        }
        // Answers and refusals can be read, with the headers that a client needs.
        let page = anyone.with_header("origin", origin);
        let alice = page.registered(&format!("alice-{}", origin.len()), "laptop").await;
        for answer in [alice.get("/keypackages/status").await, page.get("/keypackages/status").await] {
            assert_eq!(answer.header("access-control-allow-origin"), Some(origin), "{}", answer.text);
            let exposed = answer.header("access-control-expose-headers").unwrap().to_ascii_lowercase();
            for name in ["x-request-id", "retry-after", "date"] {
                assert!(exposed.contains(name), "{exposed}");
            }
        }
    }
    // Other origins get no permission; a program that sends the header is served as before.
    for (origin, method, headers) in
        [("https://evil.example", "POST", "authorization"), (ORIGIN, "PATCH", ""), (ORIGIN, "POST", "x-other")]
    {
        let answer = preflight(&anyone, origin, method, headers).await;
        assert_eq!((answer.status, answer.header("access-control-allow-origin")), (400, None), "{origin} {method}");
    }
    let other = anyone.with_header("origin", "https://evil.example").registered("bob", "phone").await;
    let answer = other.get("/keypackages/status").await;
    assert_eq!((answer.status, answer.header("access-control-allow-origin")), (200, None));
}

#[tokio::test]
async fn pages_may_call_only_where_the_operator_says_so() {
    let server = TestServer::start(Database::Sqlite).await;
    let answer = preflight(&server.anyone(), ORIGIN, "POST", "authorization").await;
    answer.is_problem(405, ProblemType::MethodNotAllowed);
    assert_eq!(answer.header("access-control-allow-origin"), None);
    let server = TestServer::start_with(Database::Sqlite, origins(&["*"])).await;
    let answer = preflight(&server.anyone(), ORIGIN, "POST", "authorization").await;
    assert_eq!((answer.status, answer.header("access-control-allow-origin")), (200, Some("*")));
    assert_eq!(answer.header("access-control-allow-credentials"), None, "a cookie must never count");
}

#[rstest]
#[tokio::test]
async fn the_root_says_what_a_client_has_to_know(#[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere) {
    let server = TestServer::start(db).await;
    let info = server.anyone().get("/").await.ok();
    assert_eq!((&info["name"], &info["ciphersuites"]), (&json!("keypool-server"), &json!([1, 2, 3])));
    assert_eq!(info["limits"]["max_lifetime"], 90 * 24 * 60 * 60);
    assert_eq!(info["limits"]["upload_batch"], 100);
    let page = server.anyone().with_header("accept", "text/html,application/xhtml+xml,*/*;q=0.8").get("/").await;
    assert_eq!((page.status, page.header("content-type")), (200, Some("text/html; charset=utf-8")));
    // Every link is relative, and leads somewhere.
    let links: Vec<_> = page.text.split("href=\"").skip(1).map(|rest| rest.split('"').next().unwrap()).collect();
    assert!(links.len() >= 2, "{}", page.text);
    for link in links {
        assert!(!link.starts_with('/') && !link.contains("://"), "{link}");
        assert_eq!(server.anyone().get(&format!("/{link}")).await.status, 200, "{link}");
    }
}

/// Behind a proxy that serves under a path, absolute links would lead out of it.
#[rstest]
#[tokio::test]
async fn swagger_ui_links_to_nothing_outside_its_prefix(#[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere) {
    let server = TestServer::start(db).await;
    let anyone = server.anyone();
    let redirect = anyone.get("/swagger-ui").await;
    assert_eq!((redirect.status, redirect.header("location")), (308, Some("swagger-ui/")));
    let page = anyone.get("/swagger-ui/").await;
    assert!(!page.text.contains("=\"/"), "{}", page.text);
    let initializer = anyone.get("/swagger-ui/swagger-initializer.js").await;
    assert!(initializer.text.contains("\"../openapi.json\""), "{}", initializer.text);
    assert!(initializer.text.contains("persistAuthorization: true"), "{}", initializer.text);
    assert_eq!(anyone.get("/openapi.json").await.ok()["servers"][0]["url"], ".");
}

#[rstest]
#[tokio::test]
async fn what_is_large_and_public_is_compressed_for_who_asks(
    #[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere,
) {
    let server = TestServer::start(db).await;
    for path in ["/openapi.json", "/swagger-ui/swagger-ui-bundle.js"] {
        let plain = server.anyone().get(path).await;
        assert_eq!((plain.status, plain.header("content-encoding")), (200, None));
        let caller = server.anyone().with_header("accept-encoding", "gzip, deflate, br");
        let small = caller.try_send(Method::HEAD, path, None).await.unwrap();
        assert_eq!((small.status, small.header("content-encoding")), (200, Some("gzip")), "{path}");
        assert!(small.header("vary").unwrap().contains("Accept-Encoding"), "{path}");
        let length = |answer: &Answer| answer.header("content-length").unwrap().parse::<usize>().unwrap();
        assert!(length(&small) * 3 < length(&plain), "{path}: {} of {}", length(&small), length(&plain));
    }
    // Secret answers are not compressed: their length would show their content (BREACH).
    let alice = server.anyone().registered("alice", "laptop").await.with_header("accept-encoding", "gzip");
    assert_eq!(alice.get("/keypackages/status").await.header("content-encoding"), None);
}

#[rstest]
#[tokio::test]
async fn an_example_of_an_upload_is_made_for_the_device_that_is_signed_in(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
) {
    let server = TestServer::start(db).await;
    let erika = server.anyone().registered("erika", "laptop").await;
    for total in [2, 4] {
        let example = erika.get("/swagger-ui/example-upload").await.ok();
        let answer = erika.post("/keypackages/upload", &example).await.ok();
        assert_eq!((&answer["rejected"], &answer["pool"]["fresh"]), (&json!([]), &json!(total)), "{answer}");
    }
    // It does not get into the pool of a device that has keys of its own.
    let alice = server.anyone().registered("alice", "laptop").await;
    alice.uploaded(&[Device::new("alice", "laptop").key_package()]).await;
    let example = alice.get("/swagger-ui/example-upload").await.ok();
    let answer = alice.post("/keypackages/upload", &example).await.ok();
    assert_eq!(answer["rejected"][0]["reason"], "signature-key-mismatch", "{answer}");
    server.anyone().get("/swagger-ui/example-upload").await.is_problem(401, ProblemType::Unauthenticated);
    // Where registration is not open, the server makes none.
    let closed = server.beside(|config| config.registration = Registration::Token).await;
    alice.at(&closed.base).get("/swagger-ui/example-upload").await.is_problem(404, ProblemType::NotFound);
}

/// Runs a task in a real browser. A failure shows what the page showed.
async fn in_a_browser(task: &str, server: &TestServer, port: u16) {
    let mut browser = tools::browser();
    browser.args([task, &server.base, &port.to_string()]);
    let done = tokio::task::spawn_blocking(move || tools::run(&mut browser, "the page or the server has to be mended"));
    done.await.unwrap();
}

#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn a_page_of_another_origin_registers_uploads_and_reserves(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
) {
    let port = free_port();
    let server = TestServer::start_with(db, origins(&[&format!("http://localhost:{port}")])).await;
    in_a_browser("page", &server, port).await;
}

/// From registration to spend, as the examples are, behind a path prefix, and signed in after a reload.
#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn swagger_ui_executes_its_examples(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let server = TestServer::start(db).await;
    in_a_browser("swagger", &server, 0).await;
}
