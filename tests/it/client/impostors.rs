//! Attackers under another's name: the client refuses and shows them, and honest members go on.

use keypool_client::{DeviceChange, Error, Event, Group, GroupState, Notice};
use keypool_openapi::{DeviceOf, MessageKind};
use keypool_server::config::Limits;
use keypool_validation::key_package::CredentialBinding;
use rstest::rstest;
use serde_json::json;

use super::helpers::{behind_a_proxy, device, epoch, group_of, heard, invite, members, names, start, user};
use crate::support::{Anywhere, Database, Fault, Insider, Owner, TestServer, encode};

pub const HONEST: [&str; 2] = ["alice/laptop", "bob/laptop"];

/// A group of Alice and Bob, and of Mallory, who has a stack of her own.
pub async fn with_mallory(server: &TestServer) -> (Group, Vec<Owner>, Insider) {
    let (group, owners) = group_of(server, &["alice", "bob"]).await;
    let mut mallory = Insider::of(server, "mallory").await;
    invite(&owners[0], &group, &["mallory"]).await;
    mallory.joins().await;
    for owner in &owners {
        owner.hears().await;
    }
    (group, owners, mallory)
}

/// That the only thing that came is refused, and why.
pub async fn refuses(owner: &Owner, kind: MessageKind, reason: &str) {
    let heard = owner.hears().await;
    let [Event::Refused { kind: found, by, why, .. }] = heard.as_slice() else { panic!("{heard:?}") };
    assert_eq!((*found, by.as_str()), (kind, "mallory/laptop"), "{why}");
    assert!(why.contains(reason), "{why}");
}

/// That a Commit of Mallory's is refused by everybody, that they go on talking, and that a new group is the way on.
async fn refuse_a_commit_and_go_on((group, owners, mut mallory): (Group, Vec<Owner>, Insider), reason: &str) {
    let [alice, bob] = owners.as_slice() else { panic!() };
    let before = (epoch(alice, &group), members(alice, &group));
    for owner in [alice, bob] {
        refuses(owner, MessageKind::Commit, reason).await;
        assert_eq!((epoch(owner, &group), members(owner, &group)), before, "{}", owner.name());
        assert_eq!(owner.membership().find_group("friends").unwrap().state, GroupState::Behind);
    }
    mallory.says("hello, it is me", &HONEST).await;
    alice.membership().send(&group.group_id, "did you see that?").await.unwrap();
    let heard = bob.texts().await;
    assert_eq!(heard.last().unwrap(), &("alice/laptop".to_owned(), "did you see that?".to_owned()));
    assert!(heard.iter().all(|(sender, text)| sender == "mallory/laptop" || text == "did you see that?"), "{heard:?}");
    alice.hears().await;
    let stuck = bob.membership().update_keys(&group.group_id).await.unwrap_err();
    assert!(matches!(&stuck, Error::GroupBehind { by, .. } if by == "mallory/laptop"), "{stuck}");

    let renewed = alice.membership().renew(&group.group_id, &[device("mallory")]).await.unwrap();
    assert_eq!(members(alice, &renewed.group), names(["alice", "bob"]));
    let heard = bob.hears().await;
    let is_renewed = |event: &Event| matches!(event, Event::Renewed { by, old_group, .. } if by == "alice/laptop" && *old_group == group.id);
    assert!(heard.iter().any(is_renewed), "{heard:?}");
    for owner in [alice, bob] {
        assert_eq!(owner.membership().find_group("friends").unwrap().id, renewed.group.id, "{}", owner.name());
        let read_only = owner.membership().send(&group.group_id, "here?").await.unwrap_err();
        assert!(matches!(read_only, Error::ReadOnlyGroup { .. }), "{read_only}");
    }
    let again = bob.membership().renew(&group.group_id, &[device("mallory")]).await.unwrap_err();
    assert!(matches!(again, Error::ReadOnlyGroup { .. }), "{again}");
    bob.membership().send(&renewed.group.group_id, "here").await.unwrap();
    bob.membership().update_keys(&renewed.group.group_id).await.unwrap();
    assert_eq!(alice.texts().await, [("bob/laptop".to_owned(), "here".to_owned())]);
}

#[rstest]
#[tokio::test]
async fn a_foreign_group_whose_leaf_says_it_is_somebody_else_is_not_joined(
    #[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere,
) {
    let server = start(db).await;
    let (alice, bob) = (Owner::of(&server, "alice").await, Owner::of(&server, "bob").await);
    let mut mallory = Insider::of(&server, "mallory").await;
    for identity in ["alice/laptop", "alice/d1", "nobody/laptop", "alice"] {
        mallory.founds_as(identity);
        mallory.invites("bob").await;
        mallory.says("send me money", &["bob/laptop"]).await;
        let heard = bob.hears().await;
        let [Event::Refused { kind: MessageKind::Welcome, by, why, .. }, Event::Stranger] = heard.as_slice() else {
            panic!("{identity}: {heard:?}")
        };
        assert!(by == "mallory/laptop" && why.contains(identity), "{by}: {why}");
        assert_eq!(bob.membership().groups().unwrap(), []);
    }
    drop(alice);
}

