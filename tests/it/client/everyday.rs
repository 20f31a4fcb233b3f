//! Everyday trouble: a first command that fails, a server that is away, an output that cannot be written.

use std::{
    fs::File,
    io::Write as _,
    net::{TcpListener, TcpStream},
    process::{Output, Stdio},
    time::{Duration, Instant},
};

use keypool_openapi::{MissingReason, ProblemType, UserName};
use rstest::rstest;
use serde_json::{Value, json};

use super::{
    command::Shell,
    helpers::{behind_a_proxy, device, group_of, members, names, start, user},
};
use crate::{
    process::Certificate,
    support::{Anywhere, Database, Device, Fault, Owner, PATIENCE, Proxy, ServerProcess, TestServer, command},
};

/// The address of a port at which nothing listens.
fn nothing_listens() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn an_init_that_failed_takes_no_directory(#[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere) {
    let server = TestServer::start(db).await;
    let _alice = Shell::of(&server.base, "alice", &[]);
    let shell = Shell::new();
    let init = |server: &str, user: &str| shell.run(&["--timeout", "1", "init", "--server", server, "--user", user]);
    let code = |output: Output| output.status.code();
    assert_eq!(code(init(&nothing_listens(), "carol")), Some(3), "a wrong port");
    assert_eq!(code(init(&server.base, "alice")), Some(1), "a name that is taken");
    assert_eq!(code(init(&server.base, "carol")), Some(0));
    let status = shell.json(&["status"]);
    assert_eq!((status["user"].as_str(), status["fresh"].as_u64()), (Some("carol"), Some(32)));
    // It is Carol's device from then on.
    let (code, said) = shell.failure(&["init", "--server", &server.base, "--user", "dave"]);
    assert!(code == Some(1) && said.contains("belongs to carol/main"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_not_there_is_told_at_once_and_given_up_soon() {
    let begun = Instant::now();
    let (code, said) = Shell::new().failure(&["init", "--server", &nothing_listens(), "--user", "alice"]);
    assert!(begun.elapsed() < Duration::from_secs(20), "it took {:?}", begun.elapsed());
    assert_eq!(code, Some(3), "{said}");
    let (first, last) = said.split_once('\n').unwrap();
    assert!(first.contains("cannot reach") && first.ends_with("trying again"), "{said}");
    assert!(last.contains("error: cannot reach") && last.contains("check that the server runs"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_nobody_trusts_is_final() {
    let (place, certificate) = (Database::Sqlite.fresh(), Certificate::new());
    let server = ServerProcess::spawn_with(&place, |command| certificate.configure(command));
    let patience = Instant::now() + PATIENCE;
    while TcpStream::connect(server.address()).is_err() {
        assert!(Instant::now() < patience, "it does not listen after {PATIENCE:?}");
    }
    let base = format!("https://localhost:{}", server.address().rsplit_once(':').unwrap().1);
    let begun = Instant::now();
    let (code, said) = Shell::new().failure(&["init", "--server", &base, "--user", "alice"]);
    assert!(begun.elapsed() < Duration::from_secs(5), "it took {:?}: {said}", begun.elapsed());
    assert!(code == Some(1) && said.contains("is not trusted") && said.contains("SSL_CERT_FILE"), "{said}");
    assert!(!said.contains("trying again"), "{said}");
}

#[rstest]
#[tokio::test]
async fn what_a_proxy_answers_for_the_server_is_no_failure(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
) {
    let server = start(db).await;
    let (proxy, alice) = behind_a_proxy(&server, "alice").await;
    // The proxy waits for a shorter time than the long poll: nothing came.
    proxy.fail_on("GET /messages?wait=5", Fault::Gateway(504));
    proxy.seen();
    assert_eq!(alice.membership().receive(5).await.unwrap(), []);
    assert_eq!(proxy.seen().iter().filter(|one| one.starts_with("GET /messages?wait=5")).count(), 1);
    // Any other call is made again.
    for status in [408, 425, 502, 504, 520, 527] {
        proxy.next(&[Fault::Gateway(status)]);
        assert_eq!(alice.status().await.unwrap().fresh, 32, "{status}");
    }
    proxy.next(&[Fault::Gateway(530)]);
    let refused = alice.status().await.unwrap_err();
    assert!(refused.to_string().contains("answered 530"), "{refused}");
}

#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_cannot_be_written_is_a_failure(#[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere) {
    let server = TestServer::start(db).await;
    let alice = Shell::of(&server.base, "alice", &[]);
    for command in
        [&["token"][..], &["status", "--json"], &["group", "list"], &["refresh"], &["completions", "bash"], &["--help"]]
    {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let output = alice.command(command).stdout(full).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(1) && said.contains("No space left"), "{command:?}: {said}");
    }
}

#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_arguments_is_named_and_exits_with_2(
    #[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere,
) {
    let server = TestServer::start(db).await;
    let alice = Shell::of(&server.base, "alice", &[]);
    let wrong = |args: &[&str]| {
        let (code, said) = alice.failure(&[args, &["--json"]].concat());
        assert_eq!(code, Some(2), "{args:?}: {said}");
        serde_json::from_str::<Value>(&said).unwrap()["error"].as_str().unwrap().to_owned()
    };
    assert!(wrong(&["init", "--server", "http://localhost"]).contains("--user <NAME>"));
    assert!(wrong(&["group", "create", ""]).contains("<NAME>"));
    assert!(wrong(&["send", "friends", ""]).contains("<TEXT>"));
    assert!(wrong(&["chat", "friends"]).contains("no JSON"));
    let made = alice.json(&["group", "create", "friends"]);
    let said = wrong(&["group", "create", "friends"]);
    assert!(said.contains("\"friends\"") && said.contains(made["id"].as_str().unwrap()), "{said}");
    assert_eq!(alice.json(&["group", "list"]).as_array().unwrap().len(), 1);
    // A group that this device has left leaves its name.
    alice.text(&["group", "leave", "friends"]);
    alice.text(&["group", "create", "friends"]);
}

#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn a_text_of_several_lines_arrives_as_it_was_written(
    #[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere,
) {
    let server = TestServer::start(db).await;
    let (alice, bob) = (Shell::of(&server.base, "alice", &[]), Shell::of(&server.base, "bob", &[]));
    alice.text(&["group", "create", "friends"]);
    alice.text(&["group", "invite", "friends", "bob"]);
    bob.text(&["receive"]);
    let mut send =
        alice.command(&["send", "friends", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    send.stdin.take().unwrap().write_all("dear bob,\n\n  \u{202e}lots\n".as_bytes()).unwrap();
    assert!(send.wait().unwrap().success());
    let text = "dear bob,\n\n  \u{202e}lots";
    let output =
        bob.command(&["receive", "--json"]).stdout(File::options().write(true).open("/dev/full").unwrap()).status();
    assert_eq!(output.unwrap().code(), Some(1));
    // For people, the later lines are no messages of their own, and nothing turns them around.
    let shown = bob.text(&["receive"]);
    assert!(shown.ends_with("alice/laptop: dear bob,\n    \n      <U+202E>lots\n"), "{shown:?}");
    alice.text(&["group", "create", "fri\u{202e}sdne"]);
    // The name of a group has none.
    for command in [&["group", "list"][..], &["group", "update", "frisdne"]] {
        let shown = alice.text(command);
        assert!(shown.contains("frisdne") && !shown.contains('\u{202e}'), "{shown}");
    }
    alice.text(&["send", "friends", text]);
    assert_eq!(bob.json(&["receive"])[0]["text"], text);
}

#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn what_the_library_logs_is_shown_on_demand(#[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere) {
    let server = TestServer::start(db).await;
    let alice = Shell::of(&server.base, "alice", &[]);
    let rotated = |more: &[&str]| {
        let output = alice.run(&[&["rotate", "--json"], more].concat());
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice::<Value>(&output.stdout).unwrap();
        String::from_utf8(output.stderr).unwrap()
    };
    assert_eq!(rotated(&[]), "");
    assert!(rotated(&["-v"]).contains("changing the signature key"));
}

#[rstest]
#[tokio::test]
async fn more_people_than_one_call_takes_are_invited(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let server = start(db).await;
    let (group, owners) = group_of(&server, &["alice", "bob"]).await;
    let (alice, carol, dave) = (&owners[0], Owner::of(&server, "carol").await, Owner::of(&server, "dave").await);
    let nobody: Vec<UserName> = (0..250).map(|number| format!("nobody-{number}").parse().unwrap()).collect();
    let refused = alice.membership().invite(&group.group_id, &nobody).await.unwrap_err();
    assert_eq!(refused.problem(), Some(ProblemType::UnknownUser), "{refused}");
    // Carol is among the first hundred and Dave among the last, with a hundred between them who are nobody.
    let people = [&[user("carol")], &nobody[..], &[user("dave")]].concat();
    let invited = alice.membership().invite(&group.group_id, &people).await.unwrap();
    assert_eq!(invited.added, [device("carol"), device("dave")]);
    assert_eq!(invited.missing.len(), nobody.len());
    assert!(invited.missing.iter().all(|one| one.reason == MissingReason::UnknownUser));
    for owner in [&owners[1], &carol, &dave] {
        owner.hears().await;
        assert_eq!(members(owner, &group), names(["alice", "bob", "carol", "dave"]));
    }
}

#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn an_unfit_device_is_named_with_what_helps_and_the_others_are_added(
    #[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere,
) {
    let server = TestServer::start(db).await;
    let [alice, _carol] = ["alice", "carol"].map(|user| Shell::of(&server.base, user, &[]));
    let eve = server.anyone().registered("eve", "phone").await;
    let unsupported = Device::new("eve", "phone").with_grease(0x8a8a, true);
    eve.uploaded(&[unsupported.key_package(), unsupported.key_package()]).await;
    alice.text(&["group", "create", "friends"]);
    let output = alice.run(&["group", "invite", "friends", "eve", "carol"]);
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && said.starts_with("carol/laptop added to friends."), "{said}");
    assert!(
        said.contains("eve/phone was not added") && said.contains("Another version of its program may help"),
        "{said}"
    );
    let invited = alice.json(&["group", "invite", "friends", "eve"]);
    assert_eq!((&invited["added"], &invited["unfit"][0]["reason"]), (&json!([]), &json!("unsupported")));
}

#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn the_directory_of_a_server_takes_no_device(#[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere) {
    let server = TestServer::start(db).await;
    let shell = Shell::new();
    std::fs::create_dir(shell.data()).unwrap();
    let database = shell.data().join("keypool.db");
    let url = format!("sqlite://{}", database.display());
    assert!(
        command("keypool-server").env("KEYPOOL_DATABASE_URL", url).arg("migrate").output().unwrap().status.success()
    );
    let before = std::fs::read(&database).unwrap();
    let (code, said) = shell.failure(&["init", "--server", &server.base, "--user", "alice"]);
    assert!(
        code == Some(1) && said.contains("the database of another program") && said.contains("--data-dir"),
        "{said}"
    );
    assert_eq!(std::fs::read(&database).unwrap(), before);
    assert!(!shell.data().join("device.db").exists());
}

