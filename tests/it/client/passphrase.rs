//! The passphrase of a device's file, changed with the command.

use std::{fs, process::Output};

use rstest::rstest;
use serde_json::json;

use super::{chat::Screen, command::Shell};
use crate::support::{Anywhere, TestServer, binary};

/// Runs a command with a passphrase, and perhaps a new one, in the environment.
fn run(shell: &Shell, args: &[&str], (passphrase, new): (&str, &str)) -> Output {
    shell.command(args).env("KEYPOOL_PASSPHRASE", passphrase).env("KEYPOOL_NEW_PASSPHRASE", new).output().unwrap()
}

fn is_encrypted(shell: &Shell) -> bool {
    !fs::read(shell.data().join("device.db")).unwrap().starts_with(b"SQLite format 3")
}

#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn a_device_is_encrypted_later_and_its_passphrase_is_changed_and_removed(
    #[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere,
) {
    let server = TestServer::start(db).await;
    let alice = Shell::of(&server.base, "alice", &[]);
    alice.text(&["group", "create", "friends"]);
    let change = ["passphrase", "change", "--json"];
    let code = |passphrases: (&str, &str), args: &[&str]| run(&alice, args, passphrases).status.code();

    let (exit, said) = alice.failure(&["passphrase", "change"]);
    assert!(exit == Some(2) && said.contains("KEYPOOL_NEW_PASSPHRASE"), "{said}");
    let refused = run(&alice, &change, ("wrong", "first"));
    assert!(String::from_utf8(refused.stderr).unwrap().contains("is not encrypted"));
    let done = run(&alice, &change, ("", "first"));
    assert_eq!(serde_json::from_slice::<serde_json::Value>(&done.stdout).unwrap()["done"], json!(true));
    assert!(is_encrypted(&alice));
    assert_eq!(code(("", ""), &["status"]), Some(1), "it wants the passphrase");
    assert_eq!(code(("first", ""), &["status"]), Some(0));

    // The new one from a file.
    let file = alice.data().parent().unwrap().join("new");
    fs::write(&file, "second\n").unwrap();
    let by_file = [&change[..], &["--new-passphrase-file", file.to_str().unwrap()]].concat();
    assert_eq!(code(("wrong", ""), &by_file), Some(1));
    assert_eq!(code(("first", ""), &by_file), Some(0));
    assert_eq!(code(("first", ""), &["status"]), Some(1), "the old passphrase has ended");
    assert_eq!(code(("second", ""), &["group", "update", "friends"]), Some(0));

    assert_eq!(code(("second", ""), &["passphrase", "remove"]), Some(0));
    assert!(!is_encrypted(&alice));
    assert_eq!(alice.json(&["status"])["fresh"], 32);
    assert_eq!(alice.json(&["group", "list"])[0]["name"], "friends");
    // Nothing changes what is not there.
    let nobody = Shell::new();
    let (exit, said) = nobody.failure(&["passphrase", "change"]);
    assert!(exit == Some(1) && said.contains("keypool init") && !nobody.data().exists(), "{said}");
}

#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn a_person_is_asked_for_the_passphrases(#[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere) {
    let server = TestServer::start(db).await;
    let alice = Shell::of(&server.base, "alice", &[]);
    let keypool = format!("{} --data-dir {}", binary("keypool").display(), alice.data().display());
    // A directory of its own for each: tmux may still be ending when the next one begins.
    let places = [(); 3].map(|()| tempfile::tempdir().unwrap());
    let ask = |place: usize, args: &str| {
        let clean = "env -u KEYPOOL_DATA_DIR -u KEYPOOL_PASSPHRASE -u KEYPOOL_NEW_PASSPHRASE";
        Screen::of(places[place].path(), &format!("{clean} {keypool} {args}; echo ended with $?; sleep 3600"))
    };
    let differing = ask(0, "passphrase change");
    differing.sees("New passphrase:");
    differing.types("correct horse");
    differing.sees("Repeat the new passphrase:");
    differing.types("battery staple");
    differing.sees("nothing has changed");
    differing.sees("ended with 2");
    assert!(!is_encrypted(&alice));
    drop(differing);
    let first = ask(1, "passphrase change");
    first.sees("New passphrase:");
    first.types("correct horse");
    first.sees("Repeat the new passphrase:");
    first.types("correct horse");
    first.sees("is encrypted with the new passphrase");
    drop(first);
    let status = ask(2, "status");
    status.sees("Passphrase:");
    status.types("correct horse");
    status.sees("The pool is in good health");
}
