//! `keypool chat` in a real terminal: a person's input, and the screen.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use rstest::rstest;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{
    Anywhere, Database, Fault, Foreigner, Http, PATIENCE, Proxy, Running, ServerProcess, binary, command,
};

/// A person with a device of their own.
pub struct Person {
    directory: TempDir,
}

impl Person {
    /// A person whose device is not made yet.
    pub fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap() }
    }

    pub fn of(base: &str, user: &str) -> Self {
        let person = Self::new();
        person.runs(&["init", "--server", base, "--user", user, "--device", "laptop"]);
        person
    }

    pub fn data(&self) -> &Path {
        self.directory.path()
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut keypool = command("keypool");
        keypool.env("TERM", "xterm").env("NO_COLOR", "1").arg("--data-dir").arg(self.data()).args(args);
        keypool
    }

    /// Runs a command to its end, and returns its JSON.
    pub fn runs(&self, args: &[&str]) -> Value {
        let output = self.command(args).arg("--json").output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Pipes a line into a chat, which ends with it.
    fn pipes(&self, line: &str) -> Output {
        let mut chat = self.command(&["chat", "friends"]);
        chat.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut chat = chat.spawn().unwrap();
        writeln!(chat.stdin.take().unwrap(), "{line}").unwrap();
        chat.wait_with_output().unwrap()
    }

    /// Sits down and chats.
    pub fn chats(&self, more: &[&str]) -> Screen {
        let args = [&["chat", "friends"], more].concat().join(" ");
        let keypool = binary("keypool");
        let command = format!(
            "env -u KEYPOOL_DATA_DIR NO_COLOR=1 {} --data-dir {} {args}; echo ended with $?; sleep 3600",
            keypool.display(),
            self.data().display()
        );
        let screen = Screen::of(self.data(), &command);
        screen.sees("This is friends.");
        screen
    }
}

/// A terminal: tmux with a socket of its own.
pub struct Screen {
    socket: PathBuf,
}

impl Screen {
    /// A terminal in which a command runs; its socket is in the directory.
    pub fn of(directory: &Path, command: &str) -> Self {
        let screen = Self { socket: directory.join("tmux") };
        screen.tmux(&["new-session", "-d", "-x", "120", "-y", "50", command]);
        screen
    }

