//! Devices that have not read yet what changed: they act in the group as it is, and find back into it.

use keypool_openapi::{Undelivered, UndeliveredReason};
use rstest::rstest;

use super::{
    first_come::held_after,
    helpers::{behind_a_proxy, epoch, group_of, invite, members, names, start, user},
};
use crate::support::{Anywhere, Database, Owner};

#[rstest]
#[tokio::test]
async fn who_is_many_commits_behind_is_read_and_loses_nothing(
    #[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere,
) {
    let server = start(db).await;
    let (group, owners) = group_of(&server, &["alice", "bob", "carol"]).await;
    let [alice, bob, carol] = owners.as_slice() else { panic!() };
    alice.membership().send(&group.group_id, "before").await.unwrap();
    for _ in 0..5 {
        alice.membership().update_keys(&group.group_id).await.unwrap();
    }
    bob.hears().await;
    // Carol has read none of it: in her epoch, nobody would understand her any more.
    assert_eq!(carol.membership().send(&group.group_id, "hello").await.unwrap(), []);
    for owner in [alice, bob] {
        assert_eq!(owner.texts().await, [("carol/laptop".to_owned(), "hello".to_owned())], "{}", owner.name());
    }
    assert_eq!(carol.texts().await, [("alice/laptop".to_owned(), "before".to_owned())]);
}

#[rstest]
#[tokio::test]
async fn who_is_behind_can_leave(#[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere) {
    let server = start(db).await;
    let (group, owners) = group_of(&server, &["alice", "bob"]).await;
    let [alice, bob] = owners.as_slice() else { panic!() };
    alice.membership().update_keys(&group.group_id).await.unwrap();
    assert_eq!(bob.membership().leave(&group.group_id).await.unwrap(), []);
    alice.hears().await;
    assert_eq!(members(alice, &group), names(["alice"]));
}

#[rstest]
#[tokio::test]
async fn who_wants_to_say_something_lets_those_go_who_leave(
    #[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere,
) {
    let server = start(db).await;
    let (group, owners) = group_of(&server, &["alice", "bob", "carol"]).await;
    let [alice, bob, carol] = owners.as_slice() else { panic!() };
    bob.membership().leave(&group.group_id).await.unwrap();
    alice.membership().send(&group.group_id, "he is gone").await.unwrap();
    assert_eq!(carol.texts().await, [("alice/laptop".to_owned(), "he is gone".to_owned())]);
    for owner in [alice, carol] {
        assert_eq!((members(owner, &group), epoch(owner, &group)), (names(["alice", "carol"]), 2), "{}", owner.name());
    }
}

#[rstest]
#[tokio::test]
async fn who_comes_second_with_what_was_proposed_commits_to_nothing(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
) {
    let server = start(db).await;
    let (proxy, alice) = behind_a_proxy(&server, "alice").await;
    let (bob, carol) = (Owner::of(&server, "bob").await, Owner::of(&server, "carol").await);
    let group = alice.membership().create_named_group("friends").unwrap();
    invite(&alice, &group, &["bob", "carol"]).await;
    bob.hears().await;
    carol.hears().await;
    bob.membership().leave(&group.group_id).await.unwrap();
    let hearing = alice.hears();
    tokio::pin!(hearing);
    // The first fetch gets his proposal, and the second one an empty page.
    let gate = held_after(&proxy, hearing.as_mut(), ("GET /messages", 2)).await;
    carol.hears().await;
    drop(gate);
    hearing.await;
    carol.hears().await;
    for owner in [&alice, &carol] {
        assert_eq!((members(owner, &group), epoch(owner, &group)), (names(["alice", "carol"]), 2), "{}", owner.name());
    }
}

#[rstest]
#[tokio::test]
async fn whoever_is_sent_nothing_is_named(#[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere) {
    let server = start(db).await;
    let (group, owners) = group_of(&server, &["alice", "bob", "carol"]).await;
    let [alice, bob, _] = owners.as_slice() else { panic!() };
    bob.http().delete("/devices/laptop").await;
    let reason = UndeliveredReason::UnknownDevice;
    let missed = [Undelivered { user: user("bob"), device: "laptop".parse().unwrap(), reason }];
    let (membership, id) = (alice.membership(), &group.group_id);
    assert_eq!(membership.send(id, "hello").await.unwrap(), missed);
    assert_eq!(membership.update_keys(id).await.unwrap(), missed);
    let dave = Owner::of(&server, "dave").await;
    assert_eq!(membership.invite(id, &[user("dave")]).await.unwrap().undelivered, missed);
    assert_eq!(membership.remove(id, &user("carol")).await.unwrap().undelivered, missed);
    assert_eq!(membership.leave(id).await.unwrap(), missed);
    drop(dave);
}
