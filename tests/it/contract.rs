//! The OpenAPI document is what people in other languages build upon: it is valid, complete, and true.

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    process::Command,
    sync::{Arc, Mutex, Weak},
};

use keypool_openapi::{ProblemType, RejectionReason};
use keypool_server::{app::openapi_json, config::Config};
use rstest::rstest;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use strum::IntoEnumIterator;
use tempfile::TempDir;

use crate::support::{ADMIN_TOKEN, Anywhere, Database, Device, Http, Running, encode, tools};

/// An empty directory.
fn workshop(name: &str) -> TempDir {
    tempfile::Builder::new().prefix(name).tempdir().unwrap()
}

/// A client that was generated from a document.
struct Generated {
    document: String,
    directory: TempDir,
}

/// The client of the document that a server publishes. The servers of both databases publish the same, so the first test
/// generates it, which takes much longer than all that it does then, and the other one has it, too.
async fn generated(
    server: &Running,
    (name, last): (&str, &Mutex<Weak<Generated>>),
    generate: impl FnOnce(&Path, &str),
) -> Arc<Generated> {
    let document = Http::new(&server.base).get("/openapi.json").await.text;
    let mut last = last.lock().unwrap();
    if let Some(there) = last.upgrade().filter(|there| there.document == document) {
        return there;
    }
    let directory = workshop(name);
    let path = directory.path().join("openapi.json");
    fs::write(&path, &document).unwrap();
    generate(directory.path(), path.to_str().unwrap());
    let made = Arc::new(Generated { document, directory });
    *last = Arc::downgrade(&made);
    made
}

fn key_packages(user: &str) -> String {
    let packages = Device::new(user, "phone").key_packages(7);
    packages.iter().map(|bytes| encode(bytes)).collect::<Vec<_>>().join("\n")
}

#[tokio::test]
async fn the_document_is_valid() {
    let (server, directory) = (Running::start(Database::Sqlite).await, workshop("valid"));
    let document = directory.path().join("openapi.json");
    fs::write(&document, Http::new(&server.base).get("/openapi.json").await.text).unwrap();
    let said = tools::run(tools::python("openapi-spec-validator").arg(&document), "the document has to be mended");
    assert!(said.contains("OK"), "{said}");
    let mut examples = tools::python("python");
    examples.arg(tools::contract().join("examples.py")).arg(&document);
    let said = tools::run(&mut examples, "an example is not of its schema");
    assert!(!said.starts_with("0 "), "{said}");
}

#[rstest]
#[tokio::test]
async fn a_python_client_generated_from_it_works(#[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere) {
    static LAST: Mutex<Weak<Generated>> = Mutex::new(Weak::new());
    let server = Running::start(db).await;
    let client = generated(&server, ("python", &LAST), |directory, document| {
        let mut generate = tools::python("openapi-python-client");
        generate
            .args(["generate", "--fail-on-warning", "--meta", "none", "--path", document, "--output-path"])
            .arg(directory.join("keypool_client"));
        generate.arg("--config").arg(tools::contract().join("python-client.yaml"));
        tools::run(&mut generate, "the document has to be mended");
    })
    .await;
    let mut smoke = tools::python("python");
    smoke.arg(tools::contract().join("smoke.py")).arg(&server.base);
    smoke.env("PYTHONPATH", client.directory.path()).env("KEYPACKAGES", key_packages("bob"));
    let said = tools::run(&mut smoke, "the client or the server has to be mended");
    assert!(said.contains("python: 7 KeyPackages, 1 spent"), "{said}");
}

#[rstest]
#[tokio::test]
async fn a_typescript_client_generated_from_it_works(#[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere) {
    static LAST: Mutex<Weak<Generated>> = Mutex::new(Weak::new());
    let server = Running::start(db).await;
    let client = generated(&server, ("typescript", &LAST), |directory, document| {
        let packages = tools::node();
        for (from, to) in [
            (packages.join("node_modules"), "node_modules"),
            (packages.join("package.json"), "package.json"),
            (tools::contract().join("smoke.ts"), "smoke.ts"),
            (tools::contract().join("tsconfig.json"), "tsconfig.json"),
        ] {
            std::os::unix::fs::symlink(from, directory.join(to)).unwrap();
        }
        let tool = |program: &str| {
            let mut command = Command::new(packages.join("node_modules/.bin").join(program));
            command.current_dir(directory);
            command
        };
        tools::run(tool("openapi-typescript").args([document, "-o", "schema.ts"]), "the document has to be mended");
        tools::run(tool("tsc").args(["--preserveSymlinks", "-p", "."]), "the client does not fit the document");
    })
    .await;
    let mut smoke = Command::new("node");
    smoke.arg("built/smoke.js").arg(&server.base).current_dir(client.directory.path());
    let said = tools::run(smoke.env("KEYPACKAGES", key_packages("dave")), "the client or the server has to be mended");
    assert!(said.contains("typescript: 7 KeyPackages, 1 spent"), "{said}");
}

