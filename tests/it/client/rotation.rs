//! A new signature key: a new pool, and old invitations that still work.

use jiff::SignedDuration;
use keypool_client::{
    CIPHERSUITE, Error, Event, KeyPackagePoolConfig, KeyPackageStatus, NewDevice, Notice, PoolStore as _,
};
use keypool_openapi::State;
use openmls::prelude::Ciphersuite;
use rstest::rstest;

use super::{
    helpers::{behind_a_proxy, invite, invited, start, user},
    refresh::is_settled,
};
use crate::support::{Anywhere, Database, Fault, Owner, TestServer, new_device};

const P256: Ciphersuite = Ciphersuite::MLS_128_DHKEMP256_AES128GCM_SHA256_P256;
const CHACHA: Ciphersuite = Ciphersuite::MLS_128_DHKEMX25519_CHACHA20POLY1305_SHA256_Ed25519;

#[rstest]
#[tokio::test]
async fn a_rotation_replaces_the_pool_and_keeps_invitations_under_way(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
) {
    let server = TestServer::start(db).await;
    let (alice, bob) = (Owner::of(&server, "alice").await, Owner::of(&server, "bob").await);
    let before: Vec<_> = alice.inventory().await.unwrap().into_iter().map(|item| item.keypackage_ref).collect();
    let old_key = alice.identity().signer(CIPHERSUITE).unwrap().to_public_vec();
    let user = "alice".parse().unwrap();
    // One invitation is out, and another begins: its KeyPackage is reserved.
    let mut group = bob.create_group(b"out").unwrap();
    let out = invited(&bob, &mut group, &user).await.unwrap();
    let held = bob.reserve(&user, None, None, None).await.unwrap().reservations.remove(0);

    let report = alice.rotate(&|_| ()).await.unwrap();
    assert_eq!((report.generated, report.uploaded, report.revoked), (33, 33, 30));
    // Of the old ones, one is spent, one is held, and the last resort was replaced by the new one.
    assert_eq!((report.pool.fresh, report.pool.reserved, report.pool.last_resort.present), (32, 1, true));
    is_settled(&server, &alice).await;
    assert_ne!(alice.identity().signer(CIPHERSUITE).unwrap().to_public_vec(), old_key);
    let live = |state| matches!(state, State::Available | State::Reserved);
    let inventory = alice.inventory().await.unwrap();
    let old: Vec<_> =
        inventory.iter().filter(|item| before.contains(&item.keypackage_ref) && live(item.state)).collect();
    assert_eq!(old.len(), 1, "what is held may be in a Commit");
    bob.spend(held.reservation_id, b"held").await.unwrap();

    // The old keys are still here for the Welcome, and what is said in the group is signed by the old signature key.
    let joined = alice.join(&out.welcome).await.unwrap();
    let signer = alice.identity().signer_in(alice.store(), &joined).unwrap();
    assert_eq!(signer.to_public_vec(), old_key);
    assert_eq!(signer.signature_scheme(), CIPHERSUITE.signature_algorithm());
    // A new invitation is of the new key.
    let mut group = bob.create_group(b"new").unwrap();
    let new = invited(&bob, &mut group, &user).await.unwrap();
    let joined = alice.join(&new.welcome).await.unwrap();
    let leaf = joined.own_leaf_node().unwrap().signature_key().as_slice().to_vec();
    assert_eq!(leaf, alice.identity().signer(CIPHERSUITE).unwrap().to_public_vec());

    // After a day the old keys are gone; what was spent keeps them until its own end.
    alice.refresh().await.unwrap();
    server.advance(SignedDuration::from_hours(24));
    alice.advance(SignedDuration::from_hours(24));
    assert_eq!(alice.refresh().await.unwrap().removed, 31);
    assert_eq!(alice.local_counts().unwrap()[&KeyPackageStatus::Failed], 0);
    let (rows, keys, without) = alice.rows_and_keys().unwrap();
    assert_eq!((rows, without), (keys, 0));
}

/// In each ciphersuite: a group that the device is in, an invitation that it has not read, and one that comes after.
#[rstest]
#[tokio::test]
async fn a_device_of_several_ciphersuites_rotates_while_it_is_away(
    #[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere,
) {
    let server = start(db).await;
    let suites = [CIPHERSUITE, P256, CHACHA];
    let with = |name: &str, ciphersuites: &[Ciphersuite]| NewDevice {
        ciphersuites: ciphersuites.to_vec(),
        ..new_device(&server.base, name)
    };
    let (alice, _) = Owner::with(&server, &with("alice", &suites), KeyPackagePoolConfig::default()).await;
    let mut others = Vec::new();
    for (n, suite) in suites.into_iter().enumerate() {
        let new = with(&format!("friend-{n}"), &[suite]);
        let (friend, _) = Owner::with(&server, &new, KeyPackagePoolConfig::default()).await;
        let before = friend.membership().create_named_group(&format!("before {n}")).unwrap();
        invite(&friend, &before, &["alice"]).await;
        others.push((friend, before));
    }
    alice.hears().await;
    let mut groups = Vec::new();
    for (friend, before) in &others {
        let under_way = friend.membership().create_named_group("under way").unwrap();
        invite(friend, &under_way, &["alice"]).await;
        friend.membership().update_keys(&before.group_id).await.unwrap();
        groups.push(vec![before.clone(), under_way]);
    }
    let report = alice.rotate(&|_| ()).await.unwrap();
    assert_eq!((report.uploaded, report.rejected.len()), (3 * 33, 0));
    for ((friend, _), groups) in others.iter().zip(&mut groups) {
        let after = friend.membership().create_named_group("after").unwrap();
        let invited = friend.membership().invite(&after.group_id, &[user("alice")]).await.unwrap();
        let [Notice::NewSignatureKey { member, since: Some(_) }] = invited.notices.as_slice() else {
            panic!("{invited:?}")
        };
        assert_eq!(member, "alice/laptop");
        groups.push(after);
    }
    let heard = alice.hears().await;
    assert!(!heard.iter().any(|event| matches!(event, Event::Refused { .. } | Event::KeysGone { .. })), "{heard:?}");
    for ((friend, _), groups) in others.iter().zip(&groups) {
        for group in groups {
            alice.membership().update_keys(&group.group_id).await.unwrap();
            alice.membership().send(&group.group_id, "here").await.unwrap();
            assert_eq!(friend.texts().await, [("alice/laptop".to_owned(), "here".to_owned())], "{}", group.name);
        }
    }
}

