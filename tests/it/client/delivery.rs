//! Groups through the server: invitations that cannot double-spend, messages, and what happens when things go wrong.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use futures_util::future::join_all;
use jiff::SignedDuration;
use keypool_client::{CIPHERSUITE, Error, Event, KeyPackagePoolConfig, Message};
use keypool_openapi::{Base64Bytes, ProblemType};
use rstest::rstest;

use super::helpers::{epoch, group_of, invite, members, start, user};
use crate::support::{Anywhere, Database, Device, Fault, Owner, Proxy, encode, new_device};

#[rstest]
#[tokio::test]
async fn people_are_added_talk_and_leave(#[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere) {
    let server = start(db).await;
    let (alice, bob) = (Owner::of(&server, "alice").await, Owner::of(&server, "bob").await);
    let tablet = bob.further(&server, "tablet").await;
    let group = alice.membership().create_named_group("friends").unwrap();
    let added = invite(&alice, &group, &["bob"]).await;
    assert_eq!(added, ["bob/laptop", "bob/tablet"].map(str::to_owned).into());
    let alice_name = || Event::Joined { by: alice.membership().members(&group.group_id).unwrap().remove(0) };
    let name = Event::Changed { by: alice.name(), name: Some("friends".to_owned()) };
    assert_eq!(bob.hears().await, [alice_name(), name], "a Welcome, and the group's name");
    assert_eq!(bob.membership().find_group("friends").unwrap().id, group.id);
    tablet.hears().await;

    alice.membership().send(&group.group_id, "hello").await.unwrap();
    bob.membership().send(&group.group_id, "hi").await.unwrap();
    assert_eq!(bob.texts().await, [("alice/laptop".to_owned(), "hello".to_owned())]);
    assert_eq!(alice.texts().await, [("bob/laptop".to_owned(), "hi".to_owned())]);
    let heard = tablet.texts().await;
    assert_eq!(heard.iter().map(|(_, text)| text.as_str()).collect::<Vec<_>>(), ["hello", "hi"]);
    assert_eq!(bob.texts().await, [], "what was dealt with comes once");

    // Bob's laptop leaves: the first member that receives the proposal commits it.
    bob.membership().leave(&group.group_id).await.unwrap();
    alice.hears().await;
    assert_eq!(members(&alice, &group), ["alice/laptop", "bob/tablet"].map(str::to_owned).into());
    assert_eq!(bob.hears().await, [Event::Removed]);
    assert_eq!(bob.membership().groups().unwrap(), []);
    tablet.hears().await;
    assert_eq!(members(&tablet, &group), members(&alice, &group));
    // And can be invited again.
    assert_eq!(invite(&alice, &group, &["bob"]).await, ["bob/laptop".to_owned()].into(), "who is there is spared");
    bob.hears().await;
    assert_eq!(members(&bob, &group).len(), 3);
    assert_eq!(bob.status().await.unwrap().reserved, 0);
    assert_eq!(tablet.status().await.unwrap().reserved, 0);
}

/// An application sends what it likes, in its own format.
#[rstest]
#[tokio::test]
async fn a_message_of_any_type_arrives_as_it_was_sent(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let server = start(db).await;
    let (group, owners) = group_of(&server, &["alice", "bob"]).await;
    let [alice, bob] = owners.as_slice() else { panic!() };
    let bytes = vec![0, 0xff, b'{'];
    let sent = alice.membership().send(&group.group_id, Message::new("image/png", bytes.clone())).await;
    assert_eq!(sent.unwrap(), []);
    alice.membership().send(&group.group_id, Message::new("text/plain", "a text")).await.unwrap();
    let image =
        Event::Content { sender: alice.name(), content_type: "image/png".to_owned(), bytes: Base64Bytes(bytes) };
    let text = Event::Text { sender: alice.name(), text: "a text".to_owned() };
    assert_eq!(bob.hears().await, [image, text]);
}

