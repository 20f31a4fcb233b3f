//! The OpenAPI document is what people in other languages build upon: it is valid, complete, and true.

use std::{collections::BTreeSet, fs, path::Path, process::Command};

use keypool_openapi::{ProblemType, RejectionReason};
use keypool_server::{app::openapi_json, config::Config};
use rstest::rstest;
use serde_json::Value;
use strum::IntoEnumIterator;

use crate::support::{Database, Device, Http, Place, ServerProcess, encode, tools};

const ADMIN_TOKEN: &str = "the operator's token of these tests";

/// A server with its database, which goes when it is dropped.
async fn server(db: Database) -> (ServerProcess, Place) {
    let place = db.fresh();
    let server = ServerProcess::start_with(&place, |command| {
        command.env("KEYPOOL_ADMIN_TOKEN", ADMIN_TOKEN);
    })
    .await;
    (server, place)
}

/// Where a generated client goes; what was there is gone.
fn workshop(name: &str) -> tempfile::TempDir {
    tempfile::Builder::new().prefix(name).tempdir().unwrap()
}

fn key_packages(user: &str) -> String {
    let packages = Device::new(user, "phone").key_packages(7);
    packages.iter().map(|bytes| encode(bytes)).collect::<Vec<_>>().join("\n")
}

/// Writes the document that a running server publishes.
async fn published(server: &ServerProcess, directory: &Path) -> String {
    let document = Http::new(&server.base).get("/openapi.json").await;
    let path = directory.join("openapi.json");
    fs::write(&path, document.text).unwrap();
    path.display().to_string()
}

#[tokio::test]
async fn the_document_is_valid() {
    let ((server, _place), directory) = (server(Database::Sqlite).await, workshop("valid"));
    let document = published(&server, directory.path()).await;
    let said = tools::run(tools::python("openapi-spec-validator").arg(&document), "the document has to be mended");
    assert!(said.contains("OK"), "{said}");
}

#[tokio::test]
async fn a_python_client_generated_from_it_works() {
    let ((server, _place), directory) = (server(Database::Sqlite).await, workshop("python"));
    let document = published(&server, directory.path()).await;
    let client = directory.path().join("keypool_client");
    let mut generate = tools::python("openapi-python-client");
    generate.args(["generate", "--meta", "none", "--path", &document, "--output-path"]).arg(client);
    tools::run(&mut generate, "the document has to be mended");
    let mut smoke = tools::python("python");
    smoke.arg(tools::contract().join("smoke.py")).arg(&server.base);
    smoke.env("PYTHONPATH", directory.path()).env("KEYPACKAGES", key_packages("bob"));
    let said = tools::run(&mut smoke, "the client or the server has to be mended");
    assert!(said.contains("python: 7 KeyPackages, 1 spent"), "{said}");
}

#[tokio::test]
async fn a_typescript_client_generated_from_it_works() {
    let ((server, _place), directory) = (server(Database::Sqlite).await, workshop("typescript"));
    let document = published(&server, directory.path()).await;
    let packages = tools::node();
    for (from, to) in [
        (packages.join("node_modules"), "node_modules"),
        (packages.join("package.json"), "package.json"),
        (tools::contract().join("smoke.ts"), "smoke.ts"),
        (tools::contract().join("tsconfig.json"), "tsconfig.json"),
    ] {
        std::os::unix::fs::symlink(from, directory.path().join(to)).unwrap();
    }
    let tool = |program: &str| {
        let mut command = Command::new(packages.join("node_modules/.bin").join(program));
        command.current_dir(directory.path());
        command
    };
    tools::run(tool("openapi-typescript").args([&document, "-o", "schema.ts"]), "the document has to be mended");
    tools::run(tool("tsc").args(["--preserveSymlinks", "-p", "."]), "the client does not fit the document");
    let mut smoke = Command::new("node");
    smoke.arg("built/smoke.js").arg(&server.base).current_dir(directory.path());
    let said = tools::run(smoke.env("KEYPACKAGES", key_packages("dave")), "the client or the server has to be mended");
    assert!(said.contains("typescript: 7 KeyPackages, 1 spent"), "{said}");
}

