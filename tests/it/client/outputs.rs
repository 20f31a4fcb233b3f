//! What the command prints for programs: every answer is of the schema that `keypool schema` prints.

use std::{collections::BTreeMap, fs, io::Write as _, process::Stdio};

use keypool_client::{
    DeviceChange, Event, Finding, Incoming, Invited, Notice, TrailCheck, UnfitDevice, UnfitReason, Warning,
};
use keypool_openapi::{Base64Bytes, MessageKind, RefusalReason};
use rstest::rstest;
use serde_json::{Value, json};

use super::{
    command::Shell,
    helpers::{device, user},
};
use crate::support::{Anywhere, TestServer, tools};

/// Answers by the definition of their schema.
#[derive(Default)]
struct Samples(BTreeMap<String, Vec<Value>>);

impl Samples {
    fn add(&mut self, definition: &str, answer: Value) {
        self.0.entry(definition.to_owned()).or_default().push(answer);
    }

    /// Runs a command of so many words with its arguments.
    fn run(&mut self, shell: &Shell, words: usize, args: &[&str]) -> Value {
        let answer = shell.json(args);
        self.add(&args[..words].join("-"), answer.clone());
        answer
    }

    fn fail(&mut self, shell: &Shell, args: &[&str]) -> Value {
        let (_, said) = shell.failure(&[args, &["--json"]].concat());
        let answer: Value = serde_json::from_str(&said).unwrap_or_else(|error| panic!("{args:?}: {error}: {said}"));
        self.add("error", answer.clone());
        answer
    }
}

/// One item of every kind. Without the `match`, a new kind could be forgotten here.
fn every_event() -> Vec<Event> {
    let name = || "bob/laptop".to_owned();
    let names = || vec![name()];
    let events = vec![
        Event::Text { sender: name(), text: "hello".to_owned() },
        Event::Joined { by: device("bob") },
        Event::Members { by: name(), added: names(), removed: names(), updated: names() },
        Event::Content { sender: name(), content_type: "image/png".to_owned(), bytes: Base64Bytes(vec![1]) },
        Event::Changed { by: name(), name: Some("friends".to_owned()) },
        Event::Changed { by: name(), name: None },
        Event::FellBehind,
        Event::CameBack,
        Event::Removed,
        Event::Refused { kind: MessageKind::Commit, by: name(), reason: RefusalReason::NotTrusted, why: name() },
        Event::Renewed { by: name(), old_group: name(), without: names() },
        Event::RenewalClaimed { by: name(), old_group: name(), without: names(), added: names() },
        Event::Device { device: device("alice"), change: DeviceChange::NewSignatureKey },
        Event::Unreadable { device: device("bob"), about: MessageKind::Welcome, reason: RefusalReason::KeysGone },
        Event::KeysGone { by: device("bob") },
        Event::Stranger,
        Event::Asks { device: device("bob"), is_admitted: true },
        Event::Ignored { why: name() },
    ];
    for event in &events {
        match event {
            Event::Text { .. }
            | Event::Joined { .. }
            | Event::Members { .. }
            | Event::Content { .. }
            | Event::Changed { .. }
            | Event::FellBehind
            | Event::CameBack
            | Event::Removed
            | Event::Refused { .. }
            | Event::Renewed { .. }
            | Event::RenewalClaimed { .. }
            | Event::Device { .. }
            | Event::Unreadable { .. }
            | Event::KeysGone { .. }
            | Event::Stranger
            | Event::Asks { .. }
            | Event::Ignored { .. } => {}
        }
    }
    events
}

fn every_notice() -> Vec<Notice> {
    let (member, at) = (|| "bob/laptop".to_owned(), "2026-01-01T00:00:00Z".parse().unwrap());
    vec![
        Notice::NewSignatureKey { member: member(), since: Some(at) },
        Notice::NewSignatureKey { member: member(), since: None },
        Notice::PreviousSignatureKey { member: member(), until: at },
        Notice::RemovedBy { member: member() },
        Notice::RemovedDevice { member: member(), at },
    ]
}