/// A spent KeyPackage has the old key, so it does not show that the server has the new one.
#[rstest]
#[tokio::test]
async fn a_device_whose_packages_were_spent_rotates(#[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere) {
    let server = TestServer::start(db).await;
    let (alice, bob) = (Owner::of(&server, "alice").await, Owner::of(&server, "bob").await);
    let user = "alice".parse().unwrap();
    for turn in 1..=2 {
        let held = bob.reserve(&user, None, None, None).await.unwrap().reservations.remove(0);
        bob.spend(held.reservation_id, b"friends").await.unwrap();
        alice.refresh().await.unwrap();
        assert_eq!(alice.local_counts().unwrap()[&KeyPackageStatus::Spent], turn);
        let report = alice.rotate(&|_| ()).await.unwrap();
        assert_eq!((report.uploaded, report.rejected.len(), report.pool.fresh), (33, 0, 32));
        let devices = alice.api().devices(&user).await.unwrap().devices;
        let current = alice.identity().signer(CIPHERSUITE).unwrap().to_public_vec();
        assert_eq!(devices[0].signature_keys[0].signature_key.0, current);
    }
}

#[rstest]
#[tokio::test]
async fn what_was_held_at_the_rotation_is_withdrawn_when_it_lapses(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
) {
    let server = TestServer::start(db).await;
    let (alice, bob) = (Owner::of(&server, "alice").await, Owner::of(&server, "bob").await);
    let held = bob.reserve(&"alice".parse().unwrap(), None, None, None).await.unwrap().reservations.remove(0);
    alice.rotate(&|_| ()).await.unwrap();
    server.advance(SignedDuration::from_secs(60));
    alice.advance(SignedDuration::from_secs(60));
    let report = alice.refresh().await.unwrap();
    assert_eq!(report.revoked, 1, "{report:?}");
    let row = alice.store().find_metadata(&held.keypackage_ref).unwrap().unwrap();
    assert_eq!(row.status, KeyPackageStatus::Failed);
    is_settled(&server, &alice).await;
}

/// The client withdraws nothing before the server has accepted the new KeyPackages.
#[rstest]
#[tokio::test]
async fn a_rotation_that_the_server_does_not_take_leaves_the_pool_as_it_was(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
) {
    let server = start(db).await;
    let (proxy, alice) = behind_a_proxy(&server, "alice").await;
    let bob = Owner::of(&server, "bob").await;
    let before = alice.inventory().await.unwrap();
    let key = alice.identity().signer(CIPHERSUITE).unwrap().to_public_vec();
    proxy.fail_on("POST /keypackages/upload", Fault::Gateway(413));
    let failed = alice.rotate(&|_| ()).await.unwrap_err();
    assert!(matches!(failed, Error::Answer { status: 413, .. }), "{failed}");
    assert_eq!(alice.inventory().await.unwrap(), before, "something was withdrawn");
    let group = bob.membership().create_named_group("friends").unwrap();
    invite(&bob, &group, &["alice"]).await;
    let heard = alice.hears().await;
    assert!(matches!(heard.as_slice(), [Event::Joined { .. }, ..]), "{heard:?}");
    let listed = async || {
        let list = alice.api().devices(&user("alice")).await.unwrap();
        list.devices[0].signature_keys[0].signature_key.0.clone()
    };
    assert_eq!(listed().await, key, "the old key is valid until the new one is accepted");
    alice.refresh().await.unwrap();
    assert_ne!(listed().await, key);
    is_settled(&server, &alice).await;
}

#[rstest]
#[tokio::test]
async fn a_rotation_that_is_cut_off_is_finished_by_the_next_refresh(
    #[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere,
) {
    let server = TestServer::start(db).await;
    let alice = Owner::of(&server, "alice").await;
    let before: Vec<_> = alice.inventory().await.unwrap().into_iter().map(|item| item.keypackage_ref).collect();
    // A future that is dropped at its first wait has made the new key, and nothing more.
    {
        let rotation = alice.rotate(&|_| ());
        tokio::pin!(rotation);
        assert!(futures_util::poll!(rotation.as_mut()).is_pending());
    }
    let alice = alice.reopened(|_| {});
    let report = alice.refresh().await.unwrap();
    assert_eq!((report.generated, report.uploaded, report.revoked), (33, 33, 33 - 1), "the last resort is replaced");
    let live = alice.inventory().await.unwrap().into_iter().filter(|item| item.state == State::Available);
    assert!(live.into_iter().all(|item| !before.contains(&item.keypackage_ref)));
    is_settled(&server, &alice).await;
}
