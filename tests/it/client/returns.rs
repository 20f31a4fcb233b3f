//! Devices that come back into their groups: by an external Commit, or because a member brings them back.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jiff::SignedDuration;
use keypool_client::{Error, Event, Group, GroupState, KeyPackagePoolConfig};
use keypool_openapi::{DeviceOf, MessageKind, ProblemType, RefusalReason};
use rstest::rstest;

use super::{
    first_come::held_after,
    helpers::{behind_a_proxy, device, epoch, group_of, invite, members, names, start, user},
    impostors::{HONEST, with_mallory},
};
use crate::support::{Anywhere, Database, Owner, TestServer, decode, new_device};

/// Alice, Bob and Carol in a group, and Bob as he was before `commits` Commits whose messages his queue does not have any
/// more.
async fn bob_is_behind(server: &TestServer, commits: usize) -> (Group, [Owner; 3]) {
    let (group, owners) = group_of(server, &["alice", "bob", "carol"]).await;
    let [alice, bob, carol] = <[Owner; 3]>::try_from(owners).unwrap_or_else(|_| panic!("three owners"));
    let behind = bob.copied();
    for _ in 0..commits {
        alice.membership().update_keys(&group.group_id).await.unwrap();
    }
    alice.membership().send(&group.group_id, "lost").await.unwrap();
    assert_eq!(bob.texts().await.len(), 1);
    carol.hears().await;
    (group, [alice, behind, carol])
}

fn info_path(group: &Group) -> String {
    format!("/groups/{}/info", URL_SAFE_NO_PAD.encode(&group.group_id))
}

#[rstest]
#[tokio::test]
async fn who_missed_fifty_commits_is_back_while_all_others_are_away(
    #[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere,
) {
    let server = start(db).await;
    let (group, [alice, bob, carol]) = bob_is_behind(&server, 50).await;
    assert_eq!(epoch(&bob, &group), 1);
    // Nothing in his queue tells him. The server does, when he says something.
    assert_eq!(bob.hears().await, []);
    assert_eq!(bob.membership().send(&group.group_id, "I am back").await.unwrap(), []);
    assert_eq!(epoch(&bob, &group), 52);
    assert_eq!(bob.hears().await, [Event::FellBehind, Event::CameBack]);
    let back = Event::Members { by: bob.name(), added: Vec::new(), removed: Vec::new(), updated: vec![bob.name()] };
    for owner in [&alice, &carol] {
        let heard = owner.hears().await;
        let text = Event::Text { sender: bob.name(), text: "I am back".to_owned() };
        assert_eq!(heard, [back.clone(), text], "{}", owner.name());
        assert_eq!(members(owner, &group), names(["alice", "bob", "carol"]));
    }
    alice.membership().send(&group.group_id, "welcome").await.unwrap();
    assert_eq!(bob.texts().await, [("alice/laptop".to_owned(), "welcome".to_owned())]);
    // His Commit brought the next GroupInfo, so the next one comes back, too.
    carol.membership().update_keys(&group.group_id).await.unwrap();
    bob.membership().update_keys(&group.group_id).await.unwrap();
}

#[rstest]
#[tokio::test]
async fn who_gets_a_message_of_a_later_epoch_comes_back_by_itself(
    #[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere,
) {
    let server = start(db).await;
    let (group, [alice, bob, _carol]) = bob_is_behind(&server, 2).await;
    alice.membership().send(&group.group_id, "are you there?").await.unwrap();
    let heard = bob.hears().await;
    assert!(matches!(heard.as_slice(), [Event::Ignored { .. }, Event::FellBehind, Event::CameBack]), "{heard:?}");
    let found = bob.membership().find_group("friends").unwrap();
    assert_eq!((found.state, found.epoch), (GroupState::Active, 4));
    alice.membership().send(&group.group_id, "hello").await.unwrap();
    assert_eq!(bob.texts().await, [("alice/laptop".to_owned(), "hello".to_owned())]);
}

