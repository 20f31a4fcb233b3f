//! Honest members of other stacks send messages that this client cannot use. The client shows them to people and tells the
//! sender the reason.

use keypool_client::{CIPHERSUITE, Error, Event, GroupState, UnfitReason, openmls::prelude::MlsGroupJoinConfig};
use keypool_openapi::{MessageKind, RefusalReason};
use keypool_validation::key_package::CredentialBinding;
use openmls_basic_credential::SignatureKeyPair;
use openmls_traits::OpenMlsProvider as _;
use rstest::rstest;
use serde_json::json;

use super::{
    helpers::{changed_by, device, epoch, group_of, members, names, start, user},
    impostors::{HONEST, with_mallory},
};
use crate::support::{Anywhere, Database, Device, Insider, Owner, TestServer};

/// Some stacks send Commits and proposals as a PublicMessage only.
#[rstest]
#[tokio::test]
async fn what_a_member_commits_and_proposes_in_the_open_is_applied(
    #[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere,
) {
    let server = start(db).await;
    let (group, owners, mut mallory) = with_mallory(&server).await;
    let [alice, bob] = owners.as_slice() else { panic!() };
    // A group of a version that read PrivateMessages only.
    let mut before = bob.load_group(&group.group_id).unwrap();
    let private_alone = MlsGroupJoinConfig::builder().use_ratchet_tree_extension(true).max_past_epochs(3).build();
    before.set_configuration(bob.provider().storage(), &private_alone).unwrap();
    mallory.commits_in_the_open();
    mallory.updates(&HONEST).await;
    for owner in [alice, bob] {
        assert_eq!(owner.hears().await, [changed_by("mallory")], "{}", owner.name());
        assert_eq!(epoch(owner, &group), 3);
    }
    mallory.leaves(&HONEST).await;
    // Alice commits what Mallory has proposed.
    let heard = alice.hears().await;
    assert!(!heard.iter().any(|event| matches!(event, Event::Refused { .. } | Event::Ignored { .. })), "{heard:?}");
    bob.hears().await;
    for owner in [alice, bob] {
        assert_eq!(members(owner, &group), names(["alice", "bob"]), "{}", owner.name());
    }
    bob.membership().send(&group.group_id, "all well").await.unwrap();
    assert_eq!(alice.texts().await, [("bob/laptop".to_owned(), "all well".to_owned())]);
}

#[rstest]
#[tokio::test]
async fn who_cannot_apply_a_commit_says_so_and_is_silent_until_it_is_back(
    #[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere,
) {
    let server = start(db).await;
    let (group, owners, mut mallory) = with_mallory(&server).await;
    let alice = &owners[0];
    let spoil = |commit: &mut Vec<u8>| *commit.last_mut().unwrap() ^= 1;
    mallory.updates_with(&["alice/laptop"], spoil).await;
    let heard = alice.hears().await;
    let [Event::Refused { kind: MessageKind::Commit, by, reason, .. }] = heard.as_slice() else { panic!("{heard:?}") };
    assert_eq!((by.as_str(), *reason), ("mallory/laptop", RefusalReason::Invalid));
    let told = ("unreadable".to_owned(), json!({ "about": "commit", "reason": "invalid" }));
    assert_eq!(mallory.finds().await.last(), Some(&told));
    assert_eq!(alice.membership().find_group("friends").unwrap().state, GroupState::FellBehind);

    // Nobody could read a message of Alice now, or apply a Commit of hers.
    let membership = alice.membership();
    let refused = [
        membership.send(&group.group_id, "hello?").await.map(drop),
        membership.update_keys(&group.group_id).await.map(drop),
        membership.invite(&group.group_id, &[user("carol")]).await.map(drop),
        membership.remove(&group.group_id, &user("bob")).await.map(drop),
    ];
    for refusal in refused {
        let error = refusal.unwrap_err();
        assert!(matches!(&error, Error::FellBehind { by: Some(by), .. } if by == "mallory/laptop"), "{error}");
    }

    // A member removes her and invites her again.
    mallory.removes("alice/laptop", &["alice/laptop"]).await;
    mallory.invites("alice").await;
    let heard = alice.hears().await;
    assert!(heard.iter().any(|event| matches!(event, Event::Joined { .. })), "{heard:?}");
    let found = alice.membership().find_group("friends").unwrap();
    assert_eq!((found.state, found.id), (GroupState::Active, group.id));
    alice.membership().send(&group.group_id, "back").await.unwrap();
}