    fn tmux(&self, args: &[&str]) -> String {
        let mut tmux = Command::new("tmux");
        let output = tmux.env_remove("TMUX").arg("-f").arg("/dev/null").arg("-S").arg(&self.socket).args(args).output();
        let output = output.expect("install tmux with `sudo apt-get install tmux`");
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    pub fn types(&self, line: &str) {
        self.tmux(&["send-keys", "-l", line]);
        self.tmux(&["send-keys", "Enter"]);
    }

    /// All that is to be seen, and what was.
    pub fn shows(&self) -> String {
        self.tmux(&["capture-pane", "-p", "-S", "-1000"])
    }

    /// Waits until it is to be seen.
    #[track_caller]
    pub fn sees(&self, text: &str) {
        let patience = Instant::now() + PATIENCE;
        loop {
            let shown = self.shows();
            if shown.contains(text) {
                return;
            }
            assert!(Instant::now() < patience, "{text:?} is not to be seen:\n{shown}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    pub fn quits(self) {
        self.types("/quit");
        self.sees("ended with 0");
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let _ = Command::new("tmux").arg("-S").arg(&self.socket).arg("kill-server").output();
    }
}

/// The number that Alice compares with Bob, as it is on her screen.
fn alice_and_bob(screen: &Screen) -> String {
    screen.sees("bob/laptop: ciphersuite 1, since ");
    let shown = screen.shows();
    let is_number = |line: &&str| line.split(' ').count() == 12 && line.split(' ').all(|group| group.len() == 5);
    shown.lines().map(str::trim_end).find(is_number).unwrap_or_else(|| panic!("no number:\n{shown}")).to_owned()
}

/// Alice and Bob in a group, both of whom chat.
pub fn two_people(base: &str) -> (Person, Person) {
    let (alice, bob) = (Person::of(base, "alice"), Person::of(base, "bob"));
    alice.runs(&["group", "create", "friends"]);
    alice.runs(&["group", "invite", "friends", "bob"]);
    let came = bob.runs(&["receive"]);
    assert_eq!(came[0]["type"], "joined", "{came}");
    (alice, bob)
}

pub async fn blocking(test: impl FnOnce() + Send + 'static) {
    tokio::task::spawn_blocking(test).await.unwrap();
}

#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn two_people_talk_on_their_terminals(#[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere) {
    let server = Running::start(db).await;
    let base = server.base.clone();
    blocking(move || {
        let (alice, bob) = two_people(&base);
        let carol = Person::of(&base, "carol");
        let (alices, bobs) = (alice.chats(&[]), bob.chats(&[]));
        alices.types("hello, bob");
        bobs.sees("alice/laptop: hello, bob");
        bobs.types("hi");
        alices.sees("bob/laptop: hi");
        bobs.types("/members");
        bobs.sees("alice/laptop, bob/laptop");
        bobs.types("/invite carol");
        bobs.sees("carol/laptop added to friends.");
        carol.runs(&["receive"]);
        let carols = carol.chats(&[]);
        carols.types("carol is here");
        alices.sees("carol/laptop: carol is here");
        bobs.sees("carol/laptop: carol is here");
        alices.types("/invite nobody");
        alices.sees("error: that did not work");
        alices.types("/fly");
        alices.sees("Unknown or incomplete command /fly");
        alices.types("/help");
        alices.sees("Anything else is said to the group.");
        alices.types("/verify bob");
        let number = alice_and_bob(&alices);
        bobs.types("/verify alice");
        bobs.sees(&number);
        alices.types("/verify nobody");
        alices.sees("nobody");
        alices.types("/status");
        alices.sees("32/32 fresh");
        alices.types("/refresh");
        alices.sees("in good health");
        alices.types("/groups");
        alices.sees("friends");
        alices.types("/switch enemies");
        alices.sees("there is no group");
        alices.types("/remove carol");
        alices.sees("carol/laptop removed.");
        carols.sees("no longer in the group");
        alices.types("/leave");
        alices.sees("asked to let this device go");
        alices.sees("no longer in the group");
        alices.quits();
        bobs.quits();
        carols.quits();
        assert_eq!(bob.runs(&["group", "members", "friends"]).as_array().unwrap().len(), 1);
    })
    .await;
}

#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn people_go_on_in_a_new_group_after_a_change_that_was_refused(
    #[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere,
) {
    let server = Running::start(db).await;
    let base = server.base.clone();
    blocking(move || {
        let mut mallory = Foreigner::registered(&base, "mallory/laptop");
        let (alice, bob) = two_people(&base);
        alice.runs(&["group", "invite", "friends", "mallory"]);
        mallory.does("join", &json!({}));
        let (alices, bobs) = (alice.chats(&[]), bob.chats(&[]));
        bobs.sees("alice/laptop added mallory/laptop");
        mallory.does("change", &json!({ "identity": "alice/d1", "recipients": ["alice/laptop", "bob/laptop"] }));
        for screen in [&alices, &bobs] {
            screen.sees("refused a change of the group by mallory/laptop");
        }
        alices.types("/renew mallory");
        alices.sees("that did not work");
        alices.types("/renew mallory/laptop");
        alices.sees("The old group of this name is read-only now.");
        bobs.sees("alice/laptop has made this group in place of an older one");
        bobs.types("here");
        alices.sees("bob/laptop: here");
        alices.types("so are we");
        bobs.sees("alice/laptop: so are we");
        alices.types("/members");
        alices.sees("alice/laptop, bob/laptop");
        alices.quits();
        bobs.quits();
    })
    .await;
}

#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn a_pool_of_one_is_filled_while_its_owner_chats(#[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere) {
    let server = Running::start(db).await;
    let base = server.base.clone();
    let (token, screen) = tokio::task::spawn_blocking(move || {
        let (alice, _bob) = two_people(&base);
        let inventory = alice.runs(&["inventory"]);
        let fresh = inventory.as_array().unwrap().iter().filter(|item| item["last_resort"] == false);
        let refs: Vec<_> = fresh.map(|item| item["keypackage_ref"].as_str().unwrap().to_owned()).collect();
        let all_but_one: Vec<_> = refs[1..].iter().map(String::as_str).collect();
        alice.runs(&[&["revoke"], all_but_one.as_slice()].concat());
        let token = alice.runs(&["token"])["token"].as_str().unwrap().to_owned();
        assert_eq!(alice.runs(&["status"])["fresh"], 1);
        let screen = alice.chats(&["--refresh-seconds", "1"]);
        (token, (alice, screen))
    })
    .await
    .unwrap();
    let alice = Http::new(&server.base).with_token(&token);
    let patience = Instant::now() + PATIENCE;
    while alice.status().await["fresh"] != 32 {
        assert!(Instant::now() < patience, "the pool is not filled");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    blocking(move || screen.1.quits()).await;
}

#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_away_ends_no_chat_and_loses_no_message(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
) {
    let place = db.fresh();
    let server = ServerProcess::start(&place).await;
    let (base, address) = (server.base.clone(), server.address().to_owned());
    let (people, alices, bobs) = tokio::task::spawn_blocking(move || {
        let (alice, bob) = two_people(&base);
        let (alices, bobs) = (alice.chats(&["--timeout", "1", "--refresh-seconds", "1"]), bob.chats(&[]));
        ((alice, bob), alices, bobs)
    })
    .await
    .unwrap();
    server.kill();
    let alices = tokio::task::spawn_blocking(move || {
        alices.types("are you there?");
        // The call is given up: the message waits in the chat.
        alices.sees("1 not sent yet, and will be");
        alices.sees("offline: cannot reach");
        // Commands that need no server work.
        alices.types("/members");
        alices.sees("alice/laptop, bob/laptop");
        alices
    });
    let alices = alices.await.unwrap();
    let _server = ServerProcess::start_at(&place, &address).await;
    blocking(move || {
        bobs.sees("alice/laptop: are you there?");
        alices.sees("The server is there again.");
        bobs.types("always");
        alices.sees("bob/laptop: always");
        alices.quits();
        bobs.quits();
        drop(people);
    })
    .await;
}

#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_a_chat_sends_what_waits_or_says_what_is_lost(
    #[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere,
) {
    let server = Running::start(db).await;
    let proxy = Proxy::before(&server.base).await;
    let (behind, base) = (proxy.clone(), server.base.clone());
    blocking(move || {
        let (alice, bob) = (Person::of(&behind.base, "alice"), Person::of(&base, "bob"));
        alice.runs(&["group", "create", "friends"]);
        alice.runs(&["group", "invite", "friends", "bob"]);
        bob.runs(&["receive"]);
        // Longer than the call may take: it fails at once.
        let busy = Fault::Busy(3_600);
        behind.fail_on("POST /groups/", busy);
        let output = alice.pipes("are you there?");
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        let came = bob.runs(&["receive"]);
        assert_eq!(came[0]["text"], "are you there?", "{came}");

        behind.next(&[busy; 100]);
        let output = alice.pipes("hello?");
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(3), "{said}");
        assert!(said.contains(r#"not sent: "hello?" to friends"#) && said.contains("keypool send"), "{said}");
    })
    .await;
}
