//! A new group in place of one that cannot be changed any more: its maker, and the members that it leaves out.

use keypool_client::{Error, Event, GroupState};
use keypool_openapi::{MessageKind, ProblemType};
use rstest::rstest;
use serde_json::json;

use super::{
    helpers::{changed_by, device, group_of, invite, members, names, start},
    impostors::{HONEST, refuses, with_mallory},
};
use crate::support::{Anywhere, Insider, Owner};

/// The suggested command leaves out the signer of the Commit, not the owner of the token that sent it.
#[rstest]
#[tokio::test]
async fn who_signed_a_refused_commit_is_to_blame(#[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere) {
    let server = start(db).await;
    let (group, owners, mut mallory) = with_mallory(&server).await;
    // Bob's token, which somebody has stolen. He is a member, too.
    mallory.http = owners[1].http();
    mallory.renames_itself("alice/d1", &HONEST).await;
    let heard = owners[0].hears().await;
    let [Event::Refused { kind: MessageKind::Commit, by, why, .. }] = heard.as_slice() else { panic!("{heard:?}") };
    assert_eq!(by, "mallory/laptop", "{why}");
    let renewed = owners[0].membership().renew(&group.group_id, &[device("mallory")]).await.unwrap();
    assert_eq!(members(&owners[0], &renewed.group), names(["alice", "bob"]));
}

/// A stranger has the group's id and its GroupInfo, which somebody gave her.
#[rstest]
#[tokio::test]
async fn a_stranger_takes_no_epoch_with_an_external_commit(
    #[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere,
) {
    let server = start(db).await;
    let (group, owners, mut mallory) = with_mallory(&server).await;
    let info = mallory.group_info();
    mallory.http = server.anyone().registered("eve", "laptop").await;
    mallory
        .comes_back(&info, false, &["alice/laptop", "bob/laptop", "eve/laptop"])
        .await
        .is_problem(403, ProblemType::Forbidden);
    let alice = owners[0].membership();
    alice.update_keys(&group.group_id).await.unwrap();
    let stranger = alice.renew(&group.group_id, &[device("frank")]).await.unwrap_err();
    assert!(matches!(stranger, Error::NotAMember { .. }), "{stranger}");
}

/// A group that works has its name for as long as nobody here has refused a Commit of it, and the sender of the one that
/// was refused does not say what comes after.
#[rstest]
#[tokio::test]
async fn a_member_does_not_take_over_the_name_of_a_group(#[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere) {
    let server = start(db).await;
    let (group, owners, mut mallory) = with_mallory(&server).await;
    let [alice, bob] = owners.as_slice() else { panic!() };
    mallory.founds_as("mallory/laptop");
    mallory.invites("bob").await;
    mallory.says(&json!({ "group_name": "friends" }).to_string(), &["bob/laptop"]).await;
    mallory.says(&json!({ "renews": group.id }).to_string(), &["bob/laptop"]).await;
    let heard = bob.hears().await;
    let Some(Event::RenewalClaimed { by, old_group, without, .. }) = heard.last() else { panic!("{heard:?}") };
    assert_eq!((by.as_str(), old_group), ("mallory/laptop", &group.id));
    assert_eq!(without, &["alice/laptop"], "Bob sees who is left out");
    let state = || bob.membership().groups().unwrap().into_iter().find(|one| one.id == group.id).unwrap().state;
    assert_eq!(state(), GroupState::Active);
    let which = bob.membership().find_group("friends").unwrap_err();
    assert!(matches!(which, Error::AmbiguousGroup { .. }), "{which}");
    bob.membership().update_keys(&group.group_id).await.unwrap();
    bob.membership().send(&group.group_id, "all well").await.unwrap();
    assert_eq!(alice.texts().await, [("bob/laptop".to_owned(), "all well".to_owned())]);
    for one in bob.membership().groups().unwrap().into_iter().filter(|one| one.id != group.id) {
        bob.membership().leave(&one.group_id).await.unwrap();
        // Mallory does not let him go, and he goes.
        bob.membership().leave(&one.group_id).await.unwrap();
    }
    assert_eq!(bob.membership().find_group("friends").unwrap().id, group.id);
}

#[rstest]
#[tokio::test]
async fn who_sent_a_refused_commit_makes_no_group_in_place_of_that_one(
    #[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere,
) {
    let server = start(db).await;
    let (group, owners, mut mallory) = with_mallory(&server).await;
    let [alice, bob] = owners.as_slice() else { panic!() };
    mallory.renames_itself("alice/d1", &HONEST).await;
    for owner in [alice, bob] {
        refuses(owner, MessageKind::Commit, "changes its identity").await;
    }
    mallory.founds_as("mallory/laptop");
    mallory.invites("bob").await;
    mallory.says(&json!({ "renews": group.id }).to_string(), &["bob/laptop"]).await;
    let heard = bob.hears().await;
    assert!(matches!(heard.last(), Some(Event::RenewalClaimed { .. })), "{heard:?}");
    let renewed = alice.membership().renew(&group.group_id, &[device("mallory")]).await.unwrap();
    let heard = bob.hears().await;
    let told = Event::Renewed {
        by: "alice/laptop".to_owned(),
        old_group: group.id.clone(),
        without: vec!["mallory/laptop".to_owned()],
    };
    assert_eq!(heard.last(), Some(&told), "{heard:?}");
    assert_eq!(bob.membership().find_group("friends").unwrap().id, renewed.group.id);
}

