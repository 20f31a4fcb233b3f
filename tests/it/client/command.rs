//! The `keypool` command as people and scripts use it.

use std::{
    fs::{self, File},
    io::{Read as _, Write as _},
    net::TcpListener,
    path::Path,
    process::{Command, Output, Stdio},
};

use rstest::rstest;
use serde_json::Value;
use tempfile::TempDir;

use crate::support::{Anywhere, Owner, TestServer, binary, command, copy, without_settings};

/// A device with the command.
pub struct Shell {
    directory: TempDir,
}

impl Shell {
    pub fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap() }
    }

    /// The laptop of a user.
    pub fn of(base: &str, user: &str, extra: &[&str]) -> Self {
        let shell = Self::new();
        shell.text(&[&["init", "--server", base, "--user", user, "--device", "laptop"], extra].concat());
        shell
    }

    pub fn data(&self) -> std::path::PathBuf {
        self.directory.path().join("data")
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut keypool = command("keypool");
        keypool.stdin(Stdio::null()).arg("--data-dir").arg(self.data()).args(args);
        keypool
    }

    pub fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// The output of a command that has to succeed.
    #[track_caller]
    pub fn text(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    #[track_caller]
    pub fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.text(&[args, &["--json"]].concat())).unwrap()
    }

    /// The exit code and the message of a command that has to fail.
    pub fn failure(&self, args: &[&str]) -> (Option<i32>, String) {
        let output = self.run(args);
        assert!(!output.status.success(), "{args:?} succeeded");
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    }
}

/// A shell whose device is Alice's, and initialised.
fn initialised(server: &TestServer, extra: &[&str]) -> Shell {
    shell_of(server, "alice", extra)
}

fn shell_of(server: &TestServer, user: &str, extra: &[&str]) -> Shell {
    Shell::of(&server.base, user, extra)
}

#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn every_command_tells_people_and_programs(#[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere) {
    let server = TestServer::start(db).await;
    let (alice, bob) = (initialised(&server, &[]), Owner::of(&server, "bob").await);
    assert_eq!(alice.json(&["refresh"])["generated"], 0);
    let status = alice.json(&["status"]);
    for field in ["user", "device", "available", "fresh", "lapsed", "reserved", "spent", "expired", "revoked", "total"]
    {
        assert!(!status[field].is_null(), "{field}");
    }
    assert!(alice.text(&["status"]).contains("[################################] 32/32 fresh"));
    assert!(alice.text(&["status"]).contains("The pool is in good health"));

    let held = alice.json(&["reserve", "bob", "--ttl", "120"])["reservations"][0].clone();
    let id = held["reservation_id"].as_str().unwrap();
    assert_eq!(alice.json(&["spend", id, "--group", "friends"])["state"], "spent");
    let other = alice.json(&["reserve", "bob"])["reservations"][0]["reservation_id"].clone();
    assert!(alice.text(&["release", other.as_str().unwrap()]).contains("is available now"));

    let held = bob.reserve(&"alice".parse().unwrap(), None, None, None).await.unwrap().reservations.remove(0);
    let inventory = alice.json(&["inventory"]);
    let reserved = inventory.as_array().unwrap().iter().find(|item| item["state"] == "reserved").unwrap().clone();
    assert_eq!(reserved["keypackage_ref"], held.keypackage_ref.to_string());
    assert!(alice.text(&["inventory"]).contains("bob/laptop"));
    assert_eq!(alice.json(&["audit", "--limit", "1"])["events"][0]["action"], "reserve");
    let trail = alice.text(&["audit", "--limit", "1"]);
    assert!(trail.contains("There is more: keypool audit --before"), "{trail}");
    let next = alice.json(&["audit", "--limit", "1"])["next"].to_string();
    assert_eq!(alice.json(&["audit", "--limit", "1", "--before", &next])["events"][0]["action"], "upload");

    let one = inventory[0]["keypackage_ref"].as_str().unwrap();
    assert_eq!(alice.json(&["revoke", one])["revoked"][0], one);
    assert!(alice.text(&["revoke", one]).contains("is revoked already"));
    let rotated = alice.json(&["rotate"]);
    assert_eq!((rotated["generated"].clone(), rotated["uploaded"].clone()), (33.into(), 33.into()));
    assert!(alice.text(&["revoke", "--all"]).contains("nobody can add this device"));
    let refilled = alice.text(&["refresh"]);
    assert!(refilled.contains("33 generated, 33 uploaded"), "{refilled}");
    assert_eq!(alice.text(&["refresh"]).lines().next(), Some("Nothing to do."));
    let token = alice.text(&["token"]);
    assert_eq!(server.anyone().with_token(token.trim()).status().await["fresh"], 32);
    assert!(alice.text(&["completions", "bash"]).contains("_keypool"));
}