#[rstest]
#[tokio::test]
async fn a_device_that_is_not_its_users_is_not_added(#[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere) {
    let server = start(db).await;
    let (group, owners, mut mallory) = with_mallory(&server).await;
    mallory.adds_ghost("alice/phone", &HONEST).await;
    refuse_a_commit_and_go_on((group, owners, mallory), "alice/phone").await;
}

#[rstest]
#[tokio::test]
async fn a_device_with_a_key_that_is_not_its_own_is_not_added(
    #[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere,
) {
    let server = start(db).await;
    let (group, owners, mut mallory) = with_mallory(&server).await;
    // Else Alice's laptop brings the phone in.
    owners[0].membership().set_admits_devices(&group.group_id, false).await.unwrap();
    owners[1].hears().await;
    mallory.follows().await;
    let phone = owners[0].further(&server, "phone").await;
    let told = Event::Device {
        device: DeviceOf { user: user("alice"), device: phone.identity().device().clone() },
        change: DeviceChange::Registered,
    };
    let asks = Event::Asks { device: phone.name().parse().unwrap(), is_admitted: false };
    assert_eq!(owners[1].hears().await, std::slice::from_ref(&asks));
    assert_eq!(owners[0].hears().await, [asks, told], "a thief of her token could have done that");
    mallory.adds_ghost("alice/phone", &HONEST).await;
    refuse_a_commit_and_go_on((group, owners, mallory), "signature key").await;
    drop(phone);
}

#[rstest]
#[tokio::test]
async fn a_leaf_is_not_renamed(#[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere) {
    let server = start(db).await;
    let (group, owners, mut mallory) = with_mallory(&server).await;
    mallory.renames_itself("alice/d1", &HONEST).await;
    refuse_a_commit_and_go_on((group, owners, mallory), "changes its identity").await;
}

#[rstest]
#[tokio::test]
async fn a_key_that_the_directory_does_not_have_is_not_taken_from_a_path(
    #[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere,
) {
    let server = start(db).await;
    let (group, owners, mut mallory) = with_mallory(&server).await;
    mallory.swaps_its_key(&HONEST).await;
    refuse_a_commit_and_go_on((group, owners, mallory), "signature key").await;
}

/// A server that keeps no signature keys does not know that the key is another one. The members do.
#[rstest]
#[tokio::test]
async fn another_key_is_not_taken_from_an_external_commit(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
) {
    let server = TestServer::start_with(db, |config| {
        config.limits = Limits::Off;
        config.credential_binding = CredentialBinding::Off;
    })
    .await;
    let (group, owners, mut mallory) = with_mallory(&server).await;
    let info = mallory.group_info();
    mallory.comes_back(&info, false, &HONEST).await.ok();
    refuse_a_commit_and_go_on((group, owners, mallory), "was not in the group").await;
}

#[rstest]
#[tokio::test]
async fn a_key_that_the_directory_does_not_have_is_not_taken_from_a_proposal(
    #[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere,
) {
    let server = start(db).await;
    let (group, owners, mut mallory) = with_mallory(&server).await;
    mallory.proposes_another_key(&HONEST).await;
    for owner in &owners {
        refuses(owner, MessageKind::Message, "signature key").await;
    }
    // Nobody commits to it, and the group goes on.
    owners[0].membership().update_keys(&group.group_id).await.unwrap();
    owners[1].membership().send(&group.group_id, "all well").await.unwrap();
    assert_eq!(owners[0].texts().await, [("bob/laptop".to_owned(), "all well".to_owned())]);
    assert_eq!(owners[0].membership().find_group("friends").unwrap().state, GroupState::Active);
}

#[rstest]
#[tokio::test]
async fn the_inviter_is_who_signed_and_not_whom_the_server_names(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
) {
    let server = start(db).await;
    let alice = Owner::of(&server, "alice").await;
    let (proxy, bob) = behind_a_proxy(&server, "bob").await;
    Owner::of(&server, "carol").await;
    let group = alice.membership().create_named_group("friends").unwrap();
    invite(&alice, &group, &["bob"]).await;
    proxy.lies("GET /messages", |page| {
        for message in page["messages"].as_array_mut().unwrap() {
            message["from"]["user"] = json!("carol");
        }
    });
    let heard = bob.hears().await;
    assert_eq!(heard[0], Event::Joined { by: device("alice") });
    // A text whose leaf is not its sender's is not shown.
    let [Event::Refused { kind: MessageKind::Message, why, .. }] = &heard[1..] else { panic!("{heard:?}") };
    assert!(why.contains("alice/laptop") && why.contains("carol/laptop"), "{why}");
}