/// A Commit of a client that sends no GroupInfo.
#[rstest]
#[tokio::test]
async fn without_a_group_info_who_fell_behind_says_so_and_is_invited_again(
    #[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere,
) {
    let server = start(db).await;
    let (group, owners, mut mallory) = with_mallory(&server).await;
    let [alice, bob] = <[Owner; 2]>::try_from(owners).unwrap_or_else(|_| panic!("two owners"));
    let behind = bob.copied();
    mallory.updates(&HONEST).await;
    bob.hears().await;
    alice.hears().await;
    let error = behind.membership().send(&group.group_id, "hello?").await.unwrap_err();
    assert!(matches!(&error, Error::FellBehind { by: None, .. }), "{error}");
    assert_eq!(behind.membership().find_group("friends").unwrap().state, GroupState::FellBehind);
    alice.membership().remove(&group.group_id, &user("bob")).await.unwrap();
    alice.membership().invite(&group.group_id, &[user("bob")]).await.unwrap();
    assert!(behind.hears().await.iter().any(|event| matches!(event, Event::Joined { .. })));
    behind.membership().send(&group.group_id, "back").await.unwrap();
    assert!(alice.texts().await.contains(&("bob/laptop".to_owned(), "back".to_owned())));
}

/// Another Commit takes the epoch for which the device made its external Commit. What the device stored then is no state of
/// the group.
#[rstest]
#[tokio::test]
async fn a_commit_that_comes_before_the_external_one_is_not_missed(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
) {
    let server = start(db).await;
    let (proxy, bob) = behind_a_proxy(&server, "bob").await;
    let (alice, carol) = (Owner::of(&server, "alice").await, Owner::of(&server, "carol").await);
    let group = alice.membership().create_named_group("friends").unwrap();
    invite(&alice, &group, &["bob", "carol"]).await;
    for owner in [&bob, &carol] {
        owner.hears().await;
    }
    let behind = bob.copied();
    alice.membership().update_keys(&group.group_id).await.unwrap();
    bob.hears().await;
    carol.hears().await;
    let membership = behind.membership();
    let returning = membership.come_back(&group.group_id);
    tokio::pin!(returning);
    let gate = held_after(&proxy, returning.as_mut(), ("GET /groups", 1)).await;
    carol.membership().update_keys(&group.group_id).await.unwrap();
    drop(gate);
    returning.await.unwrap();
    alice.hears().await;
    for owner in [&alice, &behind] {
        assert_eq!(epoch(owner, &group), 4, "{}", owner.name());
    }
    behind.membership().send(&group.group_id, "back").await.unwrap();
    assert_eq!(alice.texts().await, [("bob/laptop".to_owned(), "back".to_owned())]);
    alice.membership().send(&group.group_id, "welcome").await.unwrap();
    assert_eq!(behind.texts().await, [("alice/laptop".to_owned(), "welcome".to_owned())]);
}

/// Anybody can write a later epoch on a message. The server's word decides, with a GroupInfo and without.
#[rstest]
#[tokio::test]
async fn a_false_epoch_makes_nobody_fall_behind(
    #[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere,
    #[values(true, false)] has_group_info: bool,
) {
    let server = start(db).await;
    let (group, owners, mut mallory) = with_mallory(&server).await;
    let [alice, bob] = owners.as_slice() else { panic!() };
    if !has_group_info {
        mallory.updates(&HONEST).await;
        for owner in &owners {
            owner.hears().await;
        }
    }
    mallory.says_in_epoch("hello", 1_000, &HONEST[..1]).await;
    let heard = alice.hears().await;
    assert!(matches!(heard.as_slice(), [Event::Ignored { .. }]), "{heard:?}");
    assert_eq!(alice.membership().find_group("friends").unwrap().state, GroupState::Active);
    alice.membership().send(&group.group_id, "all well").await.unwrap();
    assert_eq!(bob.texts().await, [("alice/laptop".to_owned(), "all well".to_owned())]);
}