/// A new group is the other way back, and nobody has to be left out.
#[rstest]
#[tokio::test]
async fn who_fell_behind_makes_a_new_group_with_everybody(
    #[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere,
) {
    let server = start(db).await;
    let (group, owners, mut mallory) = with_mallory(&server).await;
    let [alice, bob] = owners.as_slice() else { panic!() };
    mallory.updates_with(&HONEST, |commit| *commit.last_mut().unwrap() ^= 1).await;
    alice.hears().await;
    bob.hears().await;
    let renewed = alice.membership().renew(&group.group_id, &[]).await.unwrap();
    assert_eq!(members(alice, &renewed.group), names(["alice", "bob", "mallory"]));
    let again = alice.membership().renew(&group.group_id, &[]).await.unwrap_err();
    assert!(matches!(again, Error::ReadOnlyGroup { .. }), "{again}");
    bob.hears().await;
    alice.membership().send(&renewed.group.group_id, "here").await.unwrap();
    assert_eq!(bob.texts().await, [("alice/laptop".to_owned(), "here".to_owned())]);
}

/// The keys are there, so the reason is never `keys-gone`.
#[rstest]
#[tokio::test]
async fn a_welcome_that_cannot_be_used_is_told_with_its_reason(
    #[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere,
) {
    let server = start(db).await;
    let bob = Owner::of(&server, "bob").await;
    let mut mallory = Insider::of(&server, "mallory").await;
    for (expected, told) in [(RefusalReason::Invalid, "invalid"), (RefusalReason::Unsupported, "unsupported")] {
        if expected == RefusalReason::Invalid {
            mallory.founds_as("mallory/laptop");
            mallory.invites_with("bob", &[], |welcome| *welcome.last_mut().unwrap() ^= 1).await;
        } else {
            mallory.founds_without_trees();
            mallory.invites("bob").await;
        }
        let heard = bob.hears().await;
        let [Event::Refused { kind: MessageKind::Welcome, by, reason, .. }] = heard.as_slice() else {
            panic!("{heard:?}")
        };
        assert_eq!((by.as_str(), *reason), ("mallory/laptop", expected));
        let notice = ("unreadable".to_owned(), json!({ "about": "welcome", "reason": told }));
        assert_eq!(mallory.finds().await.last(), Some(&notice));
    }
    assert_eq!(bob.membership().groups().unwrap(), []);
}

#[rstest]
#[tokio::test]
async fn a_device_that_cannot_be_added_does_not_keep_the_others_out(
    #[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere,
) {
    let server = start(db).await;
    let (group, owners) = group_of(&server, &["alice", "bob"]).await;
    let [alice, bob] = owners.as_slice() else { panic!() };
    let carol = Owner::of(&server, "carol").await;
    let eve = server.anyone().registered("eve", "phone").await;
    eve.uploaded(&[Device::new("eve", "phone").with_grease(0x8a8a, true).key_package()]).await;
    let frank = server.anyone().registered("frank", "phone").await;
    frank.uploaded(&[Device::new("frank", "phone").with_grease_in_leaf(0x4a4a).key_package()]).await;
    let invited = alice.membership().invite(&group.group_id, &["carol", "eve", "frank"].map(user)).await.unwrap();
    assert_eq!(invited.added, [device("carol")]);
    assert_eq!(invited.missing, []);
    let unfit: Vec<_> = invited.unfit.iter().map(|one| (one.device.user.as_str(), one.reason)).collect();
    let unsupported = UnfitReason::Unsupported;
    assert_eq!(unfit, [("eve", unsupported), ("frank", unsupported)], "{:?}", invited.unfit);
    for other in [&eve, &frank] {
        let status = other.status().await;
        assert_eq!((&status["reserved"], &status["lapsed"]), (&json!(0), &json!(1)), "it was not given back");
    }
    bob.hears().await;
    let heard = carol.hears().await;
    assert!(matches!(heard.first(), Some(Event::Joined { .. })), "{heard:?}");
    carol.membership().send(&group.group_id, "hello").await.unwrap();
    assert_eq!(bob.texts().await, [("carol/laptop".to_owned(), "hello".to_owned())]);

    // With nobody else to add, the group stays as it is.
    let invited = alice.membership().invite(&group.group_id, &[user("frank")]).await.unwrap();
    assert_eq!((invited.added.len(), invited.unfit.len()), (0, 1));
    let alone = alice.reserve(&user("eve"), None, None, None).await.unwrap_err();
    assert!(matches!(&alone, Error::UnfitKeyPackage { device, .. } if device == "eve/phone"), "{alone}");
    assert_eq!(eve.status().await["reserved"], 0);
}

