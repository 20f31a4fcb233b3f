//! An attacker on a foreign MLS stack, ts-mls, against the `keypool` command and a real server: what it says that it is not
//! is refused and shown to people, and honest members go on talking.

use rstest::rstest;
use serde_json::{Value, json};

use super::command::Shell;
use crate::support::{Anywhere, Foreigner, Http, Proxy, Running};

const HONEST: [&str; 2] = ["alice/laptop", "bob/laptop"];

/// Alice and Bob with the command, and Mallory with a stack of her own.
struct Scene {
    alice: Shell,
    bob: Shell,
    mallory: Foreigner,
    server: Running,
}

impl Scene {
    async fn start(db: Anywhere) -> Self {
        let server = Running::start(db).await;
        let (alice, bob) = (Shell::of(&server.base, "alice", &[]), Shell::of(&server.base, "bob", &[]));
        let mallory = Foreigner::registered(&server.base, "mallory/laptop");
        Self { alice, bob, mallory, server }
    }

    /// Has Alice make a group of all three. All have processed their queues.
    fn with_mallory(&mut self, group: &str) {
        self.alice.text(&["group", "create", group]);
        let invited = self.alice.json(&["group", "invite", group, "bob", "mallory"]);
        assert_eq!(invited["missing"], json!([]));
        self.bob.text(&["receive"]);
        self.mallory.does("join", &json!({}));
        // The others receive her texts, under her own name.
        self.mallory.does("say", &json!({ "text": "hello", "recipients": HONEST }));
        for owner in [&self.alice, &self.bob] {
            assert_eq!(said(&owner.json(&["receive"])), [("mallory/laptop".to_owned(), "hello".to_owned())]);
        }
    }

    /// Has Mallory do something to all others.
    fn attack(&mut self, call: &str, lie: &Value) {
        let mut with = lie.clone();
        with["recipients"] = json!(HONEST);
        self.mallory.does(call, &with);
    }
}

/// The texts, each with its sender.
fn said(came: &Value) -> Vec<(String, String)> {
    let texts = came.as_array().unwrap().iter().filter(|one| one["type"] == "text");
    let text = |one: &Value| (one["sender"].as_str().unwrap().to_owned(), one["text"].as_str().unwrap().to_owned());
    texts.map(text).collect()
}

/// The refused messages: their kind, their sender and the reason.
fn refused(came: &Value) -> Vec<(String, String, String)> {
    let items = came.as_array().unwrap().iter().filter(|one| one["type"] == "refused");
    let field = |one: &Value, name| one[name].as_str().unwrap().to_owned();
    items.map(|one| (field(one, "kind"), field(one, "by"), field(one, "why"))).collect()
}