#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn every_answer_is_of_its_schema(#[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere) {
    let server = TestServer::start(db).await;
    let (alice, bob, phone) = (Shell::new(), Shell::new(), Shell::new());
    let mut all = Samples::default();
    let init = |user: &'static str, device: &'static str| {
        vec!["init", "--server", &server.base, "--user", user, "--device", device]
    };
    all.run(&alice, 1, &init("alice", "laptop"));
    all.run(&bob, 1, &init("bob", "laptop"));
    let token = all.run(&alice, 1, &["token"])["token"].as_str().unwrap().to_owned();
    all.run(&phone, 1, &[&init("alice", "phone")[..], &["--user-token", &token]].concat());
    own_pool(&mut all, &alice);
    let held = all.run(&alice, 1, &["reserve", "bob"]);
    let id = held["reservations"][0]["reservation_id"].as_str().unwrap();
    all.run(&alice, 1, &["spend", id, "--group", "friends"]);
    let held = all.run(&alice, 1, &["reserve", "bob", "--ttl", "30"]);
    all.run(&bob, 1, &["inventory"]);
    all.run(&alice, 1, &["release", held["reservations"][0]["reservation_id"].as_str().unwrap()]);
    all.run(&bob, 1, &["audit"]);
    all.run(&alice, 1, &["verify", "bob"]);
    all.run(&alice, 1, &["server"]);
    groups(&mut all, (&alice, &bob));
    log(&mut all, (&alice, &bob));
    devices(&mut all, (&alice, &phone));
    all.run(&alice, 1, &["doctor"]);
    passphrases(&mut all, &alice);
    let usage = all.fail(&alice, &["group", "create", ""]);
    assert_eq!(usage["type"], "usage");
    assert_eq!(all.fail(&alice, &["reserve", "nobody"])["type"], "unknown-user");
    assert_eq!(all.fail(&Shell::new(), &["status"])["type"], Value::Null);
    for event in every_event() {
        let sent_at = "2026-01-01T00:00:00Z".parse().unwrap();
        let one = Incoming { id: 1, group: "a1".repeat(16), sent_at, event, notices: every_notice() };
        all.add("receive", json!([one]));
    }
    let reasons = [
        UnfitReason::OwnClock,
        UnfitReason::Lifetime,
        UnfitReason::Credential,
        UnfitReason::SameSignatureKey,
        UnfitReason::SameKey,
        UnfitReason::Unsupported,
    ];
    let unfit = reasons.map(|reason| UnfitDevice { device: device("bob"), reason, why: "so".to_owned() }).to_vec();
    let invited = Invited { unfit, notices: every_notice(), ..Invited::default() };
    all.add("group-invite", serde_json::to_value(invited).unwrap());
    let mut report = all.run(&alice, 1, &["refresh"]);
    report["warnings"] = json!([
        Warning::ClockSkew { seconds: -61 },
        Warning::ForeignKeyPackages { count: 1 },
        Warning::ServerRestored { given_up: 1 },
        Warning::Draining { user: user("bob"), handed_out: 100 },
        Warning::LogLost { leaves: 1 },
        Warning::LogMissing,
        Warning::UnexpectedWelcome { from: "bob/laptop".to_owned() },
    ]);
    all.add("refresh", report);

    let directory = tempfile::tempdir().unwrap();
    let (schema, samples) = (directory.path().join("schema.json"), directory.path().join("samples.json"));
    fs::write(&schema, alice.text(&["schema"])).unwrap();
    fs::write(&samples, serde_json::to_vec(&all.0).unwrap()).unwrap();
    let mut check = tools::python("python");
    check.arg(tools::contract().join("outputs.py")).args([schema, samples]);
    let said = tools::run(&mut check, "an answer is not of its schema");
    assert!(!said.starts_with("0 "), "{said}");
}

fn own_pool(all: &mut Samples, alice: &Shell) {
    all.run(alice, 1, &["refresh"]);
    all.run(alice, 1, &["rotate"]);
    all.run(alice, 1, &["status"]);
    let inventory = all.run(alice, 1, &["inventory"]);
    let one = inventory[0]["keypackage_ref"].as_str().unwrap();
    all.run(alice, 1, &["revoke", one]);
    all.run(alice, 1, &["revoke", one, &"00".repeat(32)]);
    all.run(alice, 1, &["audit", "--limit", "40"]);
    let checks = alice.json(&["audit", "--verify"]);
    all.add("audit-verify", checks);
}