#[rstest]
#[tokio::test]
async fn of_two_devices_with_one_signature_key_the_first_is_added(
    #[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere,
) {
    let server = start(db).await;
    let (group, owners) = group_of(&server, &["alice"]).await;
    let (alice, _carol) = (&owners[0], Owner::of(&server, "carol").await);
    let pair = SignatureKeyPair::new(CIPHERSUITE.signature_algorithm()).unwrap();
    let phone = server.anyone().registered("eve", "phone").await;
    phone.uploaded(&[Device::new("eve", "phone").with_key_of(&pair).key_package()]).await;
    phone.register("eve", "tablet").await.ok();
    let tablet =
        phone.with_token(phone.post("/devices/tablet/token", &json!({})).await.ok()["token"].as_str().unwrap());
    tablet.uploaded(&[Device::new("eve", "tablet").with_key_of(&pair).key_package()]).await;
    let invited = alice.membership().invite(&group.group_id, &["eve", "carol"].map(user)).await.unwrap();
    let added: Vec<_> = invited.added.iter().map(ToString::to_string).collect();
    assert!(added.contains(&"carol/laptop".to_owned()) && added.len() == 2, "{invited:?}");
    let [unfit] = invited.unfit.as_slice() else { panic!("{invited:?}") };
    assert_eq!((unfit.device.user.as_str(), unfit.reason), ("eve", UnfitReason::SameSignatureKey), "{invited:?}");
}

/// Without an identity check of the application, nobody can tell whose such a credential is.
#[rstest]
#[tokio::test]
async fn a_device_with_an_x509_credential_does_not_keep_the_others_out(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
) {
    let server = TestServer::start_with(db, |config| config.credential_binding = CredentialBinding::Off).await;
    let (group, owners) = group_of(&server, &["alice"]).await;
    let (alice, _carol) = (&owners[0], Owner::of(&server, "carol").await);
    let eve = server.anyone().registered("eve", "phone").await;
    eve.uploaded(&[Device::new("eve", "phone").with_x509().key_package()]).await;
    let invited = alice.membership().invite(&group.group_id, &["eve", "carol"].map(user)).await.unwrap();
    assert_eq!(invited.added, [device("carol")]);
    let [unfit] = invited.unfit.as_slice() else { panic!("{invited:?}") };
    assert_eq!((unfit.device.to_string().as_str(), unfit.reason), ("eve/phone", UnfitReason::Credential));
    assert!(unfit.why.contains("X.509"), "{unfit:?}");
    assert_eq!(eve.status().await["reserved"], 0, "it is given back");
}

/// A member who names a wrong digest blocks the group for all others.
#[rstest]
#[tokio::test]
async fn who_is_refused_for_a_proof_is_told_the_way_on(#[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere) {
    let server = start(db).await;
    let (group, owners, mut mallory) = with_mallory(&server).await;
    let [alice, bob] = owners.as_slice() else { panic!() };
    mallory.names_a_wrong_digest(&HONEST).await;
    assert_eq!(alice.hears().await, [changed_by("mallory")]);
    let refused = alice.membership().update_keys(&group.group_id).await.unwrap_err();
    assert!(matches!(&refused, Error::ProofRefused { group, .. } if group == "friends"), "{refused}");
    // Nothing is left pending, and the group can still be read and written.
    bob.hears().await;
    alice.membership().send(&group.group_id, "stuck?").await.unwrap();
    assert_eq!(bob.texts().await, [("alice/laptop".to_owned(), "stuck?".to_owned())]);
    let renewed = alice.membership().renew(&group.group_id, &[device("mallory")]).await.unwrap();
    assert_eq!(members(alice, &renewed.group), names(["alice", "bob"]));
    alice.membership().update_keys(&renewed.group.group_id).await.unwrap();
}