#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn failures_say_what_to_do_and_how_they_may_end(#[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere) {
    let server = TestServer::start(db).await;
    let nobody = Shell::new();
    let (code, said) = nobody.failure(&["status"]);
    assert_eq!(code, Some(1));
    assert!(said.contains("there is no device") && said.contains("keypool init"), "{said}");
    assert!(!nobody.data().exists(), "a status made a directory");
    let (code, said) = nobody.failure(&["reserve"]);
    assert!(code == Some(2) && said.contains("Usage"), "{said}");
    let (code, said) = nobody.failure(&["revoke", "--json"]);
    assert_eq!(code, Some(2));
    assert_eq!(serde_json::from_str::<Value>(&said).unwrap()["type"], "usage");

    let alice = initialised(&server, &[]);
    let (code, said) = alice.failure(&["reserve", "nobody"]);
    assert!(code == Some(1) && said.contains("nobody"), "{said}");
    let (code, said) = alice.failure(&["reserve", "nobody", "--json"]);
    assert_eq!(code, Some(1));
    assert_eq!(serde_json::from_str::<Value>(&said).unwrap()["type"], "unknown-user");
    let held = keypool_client::MlsClient::open(&alice.data()).unwrap();
    let (code, said) = alice.failure(&["status"]);
    assert!(code == Some(3) && said.contains("in use by another process"), "{said}");
    drop(held);
    let other = [&["init", "--server", &server.base, "--user", "carol"][..]].concat();
    let (code, said) = alice.failure(&other);
    assert!(code == Some(1) && said.contains("belongs to alice/laptop") && said.contains("--data-dir"), "{said}");
}

#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn colours_are_for_terminals_alone(#[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere) {
    let server = TestServer::start(db).await;
    let alice = initialised(&server, &[]);
    let plain = alice.text(&["status"]);
    assert!(!plain.contains('\u{1b}') && !plain.contains('│'), "{plain}");
    // `script` gives the command a terminal.
    let on_terminal = |environment: &str| {
        let command =
            format!("{environment} {} --data-dir {} status", binary("keypool").display(), alice.data().display());
        let mut script = Command::new("script");
        let output = without_settings(&mut script)
            .args(["--quiet", "--return", "--command", &command, "/dev/null"])
            .env("TERM", "xterm-256color")
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let coloured = on_terminal("NO_COLOR=");
    assert!(coloured.contains("\u{1b}[32m") && coloured.contains('│'), "{coloured}");
    let bordered = on_terminal("NO_COLOR=1");
    assert!(!bordered.contains("\u{1b}[32m") && bordered.contains('│'), "{bordered}");
}

#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn the_doctor_finds_what_is_wrong(#[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere) {
    let server = TestServer::start(db).await;
    let alice = initialised(&server, &[]);
    let checks = alice.json(&["doctor"]);
    let verdict = |checks: &Value, name: &str| {
        let found = checks.as_array().unwrap().iter().find(|check| check["name"] == name);
        found.unwrap_or_else(|| panic!("no {name} in {checks}"))["verdict"].clone()
    };
    for name in ["permissions", "local store", "private keys", "server", "token", "clock", "agreement", "pool"] {
        assert_eq!(verdict(&checks, name), "ok", "{checks}");
    }
    assert!(alice.text(&["doctor"]).contains("ok       agreement"));

    set_mode(&alice.data().join("keypool.lock"), 0o644);
    // Opening the store closes the files again; the directory is the user's own.
    set_mode(&alice.data(), 0o755);
    let checks = alice.json(&["doctor"]);
    assert_eq!(verdict(&checks, "permissions"), "warning", "{checks}");
    assert!(checks.to_string().contains("chmod -R go="), "{checks}");
    set_mode(&alice.data(), 0o700);
    alice.text(&["revoke", "--all"]);
    let output = alice.run(&["doctor", "--json"]);
    assert_eq!(output.status.code(), Some(1));
    let checks: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((verdict(&checks, "agreement"), verdict(&checks, "pool")), ("warning".into(), "failure".into()));
    drop(server);
}

