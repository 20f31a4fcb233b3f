//! Somebody who says that they are somebody else: it is refused and shown, and honest members go on.

use keypool_client::{
    Checking, DeviceChange, Error, Group, GroupState, IdentityCheck, Incoming, LeafIdentity, Notice, Standing, What,
};
use keypool_openapi::{DeviceOf, MessageKind};
use keypool_server::config::Limits;
use keypool_validation::key_package::CredentialBinding;
use openmls::prelude::MlsMessageIn;
use rstest::rstest;
use serde_json::{Value, json};
use tls_codec::Deserialize as _;

use super::{
    delivery::{epoch, group_of, invite, members, start, user},
    first_come::{behind_a_proxy, names},
};
use crate::support::{Anywhere, Database, Fault, Insider, Owner, TestServer, decode, encode};

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

pub fn device(user_name: &str) -> DeviceOf {
    DeviceOf { user: user(user_name), device: "laptop".parse().unwrap() }
}

/// What came, with what people should know of it.
async fn heard(owner: &Owner) -> Vec<Incoming> {
    let incoming = owner.membership().receive(0).await.unwrap();
    owner.membership().done(&incoming).unwrap();
    incoming
}

/// That the only thing that came is refused, and why.
pub async fn refuses(owner: &Owner, kind: MessageKind, reason: &str) {
    let heard = owner.hears().await;
    let [What::Refused { kind: found, by, why }] = heard.as_slice() else { panic!("{heard:?}") };
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
    let is_renewed = |what: &What| matches!(what, What::Renewed { by, old_group, .. } if by == "alice/laptop" && *old_group == group.id);
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
        let [What::Refused { kind: MessageKind::Welcome, by, why }, What::Ignored { .. }] = heard.as_slice() else {
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
    let phone = owners[0].further(&server, "phone").await;
    let told = What::Device {
        device: DeviceOf { user: user("alice"), device: phone.identity().device().clone() },
        change: DeviceChange::Registered,
    };
    assert_eq!(owners[0].hears().await, [told], "a thief of her token could have done that");
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

#[rstest]
#[tokio::test]
async fn a_key_that_the_directory_does_not_have_is_not_taken_from_an_external_commit(
    #[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere,
) {
    let server = start(db).await;
    let (group, owners, mut mallory) = with_mallory(&server).await;
    mallory.comes_in_with_another_key(&HONEST).await;
    refuse_a_commit_and_go_on((group, owners, mallory), "signature key").await;
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
    assert_eq!(heard[0], What::Joined { by: device("alice") });
    // What is said is by whom its leaf says, or is not shown at all.
    let [What::Refused { kind: MessageKind::Message, why, .. }] = &heard[1..] else { panic!("{heard:?}") };
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
    let added =
        What::Members { by: "alice/laptop".to_owned(), added: vec!["carol/laptop".to_owned()], removed: Vec::new() };
    let text = What::Text { sender: "alice/laptop".to_owned(), text: "here comes carol".to_owned() };
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
    let told = What::Members { by: "alice/laptop".to_owned(), added: Vec::new(), removed };
    assert_eq!(bob.hears().await, [told]);
    let told = heard(carol).await.remove(0);
    assert_eq!(told.what, What::Removed);
    assert_eq!(told.notices, [Notice::RemovedBy { member: "alice/laptop".to_owned() }]);
}

#[rstest]
#[tokio::test]
async fn a_changed_key_is_shown_and_an_old_leaf_is_still_good(
    #[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere,
) {
    let server = start(db).await;
    let (group, mut owners) = group_of(&server, &["alice", "bob"]).await;
    let carol = Owner::of(&server, "carol").await;
    owners[0].rotate(&|_| ()).await.unwrap();
    let [alice, bob] = owners.as_slice() else { panic!() };
    // Alice is in the group with the key that she had before: who joins accepts it, and is told.
    invite(alice, &group, &["carol"]).await;
    let joined = heard(&carol).await.remove(0);
    assert_eq!(joined.what, What::Joined { by: device("alice") });
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
        "it is told once"
    );
    heard(alice).await;
    let third = carol.membership().create_named_group("third").unwrap();
    invite(&carol, &third, &["bob", "alice"]).await;
    let joined = heard(bob).await.remove(0);
    assert_eq!(joined.notices, []);
}

#[rstest]
#[tokio::test]
async fn a_join_asks_once_and_what_is_known_is_not_asked_again(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
) {
    let server = start(db).await;
    let (group, owners) = group_of(&server, &["alice", "carol", "dave", "erin"]).await;
    let alice = &owners[0];
    let (proxy, bob) = behind_a_proxy(&server, "bob").await;
    let asked = || proxy.seen().iter().filter(|head| head.starts_with("POST /devices/lookup")).count();
    invite(alice, &group, &["bob"]).await;
    bob.hears().await;
    assert_eq!(asked(), 1, "one question for the whole group");
    alice.membership().send(&group.group_id, "hello").await.unwrap();
    alice.membership().update_keys(&group.group_id).await.unwrap();
    let second = alice.membership().create_named_group("second").unwrap();
    invite(alice, &second, &["bob", "carol"]).await;
    bob.hears().await;
    bob.refresh().await.unwrap();
    assert_eq!(asked(), 0, "nothing is unknown");
    // The directory is asked about every added device: its key may have changed.
    Owner::of(&server, "frank").await;
    Owner::of(&server, "grace").await;
    invite(alice, &group, &["frank"]).await;
    invite(alice, &group, &["grace"]).await;
    bob.hears().await;
    assert_eq!(asked(), 2);
}

#[rstest]
#[tokio::test]
async fn two_people_see_the_same_number_unless_the_server_names_other_keys_to_one(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
) {
    let server = start(db).await;
    let mut alice = Owner::of(&server, "alice").await;
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

#[rstest]
#[tokio::test]
async fn whoever_invites_a_device_with_another_key_than_before_is_told(
    #[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere,
) {
    let server = start(db).await;
    let (_, mut owners) = group_of(&server, &["alice", "bob"]).await;
    owners[1].rotate(&|_| ()).await.unwrap();
    let alice = owners[0].membership();
    let group = alice.create_named_group("others").unwrap();
    let notices = alice.invite(&group.group_id, &[user("bob")]).await.unwrap().notices;
    let [Notice::NewSignatureKey { member, since: Some(_) }] = notices.as_slice() else { panic!("{notices:?}") };
    assert_eq!(member, "bob/laptop");
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
    let (group, mut owners) = group_of(&server, &["alice", "bob"]).await;
    for owner in &mut owners {
        owner.rotate(&|_| ()).await.unwrap();
    }
    let carol = Owner::of(&server, "carol").await;
    invite(&owners[0], &group, &["carol"]).await;
    owners[1].membership().remove(&group.group_id, &user("alice")).await.unwrap();
    invite(&owners[1], &group, &["alice"]).await;
    for owner in owners.iter().chain([&carol]) {
        let heard = owner.hears().await;
        assert!(!heard.iter().any(|what| matches!(what, What::Refused { .. })), "{heard:?}");
        assert_eq!(members(owner, &group), names(["alice", "bob", "carol"]), "{}", owner.name());
    }
}

/// What waits in the queue, as an application that processes messages by itself reads it.
async fn queued(owner: &Owner) -> Vec<MlsMessageIn> {
    let page = owner.http().get("/messages").await.ok();
    let read = |one: &Value| MlsMessageIn::tls_deserialize(&mut &*decode(one["message"].as_str().unwrap())).unwrap();
    page["messages"].as_array().unwrap().iter().map(read).collect()
}

#[rstest]
#[tokio::test]
async fn an_application_that_processes_messages_by_itself_has_them_checked(
    #[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere,
) {
    let server = start(db).await;
    let (group, owners, mut mallory) = with_mallory(&server).await;
    let (alice, bob) = (&owners[0], &owners[1]);
    bob.membership().send(&group.group_id, "hello").await.unwrap();
    mallory.proposes_another_key(&HONEST).await;
    mallory.renames_itself("alice/d1", &HONEST).await;
    let mut mls_group = alice.load_group(&group.group_id).unwrap();
    let mut outcomes = Vec::new();
    for message in queued(alice).await {
        let message = message.try_into_protocol_message().unwrap();
        let processed = mls_group.process_message(&alice.provider(), message).unwrap();
        outcomes.push(alice.membership().check_message(&mls_group, &processed).await);
    }
    let [Ok(said), Err(proposed), Err(committed)] = outcomes.as_slice() else { panic!("{outcomes:?}") };
    assert_eq!(said, &[]);
    for (refused, reason) in [(proposed, "signature key"), (committed, "changes its identity")] {
        assert!(matches!(refused, Error::WrongIdentity { why, .. } if why.contains(reason)), "{refused}");
    }
    // What is honest is merged, and what people should know of it is answered.
    let (group, mut owners) = {
        let carol = Owner::of(&server, "carol").await;
        let dave = Owner::of(&server, "dave").await;
        let group = carol.membership().create_named_group("others").unwrap();
        invite(&carol, &group, &["alice"]).await;
        alice.hears().await;
        (group, [carol, dave])
    };
    let reserved = alice.reserve(&user("dave"), None, None, None).await.unwrap().reservations.remove(0);
    alice.release(reserved.reservation_id).await.unwrap();
    owners[1].rotate(&|_| ()).await.unwrap();
    invite(&owners[0], &group, &["dave"]).await;
    let mut mls_group = alice.load_group(&group.group_id).unwrap();
    let message = queued(alice).await.remove(0).try_into_protocol_message().unwrap();
    let processed = mls_group.process_message(&alice.provider(), message).unwrap();
    let notices = alice.membership().check_message(&mls_group, &processed).await.unwrap();
    let [Notice::NewSignatureKey { member, since: Some(_) }] = notices.as_slice() else { panic!("{notices:?}") };
    assert_eq!(member, "dave/laptop");
}

/// An application with a directory of its own.
struct Nobody;

impl IdentityCheck for Nobody {
    fn check<'a>(&'a self, leaves: &'a [LeafIdentity]) -> Checking<'a> {
        let unknown = |leaf: &LeafIdentity| Standing::Unknown { why: format!("{} is not on the list", leaf.name()) };
        Box::pin(async move { Ok(leaves.iter().map(unknown).collect()) })
    }
}

#[rstest]
#[tokio::test]
async fn an_application_decides_by_a_directory_of_its_own(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
) {
    let server = start(db).await;
    let (alice, bob) = (Owner::of(&server, "alice").await, Owner::of(&server, "bob").await);
    let bob = bob.with_identity_check(Box::new(Nobody));
    let group = alice.membership().create_named_group("friends").unwrap();
    invite(&alice, &group, &["bob"]).await;
    let heard = bob.hears().await;
    let What::Refused { kind: MessageKind::Welcome, why, .. } = &heard[0] else { panic!("{heard:?}") };
    assert!(why.contains("alice/laptop is not on the list"), "{why}");
    let refused = bob.reserve(&user("alice"), None, None, None).await.unwrap_err();
    assert!(refused.with_causes().contains("not on the list"), "{}", refused.with_causes());
}