#[rstest]
#[tokio::test]
async fn eight_groups_invite_the_same_three_devices_at_once(
    #[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere,
) {
    const ROUNDS: usize = 20;
    let server = start(db).await;
    let target = Owner::of(&server, "target").await;
    let devices = [target.further(&server, "phone").await, target.further(&server, "tablet").await, target];
    let adders = join_all((0..8).map(|n| {
        let (server, name) = (&server, format!("adder-{n}"));
        async move { Owner::of(server, &name).await }
    }))
    .await;
    for round in 0..ROUNDS {
        let before = join_all(devices.iter().map(|device| async { device.status().await.unwrap() })).await;
        let invited = join_all(adders.iter().map(|adder| async {
            let group = adder.membership().create_named_group(&format!("round {round}")).unwrap();
            assert_eq!(invite(adder, &group, &["target"]).await.len(), 3);
            group
        }))
        .await;
        for (device, before) in devices.iter().zip(before) {
            let joined = device.hears().await.into_iter().filter(|event| matches!(event, Event::Joined { .. })).count();
            assert_eq!(joined, 8, "round {round}");
            let after = device.status().await.unwrap();
            assert_eq!((after.spent - before.spent, before.available - after.available), (8, 8), "round {round}");
            for group in &invited {
                assert_eq!(members(device, group).len(), 4);
            }
            device.refresh().await.unwrap();
        }
    }
}

#[rstest]
#[tokio::test]
async fn two_members_invite_at_the_same_epoch_and_both_are_in(
    #[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere,
) {
    let server = start(db).await;
    let (group, owners) = group_of(&server, &["alice", "bob"]).await;
    let (carol, dave) = (Owner::of(&server, "carol").await, Owner::of(&server, "dave").await);
    // Both commit in the epoch that they know.
    let (one, other) = tokio::join!(invite(&owners[0], &group, &["carol"]), invite(&owners[1], &group, &["dave"]));
    assert_eq!((one.len(), other.len()), (1, 1));
    let everybody = [&owners[0], &owners[1], &carol, &dave];
    for _ in 0..2 {
        for owner in everybody {
            owner.hears().await;
        }
    }
    for owner in everybody {
        assert_eq!((members(owner, &group).len(), epoch(owner, &group)), (4, 3), "{}", owner.name());
    }
    carol.membership().send(&group.group_id, "all here?").await.unwrap();
    for owner in [&owners[0], &owners[1], &dave] {
        assert_eq!(owner.texts().await, [("carol/laptop".to_owned(), "all here?".to_owned())]);
    }
    for owner in everybody {
        let status = owner.status().await.unwrap();
        assert_eq!(status.reserved, 0, "a reservation of {} is left over", owner.name());
    }
}

#[rstest]
#[tokio::test]
async fn a_package_that_went_to_another_is_replaced_and_nobody_is_harmed(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
) {
    let server = start(db).await;
    let proxy = Proxy::before(&server.base).await;
    let (alice, _) = Owner::with(&server, &new_device(&proxy.base, "alice"), KeyPackagePoolConfig::default()).await;
    let (bob, carol) = (Owner::of(&server, "bob").await, Owner::of(&server, "carol").await);
    let group = alice.membership().create_named_group("friends").unwrap();
    // Bob has one KeyPackage, Alice reserves it, it lapses, and Carol has it before Alice's Commit comes.
    let refs = bob.inventory().await.unwrap();
    let single_use = refs.iter().position(|item| !item.last_resort).unwrap();
    let all_but_one = refs.iter().enumerate().filter(|(at, _)| *at != single_use);
    let all_but_one = all_but_one.map(|(_, item)| item.keypackage_ref.clone()).collect();
    bob.revoke(Some(all_but_one)).await.unwrap();
    proxy.seen();
    let (membership, users) = (alice.membership(), [user("bob")]);
    let held = membership.invite(&group.group_id, &users);
    tokio::pin!(held);
    while !proxy.passed().iter().any(|head| head.starts_with("POST /keypackages/reserve")) {
        let _ = futures_util::poll!(held.as_mut());
        tokio::task::yield_now().await;
    }
    let gate = proxy.held().await;
    server.advance(SignedDuration::from_secs(60));
    let taken = carol.reserve(&user("bob"), None, None, None).await.unwrap().reservations.remove(0);
    let laptop = Device::new("bob", "laptop").with_key_of(&bob.identity().signer(CIPHERSUITE).unwrap());
    bob.http().uploaded(&[laptop.key_package()]).await;
    drop(gate);
    let invited = held.await.unwrap();
    assert_eq!(invited.added.len(), 1);
    let status = bob.status().await.unwrap();
    assert_eq!((status.spent, status.reserved), (1, 1), "Carol's is still hers");
    carol.spend(taken.reservation_id, b"others").await.unwrap();
    assert_eq!(epoch(&alice, &group), 1);
}