/// Somebody with two devices, in a group with Bob. On one server: others know only after a few seconds that a token has ended.
struct Two {
    server: TestServer,
    laptop: Shell,
    phone: Shell,
    bob: Shell,
    init: Vec<String>,
}

impl Two {
    async fn devices(db: Database) -> Self {
        let server = TestServer::start(db).await;
        let (laptop, bob) = (Shell::of(&server.base, "alice", &[]), Shell::of(&server.base, "bob", &[]));
        let phone = Shell::new();
        let init = ["init", "--server", &server.base, "--user", "alice"].map(str::to_owned).to_vec();
        let token = laptop.text(&["token"]);
        let two = Self { server, laptop, phone, bob, init };
        two.phone.text(&two.init(&["--device", "phone", "--user-token", token.trim()]));
        two.bob.text(&["group", "create", "friends"]);
        two.bob.text(&["group", "invite", "friends", "alice"]);
        for shell in [&two.laptop, &two.phone] {
            shell.text(&["receive"]);
        }
        two
    }

    fn init<'a>(&'a self, more: &[&'a str]) -> Vec<&'a str> {
        self.init.iter().map(String::as_str).chain(more.iter().copied()).collect()
    }
}

#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_was_removed_comes_back(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let two = Two::devices(db).await;
    let Two { laptop, phone, bob, .. } = &two;
    let before = phone.json(&["device", "list"]);
    assert_eq!(before.as_array().unwrap().len(), 2, "{before}");
    let removed = phone.json(&["device", "remove", "laptop"]);
    assert_eq!((removed["device"].as_str(), removed["revoked"].as_u64()), (Some("laptop"), Some(32)));
    assert!(phone.text(&["device", "list"]).contains("phone (this one)"));