/// The commands about the server's log.
fn log(all: &mut Samples, (alice, bob): (&Shell, &Shell)) {
    all.run(alice, 1, &["log"]);
    all.run(bob, 2, &["log", "status"]);
    let directory = tempfile::tempdir().unwrap();
    all.run(bob, 2, &["log", "export", directory.path().to_str().unwrap()]);
    all.run(bob, 2, &["log", "dismiss"]);
    let key = alice.json(&["log"])["key"].as_str().unwrap().to_owned();
    all.run(bob, 2, &["log", "trust", &key]);
    let found = Finding {
        found_at: "2026-01-01T00:00:00Z".parse().unwrap(),
        problem: "so".to_owned(),
        is_proven: true,
        file: "log-evidence-1.json".into(),
        is_dismissed: false,
    };
    let mut state = alice.json(&["log"]);
    state["findings"] = json!([found]);
    all.add("log", state);
    let why = TrailCheck { keypackage_ref: vec![7; 32].into(), events: 1, agrees: None, why: Some("so".to_owned()) };
    all.add("audit-verify", json!([why]));
}

fn groups(all: &mut Samples, (alice, bob): (&Shell, &Shell)) {
    let made = all.run(alice, 2, &["group", "create", "friends"]);
    let id = made["id"].as_str().unwrap();
    all.run(alice, 2, &["group", "invite", "friends", "bob", "nobody"]);
    all.run(alice, 1, &["send", "friends", "hello"]);
    let came = all.run(bob, 1, &["receive"]);
    assert!(came.as_array().unwrap().iter().any(|one| one["group"] == id && one["text"] == "hello"), "{came}");
    // The group has one name and one id everywhere.
    let listed = all.run(bob, 2, &["group", "list"]);
    assert_eq!((&listed[0]["id"], &listed[0]["name"]), (&made["id"], &made["name"]));
    let trail = all.run(bob, 1, &["audit"]);
    let spend = trail["events"].as_array().unwrap().iter().find(|event| event["action"] == "spend").unwrap();
    assert_eq!(spend["group"], id, "{trail}");
    assert!(bob.text(&["audit"]).contains(id) && bob.text(&["group", "list"]).contains(id));
    all.run(alice, 2, &["group", "members", "friends"]);
    all.run(alice, 2, &["group", "history", "friends"]);
    all.run(alice, 2, &["group", "update", "friends"]);
    all.run(alice, 2, &["group", "admit", "friends", "no"]);
    all.run(alice, 2, &["group", "remove", "friends", "bob"]);
    all.run(bob, 1, &["receive"]);
    all.run(alice, 2, &["group", "invite", "friends", "bob"]);
    all.run(alice, 2, &["group", "renew", "friends"]);
    all.run(bob, 1, &["receive"]);
    all.run(alice, 2, &["group", "create", "others"]);
    all.run(alice, 2, &["group", "leave", "others"]);
    all.run(alice, 2, &["group", "create", "others"]);
    all.run(alice, 2, &["group", "forget", "others"]);
}

fn devices(all: &mut Samples, (alice, phone): (&Shell, &Shell)) {
    all.run(alice, 2, &["device", "list"]);
    all.run(alice, 2, &["device", "link", "--no-wait"]);
    let own = all.run(alice, 2, &["device", "rotate-token", "laptop"]);
    assert_eq!(own, json!({ "device": "laptop", "token": null }));
    let token = all.run(alice, 2, &["device", "rotate-token", "phone"])["token"].as_str().unwrap().to_owned();
    let mut set = phone.command(&["token", "--set", "--json"]);
    let mut running = set.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    running.stdin.take().unwrap().write_all(token.as_bytes()).unwrap();
    let output = running.wait_with_output().unwrap();
    all.add("token-set", serde_json::from_slice(&output.stdout).unwrap());
    all.run(alice, 2, &["device", "remove", "phone"]);
}

fn passphrases(all: &mut Samples, alice: &Shell) {
    for (passphrase, args) in [("", ["passphrase", "change"]), ("secret", ["passphrase", "remove"])] {
        let mut command = alice.command(&[&args[..], &["--json"]].concat());
        let output =
            command.env("KEYPOOL_PASSPHRASE", passphrase).env("KEYPOOL_NEW_PASSPHRASE", "secret").output().unwrap();
        all.add(&args.join("-"), serde_json::from_slice(&output.stdout).unwrap());
    }
}