#[rstest]
#[tokio::test]
async fn a_reserved_package_is_of_whom_was_asked_for_and_has_their_key(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
) {
    let server = start(db).await;
    let (proxy, alice) = behind_a_proxy(&server, "alice").await;
    let (bob, eve) = (Owner::of(&server, "bob").await, Owner::of(&server, "eve").await);
    let mallory = Insider::of(&server, "mallory").await;
    let foreign = alice.reserve(&user("eve"), None, None, None).await.unwrap().reservations.remove(0);
    let (forged, hash) = mallory.forged_key_package("bob/laptop");
    let forged = (encode(&forged), hex::encode(hash));
    let foreign = (encode(&foreign.keypackage.0), foreign.keypackage_ref.to_string());
    let group = alice.membership().create_named_group("friends").unwrap();
    for (package, reason) in [(foreign, "eve/laptop"), (forged, "signature key")] {
        proxy.is_honest();
        proxy.lies("POST /keypackages/reserve", move |answer| {
            let reservation = &mut answer["reservations"][0];
            (reservation["keypackage"], reservation["keypackage_ref"]) = (json!(package.0), json!(package.1));
        });
        let reserved = alice.reserve(&user("bob"), None, None, None).await.unwrap_err();
        assert!(reserved.with_causes().contains(reason), "{}", reserved.with_causes());
        let invited = alice.membership().invite(&group.group_id, &[user("bob")]).await.unwrap_err();
        assert!(invited.with_causes().contains(reason), "{}", invited.with_causes());
    }
    assert_eq!((members(&alice, &group), epoch(&alice, &group)), (names(["alice"]), 0));
    assert_eq!(bob.status().await.unwrap().reserved, 0, "what was refused is given back");
    drop(eve);
}

#[rstest]
#[tokio::test]
async fn without_an_answer_a_commit_is_neither_merged_nor_lost(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
) {
    let server = start(db).await;
    let alice = Owner::of(&server, "alice").await;
    let (proxy, bob) = behind_a_proxy(&server, "bob").await;
    let carol = Owner::of(&server, "carol").await;
    let group = alice.membership().create_named_group("friends").unwrap();
    invite(&alice, &group, &["bob"]).await;
    bob.hears().await;
    alice.membership().send(&group.group_id, "here comes carol").await.unwrap();
    invite(&alice, &group, &["carol"]).await;
    for _ in 0..2 {
        proxy.fail_on("POST /devices/lookup", Fault::Busy(3_600));
        let unanswered = bob.membership().receive(0).await.unwrap_err();
        assert!(unanswered.is_retryable(), "{unanswered}");
        assert_eq!((epoch(&bob, &group), members(&bob, &group)), (1, names(["alice", "bob"])));
    }
    // An answer that leaves somebody out is none.
    for known in ["nobody", "bob"] {
        proxy.lies("POST /devices/lookup", move |answer| {
            answer["users"].as_array_mut().unwrap().retain(|one| one["user"] == known);
        });
        let unanswered = bob.membership().receive(0).await.unwrap_err();
        assert!(matches!(unanswered, Error::Answer { .. }), "{known}: {unanswered}");
        proxy.is_honest();
    }
    assert_eq!(epoch(&bob, &group), 1);
    let heard = bob.hears().await;
    let added = Event::Members {
        by: "alice/laptop".to_owned(),
        added: vec!["carol/laptop".to_owned()],
        removed: Vec::new(),
        updated: Vec::new(),
    };
    let text = Event::Text { sender: "alice/laptop".to_owned(), text: "here comes carol".to_owned() };
    assert_eq!(heard[..2], [text, added], "nothing is lost, and nothing comes twice");
    assert_eq!(members(&bob, &group), members(&alice, &group));
    drop(carol);
}

#[rstest]
#[tokio::test]
async fn who_was_removed_and_by_whom_is_told(#[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere) {
    let server = start(db).await;
    let (group, owners) = group_of(&server, &["alice", "bob", "carol"]).await;
    let [alice, bob, carol] = owners.as_slice() else { panic!() };
    alice.membership().remove(&group.group_id, &user("carol")).await.unwrap();
    let removed = vec!["carol/laptop".to_owned()];
    let told = Event::Members { by: "alice/laptop".to_owned(), added: Vec::new(), removed, updated: Vec::new() };
    assert_eq!(bob.hears().await, [told]);
    let told = heard(carol).await.remove(0);
    assert_eq!(told.event, Event::Removed);
    assert_eq!(told.notices, [Notice::RemovedBy { member: "alice/laptop".to_owned() }]);
}