/// Thousands of requests that the document allows or forbids, to every operation, with all of schemathesis's checks: no
/// fault of the server's, no status and no body that the document does not have.
#[rstest]
#[tokio::test]
async fn the_server_does_what_the_document_says(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let (server, _place) = server(db).await;
    let anyone = Http::new(&server.base);
    let alice = anyone.registered("alice", "laptop").await;
    let device = Device::new("alice", "laptop");
    alice.uploaded(&device.key_packages(50)).await;
    alice.uploaded(&[device.last_resort()]).await;
    let runner = anyone.registered("contract", "runner").await;
    let directory = workshop("schemathesis");
    let document = format!("{}/openapi.json", server.base);
    let authorization = format!("Authorization: Bearer {}", runner.token.unwrap());
    let mut schemathesis = tools::python("schemathesis");
    schemathesis
        .arg("--config-file")
        .arg(tools::contract().join("schemathesis.toml"))
        .args(["run", &document, "--header", &authorization, "--max-examples", "100", "--seed", "1"])
        // One worker: Python 3.11 fails now and then when two threads parse source at once (CPython's issue 106905).
        .args(["--workers", "1", "--no-color"])
        .env("SCHEMATHESIS_HOOKS", "hooks")
        .env("PYTHONPATH", tools::contract())
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("KEYPOOL_ADMIN_TOKEN", ADMIN_TOKEN)
        .current_dir(directory.path());
    let said = tools::run(&mut schemathesis, "the document or the server has to be mended");
    println!("{said}");
    assert!(said.contains("Tested: "), "{said}");
}

fn document() -> Value {
    serde_json::from_str(&openapi_json(&Config::default()).unwrap()).unwrap()
}

/// Every operation, by its method and path.
fn operations(document: &Value) -> Vec<(String, Value)> {
    let paths = document["paths"].as_object().unwrap().iter();
    paths
        .flat_map(|(path, item)| {
            item.as_object().unwrap().iter().map(move |(method, one)| (format!("{method} {path}"), one.clone()))
        })
        .collect()
}

#[test]
fn every_problem_and_every_rejection_is_documented() {
    let document = document();
    let mut documented = BTreeSet::new();
    for (name, operation) in operations(&document) {
        for (status, response) in operation["responses"].as_object().unwrap() {
            let examples = &response["content"]["application/problem+json"]["examples"];
            for (kind, example) in examples.as_object().into_iter().flatten() {
                assert_eq!(example["value"]["status"].to_string(), *status, "{name}: {kind}");
                documented.insert(kind.clone());
            }
        }
    }
    let schema = |name: &str| -> BTreeSet<String> {
        let values = document["components"]["schemas"][name]["enum"].as_array().unwrap();
        values.iter().map(|value| value.as_str().unwrap().to_owned()).collect()
    };
    // These two are answered where there is no operation.
    let everywhere = [ProblemType::NotFound, ProblemType::MethodNotAllowed];
    for kind in ProblemType::iter() {
        assert!(schema("ProblemType").contains(&kind.to_string()), "{kind} is not in the schema");
        assert!(everywhere.contains(&kind) || documented.contains(&kind.to_string()), "{kind} is at no operation");
    }
    let reasons: BTreeSet<_> = RejectionReason::iter().map(|reason| reason.to_string()).collect();
    assert_eq!(schema("RejectionReason"), reasons);
}

#[test]
fn every_operation_is_explained_and_shown() {
    let document = document();
    for (name, operation) in operations(&document) {
        assert!(operation["summary"].as_str().is_some_and(|summary| !summary.is_empty()), "{name} has no summary");
        let mut bodies = vec![&operation["requestBody"]["content"]["application/json"]];
        for (status, response) in operation["responses"].as_object().unwrap() {
            assert!(!response["description"].as_str().unwrap().is_empty(), "{name} does not explain {status}");
            if status.starts_with('2') {
                bodies.push(&response["content"]["application/json"]);
            }
        }
        for body in bodies.into_iter().filter(|body| !body.is_null()) {
            assert!(body["example"].is_object(), "{name} has a body without an example: {body}");
        }
        let open = ["get /healthz", "get /readyz", "get /metrics", "post /devices"].contains(&name.as_str());
        let anybody = operation["security"].as_array().is_some_and(|all| all.contains(&serde_json::json!({})));
        assert_eq!(anybody, open, "{name} is {}open", if anybody { "" } else { "not " });
    }
    assert_eq!(document["security"], serde_json::json!([{"bearer": []}]));
}
