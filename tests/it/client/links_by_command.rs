//! A user's further device registers by a code, with the programs as people run them.

use std::{
    io::{BufRead as _, BufReader},
    process::{Child, ChildStdout, Stdio},
};

use rstest::rstest;
use serde_json::Value;

use super::{
    chat::{Person, Screen},
    command::Shell,
};
use crate::support::{Anywhere, Database, Running, binary};

/// `keypool device link --json` while it waits, and what it printed so far.
struct Linking {
    running: Child,
    stdout: BufReader<ChildStdout>,
}

impl Linking {
    fn start(shell: &Shell, more: &[&str]) -> (Self, Value) {
        let mut command = shell.command(&[&["device", "link", "--json"], more].concat());
        let mut running = command.stdout(Stdio::piped()).spawn().unwrap();
        let stdout = BufReader::new(running.stdout.take().unwrap());
        let mut linking = Self { running, stdout };
        let made = linking.next();
        (linking, made)
    }

    /// The next object, which ends with a brace at the beginning of a line.
    fn next(&mut self) -> Value {
        let mut text = String::new();
        while !text.ends_with("\n}\n") {
            assert_ne!(self.stdout.read_line(&mut text).unwrap(), 0, "it ended with {text:?}");
        }
        serde_json::from_str(&text).unwrap()
    }

    fn ends(mut self) -> Value {
        let last = self.next();
        assert!(self.running.wait().unwrap().success());
        last
    }
}

fn init(shell: &Shell, args: &[&str]) -> (Option<i32>, String) {
    let output = shell.run(&[&["init"], args].concat());
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn a_further_device_is_in_the_groups_by_a_code(#[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere) {
    let server = Running::start(db).await;
    let (alice, bob, phone) =
        (Shell::of(&server.base, "alice", &[]), Shell::of(&server.base, "bob", &[]), Shell::new());
    alice.text(&["group", "create", "friends"]);
    alice.text(&["group", "invite", "friends", "bob"]);
    // Even where nobody comes in without an invitation.
    alice.text(&["group", "admit", "friends", "no"]);
    bob.text(&["receive"]);
    let (linking, made) = Linking::start(&alice, &["--groups"]);
    assert!(made["device"].is_null() && made["link"].as_str().unwrap().starts_with("keypool:"), "{made}");
    // The new device reads the picture: nobody types the server, the user, or a token.
    phone.text(&["init", "--device", "phone", "--link", made["link"].as_str().unwrap()]);
    let linked = linking.ends();
    assert_eq!((&linked["device"], &linked["code"]), (&"phone".into(), &Value::Null));
    let group = alice.json(&["group", "list"])[0]["id"].clone();
    assert_eq!(linked["invited"], Value::from(vec![group]));
    assert!(phone.text(&["receive"]).contains("[friends] alice/laptop added this device"));
    phone.text(&["send", "friends", "from my phone"]);
    assert!(bob.text(&["receive"]).contains("from my phone"));
}

#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn a_code_is_typed_and_refused_when_it_is_over(#[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere) {
    let server = Running::start(db).await;
    let (alice, phone) = (Shell::of(&server.base, "alice", &[]), Shell::new());
    let code = alice.json(&["device", "link", "--no-wait"])["code"].as_str().unwrap().to_owned();
    let (base, typed) = (server.base.as_str(), code.to_lowercase().replace('-', ""));
    let args = |user, device, code| ["--server", base, "--user", user, "--device", device, "--link", code];
    let (status, said) = init(&phone, &["--link", &code]);
    assert!(status == Some(2) && said.contains("--server"), "{said}");
    for (user, wrong) in [("alice", "7777-7777-7777"), ("mallory", code.as_str())] {
        let (status, said) = init(&phone, &args(user, "phone", wrong));
        assert!(status == Some(1) && said.contains("code is not valid"), "{said}");
    }
    assert_eq!(init(&phone, &args("alice", "phone", &typed)).0, Some(0));
    // It was used.
    let (status, said) = init(&Shell::new(), &args("alice", "tablet", &code));
    assert!(status == Some(1) && said.contains("code is not valid"), "{said}");
    assert_eq!(alice.json(&["device", "list"]).as_array().unwrap().len(), 2);
}

#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn the_wait_ends_with_the_token_of_its_device(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let server = Running::start(db).await;
    let (alice, phone) = (Shell::of(&server.base, "alice", &[]), Shell::new());
    let code = alice.json(&["device", "link", "--no-wait"])["code"].as_str().unwrap().to_owned();
    phone.text(&["init", "--server", &server.base, "--user", "alice", "--device", "phone", "--link", &code]);
    let (mut linking, made) = Linking::start(&phone, &[]);
    alice.text(&["device", "remove", "phone"]);
    assert!(!linking.running.wait().unwrap().success());
    let args = ["--device", "tablet", "--link", made["link"].as_str().unwrap()];
    let (status, said) = init(&Shell::new(), &args);
    assert!(status == Some(1) && said.contains("code is not valid"), "{said}");
}

#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn a_person_sees_the_picture_and_who_came(#[values(Anywhere::Sqlite)] db: Anywhere) {
    let server = Running::start(db).await;
    let (alice, phone) = (Person::of(&server.base, "alice"), Shell::new());
    alice.runs(&["group", "create", "friends"]);
    let keypool = binary("keypool").display().to_string();
    let data = alice.data().display().to_string();
    let screen = Screen::of(
        alice.data(),
        &format!("env -u KEYPOOL_DATA_DIR {keypool} --data-dir {data} device link; echo ended with $?; sleep 3600"),
    );
    screen.sees("Waiting for the new device");
    screen.sees("\u{2588}");
    let shown = screen.shows();
    let code = shown.split("--link ").nth(1).unwrap().split_whitespace().next().unwrap().to_owned();
    phone.text(&["init", "--server", &server.base, "--user", "alice", "--device", "phone", "--link", &code]);
    screen.sees("alice/phone is registered.");
    screen.sees("Add alice/phone to your groups: friends? [Y/n]");
    screen.types("y");
    screen.sees("alice/phone is in friends.");
    screen.sees("ended with 0");
}