fn set_mode(path: &Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt as _;

    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn an_encrypted_device_needs_its_passphrase(#[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere) {
    let server = TestServer::start(db).await;
    let shell = Shell::new();
    let file = shell.directory.path().join("passphrase");
    fs::write(&file, "correct horse\n").unwrap();
    let file = file.to_str().unwrap();
    shell.text(&["init", "--server", &server.base, "--user", "alice", "--passphrase-file", file]);
    assert!(!fs::read(shell.data().join("device.db")).unwrap().starts_with(b"SQLite format 3"));
    assert_eq!(shell.json(&["status", "--passphrase-file", file])["fresh"], 32);
    let given = shell.command(&["status"]).env("KEYPOOL_PASSPHRASE", "correct horse").output().unwrap();
    assert!(given.status.success(), "{given:?}");
    let (code, said) = shell.failure(&["status"]);
    assert!(code == Some(1) && said.contains("is encrypted") && said.contains("KEYPOOL_PASSPHRASE"), "{said}");
    let wrong = shell.command(&["status"]).env("KEYPOOL_PASSPHRASE", "battery staple").output().unwrap();
    let said = String::from_utf8(wrong.stderr).unwrap();
    assert!(said.contains("the passphrase does not open") && said.lines().count() == 2, "{said}");
    // Without a terminal to ask on, `--encrypt` makes nothing.
    let other = Shell::new();
    let (_, said) = other.failure(&["init", "--server", &server.base, "--user", "bob", "--encrypt"]);
    assert!(said.contains("passphrase") && !other.data().join("device.db").exists(), "{said}");
}

#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_printed_comes_again(
    #[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere,
    #[values(&["receive"], &["receive", "--json"])] receive: &[&str],
) {
    let server = TestServer::start(db).await;
    let (alice, bob) = (initialised(&server, &[]), shell_of(&server, "bob", &[]));
    alice.text(&["group", "create", "friends"]);
    alice.text(&["group", "invite", "friends", "bob"]);
    bob.text(&["receive"]);
    alice.text(&["send", "friends", "hello, bob"]);
    let full = || Stdio::from(File::options().write(true).open("/dev/full").unwrap());
    let closed = || Stdio::from(std::io::pipe().unwrap().1);
    for nowhere in [full(), closed()] {
        let output = bob.command(receive).stdout(nowhere).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("none of it is lost") && said.contains("run `keypool receive` again"), "{said}");
    }
    assert!(bob.text(receive).contains("hello, bob"));
    assert!(!bob.text(receive).contains("hello, bob"));
    // For any other output, a reader that closed the pipe has read enough.
    assert!(bob.command(&["status"]).stdout(closed()).status().unwrap().success());
}

#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn what_others_write_does_nothing_to_a_terminal(#[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere) {
    const HOSTILE: &str = "\u{1b}]0;owned\u{7}\r";
    let server = TestServer::start(db).await;
    let (alice, bob) = (initialised(&server, &[]), shell_of(&server, "bob", &[]));
    let _carol = shell_of(&server, "carol", &[]);
    alice.text(&["group", "create", &format!("{HOSTILE}friends")]);
    alice.text(&["group", "invite", "]0;ownedfriends", "bob"]);
    bob.text(&["receive"]);
    let shown = |shell: &Shell, args: &[&str]| {
        // As on a terminal: nothing is taken out because it goes into a pipe.
        let output = shell.command(args).env("CLICOLOR_FORCE", "1").output().unwrap();
        let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        let obeyed = text.contains("\u{1b}]") || text.contains(['\u{7}', '\r']);
        assert!(!obeyed, "{args:?}: {text:?}");
        text
    };
    alice.text(&["send", "]0;ownedfriends", "hello"]);
    for command in [
        &["receive"][..],
        &["group", "list"],
        &["send", "]0;ownedfriends", "hi"],
        &["group", "update", "]0;ownedfriends"],
        &["group", "invite", "]0;ownedfriends", "carol"],
        &["group", "remove", "]0;ownedfriends", "carol"],
        &["group", "leave", "]0;ownedfriends"],
    ] {
        let text = shown(&bob, command);
        assert!(text.contains("]0;ownedfriends"), "{command:?}: {text:?}");
    }
    let nameless = alice.json(&["group", "create", "\u{7}"]);
    assert_eq!(nameless["name"], nameless["id"]);

    // Text of a proxy, or of a program that poses as a server, cannot control the terminal.
    let base = answering(&format!("HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n{HOSTILE}no"));
    let init = ["init", "--server", &base, "--user", "dave"];
    let text = shown(&Shell::new(), &init);
    assert!(text.contains("]0;ownedno"), "{text:?}");
    let (_, said) = Shell::new().failure(&[&init[..], &["--json"]].concat());
    let said: Value = serde_json::from_str(&said).unwrap();
    assert!(said["error"].as_str().unwrap().contains(HOSTILE), "programs get it as it came: {said}");
}

