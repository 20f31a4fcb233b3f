//! A member whose signature key is another than before: people are told, and go on.

use keypool_client::{Event, Notice};
use keypool_server::config::Limits;
use keypool_validation::key_package::CredentialBinding;
use rstest::rstest;
use serde_json::json;

use super::helpers::{behind_a_proxy, device, group_of, heard, invite, members, names, start, user};
use crate::support::{Anywhere, Database, Owner, TestServer, encode};

#[rstest]
#[tokio::test]
async fn a_changed_key_is_shown_and_an_old_leaf_is_still_good(
    #[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere,
) {
    let server = start(db).await;
    let (group, owners) = group_of(&server, &["alice", "bob"]).await;
    let carol = Owner::of(&server, "carol").await;
    owners[0].rotate(&|_| ()).await.unwrap();
    let [alice, bob] = owners.as_slice() else { panic!() };
    // Alice's leaf in the group has her previous key. The new member accepts it, and gets a notice.
    invite(alice, &group, &["carol"]).await;
    let joined = heard(&carol).await.remove(0);
    assert_eq!(joined.event, Event::Joined { by: device("alice") });
    let [Notice::PreviousSignatureKey { member, .. }] = joined.notices.as_slice() else { panic!("{joined:?}") };
    assert_eq!(member, "alice/laptop");
    heard(bob).await;
    // In a new group she has the new one. Bob has seen the old one.
    let others = carol.membership().create_named_group("others").unwrap();
    invite(&carol, &others, &["bob", "alice"]).await;
    let joined = heard(bob).await.remove(0);
    let [Notice::NewSignatureKey { member, since: Some(_) }] = joined.notices.as_slice() else { panic!("{joined:?}") };
    assert_eq!(member, "alice/laptop");
    let fourth = bob.membership().create_named_group("fourth").unwrap();
    assert_eq!(
        bob.membership().invite(&fourth.group_id, &[user("alice")]).await.unwrap().notices,
        [],
        "the notice came twice"
    );
    heard(alice).await;
    let third = carol.membership().create_named_group("third").unwrap();
    invite(&carol, &third, &["bob", "alice"]).await;
    let joined = heard(bob).await.remove(0);
    assert_eq!(joined.notices, []);
}

#[rstest]
#[tokio::test]
async fn whoever_invites_a_device_with_another_key_than_before_is_told(
    #[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere,
) {
    let server = start(db).await;
    let (_, owners) = group_of(&server, &["alice", "bob"]).await;
    owners[1].rotate(&|_| ()).await.unwrap();
    let alice = owners[0].membership();
    let group = alice.create_named_group("others").unwrap();
    let notices = alice.invite(&group.group_id, &[user("bob")]).await.unwrap().notices;
    let [Notice::NewSignatureKey { member, since: Some(_) }] = notices.as_slice() else { panic!("{notices:?}") };
    assert_eq!(member, "bob/laptop");
}

#[rstest]
#[tokio::test]
async fn two_people_see_the_same_number_unless_the_server_names_other_keys_to_one(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
) {
    let server = start(db).await;
    let alice = Owner::of(&server, "alice").await;
    let (proxy, bob) = behind_a_proxy(&server, "bob").await;
    let number = async |of: &Owner, user_name| of.membership().safety_number(&user(user_name)).await.unwrap().number;
    let first = number(&alice, "bob").await;
    assert_eq!(first.split(' ').map(str::len).collect::<Vec<_>>(), [5; 12]);
    assert_eq!(number(&bob, "alice").await, first);
    alice.rotate(&|_| ()).await.unwrap();
    let second = number(&alice, "bob").await;
    assert_ne!(second, first);
    assert_eq!(number(&bob, "alice").await, second);
    proxy.lies("GET /users/alice/devices", |list| {
        list["devices"][0]["signature_keys"][0]["signature_key"] = json!(encode(&[7; 32]));
    });
    assert_ne!(number(&bob, "alice").await, second);
    proxy.lies("GET /users/bob/devices", |list| {
        list["devices"][0]["signature_keys"][0]["signature_key"] = json!(encode(&[7; 32]));
    });
    assert!(bob.membership().safety_number(&user("alice")).await.is_err(), "it is not the key of this device");
}

/// Where the server keeps no keys, nobody can tell, and nothing honest is refused.
#[rstest]
#[tokio::test]
async fn without_a_directory_of_keys_members_are_taken_as_they_are(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
) {
    let server = TestServer::start_with(db, |config| {
        config.limits = Limits::Off;
        config.credential_binding = CredentialBinding::Off;
    })
    .await;
    let (group, owners) = group_of(&server, &["alice", "bob"]).await;
    for owner in &owners {
        owner.rotate(&|_| ()).await.unwrap();
    }
    let carol = Owner::of(&server, "carol").await;
    invite(&owners[0], &group, &["carol"]).await;
    owners[1].membership().remove(&group.group_id, &user("alice")).await.unwrap();
    invite(&owners[1], &group, &["alice"]).await;
    for owner in owners.iter().chain([&carol]) {
        let heard = owner.hears().await;
        assert!(!heard.iter().any(|what| matches!(what, Event::Refused { .. })), "{heard:?}");
        assert_eq!(members(owner, &group), names(["alice", "bob", "carol"]), "{}", owner.name());
    }
}