/// The server answers the GroupInfo to devices of members' users alone.
#[rstest]
#[tokio::test]
async fn strangers_and_removed_members_do_not_come_in(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let server = start(db).await;
    let (group, owners, mut mallory) = with_mallory(&server).await;
    let [alice, bob] = owners.as_slice() else { panic!() };
    let path = info_path(&group);
    let kept = mallory.http.get(&path).await.ok();
    let info = decode(kept["group_info"].as_str().unwrap());
    assert_eq!(kept["members"].as_array().unwrap().len(), 3);
    // The thief of her token has not her signature key.
    let refusal = mallory.comes_back(&info, false, &HONEST).await;
    refusal.is_problem(403, ProblemType::Forbidden);

    alice.membership().remove(&group.group_id, &user("mallory")).await.unwrap();
    bob.hears().await;
    let stranger = server.anyone().registered("eve", "laptop").await;
    for outsider in [&mallory.http, &stranger] {
        outsider.get(&path).await.is_problem(404, ProblemType::UnknownGroup);
        assert_eq!(outsider.get("/groups").await.ok()["groups"].as_array().unwrap().len(), 0);
    }
    // She makes it from the GroupInfo of now, which somebody may have given her.
    let info = decode(alice.http().get(&path).await.ok()["group_info"].as_str().unwrap());
    let refusal = mallory.comes_back(&info, true, &HONEST).await;
    refusal.is_problem(403, ProblemType::Forbidden);
    for owner in &owners {
        owner.hears().await;
        assert_eq!(members(owner, &group), names(["alice", "bob"]));
        owner.membership().send(&group.group_id, "all well").await.unwrap();
    }
    assert_eq!(alice.texts().await, [("bob/laptop".to_owned(), "all well".to_owned())]);
}

/// Bob's device as it is after a loss: registered anew under its name, with other keys.
pub async fn installed_anew(server: &TestServer, old: &Owner) -> Owner {
    old.http().delete("/devices/laptop").await.ok();
    server.advance(SignedDuration::from_secs(10));
    let token = Some(server.enrol("bob", SignedDuration::from_hours(1)).into());
    let new = keypool_client::NewDevice { user_token: token, ..new_device(&server.base, "bob") };
    Owner::with(server, &new, KeyPackagePoolConfig::default()).await.0
}

#[rstest]
#[tokio::test]
async fn who_was_installed_anew_says_that_it_cannot_read_and_is_brought_back(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
) {
    let server = start(db).await;
    let (group, owners) = group_of(&server, &["alice", "bob", "carol"]).await;
    let [alice, old, carol] = owners.as_slice() else { panic!() };
    let bob = installed_anew(&server, old).await;
    alice.membership().send(&group.group_id, "one").await.unwrap();
    alice.membership().send(&group.group_id, "two").await.unwrap();
    let heard = bob.hears().await;
    assert!(matches!(heard.as_slice(), [Event::Stranger, Event::Ignored { .. }]), "it is said once: {heard:?}");
    let heard = alice.hears().await;
    let told =
        Event::Unreadable { device: device("bob"), about: MessageKind::Message, reason: RefusalReason::KeysGone };
    assert!(heard.contains(&told), "{heard:?}");
    assert!(bob.hears().await.contains(&Event::Joined { by: device("alice") }));
    let heard = carol.hears().await;
    let replaced =
        Event::Members { by: alice.name(), added: Vec::new(), removed: Vec::new(), updated: vec![bob.name()] };
    assert!(heard.contains(&replaced), "{heard:?}");
    bob.membership().send(&group.group_id, "here").await.unwrap();
    for owner in [alice, carol] {
        assert_eq!(owner.texts().await, [("bob/laptop".to_owned(), "here".to_owned())]);
        assert_eq!(members(owner, &group), names(["alice", "bob", "carol"]));
    }
}

