//! Two people with the client library: KeyPackages through the server, a Welcome by file, a group that works.

use jiff::SignedDuration;
use keypool_client::{Error, MlsClient, openmls::prelude::*};
use openmls_traits::storage::StorageProvider as _;
use rstest::rstest;
use tls_codec::{Deserialize, Serialize, VLBytes};

use super::helpers::{device, invited, start};
use crate::support::{Anywhere, Database, Owner, TestServer};

/// A ref as OpenMLS has it.
fn hash_ref(bytes: &[u8]) -> KeyPackageRef {
    let encoded = VLBytes::from(bytes).tls_serialize_detached().unwrap();
    KeyPackageRef::tls_deserialize(&mut encoded.as_slice()).unwrap()
}

#[rstest]
#[tokio::test]
async fn one_adds_the_other_to_a_group(#[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere) {
    let server = TestServer::start(db).await;
    let (alice, bob) = (Owner::of(&server, "alice").await, Owner::of(&server, "bob").await);

    let mut group = alice.create_group(b"friends").unwrap();
    let invitation = invited(&alice, &mut group, &"bob".parse().unwrap()).await.unwrap();
    let used = &invitation.added[0].keypackage_ref;
    let hash = hash_ref(used.as_bytes());
    let total = |bob: &MlsClient| bob.local_counts().unwrap().into_values().sum::<usize>();
    let keys = |bob: &MlsClient| {
        let provider = bob.provider();
        let bundle: Option<KeyPackageBundle> = provider.storage().key_package(&hash).unwrap();
        bundle.is_some()
    };
    assert!(keys(&bob));
    assert_eq!(total(&bob), 33);

    let mut bobs = bob.join(&invitation.welcome).await.unwrap();
    assert!(!keys(&bob), "the private keys of a used KeyPackage are still here");
    assert_eq!(total(&bob), 32);
    let status = bob.status().await.unwrap();
    assert_eq!((status.fresh, status.spent, status.reserved), (31, 1, 0));
    assert_eq!(bobs.members().count(), 2);

    // Bob can read Alice's text in the group: both are in the same epoch with the same secrets.
    let signer = alice.identity().signer(group.ciphersuite()).unwrap();
    let said = group.create_message(&alice.provider(), &*signer, b"hello").unwrap();
    let message = <MlsMessageIn as Deserialize>::tls_deserialize(&mut said.to_bytes().unwrap().as_slice()).unwrap();
    let heard = bobs.process_message(&bob.provider(), message.try_into_protocol_message().unwrap()).unwrap();
    let ProcessedMessageContent::ApplicationMessage(heard) = heard.into_content() else { panic!("not a message") };
    assert_eq!(heard.into_bytes(), b"hello");
}

#[rstest]
#[tokio::test]
async fn who_cannot_be_invited_is_named_and_the_group_stays_as_it_was(
    #[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere,
) {
    let server = TestServer::start(db).await;
    let (alice, bob) = (Owner::of(&server, "alice").await, Owner::of(&server, "bob").await);
    let mut group = alice.create_group(b"friends").unwrap();
    let error: Error = invited(&alice, &mut group, &"nobody".parse().unwrap()).await.unwrap_err();
    assert!(error.to_string().contains("nobody"), "{error}");

    let user = "bob".parse().unwrap();
    invited(&alice, &mut group, &user).await.unwrap();
    // A member cannot be added again: what was reserved for it goes back.
    invited(&alice, &mut group, &user).await.unwrap_err();
    let status = bob.status().await.unwrap();
    assert_eq!((status.reserved, status.spent, status.lapsed), (0, 1, 1));
    assert!(group.pending_commit().is_none());
    assert_eq!(group.members().count(), 2);
}

#[rstest]
#[tokio::test]
async fn nothing_is_spent_before_the_delivery_service_has_accepted_the_commit(
    #[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere,
) {
    let server = TestServer::start(db).await;
    let (alice, bob) = (Owner::of(&server, "alice").await, Owner::of(&server, "bob").await);
    let mut group = alice.create_group(b"friends").unwrap();
    let pool = async || {
        let status = bob.status().await.unwrap();
        (status.reserved, status.spent, status.lapsed)
    };
    let user = "bob".parse().unwrap();
    let refused = alice.prepare_invitation(&mut group, &user).await.unwrap();
    assert_eq!((pool().await, group.epoch().as_u64()), ((1, 0, 0), 0));
    // Another Commit came first.
    alice.withdraw_invitation(&mut group, &refused).await.unwrap();
    assert!(group.pending_commit().is_none());
    assert_eq!((pool().await, group.epoch().as_u64()), ((0, 0, 1), 0));

    let invitation = alice.prepare_invitation(&mut group, &user).await.unwrap();
    // The Commit that was withdrawn is not confused with the one that is pending now.
    alice.confirm_invitation(&mut group, &refused).await.unwrap_err();
    alice.withdraw_invitation(&mut group, &refused).await.unwrap();
    assert_eq!((pool().await, group.epoch().as_u64()), ((1, 0, 1), 0));
    assert!(group.pending_commit().is_some());
    // Twice is as once, also for a group that is loaded again.
    for _ in 0..2 {
        assert_eq!(alice.confirm_invitation(&mut group, &invitation).await.unwrap(), []);
        assert_eq!((pool().await, group.epoch().as_u64()), ((0, 1, 1), 1));
        group = alice.load_group(b"friends").unwrap();
    }
    assert_eq!(bob.join(&invitation.welcome).await.unwrap().members().count(), 2);
}

#[rstest]
#[tokio::test]
async fn what_went_to_another_adder_before_it_was_confirmed_is_named(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
) {
    let server = start(db).await;
    let (alice, bob) = (Owner::of(&server, "alice").await, Owner::of(&server, "bob").await);
    let carol = server.anyone().registered("carol", "phone").await;
    let mut group = alice.create_group(b"friends").unwrap();
    let invitation = alice.prepare_invitation(&mut group, &"bob".parse().unwrap()).await.unwrap();
    server.advance(SignedDuration::from_secs(61));
    // Fresh ones go first: Carol gets the lapsed one when there is no other.
    for _ in 0..32 {
        let reservation = carol.reserved("bob").await;
        carol.spend(&reservation, "carols").await.ok();
    }
    let lapsed = alice.confirm_invitation(&mut group, &invitation).await.unwrap();
    assert_eq!(lapsed, [device("bob")]);
    assert_eq!(group.members().count(), 2, "the Commit was accepted all the same");
    assert_eq!(bob.status().await.unwrap().spent, 32);
}
