//! A device whose machine has a wrong clock is told so, and blames nobody else.

use std::{process::Output, time::Duration};

use jiff::SignedDuration;
use rstest::rstest;
use serde_json::Value;

use super::command::Shell;
use crate::support::{Anywhere, Database, Device, OtherClock, TestServer, now};

/// Longer than the lifetime of a KeyPackage.
const TWENTY_DAYS: i64 = 20 * 24 * 60 * 60;

struct Machine<'a> {
    shell: &'a Shell,
    clock: OtherClock,
}

impl Machine<'_> {
    /// Runs a command while the clock is so many seconds ahead.
    fn run(&self, ahead: i64, args: &[&str]) -> Output {
        let mut command = self.shell.command(args);
        self.clock.set(&mut command, ahead);
        command.output().unwrap()
    }

    /// What a command says that has to fail while the clock is so far ahead.
    fn failure(&self, ahead: i64, args: &[&str]) -> String {
        let output = self.run(ahead, args);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{args:?}: {said}");
        said
    }
}

#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn an_inviter_whose_clock_is_wrong_is_told_so(
    #[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere,
    #[values(TWENTY_DAYS, -TWENTY_DAYS)] ahead: i64,
) {
    let server = TestServer::start(db).await;
    let (alice, bob) = (Shell::of(&server.base, "alice", &[]), Shell::of(&server.base, "bob", &[]));
    let machine = Machine { shell: &alice, clock: OtherClock::build() };
    alice.text(&["group", "create", "friends"]);
    let side = if ahead > 0 { "480h ahead of" } else { "480h behind" };
    for args in [&["group", "invite", "friends", "bob"][..], &["reserve", "bob"]] {
        let said = machine.failure(ahead, args);
        assert!(said.contains(&format!("this machine's clock is {side} the server's")), "{said}");
        assert!(said.contains("set this machine's clock") && !said.contains("invalid KeyPackage"), "{said}");
    }
    assert_eq!(bob.json(&["status"])["reserved"], 0, "nothing stays reserved");
    alice.text(&["group", "invite", "friends", "bob"]);
    bob.text(&["receive"]);
    assert_eq!(bob.json(&["group", "members", "friends"]).as_array().unwrap().len(), 2);
}

/// The server allows it to be ahead, and OpenMLS does not.
#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn a_device_whose_own_clock_is_ahead_is_named_and_the_others_are_added(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
) {
    let server = TestServer::start_with(db, |config| config.clock_tolerance = Duration::from_hours(1)).await;
    let [alice, _carol] = ["alice", "carol"].map(|user| Shell::of(&server.base, user, &[]));
    let eve = server.anyone().registered("eve", "phone").await;
    let ahead = Device::new("eve", "phone")
        .valid_between(now() + SignedDuration::from_mins(50), now() + SignedDuration::from_hours(48));
    eve.uploaded(&[ahead.key_package()]).await;
    alice.text(&["group", "create", "friends"]);
    let output = alice.run(&["group", "invite", "friends", "eve", "carol"]);
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && said.starts_with("carol/laptop added to friends."), "{said}");
    assert!(said.contains("by the server's clock, too: the clock of that device is ahead"), "{said}");
    assert!(said.contains("Have its owner set its clock"), "{said}");
    assert_eq!(eve.status().await["reserved"], 0, "it is given back");
}

/// OpenMLS checks the lifetimes of those whom a Commit adds by the receiver's clock.
#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn a_member_whose_clock_is_wrong_refuses_nothing(
    #[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere,
    #[values(TWENTY_DAYS, -TWENTY_DAYS)] ahead: i64,
) {
    let server = TestServer::start(db).await;
    let [alice, bob, _carol] = ["alice", "bob", "carol"].map(|user| Shell::of(&server.base, user, &[]));
    alice.text(&["group", "create", "friends"]);
    alice.text(&["group", "invite", "friends", "bob"]);
    bob.text(&["receive"]);
    alice.text(&["group", "invite", "friends", "carol"]);
    alice.text(&["send", "friends", "welcome, carol"]);
    let machine = Machine { shell: &bob, clock: OtherClock::build() };
    let said = machine.failure(ahead, &["receive"]);
    assert!(said.contains("this machine's clock is 480h"), "{said}");
    // With the right clock, it is as if nothing had been.
    let came = bob.json(&["receive"]);
    let kinds: Vec<_> = came.as_array().unwrap().iter().map(|one| one["type"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["members", "changed", "text"], "{came}");
    assert_eq!(bob.json(&["group", "list"])[0]["state"], "active");
    let heard = alice.json(&["receive"]);
    assert!(!heard.as_array().unwrap().iter().any(|one: &Value| one["type"] == "unreadable"), "{heard}");
}
