//! Devices that ask to be brought into groups: new ones, and those that lost what they had. The next member that is online
//! brings them in, and everybody sees it.

use jiff::SignedDuration;
use keypool_client::{Error, Event};
use keypool_openapi::{GroupId, MessageRequest};
use rstest::rstest;

use super::{
    helpers::{behind_a_proxy, device, epoch, group_of, invite, members, names, start, user},
    returns::installed_anew,
};
use crate::support::{Anywhere, Database, Owner};

fn asks(owner: &Owner, is_admitted: bool) -> Event {
    Event::Asks { device: owner.name().parse().unwrap(), is_admitted }
}

#[rstest]
#[tokio::test]
async fn who_was_installed_anew_and_hears_nothing_is_in_as_soon_as_one_member_was_online(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
) {
    let server = start(db).await;
    let (group, owners) = group_of(&server, &["alice", "bob", "carol"]).await;
    let [alice, old, carol] = owners.as_slice() else { panic!() };
    let bob = installed_anew(&server, old).await;
    // Nobody says anything. Carol is online for a moment.
    let before = epoch(carol, &group);
    let replaced =
        Event::Members { by: carol.name(), added: Vec::new(), removed: Vec::new(), updated: vec![bob.name()] };
    assert_eq!(carol.hears().await, [asks(&bob, true), replaced.clone()]);
    assert_eq!(epoch(carol, &group), before + 1);
    let heard = bob.hears().await;
    assert!(heard.contains(&Event::Joined { by: device("carol") }), "{heard:?}");
    bob.membership().send(&group.group_id, "here").await.unwrap();
    let heard = alice.hears().await;
    assert!(heard.contains(&asks(&bob, true)) && heard.contains(&replaced), "{heard:?}");
    assert!(heard.contains(&Event::Text { sender: bob.name(), text: "here".to_owned() }), "{heard:?}");
    // Alice found it in the group already.
    assert_eq!((epoch(alice, &group), members(alice, &group)), (before + 1, names(["alice", "bob", "carol"])));
}

#[rstest]
#[tokio::test]
async fn a_users_second_device_is_brought_in_by_anybody_unless_the_group_says_no(
    #[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere,
) {
    let server = start(db).await;
    let (group, owners) = group_of(&server, &["alice", "bob"]).await;
    let [alice, bob] = owners.as_slice() else { panic!() };
    // Bob's laptop is away all the time.
    let phone = bob.further(&server, "phone").await;
    let added =
        Event::Members { by: alice.name(), added: vec![phone.name()], removed: Vec::new(), updated: Vec::new() };
    assert_eq!(alice.hears().await, [asks(&phone, true), added]);
    assert!(phone.hears().await.contains(&Event::Joined { by: device("alice") }));
    assert!(members(alice, &group).contains("bob/phone"));

    alice.membership().set_admits_devices(&group.group_id, false).await.unwrap();
    // A later member knows it, too.
    let carol = Owner::of(&server, "carol").await;
    invite(alice, &group, &["carol"]).await;
    carol.hears().await;
    let tablet = bob.further(&server, "tablet").await;
    for owner in [alice, &carol] {
        assert_eq!(owner.hears().await, [asks(&tablet, false)]);
    }
    assert_eq!(tablet.hears().await, []);
    assert_eq!(invite(alice, &group, &["bob"]).await, ["bob/tablet".to_owned()].into());
    assert!(tablet.hears().await.contains(&Event::Joined { by: device("alice") }));
}

/// The keys of its leaf are those that it has, and it cannot read: its invitation was lost.
#[rstest]
#[tokio::test]
async fn who_lost_its_invitation_is_invited_again_by_itself(
    #[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere,
) {
    let server = start(db).await;
    let (group, owners) = group_of(&server, &["alice", "bob"]).await;
    let [alice, bob] = owners.as_slice() else { panic!() };
    let carol = Owner::of(&server, "carol").await;
    invite(alice, &group, &["carol"]).await;
    assert_eq!(carol.lose_queue().await, 2, "the Welcome, and the name of the group");
    alice.membership().send(&group.group_id, "hello").await.unwrap();
    assert_eq!(carol.hears().await, [Event::Stranger]);
    let heard = bob.hears().await;
    assert!(heard.contains(&asks(&carol, true)), "{heard:?}");
    assert!(carol.hears().await.contains(&Event::Joined { by: device("bob") }));
    bob.membership().send(&group.group_id, "now").await.unwrap();
    assert_eq!(carol.texts().await, [("bob/laptop".to_owned(), "now".to_owned())]);
}