/// The devices when schemathesis begins: one to reserve from, the one that makes the requests, and others to end.
/// Answers the first two, which hooks.py keeps alive.
async fn scene(server: &Running, directory: &Path) -> (Http, Http) {
    let anyone = Http::new(&server.base);
    let alice = anyone.registered("erika", "laptop").await;
    let device = Device::new("erika", "laptop");
    alice.uploaded(&device.key_packages(100)).await;
    alice.uploaded(&[device.last_resort()]).await;
    let (runner, guest) = (anyone.registered("contract", "runner").await, anyone.registered("guest", "phone").await);
    let spares: Vec<_> = (0..20).map(|n| format!("spare-{n}")).collect();
    for spare in &spares {
        runner.register("contract", spare).await.ok();
        guest.register("guest", spare).await.ok();
    }
    let packages = Device::new("contract", "runner").key_packages(100);
    let dictionary = |name: &str, values: Vec<String>| {
        let lines: Vec<_> = values.iter().map(|value| format!("\"{value}\"")).collect();
        fs::write(directory.join(name).with_extension("dict"), lines.join("\n")).unwrap();
    };
    // A group that has committed once: that Commit can be repeated, messages can be sent, and its GroupInfo is there.
    let mut party = Device::new("contract", "runner").founds("contract");
    let (commit, message) = (encode(&party.updates()), encode(&party.says("hello")));
    party.merges();
    let (info, proof) = (encode(&party.group_info()), [7; 32]);
    let body = json!({
        "commit": commit, "group_info": info, "members": [{"user": "contract", "device": "runner"}],
        "next_proof_digest": encode(&Sha256::digest(proof)),
    });
    runner.post(&format!("/groups/{}/commits", party.path()), &body).await.ok();
    dictionary("groups", vec![party.path()]);
    dictionary("commits", vec![commit]);
    dictionary("messages", vec![message]);
    dictionary("group-infos", vec![info]);
    dictionary("proofs", vec![encode(&proof)]);
    dictionary("members", vec!["runner".to_owned()]);
    dictionary("users", ["erika", "contract", "guest"].map(str::to_owned).to_vec());
    dictionary("spare-devices", spares);
    let log = anyone.get("/log").await.ok();
    dictionary("origins", vec![log["origin"]["path"].as_str().unwrap().trim_start_matches("log/").to_owned()]);
    let checkpoint = runner.status().await["log"]["checkpoint"].as_str().unwrap().replace('\n', r"\n");
    dictionary("checkpoints", vec![checkpoint]);
    dictionary("tiles", ["0/000.p/1", "entries/000.p/1"].map(str::to_owned).to_vec());
    dictionary("key-packages", packages.iter().map(|bytes| encode(bytes)).collect());
    (alice, runner)
}

/// Thousands of requests that the document allows or forbids, to every operation, with all of schemathesis's checks: no
/// fault of the server's, no status and no body that the document does not have.
#[rstest]
#[tokio::test]
async fn the_server_does_what_the_document_says(#[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere) {
    let (server, directory) = (Running::start(db).await, workshop("schemathesis"));
    let (alice, runner) = scene(&server, directory.path()).await;
    fs::copy(tools::contract().join("schemathesis.toml"), directory.path().join("schemathesis.toml")).unwrap();
    let published = format!("{}/openapi.json", server.base);
    let authorization = format!("Authorization: Bearer {}", runner.token.as_ref().unwrap());
    let mut schemathesis = tools::python("schemathesis");
    schemathesis
        .args(["--no-color", "run", &published, "--header", &authorization])
        .env("SCHEMATHESIS_HOOKS", "hooks")
        .env("PYTHONPATH", tools::contract())
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("KEYPOOL_ADMIN_TOKEN", ADMIN_TOKEN)
        .current_dir(directory.path());
    println!("{}", tools::run(&mut schemathesis, "the document or the server has to be mended"));
    let report = fs::read_to_string(directory.path().join("report.json")).unwrap();
    no_operation_was_out_of_reach(&serde_json::from_str(&report).unwrap());
    let (lender, runner) = (alice.status().await, runner.status().await);
    assert!(lender["spent"].as_u64() > Some(0), "none of the KeyPackages that were there was spent: {lender}");
    assert!(runner["total"].as_u64() > Some(0), "no KeyPackage that was sent was taken: {runner}");
}

/// That each operation did at least once what it is there for: else all that was seen are its refusals.
fn no_operation_was_out_of_reach(report: &Value) {
    let rates = report["valid_rates"].as_object().unwrap();
    assert_eq!(rates.len(), operations(&document()).len(), "{rates:?}");
    for (operation, phases) in rates {
        let accepted = phases.as_object().unwrap().values().filter_map(|phase| phase["accepted"].as_u64());
        assert!(
            accepted.sum::<u64>() > 0,
            "{operation} was never accepted: give schemathesis.toml a dictionary with what it needs"
        );
    }
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
        let open = ["get /", "get /healthz", "get /readyz", "get /metrics", "post /devices"].contains(&name.as_str())
            || name.starts_with("get /log");
        let anybody = operation["security"].as_array().is_some_and(|all| all.contains(&json!({})));
        assert_eq!(anybody, open, "{name} is {}open", if anybody { "" } else { "not " });
    }
    assert_eq!(document["security"], json!([{"bearer": []}]));
}