    let (code, said) = laptop.failure(&["status"]);
    assert!(code == Some(1) && said.contains("`keypool init`") && said.contains("registers it anew"), "{said}");
    // A further device of a user needs a token, and this one is none any more.
    let (code, said) = laptop.failure(&two.init(&["--device", "laptop"]));
    assert!(code == Some(1) && said.contains("--user-token"), "{said}");
    assert!(laptop.text(&["group", "list"]).contains("friends"), "a registration that failed has changed nothing");
    let token = phone.text(&["token"]);
    laptop.text(&two.init(&["--device", "laptop", "--user-token", token.trim()]));
    let status = laptop.json(&["status"]);
    assert_eq!((status["fresh"].as_u64(), status["last_resort"]["present"].as_bool()), (Some(32), Some(true)));
    let key = |devices: &Value| devices[0]["signature_keys"][0]["signature_key"].clone();
    assert_ne!(key(&phone.json(&["device", "list"])), key(&before), "it has new keys");
    assert_eq!(laptop.json(&["doctor"]).as_array().unwrap().iter().find(|one| one["verdict"] == "failure"), None);

    // Its leaf in the group has the old key: a member invites it again.
    bob.text(&["receive"]);
    bob.text(&["group", "remove", "friends", "alice"]);
    bob.text(&["group", "invite", "friends", "alice"]);
    laptop.text(&["receive"]);
    laptop.text(&["send", "friends", "here again"]);
    assert!(bob.text(&["receive"]).contains("alice/laptop: here again"));
}