/// It has the key of its leaf, so nobody new comes in.
#[rstest]
#[tokio::test]
async fn who_lost_its_invitation_is_invited_again_even_if_the_group_says_no(
    #[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere,
) {
    let server = start(db).await;
    let (group, owners) = group_of(&server, &["alice", "bob"]).await;
    let [alice, bob] = owners.as_slice() else { panic!() };
    alice.membership().set_admits_devices(&group.group_id, false).await.unwrap();
    bob.hears().await;
    let carol = Owner::of(&server, "carol").await;
    invite(alice, &group, &["carol"]).await;
    assert_eq!(carol.lose_queue().await, 3, "the Welcome, the setting and the name");
    alice.membership().send(&group.group_id, "hello").await.unwrap();
    carol.hears().await;
    let heard = bob.hears().await;
    assert!(heard.contains(&asks(&carol, true)), "{heard:?}");
    assert!(carol.hears().await.contains(&Event::Joined { by: device("bob") }));
    carol.membership().send(&group.group_id, "here").await.unwrap();
    assert!(alice.texts().await.contains(&("carol/laptop".to_owned(), "here".to_owned())));
}

/// It has another key. Its leaf stays, until somebody invites its user.
#[rstest]
#[tokio::test]
async fn who_was_installed_anew_waits_for_an_invitation_if_the_group_says_no(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
) {
    let server = start(db).await;
    let (group, owners) = group_of(&server, &["alice", "bob"]).await;
    let [alice, old] = owners.as_slice() else { panic!() };
    alice.membership().set_admits_devices(&group.group_id, false).await.unwrap();
    let bob = installed_anew(&server, old).await;
    assert_eq!(alice.hears().await, [asks(&bob, false)]);
    assert_eq!(bob.hears().await, []);
    assert_eq!(invite(alice, &group, &["bob"]).await, names(["bob"]));
    assert!(bob.hears().await.contains(&Event::Joined { by: device("alice") }));
}

#[rstest]
#[tokio::test]
async fn who_was_removed_or_has_deleted_a_group_does_not_come_in_by_itself(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
) {
    let server = start(db).await;
    let (group, owners) = group_of(&server, &["alice", "bob", "carol"]).await;
    let [alice, bob, carol] = owners.as_slice() else { panic!() };
    let phone = bob.further(&server, "phone").await;
    alice.hears().await;
    phone.hears().await;
    let phone_name = phone.name().parse().unwrap();
    alice.membership().remove_device(&group.group_id, &phone_name).await.unwrap();
    phone.hears().await;
    // Another client of the same device, with nothing.
    phone.http().delete("/devices/phone").await.ok();
    server.advance(SignedDuration::from_secs(10));
    let again = bob.further(&server, "phone").await;
    for owner in [alice, bob, carol] {
        owner.hears().await;
    }
    assert_eq!(again.hears().await, []);
    assert!(!members(alice, &group).contains("bob/phone"));
    assert_eq!(invite(alice, &group, &["bob"]).await, ["bob/phone".to_owned()].into());
    assert!(again.hears().await.contains(&Event::Joined { by: device("alice") }));

    carol.membership().forget(&group.group_id).await.unwrap();
    alice.membership().send(&group.group_id, "hello").await.unwrap();
    assert!(carol.hears().await.contains(&Event::Stranger));
    let heard = alice.hears().await;
    assert!(matches!(heard.as_slice(), [.., Event::Unreadable { .. }]), "it is shown: {heard:?}");
    assert!(!heard.contains(&asks(carol, true)), "{heard:?}");
    bob.hears().await;
    carol.hears().await;
    assert_eq!(carol.membership().groups().unwrap(), []);
}

/// Somebody has the GroupInfo, and no device in the group.
#[rstest]
#[tokio::test]
async fn a_stranger_who_asks_stays_outside(#[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere) {
    let server = start(db).await;
    let (group, owners) = group_of(&server, &["alice", "bob"]).await;
    let [alice, bob] = owners.as_slice() else { panic!() };
    // What Bob's new phone sends, as it was on its way.
    let phone = bob.further(&server, "phone").await;
    let page = alice.api().messages(0, 100, None).await.unwrap();
    let asked = page.messages.last().unwrap();
    assert_eq!(asked.from, phone.name().parse().unwrap());
    alice.lose_queue().await;
    let eve = Owner::of(&server, "eve").await;
    let recipients = vec![device("alice")];
    let request = MessageRequest { message: asked.message.clone(), recipients, expected_epoch: None };
    let path = GroupId::new(group.group_id.clone()).unwrap();
    eve.api().send_message(&path, &request).await.unwrap();
    let heard = alice.hears().await;
    assert!(matches!(heard.as_slice(), [Event::Ignored { .. }]), "{heard:?}");
    assert_eq!(members(alice, &group), names(["alice", "bob"]));
}

