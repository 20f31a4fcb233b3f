//! Two people with the client library: KeyPackages through the server, a Welcome by file, a group that works.

use std::path::Path;

use keypool_client::{Error, MlsClient, NewDevice, RefreshReport, Settings, openmls::prelude::*};
use openmls_traits::storage::StorageProvider as _;
use rstest::rstest;
use tls_codec::{Deserialize, Serialize, VLBytes};

use crate::support::{Database, TestServer};

async fn init(server: &TestServer, directory: &Path, user: &str) -> (MlsClient, RefreshReport) {
    let device = NewDevice {
        server: server.base.clone(),
        user: user.parse().unwrap(),
        device: "laptop".parse().unwrap(),
        user_token: None,
    };
    MlsClient::init(directory, &device, Settings::default(), &|_| ()).await.unwrap()
}

#[rstest]
#[tokio::test]
async fn a_device_fills_its_pool_and_a_second_refresh_changes_nothing(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
) {
    let server = TestServer::start(db).await;
    let directory = tempfile::tempdir().unwrap();
    let (alice, report) = init(&server, directory.path(), "alice").await;
    assert_eq!((report.generated, report.uploaded, report.rejected.len()), (33, 33, 0));
    assert_eq!((report.pool.fresh, report.pool.last_resort.present), (32, true));
    let again = alice.refresh_key_packages(&|_| ()).await.unwrap();
    assert_eq!((again.removed, again.generated, again.uploaded), (0, 0, 0));
    assert_eq!(again.pool.inventory_digest, report.pool.inventory_digest);

    // 24 of 32 reserved: 8 fresh are the low watermark, and one less is below it.
    let bob_directory = tempfile::tempdir().unwrap();
    let (bob, _) = init(&server, bob_directory.path(), "bob").await;
    let user = "alice".parse().unwrap();
    for _ in 0..24 {
        bob.reserve(&user, None, None, None).await.unwrap();
    }
    assert_eq!(alice.refresh_key_packages(&|_| ()).await.unwrap().generated, 0);
    bob.reserve(&user, None, None, None).await.unwrap();
    let refilled = alice.refresh_key_packages(&|_| ()).await.unwrap();
    assert_eq!((refilled.generated, refilled.pool.fresh), (25, 32));
}

/// A ref as OpenMLS has it.
fn hash_ref(bytes: &[u8]) -> KeyPackageRef {
    let encoded = VLBytes::from(bytes).tls_serialize_detached().unwrap();
    KeyPackageRef::tls_deserialize(&mut encoded.as_slice()).unwrap()
}

#[rstest]
#[tokio::test]
async fn one_adds_the_other_to_a_group(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let server = TestServer::start(db).await;
    let (at_alice, at_bob) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (alice, _) = init(&server, at_alice.path(), "alice").await;
    let (bob, _) = init(&server, at_bob.path(), "bob").await;

    let mut group = alice.create_group(b"friends").unwrap();
    let invitation = alice.invite(&mut group, &"bob".parse().unwrap()).await.unwrap();
    let welcome = at_bob.path().join("welcome");
    std::fs::write(&welcome, &invitation.welcome).unwrap();
    let used = &invitation.added[0].keypackage_ref;
    let hash = hash_ref(used.as_bytes());
    let keys = |bob: &MlsClient| {
        let provider = bob.provider();
        let bundle: Option<KeyPackageBundle> = provider.storage().key_package(&hash).unwrap();
        bundle.is_some()
    };
    assert!(keys(&bob));
    assert_eq!(bob.local_counts().unwrap().total, 32);

    let mut bobs = bob.join(&std::fs::read(&welcome).unwrap()).unwrap();
    assert!(!keys(&bob), "the private keys of a used KeyPackage are still here");
    assert_eq!(bob.local_counts().unwrap().total, 31);
    let status = bob.status().await.unwrap();
    assert_eq!((status.fresh, status.spent, status.reserved), (31, 1, 0));
    assert_eq!(bobs.members().count(), 2);

    // What Alice says in the group, Bob can read: both are in the same epoch with the same secrets.
    let said = group.create_message(&alice.provider(), alice.identity().signer(), b"hello").unwrap();
    let message = <MlsMessageIn as Deserialize>::tls_deserialize(&mut said.to_bytes().unwrap().as_slice()).unwrap();
    let heard = bobs.process_message(&bob.provider(), message.try_into_protocol_message().unwrap()).unwrap();
    let ProcessedMessageContent::ApplicationMessage(heard) = heard.into_content() else { panic!("not a message") };
    assert_eq!(heard.into_bytes(), b"hello");
}

#[rstest]
#[tokio::test]
async fn who_cannot_be_invited_is_named_and_the_group_stays_as_it_was(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
) {
    let server = TestServer::start(db).await;
    let (at_alice, at_bob) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (alice, _) = init(&server, at_alice.path(), "alice").await;
    let (bob, _) = init(&server, at_bob.path(), "bob").await;
    let mut group = alice.create_group(b"friends").unwrap();
    let error: Error = alice.invite(&mut group, &"nobody".parse().unwrap()).await.unwrap_err();
    assert!(error.to_string().contains("nobody"), "{error}");

    let user = "bob".parse().unwrap();
    alice.invite(&mut group, &user).await.unwrap();
    // A member cannot be added again: what was reserved for it goes back.
    alice.invite(&mut group, &user).await.unwrap_err();
    let status = bob.status().await.unwrap();
    assert_eq!((status.reserved, status.spent, status.lapsed), (0, 1, 1));
    assert!(group.pending_commit().is_none());
    assert_eq!(group.members().count(), 2);
}
