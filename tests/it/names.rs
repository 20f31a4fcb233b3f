//! Users are called as identity providers call them: in paths, in credentials, in groups, through every proxy.

use keypool_client::KeyPackagePoolConfig;
use keypool_openapi::ProblemType;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use rstest::rstest;
use serde_json::json;

use crate::support::{Anywhere, Database, Device, Owner, TestServer, new_device};

const NAMES: [&str; 12] = [
    "auth0|5f7c8ec7c33c6c004bbafe82",
    "https://id.example/users/7",
    "a/laptop",
    "..%2f",
    "%25",
    "100%",
    "a b?c#d",
    "...",
    "Zo\u{eb}@example.org",
    "\u{65e5}\u{672c}",
    "\u{1f469}\u{200d}\u{1f4bb}",
    "\"; DROP TABLE users; --",
];

fn path(name: &str, rest: &str) -> String {
    format!("/users/{}/{rest}", utf8_percent_encode(name, NON_ALPHANUMERIC))
}

#[rstest]
#[tokio::test]
async fn any_name_of_an_identity_provider_works_from_registration_to_spend(
    #[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere,
) {
    let server = TestServer::start(db).await;
    let adder = server.anyone().registered("adder", "phone").await;
    for name in NAMES {
        let owner = server.anyone().registered(name, "laptop").await;
        owner.uploaded(&[Device::new(name, "laptop").key_package()]).await;
        let listed = adder.get(&path(name, "devices")).await.ok();
        assert_eq!((&listed["user"], &listed["devices"][0]["device"]), (&json!(name), &json!("laptop")), "{listed}");
        let looked_up = adder.post("/devices/lookup", &json!({ "users": [name] })).await.ok();
        assert_eq!(looked_up["users"][0]["user"], name, "{looked_up}");
        let reservation = adder.reserved(name).await;
        assert_eq!(reservation["user"], name);
        adder.spend(&reservation, "friends").await.ok();
        assert_eq!(owner.status().await["spent"], 1, "{name}");
        owner.registered(name, "tablet").await.delete("/devices/laptop").await.ok();
    }
    // The identity is split at its last slash, so no user's device can be another user's.
    let mallory = server.anyone().registered("a", "laptop").await;
    let answer = mallory.upload(&[Device::new("a/laptop", "laptop").key_package()]).await.ok();
    assert_eq!(answer["rejected"][0]["reason"], "credential-mismatch");
}

#[rstest]
#[tokio::test]
async fn a_name_that_would_have_to_be_rewritten_is_refused(
    #[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere,
) {
    let server = TestServer::start(db).await;
    let long = "a".repeat(256);
    for (name, why) in [
        ("", "it is empty"),
        (".", "a part of its path"),
        ("..", "a part of its path"),
        (" alice", "white space"),
        ("alice\u{a0}", "white space"),
        ("a\nb", "control character"),
        ("a\u{202e}b", "control character"),
        ("Zoe\u{308}", "NFC"),
        ("\u{212b}", "NFC"),
        (&long, "255 bytes"),
    ] {
        let answer = server.anyone().register(name, "laptop").await;
        answer.is_problem(400, ProblemType::MalformedRequest);
        assert!(answer.text.contains(why) && answer.text.contains("`user`"), "{name:?}: {}", answer.text);
    }
    // Bytes that are not UTF-8 are nobody's name.
    let alice = server.anyone().registered("alice", "laptop").await;
    alice.get("/users/%FF/devices").await.is_problem(400, ProblemType::MalformedRequest);
    server.anyone().register(&long[1..], "laptop").await.ok();
}

#[rstest]
#[tokio::test]
async fn people_with_such_names_talk(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let server = super::client::helpers::start(db).await;
    let mut owners = Vec::new();
    for name in ["auth0|5f7c8ec7c33c6c004bbafe82", "https://id.example/users/7", "Zo\u{eb} %2F"] {
        let (owner, _) = Owner::with(&server, &new_device(&server.base, name), KeyPackagePoolConfig::default()).await;
        owners.push(owner);
    }
    let users: Vec<_> = owners[1..].iter().map(|owner| owner.identity().user().clone()).collect();
    let group = owners[0].membership().create_named_group("friends").unwrap();
    let invited = owners[0].membership().invite(&group.group_id, &users).await.unwrap();
    assert_eq!(invited.added.len(), 2, "{invited:?}");
    for owner in &owners[1..] {
        owner.hears().await;
    }
    owners[2].membership().send(&group.group_id, "hello").await.unwrap();
    for owner in &owners[..2] {
        let said = ("Zo\u{eb} %2F/laptop".to_owned(), "hello".to_owned());
        assert_eq!(owner.texts().await, [said], "{}", owner.name());
    }
    let removed = owners[0].membership().remove(&group.group_id, &users[0]).await.unwrap();
    assert_eq!(removed.removed.len(), 1);
    assert_eq!(owners[1].hears().await.len(), 1);
}