#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_was_replaced_is_set(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let two = Two::devices(db).await;
    let Two { laptop, phone, .. } = &two;
    let set = |shell: &Shell, token: &str| {
        let mut set = shell.command(&["token", "--set"]);
        let mut set = set.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        set.stdin.take().unwrap().write_all(token.as_bytes()).unwrap();
        let output = set.wait_with_output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let token = phone.json(&["device", "rotate-token", "laptop"])["token"].as_str().unwrap().to_owned();
    let (code, said) = laptop.failure(&["status"]);
    assert!(code == Some(1) && said.contains("`keypool token --set`"), "{said}");
    let (code, said) = set(laptop, &phone.text(&["token"]));
    assert!(code == Some(1) && said.contains("the token of alice/phone, and not of alice/laptop"), "{said}");
    assert_eq!(set(laptop, "\n").0, Some(2));
    let (code, said) = set(laptop, "keypool_made-up");
    assert_eq!(code, Some(1), "{said}");
    assert_eq!(set(laptop, &format!("{token}\n")), (Some(0), String::new()));
    assert_eq!(laptop.json(&["status"])["fresh"], 31);
    // Its own token it takes by itself.
    laptop.text(&["device", "rotate-token", "laptop"]);
    assert_ne!(laptop.text(&["token"]).trim(), token);
    assert_eq!(laptop.json(&["status"])["fresh"], 31);
    let (code, said) = laptop.failure(&["device", "remove", "tablet"]);
    assert!(code == Some(1) && said.contains("tablet"), "{said}");
}

/// The server moves to another address. A server that does not know the device is not taken.
#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn the_address_of_the_server_is_changed(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let two = Two::devices(db).await;
    let Two { laptop, server, .. } = &two;
    let before = laptop.json(&["server"])["server"].as_str().unwrap().to_owned();
    let (proxy, stranger) = (Proxy::before(&server.base).await, TestServer::start(db).await);
    let (code, said) = laptop.failure(&["server", "--set", &stranger.base]);
    assert!(code == Some(1) && said.contains("token"), "{said}");
    assert_eq!(laptop.failure(&["server", "--set", "nowhere"]).0, Some(1));
    assert_eq!(laptop.text(&["server"]).trim(), before);
    let moved = laptop.json(&["server", "--set", &proxy.base]);
    assert_eq!(moved["server"], format!("{}/", proxy.base));
    proxy.seen();
    laptop.json(&["status"]);
    assert_eq!(proxy.seen().len(), 1);
}

/// `--no-group-info` keeps the tree from the server.
#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_shows_no_tree_sends_no_group_info(#[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere) {
    let server = TestServer::start(db).await;
    let (alice, bob) = (Shell::of(&server.base, "alice", &[]), Shell::of(&server.base, "bob", &[]));
    alice.text(&["group", "create", "friends"]);
    alice.text(&["group", "invite", "friends", "bob"]);
    bob.text(&["receive"]);
    let bobs = server.anyone().with_token(bob.text(&["token"]).trim());
    let groups = |answer: Value| answer["groups"].as_array().unwrap().len();
    assert_eq!(groups(bobs.get("/groups").await.ok()), 1);
    alice.text(&["group", "update", "friends", "--no-group-info"]);
    assert_eq!(groups(bobs.get("/groups").await.ok()), 0);
}

#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn the_doctor_names_the_groups_in_which_the_others_have_gone_on(
    #[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere,
) {
    let server = TestServer::start(db).await;
    let (alice, bob) = (Shell::of(&server.base, "alice", &[]), Shell::of(&server.base, "bob", &[]));
    alice.text(&["group", "create", "friends"]);
    alice.text(&["group", "invite", "friends", "bob"]);
    bob.text(&["receive"]);
    assert!(bob.text(&["doctor"]).contains("this device follows its 1 groups"));
    alice.text(&["group", "update", "friends"]);
    let shown = bob.text(&["doctor"]);
    assert!(
        shown.contains("the other members have gone on in friends") && shown.contains("keypool receive"),
        "{shown}"
    );
    bob.text(&["receive"]);
    assert!(bob.text(&["doctor"]).contains("this device follows its 1 groups"));
}