#[rstest]
#[tokio::test]
async fn whoever_has_no_package_is_named_and_after_a_refresh_it_works(
    #[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere,
) {
    let server = start(db).await;
    let (alice, bob) = (Owner::of(&server, "alice").await, Owner::of(&server, "bob").await);
    let group = alice.membership().create_named_group("friends").unwrap();
    bob.revoke(None).await.unwrap();
    let refused = alice.membership().invite(&group.group_id, &[user("bob")]).await.unwrap_err();
    assert_eq!(refused.problem(), Some(ProblemType::PoolExhausted));
    assert!(refused.to_string().contains("bob") && refused.to_string().contains("refreshed its pool"), "{refused}");
    assert_eq!((members(&alice, &group).len(), epoch(&alice, &group)), (1, 0));
    bob.refresh().await.unwrap();
    invite(&alice, &group, &["bob"]).await;
    bob.hears().await;
    assert_eq!(members(&bob, &group).len(), 2);
}

/// The Commit was accepted, and its answer never came: not even to the process that sent it.
#[rstest]
#[tokio::test]
async fn a_commit_whose_answer_never_came_is_settled_after_a_restart(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
    #[values(Fault::LostAnswer, Fault::Lost)] fault: Fault,
) {
    let server = start(db).await;
    let proxy = Proxy::before(&server.base).await;
    let (alice, _) = Owner::with(&server, &new_device(&proxy.base, "alice"), KeyPackagePoolConfig::default()).await;
    let bob = Owner::of(&server, "bob").await;
    let group = alice.membership().create_named_group("friends").unwrap();
    proxy.seen();
    {
        let (membership, users) = (alice.membership(), [user("bob")]);
        let invitation = membership.invite(&group.group_id, &users);
        tokio::pin!(invitation);
        proxy.fail_on("POST /groups/", fault);
        while !proxy.passed().iter().any(|head| head.starts_with("POST /groups/")) {
            let _ = futures_util::poll!(invitation.as_mut());
            tokio::task::yield_now().await;
        }
        // The process ends here.
    }
    let alice = alice.reopened(|_| {});
    assert_eq!(epoch(&alice, &group), 0, "nothing is merged before it is known");
    alice.membership().settle().await.unwrap();
    assert_eq!((members(&alice, &group).len(), epoch(&alice, &group)), (2, 1));
    bob.hears().await;
    assert_eq!(members(&bob, &group).len(), 2);
    let status = bob.status().await.unwrap();
    assert_eq!((status.spent, status.reserved), (1, 0));
    alice.membership().settle().await.unwrap();
    assert_eq!(epoch(&alice, &group), 1);
}

#[rstest]
#[tokio::test]
async fn who_was_away_for_fifty_commits_catches_up_and_who_was_removed_reads_nothing(
    #[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere,
) {
    let server = start(db).await;
    let (group, owners) = group_of(&server, &["alice", "bob", "carol"]).await;
    let [alice, bob, carol] = owners.as_slice() else { panic!() };
    for round in 0..50 {
        alice.membership().update_keys(&group.group_id).await.unwrap();
        alice.membership().send(&group.group_id, &round.to_string()).await.unwrap();
    }
    let texts: Vec<_> = bob.texts().await.into_iter().map(|(_, text)| text).collect();
    assert_eq!(texts, (0..50).map(|round| round.to_string()).collect::<Vec<_>>());
    assert_eq!(epoch(bob, &group), epoch(alice, &group));

    carol.hears().await;
    alice.membership().remove(&group.group_id, &user("carol")).await.unwrap();
    alice.membership().send(&group.group_id, "secret").await.unwrap();
    assert_eq!(carol.hears().await, [Event::Removed]);
    assert_eq!(bob.texts().await.len(), 1);
    // She cannot take the group's epochs away, either: a Commit of hers is of an old epoch or cannot show the new one's proof.
    let path = format!("/groups/{}/commits", URL_SAFE_NO_PAD.encode(&group.group_id));
    let mut forged = Device::new("carol", "laptop").founds_id(&group.group_id);
    while forged.epoch() < epoch(alice, &group) {
        forged.updates();
        forged.merges();
    }
    let body = serde_json::json!({"commit": encode(&forged.updates()), "recipients": []});
    carol.http().post(&path, &body).await.is_problem(403, ProblemType::Forbidden);
    alice.membership().update_keys(&group.group_id).await.unwrap();
    // Even if she is sent it, she has no keys for it.
    let absent = alice.membership().remove(&group.group_id, &user("carol")).await.unwrap_err();
    assert!(matches!(absent, Error::NotAMember { .. }), "{absent}");
    let gone = carol.membership().send(&group.group_id, "hello?").await.unwrap_err();
    assert!(matches!(gone, Error::UnknownGroup(_)), "{gone}");
}

