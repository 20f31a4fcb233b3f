//! The device of `examples/ts-mls` and devices on `keypool-client` in one group, in both directions.

use keypool_client::Event;
use rstest::rstest;
use secrecy::ExposeSecret as _;
use serde_json::json;

use super::helpers::{bob_invited_carol, changed_by, group_of, invite, members, names, start, user};
use crate::support::{Anywhere, Foreigner, Owner};

#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn a_device_on_ts_mls_joins_talks_commits_invites_and_leaves(
    #[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere,
) {
    let server = start(db).await;
    let (alice, carol) = (Owner::of(&server, "alice").await, Owner::of(&server, "carol").await);
    let mut bob = Foreigner::honest(&server.base, ("bob", "laptop"));
    assert_eq!(bob.does("upload", &json!(4))["rejected"], json!([]), "what ts-mls makes is good for the server");
    let group = alice.membership().create_named_group("friends").unwrap();
    assert_eq!(invite(&alice, &group, &["bob"]).await, names(["bob"]));
    assert_eq!(bob.does("receive", &json!(null)), json!([{ "joined": true }, { "changed": true }]));

    bob.does("say", &json!("hello"));
    assert_eq!(alice.texts().await, [("bob/laptop".to_owned(), "hello".to_owned())]);
    bob.does("update", &json!(null));
    assert_eq!(alice.hears().await, [changed_by("bob")]);
    alice.membership().update_keys(&group.group_id).await.unwrap();
    assert_eq!(bob.does("receive", &json!(null)), json!([{ "changed": true }]));
    alice.membership().send(&group.group_id, "hello, Bob").await.unwrap();
    assert_eq!(bob.does("receive", &json!(null)), json!([{ "text": "hello, Bob" }]));

    bob.does("invite", &json!("carol"));
    bob_invited_carol(&alice, &carol, &group).await;
    assert_eq!(bob.does("receive", &json!(null)), json!([{ "text": "hello, all" }]));
    alice.texts().await;

    bob.does("leave", &json!(null));
    alice.hears().await;
    carol.hears().await;
    for owner in [&alice, &carol] {
        assert_eq!(members(owner, &group), names(["alice", "carol"]), "{}", owner.name());
    }
}

#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn a_group_of_ts_mls_takes_keypool_devices_in(#[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere) {
    let server = start(db).await;
    let alice = Owner::of(&server, "alice").await;
    let mut bob = Foreigner::honest(&server.base, ("bob", "laptop"));
    // Its first upload tells the server its signature key, which members compare.
    bob.does("upload", &json!(1));
    bob.does("found", &json!(null));
    bob.does("invite", &json!("alice"));
    let joined = alice.hears().await;
    assert!(matches!(&joined[0], Event::Joined { by } if by.user == user("bob")), "{joined:?}");
    let group = alice.membership().groups().unwrap().remove(0);
    alice.membership().send(&group.group_id, "hello").await.unwrap();
    assert_eq!(bob.does("receive", &json!(null)), json!([{ "text": "hello" }]));
}

/// Bob's phone registers by a code of his laptop, asks by a proposal from outside, and is brought in while the laptop is away.
#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn a_further_device_on_ts_mls_asks_and_is_brought_in(
    #[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere,
) {
    let server = start(db).await;
    let (group, owners) = group_of(&server, &["alice", "bob"]).await;
    let [alice, bob] = owners.as_slice() else { panic!() };
    let code = bob.api().make_device_link().await.unwrap().code;
    let mut phone = Foreigner::further(&server.base, ("bob", "phone"), &format!("keypool_link_{code}"));
    phone.does("upload", &json!(2));
    phone.does("ask", &json!(null));
    let added = Event::Members {
        by: alice.name(),
        added: vec!["bob/phone".to_owned()],
        removed: Vec::new(),
        updated: Vec::new(),
    };
    let asks = Event::Asks { device: "bob/phone".parse().unwrap(), is_admitted: true };
    assert_eq!(alice.hears().await, [asks, added]);
    assert_eq!(phone.does("receive", &json!(null)), json!([{ "joined": true }, { "changed": true }]));
    phone.does("say", &json!("from my phone"));
    assert_eq!(alice.texts().await, [("bob/phone".to_owned(), "from my phone".to_owned())]);
    alice.membership().send(&group.group_id, "hello").await.unwrap();
    assert_eq!(phone.does("receive", &json!(null)), json!([{ "text": "hello" }]));
    // With what the group says of devices in the GroupInfo: it does not know the extension.
    alice.membership().set_admits_devices(&group.group_id, false).await.unwrap();
    assert_eq!(phone.does("receive", &json!(null)), json!([{ "changed": true }, { "changed": true }]));
    let mut tablet = Foreigner::further(&server.base, ("bob", "tablet"), &bob_token(bob));
    tablet.does("upload", &json!(2));
    tablet.does("ask", &json!(null));
    let waits = Event::Asks { device: "bob/tablet".parse().unwrap(), is_admitted: false };
    assert_eq!(alice.hears().await, [waits]);
    assert_eq!(invite(alice, &group, &["bob"]).await, ["bob/tablet".to_owned()].into());
    let joined = tablet.does("receive", &json!(null));
    assert_eq!(joined[0], json!({ "joined": true }), "{joined}");
}

fn bob_token(bob: &Owner) -> String {
    bob.identity().token().unwrap().expose_secret().to_owned()
}

/// docs/libraries.md names these defaults, and what to set.
#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn the_defaults_of_ts_mls_are_refused_by_what_is_wrong_with_them(
    #[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere,
) {
    let server = start(db).await;
    let mut bob = Foreigner::registered(&server.base, "bob/laptop");
    let answers = bob.does("upload_with_defaults", &json!({}));
    assert_eq!(answers["lifetime"]["rejected"][0]["reason"], "lifetime-too-long", "{answers}");
    let rejected = answers["keys"]["rejected"].as_array().unwrap();
    assert!(rejected.len() == 2 && rejected.iter().all(|one| one["reason"] == "signature-key-mismatch"), "{answers}");
}
