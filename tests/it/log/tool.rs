//! `keypool-verify` on the log of a real server.

use std::{fs, path::Path, process::Command};

use base64::{Engine, engine::general_purpose::STANDARD};
use keypool_transparency::files::ProofFile;
use rstest::rstest;
use serde_json::json;

use super::checks::{bytes, is_whole, proofs, reserve};
use crate::support::{Database, Device, TestServer, binary};

/// The exit code of the tool, and what it says.
pub fn verify(directory: &Path, arguments: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(binary("keypool-verify")).current_dir(directory).args(arguments).output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(said).unwrap())
}

#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn the_tool_audits_a_server_and_verifies_what_an_adder_exports(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
) {
    let server = TestServer::start(db).await;
    let alice = server.anyone().registered("alice", "laptop").await;
    alice.uploaded(&Device::new("alice", "laptop").key_packages(3)).await;
    let bob = server.anyone().registered("bob", "phone").await;
    let mut handed = reserve(&bob, ("bob", "phone"), "alice", "friends").await;
    handed.spend().await;
    is_whole(&server).await;
    let log = server.anyone().get("/log").await.ok();
    let (key, path) = (log["origin"]["key"].as_str().unwrap(), log["origin"]["path"].as_str().unwrap());
    let directory = tempfile::tempdir().unwrap();
    let url = format!("{}/{path}", server.base);
    let (code, said) = verify(directory.path(), &["audit", "--log", &url, "--state", "state", "--vkey", key]);
    assert_eq!(code, Some(0), "{said}");
    reserve(&bob, ("bob", "phone"), "alice", "friends").await;
    is_whole(&server).await;
    let (code, said) = verify(directory.path(), &["audit", "--log", &url, "--state", "state"]);
    assert_eq!(code, Some(0), "{said}");

    let answers = proofs(&bob, json!([{"reservation_id": handed.reservation["reservation_id"]}])).await;
    let file = ProofFile::new(handed.hand_out.clone(), answers, Vec::new());
    fs::write(directory.path().join("proof.json"), serde_json::to_vec(&file).unwrap()).unwrap();
    fs::write(directory.path().join("policy"), format!("log {key}\nquorum none\n")).unwrap();
    fs::write(directory.path().join("package"), bytes(&handed.reservation["keypackage"])).unwrap();
    let bind = STANDARD.encode(handed.hand_out.bind.0);
    let arguments = ["proof", "proof.json", "--policy", "policy", "--keypackage", "package", "--bind", &bind];
    let (code, said) = verify(directory.path(), &arguments);
    assert_eq!(code, Some(0), "{said}");
    let other = STANDARD.encode([7; 32]);
    let (code, said) = verify(directory.path(), &[&arguments[..7], &[&other]].concat());
    assert_ne!(code, Some(0), "{said}");
}