#[rstest]
#[tokio::test]
async fn a_welcome_whose_keys_are_gone_is_told_and_blocks_nothing(
    #[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere,
) {
    let server = start(db).await;
    let (alice, bob) = (Owner::of(&server, "alice").await, Owner::of(&server, "bob").await);
    let backup = bob.copied();
    // The backup knows nothing of the pool that Bob has made since.
    bob.revoke(None).await.unwrap();
    bob.refresh().await.unwrap();
    let group = alice.membership().create_named_group("friends").unwrap();
    invite(&alice, &group, &["bob"]).await;
    let heard = backup.hears().await;
    assert!(matches!(heard[0], Event::KeysGone { .. }), "{heard:?}");
    let told = alice.hears().await;
    assert!(matches!(&told[0], Event::Unreadable { device, .. } if device.user == user("bob")), "{told:?}");
    assert_eq!(backup.hears().await, []);
    // The next invitation, after a refresh, is one that can be opened.
    backup.refresh().await.unwrap();
    alice.membership().remove(&group.group_id, &user("bob")).await.unwrap();
    invite(&alice, &group, &["bob"]).await;
    let heard = backup.hears().await;
    assert!(heard.iter().any(|event| matches!(event, Event::Joined { .. })), "{heard:?}");
}

#[rstest]
#[tokio::test]
async fn what_came_is_told_until_it_is_dealt_with_and_taken_in_once(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
) {
    let server = start(db).await;
    let proxy = Proxy::before(&server.base).await;
    let alice = Owner::of(&server, "alice").await;
    let (bob, _) = Owner::with(&server, &new_device(&proxy.base, "bob"), KeyPackagePoolConfig::default()).await;
    let group = alice.membership().create_named_group("friends").unwrap();
    invite(&alice, &group, &["bob"]).await;
    bob.hears().await;
    alice.membership().send(&group.group_id, "hello").await.unwrap();
    // Taken in, and the process ends before the acknowledgement arrives.
    proxy.fail_on("POST /messages/ack", Fault::Lost);
    {
        let membership = bob.membership();
        let receiving = membership.receive(0);
        tokio::pin!(receiving);
        proxy.seen();
        while !proxy.passed().iter().any(|head| head.starts_with("POST /messages/ack")) {
            let _ = futures_util::poll!(receiving.as_mut());
            tokio::task::yield_now().await;
        }
    }
    let bob = bob.reopened(|_| {});
    for _ in 0..2 {
        let incoming = bob.membership().receive(0).await.unwrap();
        let text = Event::Text { sender: "alice/laptop".to_owned(), text: "hello".to_owned() };
        assert_eq!(incoming.iter().map(|one| &one.event).collect::<Vec<_>>(), [&text]);
    }
    assert_eq!(bob.texts().await.len(), 1);
    assert_eq!(bob.texts().await, []);
}

#[rstest]
#[tokio::test]
async fn five_people_talk_for_two_hundred_messages_and_refresh_as_they_go(
    #[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere,
) {
    let server = start(db).await;
    let (group, owners) = group_of(&server, &["alice", "bob", "carol", "dave", "erin"]).await;
    let mut heard = vec![Vec::new(); owners.len()];
    for number in 0..200 {
        let speaker = number % owners.len();
        owners[speaker].membership().send(&group.group_id, &number.to_string()).await.unwrap();
        if number % 10 == 9 {
            for (owner, heard) in owners.iter().zip(&mut heard) {
                heard.extend(owner.texts().await.into_iter().map(|(_, text)| text));
                let report = owner.refresh().await.unwrap();
                assert!(report.pool.fresh >= 8, "{report:?}");
            }
            // Keys change on the way.
            owners[speaker].membership().update_keys(&group.group_id).await.unwrap();
        }
    }
    for (index, heard) in heard.into_iter().enumerate() {
        let others: Vec<_> = (0..200).filter(|number| number % owners.len() != index).map(|n| n.to_string()).collect();
        assert_eq!(heard, others, "{}", owners[index].name());
    }
}
