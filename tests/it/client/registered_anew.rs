//! Devices that are registered anew, or lost with all that they had: the groups that they were in go on, and people are told.

use jiff::SignedDuration;
use keypool_client::{CIPHERSUITE, Event, Group, Incoming, KeyPackagePoolConfig, NewDevice, Notice};
use rstest::rstest;

use super::helpers::{group_of, heard, invite, members, names, start, user};
use crate::support::{Database, Owner, TestServer, new_device};

/// Alice and Bob in a group, and Carol, who will join it.
async fn scene(db: Database) -> (TestServer, Group, Vec<Owner>, Owner) {
    let server = start(db).await;
    let (group, owners) = group_of(&server, &["alice", "bob"]).await;
    let carol = Owner::of(&server, "carol").await;
    (server, group, owners, carol)
}

/// The received items, none of which is refused.
async fn accepted(owner: &Owner) -> Vec<Incoming> {
    let incoming = heard(owner).await;
    let is_refused = |one: &Incoming| matches!(one.event, Event::Refused { .. });
    assert!(!incoming.iter().any(is_refused), "{}: {incoming:?}", owner.name());
    incoming
}

/// A device that Alice has by an enrolment token: she has no other token any more.
async fn enrolled(server: &TestServer, device: &str) -> Owner {
    let user_token = Some(server.enrol("alice", SignedDuration::from_hours(1)).into());
    let new = NewDevice { device: device.parse().unwrap(), user_token, ..new_device(&server.base, "alice") };
    Owner::with(server, &new, KeyPackagePoolConfig::default()).await.0
}

fn notices(incoming: &[Incoming]) -> Vec<Notice> {
    incoming.iter().flat_map(|one| one.notices.clone()).collect()
}

async fn all_hear(group: &Group, everybody: &[&Owner]) {
    for owner in everybody {
        accepted(owner).await;
    }
    for by in everybody {
        by.membership().send(&group.group_id, "all well").await.unwrap();
        for other in everybody.iter().filter(|other| other.name() != by.name()) {
            assert_eq!(other.texts().await, [(by.name(), "all well".to_owned())], "{}", other.name());
        }
    }
}

#[rstest]
#[tokio::test]
async fn a_device_that_is_registered_anew_is_seen_by_its_old_key_and_comes_back_by_its_new_one(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
) {
    let (server, group, mut owners, carol) = scene(db).await;
    let old = owners.remove(0);
    let bob = &owners[0];
    old.http().delete("/devices/laptop").await.ok();
    server.advance(SignedDuration::from_secs(10));
    let alice = enrolled(&server, "laptop").await;
    assert_ne!(
        alice.identity().signer(CIPHERSUITE).unwrap().public(),
        old.identity().signer(CIPHERSUITE).unwrap().public()
    );
    // Her old leaf is still in the group.
    invite(bob, &group, &["carol"]).await;
    let joined = accepted(&carol).await;
    let is_old =
        |notice: &Notice| matches!(notice, Notice::PreviousSignatureKey { member, .. } if member == "alice/laptop");
    assert!(matches!(notices(&joined).as_slice(), [notice] if is_old(notice)), "{joined:?}");
    // Nobody can tell her anything there: she is removed, and invited with what she has now.
    bob.membership().remove(&group.group_id, &user("alice")).await.unwrap();
    let invited = bob.membership().invite(&group.group_id, &[user("alice")]).await.unwrap();
    let is_new = |notice: &Notice| matches!(notice, Notice::NewSignatureKey { member, since: Some(_) } if member == "alice/laptop");
    assert!(matches!(invited.notices.as_slice(), [notice] if is_new(notice)), "{:?}", invited.notices);
    let came = accepted(&carol).await;
    assert!(matches!(notices(&came).as_slice(), [notice] if is_new(notice)), "{came:?}");
    accepted(&alice).await;
    all_hear(&group, &[&alice, bob, &carol]).await;
}

#[rstest]
#[tokio::test]
async fn a_lost_device_is_seen_as_removed_and_its_owner_comes_back_with_another(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
) {
    let (server, group, mut owners, carol) = scene(db).await;
    drop(owners.remove(0));
    let bob = &owners[0];
    let alice = enrolled(&server, "phone").await;
    alice.http().delete("/devices/laptop").await.ok();
    invite(bob, &group, &["carol"]).await;
    let joined = accepted(&carol).await;
    let is_lost = |notice: &Notice| matches!(notice, Notice::RemovedDevice { member, .. } if member == "alice/laptop");
    assert!(matches!(notices(&joined).as_slice(), [notice] if is_lost(notice)), "{joined:?}");
    assert_eq!(invite(bob, &group, &["alice"]).await, ["alice/phone".to_owned()].into());
    let joined = accepted(&alice).await;
    assert!(matches!(notices(&joined).as_slice(), [notice] if is_lost(notice)), "{joined:?}");
    // She lets her lost device go, which somebody may have found.
    alice.membership().remove(&group.group_id, &user("alice")).await.unwrap();
    let now: std::collections::BTreeSet<_> =
        names(["bob", "carol"]).into_iter().chain(["alice/phone".to_owned()]).collect();
    all_hear(&group, &[&alice, bob, &carol]).await;
    assert_eq!(members(bob, &group), now);
}
