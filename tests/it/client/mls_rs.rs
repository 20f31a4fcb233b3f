//! Devices on mls-rs and devices on `keypool-client` in one group: in both directions, with Commits in both forms.

use keypool_client::Event;
use keypool_example_mls_rs::{Received, register, register_with};
use keypool_server::config::Limits;
use rstest::rstest;
use serde_json::json;

use super::helpers::{bob_invited_carol, changed_by, invite, members, names, start, user};
use crate::support::{Anywhere, Database, Owner, TestServer, builder};

fn client() -> reqwest::Client {
    builder().build().unwrap()
}

#[rstest]
#[tokio::test]
async fn a_device_on_mls_rs_joins_talks_commits_invites_and_leaves(
    #[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere,
    #[values(false, true)] in_the_open: bool,
) {
    let server = start(db).await;
    let (alice, carol) = (Owner::of(&server, "alice").await, Owner::of(&server, "carol").await);
    let mut bob = register(client(), &server.base, ("bob", "laptop"), in_the_open).await.unwrap();
    let answer = bob.upload(4).await.unwrap();
    assert_eq!(answer["rejected"], json!([]), "what mls-rs makes is good for the server");
    let group = alice.membership().create_named_group("friends").unwrap();
    assert_eq!(invite(&alice, &group, &["bob"]).await, names(["bob"]));
    assert_eq!(bob.receive().await.unwrap(), [Received::Joined, Received::Changed]);

    // They talk both ways, and commit both ways: each Commit shows the proof that the one before asked for.
    bob.send("hello").await.unwrap();
    assert_eq!(alice.texts().await, [("bob/laptop".to_owned(), "hello".to_owned())]);
    bob.update().await.unwrap();
    assert_eq!(alice.hears().await, [changed_by("bob")]);
    alice.membership().update_keys(&group.group_id).await.unwrap();
    assert_eq!(bob.receive().await.unwrap(), [Received::Changed]);
    alice.membership().send(&group.group_id, "hello, Bob").await.unwrap();
    assert_eq!(bob.receive().await.unwrap(), [Received::Text("hello, Bob".to_owned())]);

    bob.invite("carol").await.unwrap();
    bob_invited_carol(&alice, &carol, &group).await;
    assert_eq!(bob.receive().await.unwrap(), [Received::Text("hello, all".to_owned())]);
    let (epoch, mut others) = bob.group().unwrap();
    others.sort();
    assert_eq!((epoch, others), (4, vec!["alice/laptop".to_owned(), "carol/laptop".to_owned()]));
    alice.texts().await;

    // Bob leaves: a member commits it.
    bob.leave().await.unwrap();
    alice.hears().await;
    carol.hears().await;
    for owner in [&alice, &carol] {
        assert_eq!(members(owner, &group), names(["alice", "carol"]), "{}", owner.name());
    }
    alice.membership().send(&group.group_id, "bye").await.unwrap();
    assert_eq!(carol.texts().await, [("alice/laptop".to_owned(), "bye".to_owned())]);
}

#[rstest]
#[tokio::test]
async fn a_group_of_mls_rs_takes_keypool_devices_in(#[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere) {
    let server = start(db).await;
    let alice = Owner::of(&server, "alice").await;
    let mut bob = register(client(), &server.base, ("bob", "laptop"), true).await.unwrap();
    bob.upload(1).await.unwrap();
    bob.found().unwrap();
    bob.invite("alice").await.unwrap();
    let joined = alice.hears().await;
    assert!(matches!(&joined[0], Event::Joined { by } if by.user == user("bob")), "{joined:?}");
    let group = alice.membership().groups().unwrap().remove(0);
    alice.membership().send(&group.group_id, "hello").await.unwrap();
    assert_eq!(bob.receive().await.unwrap(), [Received::Text("hello".to_owned())]);
}

/// The guide names the default that is refused, and both ways on.
#[rstest]
#[tokio::test]
async fn the_default_lifetime_of_mls_rs_is_for_the_operator_to_allow(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
) {
    let server = start(db).await;
    let bob = register_with(client(), &server.base, ("bob", "laptop"), (None, false)).await.unwrap();
    let answer = bob.upload(1).await.unwrap();
    assert_eq!(answer["rejected"][0]["reason"], "lifetime-too-long", "{answer}");
    let patient = TestServer::start_with(db, |config| {
        config.limits = Limits::Off;
        config.max_lifetime = std::time::Duration::from_hours(366 * 24);
    })
    .await;
    let bob = register_with(client(), &patient.base, ("bob", "laptop"), (None, false)).await.unwrap();
    assert_eq!(bob.upload(1).await.unwrap()["rejected"], json!([]));
}