#[rstest]
#[tokio::test]
async fn an_invitation_of_who_was_installed_anew_replaces_its_leaf_in_one_commit(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
) {
    let server = start(db).await;
    let (group, owners) = group_of(&server, &["alice", "bob"]).await;
    let [alice, old] = owners.as_slice() else { panic!() };
    let bob = installed_anew(&server, old).await;
    let before = epoch(alice, &group);
    let invited = alice.membership().invite(&group.group_id, &[user("bob")]).await.unwrap();
    assert_eq!((invited.added, epoch(alice, &group)), (vec![device("bob")], before + 1));
    assert_eq!(members(alice, &group), names(["alice", "bob"]));
    bob.hears().await;
    bob.membership().send(&group.group_id, "here").await.unwrap();
    assert_eq!(alice.texts().await, [("bob/laptop".to_owned(), "here".to_owned())]);
    // A member who has its key is left as it is.
    let again = alice.membership().invite(&group.group_id, &[user("bob")]).await.unwrap();
    assert_eq!((again.added, epoch(alice, &group)), (Vec::new(), before + 1));
}

#[rstest]
#[tokio::test]
async fn a_users_new_device_is_brought_in_by_the_other_one_unless_the_group_says_no(
    #[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere,
) {
    let server = start(db).await;
    let (group, owners) = group_of(&server, &["alice", "bob"]).await;
    let [alice, bob] = owners.as_slice() else { panic!() };
    bob.hears().await;
    let phone = bob.further(&server, "phone").await;
    bob.hears().await;
    assert!(phone.hears().await.contains(&Event::Joined { by: device("bob") }));
    let heard = alice.hears().await;
    let added = Event::Members { by: bob.name(), added: vec![phone.name()], removed: Vec::new(), updated: Vec::new() };
    assert!(heard.contains(&added), "{heard:?}");

    alice.membership().set_admits_devices(&group.group_id, false).await.unwrap();
    bob.hears().await;
    let tablet = bob.further(&server, "tablet").await;
    bob.hears().await;
    assert_eq!(tablet.hears().await, []);
    assert!(!members(bob, &group).contains("bob/tablet"));
}

#[rstest]
#[tokio::test]
async fn two_who_leave_a_group_of_two_at_the_same_time_are_both_rid_of_it(
    #[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere,
) {
    let server = start(db).await;
    let (group, owners) = group_of(&server, &["alice", "bob"]).await;
    let [alice, bob] = owners.as_slice() else { panic!() };
    alice.membership().leave(&group.group_id).await.unwrap();
    let error = alice.membership().send(&group.group_id, "one more thing").await.unwrap_err();
    assert!(matches!(error, Error::Leaving { .. }), "{error}");
    // Bob's client commits what Alice proposed before he asks.
    bob.membership().leave(&group.group_id).await.unwrap();
    alice.hears().await;
    for owner in [alice, bob] {
        assert_eq!(owner.membership().groups().unwrap(), [], "{}", owner.name());
    }
}

#[rstest]
#[tokio::test]
async fn one_device_is_removed_and_nobody_removes_itself(#[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere) {
    let server = start(db).await;
    let (group, owners) = group_of(&server, &["alice", "bob"]).await;
    let [alice, bob] = owners.as_slice() else { panic!() };
    let phone = bob.further(&server, "phone").await;
    alice.membership().invite(&group.group_id, &[user("bob")]).await.unwrap();
    let phone_name: DeviceOf = phone.name().parse().unwrap();
    let removed = alice.membership().remove_device(&group.group_id, &phone_name).await.unwrap();
    assert_eq!(removed.removed, std::slice::from_ref(&phone_name));
    assert_eq!(members(alice, &group), names(["alice", "bob"]));
    let gone = alice.membership().remove_device(&group.group_id, &phone_name).await.unwrap_err();
    assert!(matches!(gone, Error::NotAMember { .. }), "{gone}");
    for error in [
        alice.membership().remove_device(&group.group_id, &device("alice")).await.unwrap_err(),
        alice.membership().remove(&group.group_id, &user("alice")).await.unwrap_err(),
    ] {
        assert!(matches!(error, Error::OwnLeaf { .. }), "{error}");
    }
    // Bob's laptop forgets the group without asking anybody.
    bob.membership().forget(&group.group_id).await.unwrap();
    assert_eq!(bob.membership().groups().unwrap(), []);
    assert_eq!(members(alice, &group), names(["alice", "bob"]));
}