/// The attacks by Commit: the call, its lie, and the reason that honest members see.
fn commits() -> [(&'static str, Value, &'static str); 6] {
    [
        ("add", json!({ "identity": "alice/phone" }), r#""alice/phone" is refused: the server knows no such device"#),
        ("add", json!({ "identity": "carol/laptop" }), r#""carol/laptop" is refused: its signature key is not one of"#),
        (
            "add",
            json!({ "identity": "alice/laptop\0" }),
            "is refused: its credential is not the user/device of a device",
        ),
        (
            "replace",
            json!({ "identity": "alice/laptop" }),
            r#""alice/laptop" is refused: its signature key is not one of"#,
        ),
        ("change", json!({ "identity": "alice/d1" }), r#"refused: it changes its identity to "alice/d1""#),
        ("change", json!({ "new_key": true }), r#""mallory/laptop" is refused: its signature key is not one of"#),
    ]
}

#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_lies_is_refused_and_a_new_group_is_the_way_on(
    #[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere,
) {
    let mut scene = Scene::start(db).await;
    let _carol = Shell::of(&scene.server.base, "carol", &[]);
    for (n, (call, lie, reason)) in commits().into_iter().enumerate() {
        let group = format!("friends-{n}");
        scene.with_mallory(&group);
        scene.attack(call, &lie);
        scene.mallory.does("say", &json!({ "text": "it is me", "recipients": HONEST }));
        scene.mallory.does("say", &json!({ "text": "still here", "recipients": HONEST, "before": true }));
        let Scene { alice, bob, .. } = &scene;

        let shown = alice.text(&["receive"]);
        let change = format!("[{group}] warning: refused a change of the group by mallory/laptop: the leaf of");
        let way = format!("`keypool group renew {group} --without mallory/laptop` makes a new group");
        assert!(shown.contains(&change) && shown.contains(reason) && shown.contains(&way), "{lie}: {shown}");
        assert!(shown.contains("mallory/laptop: still here") && !shown.contains("it is me"), "{lie}: {shown}");
        let came = bob.json(&["receive"]);
        let [(kind, by, why)] = refused(&came).try_into().unwrap_or_else(|_| panic!("{lie}: {came}"));
        assert_eq!((kind.as_str(), by.as_str()), ("commit", "mallory/laptop"), "{lie}: {came}");
        assert!(why.contains(reason), "{lie}: {why}");
        assert_eq!(said(&came), [("mallory/laptop".to_owned(), "still here".to_owned())], "{lie}: {came}");
        for owner in [alice, bob] {
            let members = owner.json(&["group", "members", &group]);
            assert_eq!(members.as_array().unwrap().len(), 3, "{lie}: {members}");
            let groups = owner.json(&["group", "list"]);
            let state = groups.as_array().unwrap().iter().find(|one| one["name"] == *group).unwrap()["state"].clone();
            assert_eq!(state, "behind", "{lie}");
        }
        // They go on talking, and one command takes them out of it.
        alice.text(&["send", &group, "did you see that?"]);
        assert!(bob.text(&["receive"]).contains("alice/laptop: did you see that?"), "{lie}");
        let (_, stuck) = bob.failure(&["group", "update", &group]);
        assert!(stuck.contains("a Commit by mallory/laptop was refused") && stuck.contains("group renew"), "{stuck}");
        let renewed = alice.text(&["group", "renew", &group, "--without", "mallory/laptop"]);
        assert!(renewed.contains(&format!("bob/laptop added to {group}.")), "{lie}: {renewed}");
        assert!(renewed.contains("The old group of this name is read-only now."), "{lie}: {renewed}");
        let shown = bob.text(&["receive"]);
        let told =
            "alice/laptop has made this group in place of an older one, which is read-only now, without mallory/laptop";
        assert!(shown.contains(told), "{lie}: {shown}");
        bob.text(&["send", &group, "all here?"]);
        assert_eq!(said(&alice.json(&["receive"])), [("bob/laptop".to_owned(), "all here?".to_owned())], "{lie}");
        bob.text(&["group", "update", &group]);
        alice.text(&["send", &group, "all but one"]);
        assert!(bob.text(&["receive"]).contains("alice/laptop: all but one"), "{lie}");
    }
}

/// The server takes an external Commit of a member alone, under its own name and key. ts-mls comes back by one.
#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn who_comes_back_by_an_external_commit_is_who_it_was(
    #[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere,
) {
    let mut scene = Scene::start(db).await;
    scene.with_mallory("friends");
    for lie in [
        json!({ "new_key": true, "replaces": "mallory/laptop", "recipients": HONEST }),
        json!({ "identity": "alice/laptop", "new_key": true, "replaces": "alice/laptop", "recipients": HONEST }),
    ] {
        let refusal = scene.mallory.fails("enter", &lie);
        assert!(refusal.contains("403") && refusal.contains("current signature key of mallory/laptop"), "{refusal}");
    }
    scene.mallory.does("enter", &json!({ "replaces": "mallory/laptop", "recipients": HONEST }));
    scene.mallory.does("say", &json!({ "text": "back", "recipients": HONEST }));
    for owner in [&scene.alice, &scene.bob] {
        let shown = owner.text(&["receive"]);
        assert!(shown.contains("mallory/laptop fell behind and is back"), "{shown}");
        assert!(shown.contains("mallory/laptop: back"), "{shown}");
    }
    scene.bob.text(&["group", "update", "friends"]);
    scene.alice.text(&["send", "friends", "all well"]);
    assert_eq!(said(&scene.bob.json(&["receive"])).last().unwrap().1, "all well");
}

/// Mallory sends her Commit to some of the members.
#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn who_was_not_sent_a_refused_commit_is_told_and_decides(
    #[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere,
) {
    let mut scene = Scene::start(db).await;
    scene.with_mallory("friends");
    let Scene { alice, bob, mallory, .. } = &mut scene;
    let old = bob.json(&["group", "list"])[0]["id"].as_str().unwrap().to_owned();
    mallory.does("change", &json!({ "identity": "alice/d1", "recipients": ["alice/laptop"] }));
    assert_eq!(refused(&alice.json(&["receive"])).len(), 1);
    alice.text(&["group", "renew", "friends", "--without", "mallory/laptop"]);
    let shown = bob.text(&["receive"]);
    let claim = format!(
        "warning: alice/laptop says that this group takes the place of the older one {old}, without mallory/laptop. That \
         does not follow from a change that was refused here, so both go on: ask the others which one they use"
    );
    assert!(shown.contains(&claim), "{shown}");
    let (_, which) = bob.failure(&["send", "friends", "hello"]);
    assert!(which.contains(&old) && which.contains("give its whole id"), "{which}");
    // He missed a Commit there, and nobody is left who could let him go, so he goes.
    bob.text(&["group", "leave", &old]);
    bob.text(&["send", "friends", "hello"]);
    assert_eq!(said(&alice.json(&["receive"])), [("bob/laptop".to_owned(), "hello".to_owned())]);
}

#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn a_proposal_that_lies_is_refused_and_the_group_goes_on(
    #[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere,
) {
    let mut scene = Scene::start(db).await;
    scene.with_mallory("friends");
    for (call, lie, reason) in [
        (
            "propose",
            json!({ "new_key": true }),
            r#""mallory/laptop" is refused: its signature key is not one of that device"#,
        ),
        (
            "propose",
            json!({ "identity": "alice/d1" }),
            r#""mallory/laptop" is refused: it changes its identity to "alice/d1""#,
        ),
        (
            "propose_add",
            json!({ "identity": "alice/phone" }),
            r#""alice/phone" is refused: the server knows no such device"#,
        ),
        (
            "propose_add",
            json!({ "identity": "bob/laptop" }),
            r#""bob/laptop" is refused: its signature key is not one of that"#,
        ),
    ] {
        scene.attack(call, &lie);
        let Scene { alice, bob, .. } = &scene;
        let shown = alice.text(&["receive"]);
        let refusal = "refused a message by mallory/laptop: the leaf of ";
        assert!(shown.contains(&format!("{refusal}{reason}")), "{lie}: {shown}");
        let came = bob.json(&["receive"]);
        let [(kind, by, why)] = refused(&came).try_into().unwrap_or_else(|_| panic!("{lie}: {came}"));
        assert_eq!((kind.as_str(), by.as_str()), ("message", "mallory/laptop"));
        assert!(why.contains(reason), "{lie}: {why}");
        // Nobody commits to it.
        alice.text(&["group", "update", "friends"]);
        bob.text(&["send", "friends", "all well"]);
        assert_eq!(said(&alice.json(&["receive"])), [("bob/laptop".to_owned(), "all well".to_owned())]);
        // Mallory does not take in what others commit.
        alice.text(&["group", "remove", "friends", "mallory"]);
        bob.text(&["receive"]);
        alice.text(&["group", "invite", "friends", "mallory"]);
        bob.text(&["receive"]);
        scene.mallory.does("join", &json!({}));
    }
}