#[rstest]
#[tokio::test]
async fn a_device_looks_for_its_groups_once(#[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere) {
    let server = start(db).await;
    let (proxy, bob) = behind_a_proxy(&server, "bob").await;
    let looks = |head: &String| head.starts_with("GET /groups");
    assert_eq!(proxy.seen().iter().filter(|head| looks(head)).count(), 1, "after its registration");
    bob.hears().await;
    bob.refresh().await.unwrap();
    assert_eq!(proxy.seen().iter().filter(|head| looks(head)).count(), 0);
}

#[rstest]
#[tokio::test]
async fn the_history_of_a_group_says_who_did_what(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let server = start(db).await;
    let (group, owners) = group_of(&server, &["alice", "bob", "carol"]).await;
    let [alice, bob, carol] = owners.as_slice() else { panic!() };
    let behind = carol.copied();
    bob.membership().remove(&group.group_id, &user("carol")).await.unwrap();
    alice.hears().await;
    invite(alice, &group, &["carol"]).await;
    let dave = Owner::of(&server, "dave").await;
    invite(alice, &group, &["dave"]).await;
    let history = |owner: &Owner| {
        let told = owner.membership().history(&group.group_id).unwrap().into_iter();
        let told = told.map(|one| {
            let by = one.by.unwrap_or_else(|| "?".to_owned());
            let names = |names: Vec<String>| names.join(" ");
            format!("{} {by} +{} -{} ~{}", one.epoch, names(one.added), names(one.removed), names(one.updated))
        });
        told.collect::<Vec<_>>()
    };
    let expected = [
        "0 alice/laptop +alice/laptop - ~",
        "1 alice/laptop +bob/laptop carol/laptop - ~",
        "2 bob/laptop + -carol/laptop ~",
        "3 alice/laptop +carol/laptop - ~",
        "4 alice/laptop +dave/laptop - ~",
    ];
    assert_eq!(history(alice), expected);
    bob.hears().await;
    assert_eq!(history(bob)[0], "1 alice/laptop +bob/laptop - ~");
    assert_eq!(history(bob)[1..], expected[2..]);
    // Her other copy was away, and is brought back: what happened meanwhile has no name.
    dave.hears().await;
    behind.lose_queue().await;
    behind.membership().come_back(&group.group_id).await.unwrap();
    assert_eq!(history(&behind)[1..], ["5 ? +dave/laptop - ~", "5 carol/laptop + - ~carol/laptop"]);
    alice.hears().await;
    assert_eq!(history(alice)[5], "5 carol/laptop + - ~carol/laptop");
    alice.membership().leave(&group.group_id).await.unwrap();
    bob.hears().await;
    alice.hears().await;
    assert_eq!(alice.membership().find_history(&group.id[..8]).unwrap(), group.group_id, "it stays");
    assert!(history(alice).last().unwrap().contains("-alice/laptop"), "{:?}", history(alice));
}

/// The server takes an external Commit only with the current key of a device.
#[rstest]
#[tokio::test]
async fn who_changed_its_key_and_fell_behind_is_brought_back_by_a_member(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
) {
    let server = start(db).await;
    let (group, owners) = group_of(&server, &["alice", "bob"]).await;
    let [alice, bob] = owners.as_slice() else { panic!() };
    bob.rotate(&|_| ()).await.unwrap();
    alice.membership().update_keys(&group.group_id).await.unwrap();
    assert_eq!(bob.lose_queue().await, 1);
    let error = bob.membership().send(&group.group_id, "hello?").await.unwrap_err();
    assert!(matches!(error, Error::FellBehind { .. }), "{error}");
    bob.hears().await;
    bob.hears().await;
    let heard = alice.hears().await;
    assert!(heard.len() == 2 && heard[0] == asks(bob, true), "once: {heard:?}");
    let heard = bob.hears().await;
    assert!(heard.contains(&Event::Joined { by: device("alice") }), "{heard:?}");
    bob.membership().send(&group.group_id, "here").await.unwrap();
    assert_eq!(alice.texts().await, [("bob/laptop".to_owned(), "here".to_owned())]);
}
