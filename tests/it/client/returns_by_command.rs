//! Devices that come back into their groups, with the programs as people run them.

use rstest::rstest;
use serde_json::{Value, json};

use super::command::Shell;
use crate::support::{Anywhere, Http, Running};

/// Alice, Bob and Carol, in a group that Alice made.
fn three(base: &str) -> [Shell; 3] {
    let shells = ["alice", "bob", "carol"].map(|user| Shell::of(base, user, &[]));
    shells[0].text(&["group", "create", "friends"]);
    shells[0].text(&["group", "invite", "friends", "bob", "carol"]);
    for shell in &shells[1..] {
        assert!(shell.text(&["receive"]).contains("[friends] alice/laptop added this device"));
    }
    shells
}

/// Loses all that is in the queue of a device.
async fn loses_its_queue(base: &str, token: &str) -> usize {
    let http = Http::new(base).with_token(token.trim());
    let mut lost = 0;
    loop {
        let page = http.get("/messages?limit=100").await.ok();
        let ids: Vec<_> = page["messages"].as_array().unwrap().iter().map(|one| one["id"].clone()).collect();
        if ids.is_empty() {
            return lost;
        }
        lost += ids.len();
        http.post("/messages/ack", &json!({ "ids": ids })).await.ok();
    }
}

fn epoch(shell: &Shell) -> u64 {
    shell.json(&["group", "list"])[0]["epoch"].as_u64().unwrap()
}

fn has_text(came: &Value, by: &str, text: &str) -> bool {
    came.as_array().unwrap().iter().any(|one| one["sender"] == by && one["text"] == text)
}

#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn who_missed_fifty_commits_is_back_while_nobody_else_runs(
    #[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere,
) {
    let server = Running::start(db).await;
    let [alice, bob, carol] = three(&server.base);
    for _ in 0..50 {
        alice.text(&["group", "update", "friends"]);
    }
    alice.text(&["send", "friends", "lost"]);
    assert_eq!(loses_its_queue(&server.base, &bob.text(&["token"])).await, 51);
    assert_eq!(epoch(&bob), 1);
    // The doctor sees it, and changes nothing.
    assert!(bob.text(&["doctor"]).contains("the other members have gone on in friends"));
    // From here on, no program of Alice or Carol runs until Bob is back.
    bob.text(&["send", "friends", "I am back"]);
    assert_eq!(epoch(&bob), 52);
    let shown = bob.text(&["receive"]);
    assert!(shown.contains("this device missed a change of the group, and cannot read what follows"), "{shown}");
    assert!(shown.contains("this device is back in the group; what was sent meanwhile stays unread"), "{shown}");
    for shell in [&alice, &carol] {
        assert!(has_text(&shell.json(&["receive"]), "bob/laptop", "I am back"));
    }
    carol.text(&["send", "friends", "welcome"]);
    assert!(has_text(&bob.json(&["receive"]), "carol/laptop", "welcome"));
    let history = bob.json(&["group", "history", "friends"]);
    let last = history.as_array().unwrap().last().unwrap();
    assert_eq!(
        (&last["epoch"], &last["by"], &last["updated"]),
        (&json!(52), &json!("bob/laptop"), &json!(["bob/laptop"]))
    );
}

#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn a_reinstalled_and_a_second_device_are_in_as_soon_as_one_member_ran(
    #[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere,
) {
    let server = Running::start(db).await;
    let [alice, bob, carol] = three(&server.base);
    // Bob's data is lost. His phone only lends its token.
    let init = |device: &str, token: &str| {
        let shell = Shell::new();
        let base = &server.base;
        shell.text(&["init", "--server", base, "--user", "bob", "--device", device, "--user-token", token.trim()]);
        shell
    };
    let phone = init("phone", &bob.text(&["token"]));
    let token = phone.text(&["token"]);
    phone.text(&["device", "remove", "laptop"]);
    let (laptop, tablet) = (init("laptop", &token), init("tablet", &token));
    assert_eq!(laptop.text(&["group", "list"]).lines().count(), 1, "the head of the table");

    let shown = carol.text(&["receive"]);
    let asks = "is new, or has lost what it had of the group, and asks to be let in; members do that by themselves";
    assert!(shown.contains(&format!("bob/laptop {asks}")) && shown.contains(&format!("bob/tablet {asks}")), "{shown}");
    assert!(shown.contains("carol/laptop brought back bob/laptop"), "{shown}");
    assert!(shown.contains("carol/laptop added bob/tablet"), "{shown}");
    for shell in [&laptop, &tablet] {
        let shown = shell.text(&["receive"]);
        assert!(shown.contains("carol/laptop added this device"), "{shown}");
    }
    laptop.text(&["send", "friends", "here again"]);
    for shell in [&alice, &carol, &tablet] {
        assert!(has_text(&shell.json(&["receive"]), "bob/laptop", "here again"));
    }
    let shown = alice.text(&["group", "history", "friends"]);
    let lines: Vec<_> = shown.lines().collect();
    assert!(lines[0].contains("Came back") && shown.contains("bob/tablet"), "{shown}");
    assert!(lines.iter().any(|line| line.contains("carol/laptop") && line.ends_with("bob/laptop")), "{shown}");
}