/// A device outside the group asks to be added under a member's name.
#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn a_proposal_from_outside_adds_nobody(#[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere) {
    let mut scene = Scene::start(db).await;
    scene.with_mallory("friends");
    scene.attack("ask_to_join", &json!({ "identity": "alice/phone" }));
    let Scene { alice, bob, .. } = &scene;
    for owner in [alice, bob] {
        let shown = owner.text(&["receive"]);
        assert!(shown.contains("ignored: a device asks for another one to be brought in"), "{shown}");
    }
    // The next Commit adds nobody.
    alice.text(&["group", "update", "friends"]);
    bob.text(&["send", "friends", "all well"]);
    assert_eq!(said(&alice.json(&["receive"])), [("bob/laptop".to_owned(), "all well".to_owned())]);
    assert_eq!(bob.json(&["group", "members", "friends"]).as_array().unwrap().len(), 3);
}

/// A device that refused the proposal cannot read the Commit.
#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn an_accomplice_commits_to_a_proposal_that_lies_for_nobody_else(
    #[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere,
) {
    let mut scene = Scene::start(db).await;
    let mut eve = Foreigner::registered(&scene.server.base, "eve/laptop");
    let Scene { alice, bob, mallory, .. } = &mut scene;
    alice.text(&["group", "create", "friends"]);
    alice.text(&["group", "invite", "friends", "bob", "mallory", "eve"]);
    bob.text(&["receive"]);
    mallory.does("join", &json!({}));
    eve.does("join", &json!({}));
    let everybody = ["alice/laptop", "bob/laptop", "eve/laptop"];
    mallory.does("propose", &json!({ "new_key": true, "recipients": everybody }));
    eve.does("take_in", &json!({}));
    eve.does("change", &json!({ "recipients": HONEST }));
    for owner in [&*alice, bob] {
        let came = owner.json(&["receive"]);
        let found: Vec<_> = refused(&came).into_iter().map(|(kind, by, _)| (kind, by)).collect();
        let one = |kind: &str, by: &str| (kind.to_owned(), by.to_owned());
        assert_eq!(found, [one("message", "mallory/laptop"), one("commit", "eve/laptop")], "{came}");
    }
    alice.text(&["send", "friends", "did you see that?"]);
    assert!(bob.text(&["receive"]).contains("alice/laptop: did you see that?"));
    let without = ["--without", "mallory/laptop", "--without", "eve/laptop"];
    alice.text(&[&["group", "renew", "friends"][..], &without].concat());
    let shown = bob.text(&["receive"]);
    // Mallory is left out as well, whose Commit it was not: that is for Bob to decide.
    assert!(shown.contains("alice/laptop says that this group takes the place of the older one"), "{shown}");
    assert!(shown.contains("mallory/laptop") && shown.contains("eve/laptop"), "{shown}");
    let groups = bob.json(&["group", "list"]);
    let old = groups.as_array().unwrap().iter().find(|group| group["state"] == "behind").unwrap();
    bob.text(&["group", "leave", old["id"].as_str().unwrap()]);
    bob.text(&["send", "friends", "here"]);
    assert_eq!(said(&alice.json(&["receive"])).last().unwrap().1, "here");
}

