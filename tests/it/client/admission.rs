//! What a group says about devices that come in by themselves: members that were away when it was said know it, too.

use keypool_client::{Event, Group};
use rstest::rstest;

use super::{
    first_come::held_after,
    helpers::{behind_a_proxy, device, group_of, invite, members, names, start},
    returns::installed_anew,
};
use crate::support::{Anywhere, Database, Owner, TestServer};

fn asks(owner: &Owner, is_admitted: bool) -> Event {
    Event::Asks { device: owner.name().parse().unwrap(), is_admitted }
}

/// A device that was away for all that `happens`, and came back into the group.
async fn away(owner: &Owner, group: &Group, happens: impl Future<Output = ()>) -> Owner {
    let away = owner.copied();
    happens.await;
    owner.hears().await;
    away.membership().come_back(&group.group_id).await.unwrap();
    away.hears().await;
    away
}

#[rstest]
#[tokio::test]
async fn who_was_away_when_the_group_said_no_knows_it_when_it_is_back(
    #[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere,
) {
    let server = start(db).await;
    let (group, owners) = group_of(&server, &["alice", "bob", "carol"]).await;
    let [alice, bob, carol] = owners.as_slice() else { panic!() };
    let said = async |admits| {
        alice.membership().set_admits_devices(&group.group_id, admits).await.unwrap();
    };
    let carol = away(carol, &group, said(false)).await;
    let phone = bob.further(&server, "phone").await;
    assert_eq!(carol.hears().await, [asks(&phone, false)]);
    assert_eq!(alice.hears().await.last(), Some(&asks(&phone, false)));
    // It goes on from one GroupInfo to the next, and from one who was away to the next.
    let back = away(bob, &group, async {
        carol.membership().update_keys(&group.group_id).await.unwrap();
        alice.hears().await;
    });
    let bob = back.await;
    let tablet = bob.further(&server, "tablet").await;
    assert_eq!(bob.hears().await[0], asks(&tablet, false));
    assert!(!members(&bob, &group).contains("bob/tablet"));

    let carol = away(&carol, &group, said(true)).await;
    let watch = bob.further(&server, "watch").await;
    assert!(carol.hears().await.contains(&asks(&watch, true)));
    assert!(members(&carol, &group).contains("bob/watch"));
}

/// Bob's phone is removed, and registered anew: it has another key.
async fn removed_phone(server: &TestServer, group: &Group, alice: &Owner, bob: &Owner) -> Owner {
    let phone = bob.further(server, "phone").await;
    alice.hears().await;
    phone.hears().await;
    alice.membership().remove_device(&group.group_id, &phone.name().parse().unwrap()).await.unwrap();
    phone.hears().await;
    phone.http().delete("/devices/phone").await.ok();
    phone
}

#[rstest]
#[tokio::test]
async fn who_came_in_after_a_removal_does_not_bring_the_device_in(
    #[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere,
) {
    let server = start(db).await;
    let (group, owners) = group_of(&server, &["alice", "bob"]).await;
    let [alice, bob] = owners.as_slice() else { panic!() };
    let _phone = removed_phone(&server, &group, alice, bob).await;
    let dave = Owner::of(&server, "dave").await;
    invite(alice, &group, &["dave"]).await;
    dave.hears().await;
    let again = bob.further(&server, "phone").await;
    assert_eq!(dave.hears().await, [asks(&again, false)]);
    assert_eq!(again.hears().await, []);
    // Dave tells it on.
    let erin = Owner::of(&server, "erin").await;
    invite(&dave, &group, &["erin"]).await;
    erin.hears().await;
    again.lose_queue().await;
    let anew = {
        again.http().delete("/devices/phone").await.ok();
        bob.further(&server, "phone").await
    };
    assert_eq!(erin.hears().await, [asks(&anew, false)]);
    // Somebody invites the user: then it is a member like all others.
    assert_eq!(invite(&erin, &group, &["bob"]).await, ["bob/phone".to_owned()].into());
    assert!(anew.hears().await.contains(&Event::Joined { by: device("erin") }));
}

#[rstest]
#[tokio::test]
async fn who_missed_a_removal_knows_it_when_it_is_back(#[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere) {
    let server = start(db).await;
    let (group, owners) = group_of(&server, &["alice", "bob", "carol"]).await;
    let [alice, bob, carol] = owners.as_slice() else { panic!() };
    // Carol saw neither that the phone came in nor that it was removed.
    let carol = away(carol, &group, async {
        removed_phone(&server, &group, alice, bob).await;
    });
    let carol = carol.await;
    let again = bob.further(&server, "phone").await;
    assert_eq!(carol.hears().await, [asks(&again, false)]);
    assert_eq!(again.hears().await, []);
    assert_eq!(members(&carol, &group), names(["alice", "bob", "carol"]));
}

/// Alice is about to replace the leaf of Bob's device when Carol removes it.
#[rstest]
#[tokio::test]
async fn a_removal_that_comes_first_keeps_the_device_out(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let server = start(db).await;
    let (proxy, alice) = behind_a_proxy(&server, "alice").await;
    let (old, carol) = (Owner::of(&server, "bob").await, Owner::of(&server, "carol").await);
    let group = alice.membership().create_named_group("friends").unwrap();
    invite(&alice, &group, &["bob", "carol"]).await;
    for owner in [&old, &carol] {
        owner.hears().await;
    }
    // A device of his stays in the group.
    let phone = old.further(&server, "phone").await;
    alice.hears().await;
    phone.hears().await;
    carol.hears().await;
    let bob = installed_anew(&server, &old).await;
    let hearing = alice.hears();
    tokio::pin!(hearing);
    let gate = held_after(&proxy, hearing.as_mut(), ("POST /keypackages/reserve", 1)).await;
    carol.membership().remove_device(&group.group_id, &device("bob")).await.unwrap();
    drop(gate);
    hearing.await;
    for owner in [&alice, &carol] {
        owner.hears().await;
        assert!(!members(owner, &group).contains("bob/laptop"), "{}", owner.name());
    }
    assert_eq!(bob.membership().groups().unwrap(), []);
    assert_eq!(invite(&alice, &group, &["bob"]).await, names(["bob"]));
}