/// The address of something that answers every request so.
fn answering(answer: &str) -> String {
    let (listener, answer) = (TcpListener::bind("127.0.0.1:0").unwrap(), answer.to_owned());
    let base = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            // A request and its body are smaller than this, and come at once.
            let _ = stream.read(&mut [0; 8_192]).unwrap();
            stream.write_all(answer.as_bytes()).unwrap();
        }
    });
    base
}

#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn who_could_not_open_an_invitation_is_in_when_the_advice_is_followed(
    #[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere,
) {
    let server = TestServer::start(db).await;
    let (alice, bob, backup) = (initialised(&server, &[]), shell_of(&server, "bob", &[]), Shell::new());
    fs::create_dir(backup.data()).unwrap();
    copy(&bob.data(), &backup.data());
    bob.text(&["revoke", "--all"]);
    bob.text(&["refresh"]);
    alice.text(&["group", "create", "friends"]);
    alice.text(&["group", "invite", "friends", "bob"]);
    assert_eq!(backup.json(&["receive"])[0]["type"], "keys-gone");
    let advice = alice.text(&["receive"]);
    let steps = "bob/laptop could not use the invitation, and cannot read the group: its keys for that are gone. Have it \
                 refresh its pool: it then asks to be let in, and members do that by themselves, or when somebody invites bob again";
    assert!(advice.contains(steps), "{advice}");
    assert!(alice.text(&["group", "invite", "friends", "bob"]).contains("Nobody was added"), "bob is in the group");
    backup.text(&["refresh"]);
    assert!(alice.text(&["group", "invite", "friends", "bob"]).contains("bob/laptop added to friends"), "he asked");
    let came = backup.json(&["receive"]);
    assert!(came.as_array().unwrap().iter().any(|one| one["type"] == "joined"), "{came}");
}

#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn whom_something_did_not_reach_is_named(#[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere) {
    let server = TestServer::start(db).await;
    let alice = initialised(&server, &[]);
    let (bob, carol) = (Owner::of(&server, "bob").await, Owner::of(&server, "carol").await);
    alice.text(&["group", "create", "friends"]);
    assert_eq!(alice.json(&["group", "invite", "friends", "bob", "carol"])["undelivered"], serde_json::json!([]));
    assert_eq!(alice.text(&["send", "friends", "hello"]), "Sent to friends.\n");
    bob.http().delete("/devices/laptop").await;
    let missed = serde_json::json!([{"user": "bob", "device": "laptop", "reason": "unknown-device"}]);
    assert_eq!(alice.json(&["send", "friends", "hello"]), serde_json::json!({"done": true, "undelivered": missed}));
    let told = alice.text(&["send", "friends", "hello"]);
    assert!(told.contains("did not reach bob/laptop: the server knows no such device any more"), "{told}");
    assert_eq!(alice.json(&["group", "update", "friends"])["undelivered"], missed);
    assert_eq!(alice.json(&["group", "remove", "friends", "carol"])["undelivered"], missed);
    let told = alice.text(&["group", "leave", "friends"]);
    assert!(told.contains("did not reach bob/laptop"), "{told}");
    drop(carol);
}

#[test]
fn an_address_at_which_others_can_listen_is_warned_of() {
    let shell = Shell::new();
    // Nobody is there: the warning comes before the first token is asked for.
    let init = |server: &str| shell.failure(&["--timeout", "1", "init", "--server", server, "--user", "alice"]).1;
    assert!(init("http://keypool.invalid").contains("Use https://"));
    assert!(!init("http://127.0.0.1:9").contains("Use https://"));
    assert!(!init("https://keypool.invalid").contains("Use https://"));
}