/// After a Commit of Mallory's that was refused, somebody else makes a new group: without Alice, with somebody new, or
/// with Mallory.
#[rstest]
#[tokio::test]
async fn an_accomplice_does_not_choose_who_goes_on(#[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere) {
    let server = start(db).await;
    let (group, owners) = group_of(&server, &["alice", "bob"]).await;
    let [alice, bob] = owners.as_slice() else { panic!() };
    let frank = Owner::of(&server, "frank").await;
    let mut hostile = Vec::new();
    for name in ["mallory", "eve", "grace", "heidi"] {
        hostile.push(Insider::of(&server, name).await);
    }
    invite(alice, &group, &["mallory", "eve", "grace", "heidi"]).await;
    for one in &mut hostile {
        one.joins().await;
    }
    bob.hears().await;
    hostile[0].renames_itself("alice/d1", &HONEST).await;
    refuses(bob, MessageKind::Commit, "changes its identity").await;
    let plans: [(&[&str], &[&str], &[&str]); 3] = [
        (&["bob"], &["alice", "grace", "heidi", "mallory"], &[]),
        (&["alice", "eve", "heidi", "frank", "bob"], &["mallory"], &["frank"]),
        (&["alice", "eve", "grace", "mallory", "bob"], &[], &[]),
    ];
    let sorted = |mut list: Vec<String>| {
        list.sort();
        list
    };
    for (one, (invited, left_out, new)) in hostile[1..].iter_mut().zip(plans) {
        let name = one.name();
        one.founds_as(&name);
        for user in invited {
            one.invites(user).await;
        }
        one.says(&json!({ "renews": group.id }).to_string(), &["bob/laptop"]).await;
        let heard = bob.hears().await;
        let Some(Event::RenewalClaimed { by, without, added, .. }) = heard.last() else { panic!("{heard:?}") };
        assert_eq!(*by, name);
        let devices = |users: &[&str]| users.iter().map(|user| format!("{user}/laptop")).collect::<Vec<_>>();
        assert_eq!((sorted(without.clone()), added), (devices(left_out), &devices(new)));
    }
    assert_eq!(bob.membership().find_group("friends").unwrap().id, group.id);
    drop(frank);
}

#[rstest]
#[tokio::test]
async fn what_a_stranger_says_of_a_group_is_passed_over(#[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere) {
    let server = start(db).await;
    let (group, owners) = group_of(&server, &["alice", "bob"]).await;
    let mut frank = Insider::of(&server, "frank").await;
    frank.founds_as("frank/laptop");
    frank.invites("bob").await;
    for (claimed, reason) in [
        (group.id.as_str(), "not a member of the group"),
        (&hex::encode("frank/laptop"), "not a member of the group that it replaces"),
        ("00ff", "not in the old group"),
        ("friends", "names no group"),
    ] {
        frank.says(&json!({ "renews": claimed }).to_string(), &["bob/laptop"]).await;
        let heard = owners[1].hears().await;
        let Some(Event::Ignored { why }) = heard.last() else { panic!("{claimed}: {heard:?}") };
        assert!(why.contains(reason), "{claimed}: {why}");
    }
    assert_eq!(owners[1].membership().find_group("friends").unwrap().id, group.id);
}

/// Bob wants to leave, before and after the Commit that Alice refuses.
#[rstest]
#[tokio::test]
async fn who_refused_a_commit_can_talk_whatever_was_proposed(
    #[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere,
) {
    let server = start(db).await;
    let (group, owners, mut mallory) = with_mallory(&server).await;
    let [alice, bob] = owners.as_slice() else { panic!() };
    bob.membership().leave(&group.group_id).await.unwrap();
    mallory.renames_itself("alice/d1", &HONEST[..1]).await;
    let heard = alice.hears().await;
    assert!(matches!(heard.as_slice(), [Event::Changed { .. }, Event::Refused { .. }]), "{heard:?}");
    alice.membership().send(&group.group_id, "still here").await.unwrap();
    assert_eq!(bob.texts().await, [("alice/laptop".to_owned(), "still here".to_owned())]);
    // Bob never got the Commit: he finds out that he fell behind, and that nobody could let him go.
    bob.membership().leave(&group.group_id).await.unwrap();
    assert_eq!(bob.membership().groups().unwrap(), []);
    assert_eq!(alice.hears().await, []);
    alice.membership().send(&group.group_id, "and now?").await.unwrap();
}

#[rstest]
#[tokio::test]
async fn who_renewed_a_group_takes_in_what_others_do_in_the_old_one(
    #[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere,
) {
    let server = start(db).await;
    let (group, owners) = group_of(&server, &["alice", "bob", "carol"]).await;
    let [alice, bob, carol] = owners.as_slice() else { panic!() };
    alice.membership().renew(&group.group_id, &[]).await.unwrap();
    for owner in [bob, carol] {
        owner.hears().await;
    }
    carol.membership().leave(&group.group_id).await.unwrap();
    bob.hears().await;
    let heard = alice.hears().await;
    let left = Event::Members { by: bob.name(), added: Vec::new(), removed: vec![carol.name()], updated: Vec::new() };
    assert_eq!(heard, [changed_by("carol"), left]);
    assert_eq!(members(alice, &group), names(["alice", "bob"]));
}