#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn an_invitation_to_a_group_that_lies_is_refused(#[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere) {
    let mut scene = Scene::start(db).await;
    let Scene { alice, bob, mallory, .. } = &mut scene;
    let lies = [
        // She says that she is somebody else, or has another key than the directory knows.
        (json!({ "identity": "alice/d1" }), None, r#""alice/d1" is refused: the server knows no such device"#),
        (json!({ "identity": "alice/laptop" }), None, r#""alice/laptop" is refused: its signature key is not one of"#),
        (json!({ "identity": "alice" }), None, r#""alice" is refused: its credential is not the user/device"#),
        (json!({ "new_key": true }), None, r#""mallory/laptop" is refused: its signature key is not one of"#),
        // Another leaf in the tree has a false identity.
        (json!({}), Some("alice/laptop"), r#""alice/laptop" is refused: its signature key is not one of"#),
        (json!({}), Some("alice/phone"), r#""alice/phone" is refused: the server knows no such device"#),
    ];
    for (n, (mut lie, ghost, reason)) in lies.into_iter().enumerate() {
        for is_for_people in [true, false] {
            lie["id"] = json!(format!("{n} {is_for_people}"));
            mallory.does("found", &lie);
            if let Some(ghost) = ghost {
                mallory.does("add", &json!({ "identity": ghost, "recipients": [] }));
            }
            mallory.does("invite", &json!({ "user": "bob" }));
            mallory.does("say", &json!({ "text": "send me money", "recipients": ["bob/laptop"] }));
            if is_for_people {
                let shown = bob.text(&["receive"]);
                let refusal = format!("refused an invitation by mallory/laptop: the leaf of {reason}");
                assert!(shown.contains(&refusal) && !shown.contains("money"), "{lie}: {shown}");
            } else {
                let came = bob.json(&["receive"]);
                let [(kind, by, why)] = refused(&came).try_into().unwrap_or_else(|_| panic!("{lie}: {came}"));
                assert_eq!((kind.as_str(), by.as_str()), ("welcome", "mallory/laptop"));
                assert!(why.contains(reason) && said(&came).is_empty(), "{lie}: {came}");
            }
            assert_eq!(bob.json(&["group", "list"]), json!([]), "{lie}");
        }
    }
    // An honest group of hers is joined, and so is Alice's.
    mallory.does("found", &json!({ "id": "honest" }));
    mallory.does("invite", &json!({ "user": "bob" }));
    mallory.does("say", &json!({ "text": "hello", "recipients": ["bob/laptop"] }));
    let shown = bob.text(&["receive"]);
    assert!(shown.contains("mallory/laptop added this device") && shown.contains("mallory/laptop: hello"), "{shown}");
    alice.text(&["group", "create", "friends"]);
    alice.text(&["group", "invite", "friends", "bob"]);
    assert!(bob.text(&["receive"]).contains("[friends] alice/laptop added this device"));
}

#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn a_thief_of_a_token_is_not_invited_as_that_device(
    #[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere,
) {
    let Scene { alice, bob, server, .. } = Scene::start(db).await;
    // So that Alice's device knows how her devices were before.
    alice.text(&["receive"]);
    let token = alice.json(&["token"])["token"].clone();
    let mut thief = Foreigner::before(&server.base);
    let answer = thief.does("become", &json!({ "name": "alice/laptop", "token": token, "count": 2 }));
    assert_eq!(answer["accepted"], json!([]));
    for rejected in answer["rejected"].as_array().unwrap() {
        assert_eq!(rejected["reason"], "signature-key-mismatch", "{rejected}");
    }
    assert_eq!(answer["rejected"].as_array().unwrap().len(), 2);

    let held = bob.json(&["reserve", "alice"])["reservations"][0]["keypackage_ref"].clone();
    let hers = alice.json(&["inventory"]);
    assert!(hers.as_array().unwrap().iter().any(|item| item["keypackage_ref"] == held), "{held} of {hers}");
    bob.text(&["group", "create", "friends"]);
    bob.text(&["group", "invite", "friends", "alice"]);
    bob.text(&["send", "friends", "hello"]);
    let shown = alice.text(&["receive"]);
    assert!(shown.contains("[friends] bob/laptop: hello"), "{shown}");
    // The token can register another device, and Alice sees it.
    let answer = thief.does("register", &json!({ "name": "alice/phone", "count": 1 }));
    assert_eq!(answer["rejected"], json!([]));
    let shown = alice.text(&["receive"]);
    assert!(shown.contains("warning: your device alice/phone was registered. If that was not you"), "{shown}");
    let came = alice.json(&["receive"]);
    assert_eq!(came, json!([]), "once");
}

/// With the token of one device, a thief removes another device of the user, and registers its name anew.
#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn a_thief_who_registers_a_device_anew_is_seen_by_everybody(
    #[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere,
) {
    let Scene { alice, bob, server, .. } = Scene::start(db).await;
    let token = alice.text(&["token"]).trim().to_owned();
    let tablet = Shell::new();
    tablet.text(&["init", "--server", &server.base, "--user", "alice", "--device", "tablet", "--user-token", &token]);
    alice.text(&["receive"]);
    bob.text(&["group", "create", "friends"]);
    bob.text(&["group", "invite", "friends", "alice"]);
    for owner in [&alice, &tablet] {
        assert!(owner.text(&["receive"]).contains("[friends] bob/laptop added this device"));
    }
    let before = bob.json(&["verify", "alice"])["number"].clone();

    Http::new(&server.base).with_token(&token).delete("/devices/tablet").await.ok();
    let told = |change: &str| format!("warning: your device alice/tablet {change}. If that was not you");
    let shown = alice.text(&["receive"]);
    assert!(shown.contains(&told("was removed")), "{shown}");
    let mut thief = Foreigner::before(&server.base);
    thief.does("steal", &json!({ "token": token }));
    assert_eq!(thief.does("register", &json!({ "name": "alice/tablet", "count": 2 }))["rejected"], json!([]));
    let shown = alice.text(&["receive"]);
    assert!(shown.contains(&told("was registered")), "{shown}");
    let (_, ended) = tablet.failure(&["receive"]);
    assert!(ended.contains("token"), "{ended}");

    // A warning shows the new key to people who are in a group with her, and the number that people compare is another one.
    assert_ne!(bob.json(&["verify", "alice"])["number"], before);
    let shown = bob.text(&["receive"]);
    assert!(shown.contains("warning: alice/tablet has a new signature key since "), "{shown}");
    bob.text(&["group", "create", "others"]);
    bob.text(&["group", "invite", "others", "alice"]);
    // In the old group, nobody takes the new key from the thief.
    bob.text(&["send", "friends", "hello"]);
    assert_eq!(said(&alice.json(&["receive"])), [("bob/laptop".to_owned(), "hello".to_owned())]);
}

/// A lying server hands out another device's KeyPackage, or one with another key.
#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn a_key_package_of_somebody_else_is_not_shown_as_reserved(
    #[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere,
) {
    let Scene { alice, bob, server, .. } = Scene::start(db).await;
    let proxy = Proxy::before(&server.base).await;
    let carol = Shell::of(&proxy.base, "carol", &[]);
    let hers = alice.json(&["reserve", "bob"])["reservations"][0].clone();
    proxy.lies("POST /keypackages/reserve", move |answer| {
        for field in ["keypackage", "keypackage_ref"] {
            answer["reservations"][0][field] = hers[field].clone();
        }
    });
    carol.text(&["group", "create", "friends"]);
    for args in [&["reserve", "alice"][..], &["group", "invite", "friends", "alice"]] {
        let output = carol.run(&[args, &["--json"]].concat());
        assert!(!output.status.success(), "{args:?}");
        assert_eq!(output.stdout, b"", "{args:?}: nothing of it is printed as the one that was asked for");
        let (_, said) = carol.failure(args);
        assert!(said.contains("bob/laptop") && said.contains("alice/laptop"), "{args:?}: {said}");
    }
    assert_eq!(carol.json(&["group", "members", "friends"]).as_array().unwrap().len(), 1);
    // The refused KeyPackage is released.
    assert_eq!(alice.json(&["status"])["reserved"], 0);
    drop(bob);
}

#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_names_another_inviter_or_sender_is_not_believed(
    #[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere,
) {
    let Scene { alice, mut mallory, server, .. } = Scene::start(db).await;
    let proxy = Proxy::before(&server.base).await;
    let carol = Shell::of(&proxy.base, "carol", &[]);
    for is_for_people in [true, false] {
        proxy.lies("GET /messages", |page| {
            for message in page["messages"].as_array_mut().unwrap() {
                message["from"]["user"] = json!("alice");
            }
        });
        mallory.does("found", &json!({ "id": format!("friends {is_for_people}") }));
        mallory.does("invite", &json!({ "user": "carol" }));
        mallory.does("say", &json!({ "text": "send me money", "recipients": ["carol/laptop"] }));
        mallory.does("change", &json!({ "recipients": ["carol/laptop"] }));
        if is_for_people {
            let shown = carol.text(&["receive"]);
            assert!(shown.contains("mallory/laptop added this device") && !shown.contains("money"), "{shown}");
            for what in ["a message", "a change of the group"] {
                let refusal = format!("refused {what} by mallory/laptop: the leaf of \"mallory/laptop\" is refused: ");
                assert!(shown.contains(&format!("{refusal}it was sent by alice/laptop")), "{shown}");
            }
        } else {
            let came = carol.json(&["receive"]);
            assert_eq!(came[0]["type"], "joined", "{came}");
            assert_eq!(came[0]["by"], json!({ "user": "mallory", "device": "laptop" }));
            let refused: Vec<_> = refused(&came).into_iter().map(|(kind, by, _)| (kind, by)).collect();
            let hers = |kind: &str| (kind.to_owned(), "mallory/laptop".to_owned());
            assert_eq!(refused, [hers("message"), hers("commit")], "{came}");
            assert_eq!(said(&came), []);
        }
        proxy.is_honest();
    }
    alice.text(&["group", "create", "friends"]);
    alice.text(&["group", "invite", "friends", "carol"]);
    alice.text(&["send", "friends", "hello, carol"]);
    let shown = carol.text(&["receive"]);
    assert!(shown.contains("[friends] alice/laptop: hello, carol"), "{shown}");
}
