//! Devices that fell behind while the newest change of their group is by a member that they do not know: a server could have
//! made that member up. A member that they know brings them back.

use keypool_client::{Error, Event, Group, GroupState};
use rstest::rstest;

use super::helpers::{device, epoch, group_of, invite, members, names, start, user};
use crate::support::{Anywhere, Database, Owner, TestServer};

/// Alice, Bob and Carol in a group, and Bob as he was before Dave came in and made the newest Commit.
async fn dave_came_meanwhile(server: &TestServer, admits: bool) -> (Group, [Owner; 4]) {
    let (group, owners) = group_of(server, &["alice", "bob", "carol"]).await;
    let [alice, bob, carol] = <[Owner; 3]>::try_from(owners).unwrap_or_else(|_| panic!("three owners"));
    if !admits {
        alice.membership().set_admits_devices(&group.group_id, false).await.unwrap();
        bob.hears().await;
    }
    let behind = bob.copied();
    let dave = Owner::of(server, "dave").await;
    invite(&alice, &group, &["dave"]).await;
    dave.hears().await;
    dave.membership().update_keys(&group.group_id).await.unwrap();
    bob.hears().await;
    for owner in [&alice, &carol] {
        owner.hears().await;
    }
    (group, [alice, behind, carol, dave])
}

fn replaced_by(owner: &Owner) -> Event {
    let updated = vec![device("bob").to_string()];
    Event::Members { by: owner.name(), added: Vec::new(), removed: Vec::new(), updated }
}

const fn asks(device: keypool_openapi::DeviceOf) -> Event {
    Event::Asks { device, is_admitted: true }
}

/// In a group that admits no devices, too: it shows the key of its leaf.
#[rstest]
#[tokio::test]
async fn who_fell_behind_is_brought_back_by_a_member_that_it_knows(
    #[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere,
    #[values(true, false)] admits: bool,
) {
    let server = start(db).await;
    let (group, [alice, bob, carol, dave]) = dave_came_meanwhile(&server, admits).await;
    let error = bob.membership().send(&group.group_id, "hello?").await.unwrap_err();
    assert!(matches!(error, Error::FellBehind { .. }), "{error}");
    for _ in 0..3 {
        bob.hears().await;
    }
    let error = bob.membership().come_back(&group.group_id).await.unwrap_err();
    assert!(matches!(error, Error::UnknownSigner { .. }), "{error}");
    // Dave is not asked: Bob would refuse his Welcome.
    assert_eq!(dave.hears().await, []);
    assert_eq!(carol.hears().await, [asks(device("bob")), replaced_by(&carol)], "once");
    let heard = alice.hears().await;
    assert_eq!(heard[..2], [asks(device("bob")), replaced_by(&carol)], "{heard:?}");
    let heard = bob.hears().await;
    assert!(heard.contains(&Event::Joined { by: device("carol") }), "{heard:?}");
    bob.membership().send(&group.group_id, "back").await.unwrap();
    dave.membership().send(&group.group_id, "welcome").await.unwrap();
    assert_eq!(bob.texts().await, [("dave/laptop".to_owned(), "welcome".to_owned())]);
    for owner in [&alice, &carol, &dave] {
        assert!(owner.texts().await.contains(&("bob/laptop".to_owned(), "back".to_owned())), "{}", owner.name());
        assert_eq!(members(owner, &group), names(["alice", "bob", "carol", "dave"]));
    }
}

/// Each change of the group by a member that it does not know is a reason to ask again: the first time may be lost.
#[rstest]
#[tokio::test]
async fn who_waits_asks_again_when_the_group_has_changed(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let server = start(db).await;
    let (group, [alice, bob, carol, dave]) = dave_came_meanwhile(&server, true).await;
    assert!(bob.membership().send(&group.group_id, "hello?").await.is_err());
    bob.hears().await;
    let lost = [alice.lose_queue().await, carol.lose_queue().await];
    assert_eq!(lost, [1, 1]);
    bob.hears().await;
    assert_eq!(alice.hears().await, []);
    dave.membership().update_keys(&group.group_id).await.unwrap();
    bob.hears().await;
    let heard = alice.hears().await;
    assert!(heard.ends_with(&[asks(device("bob")), replaced_by(&alice)]), "{heard:?}");
    bob.hears().await;
    bob.membership().send(&group.group_id, "back").await.unwrap();
    assert!(carol.texts().await.contains(&("bob/laptop".to_owned(), "back".to_owned())));
}

/// A known member that commits for another reason helps, too.
#[rstest]
#[tokio::test]
async fn a_change_by_a_known_member_is_enough(#[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere) {
    let server = start(db).await;
    let (group, [alice, bob, ..]) = dave_came_meanwhile(&server, true).await;
    alice.membership().update_keys(&group.group_id).await.unwrap();
    bob.membership().send(&group.group_id, "back").await.unwrap();
    let at = epoch(&alice, &group);
    let heard = alice.hears().await;
    assert_eq!(heard[0], replaced_by(&bob), "{heard:?}");
    assert_eq!(epoch(&alice, &group), at + 1);
}

/// The server could have made up the whole group. The user decides.
#[rstest]
#[tokio::test]
async fn where_no_known_member_is_left_the_user_decides(#[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere) {
    let server = start(db).await;
    let (group, [alice, bob, carol, dave]) = dave_came_meanwhile(&server, true).await;
    for gone in [&alice, &carol] {
        gone.membership().leave(&group.group_id).await.unwrap();
        dave.hears().await;
    }
    assert!(bob.membership().send(&group.group_id, "hello?").await.is_err());
    bob.hears().await;
    assert_eq!(dave.hears().await, [], "he is not asked");
    assert_eq!(bob.membership().find_group("friends").unwrap().state, GroupState::FellBehind);
    // Nor does an invitation by him bring Bob back.
    dave.membership().remove(&group.group_id, &user("bob")).await.unwrap();
    invite(&dave, &group, &["bob"]).await;
    let heard = bob.hears().await;
    assert!(heard.iter().all(|event| !matches!(event, Event::Joined { .. })), "{heard:?}");
    bob.membership().forget(&group.group_id).await.unwrap();
    dave.membership().remove(&group.group_id, &user("bob")).await.unwrap();
    invite(&dave, &group, &["bob"]).await;
    assert!(bob.hears().await.contains(&Event::Joined { by: device("dave") }));
}
