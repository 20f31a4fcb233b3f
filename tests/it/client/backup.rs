//! A data directory that comes back from a backup, and one that two clients work on.

use keypool_client::{Error, KeyPackageStatus, Warning};
use rstest::rstest;

use super::helpers::invited;
use super::refresh::is_settled;
use crate::support::{Anywhere, Owner, TestServer, copy};

#[rstest]
#[tokio::test]
async fn a_restored_backup_is_whole_after_one_refresh(#[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere) {
    let server = TestServer::start(db).await;
    let (alice, bob) = (Owner::of(&server, "alice").await, Owner::of(&server, "bob").await);
    let backup = tempfile::tempdir().unwrap();
    copy(alice.directory(), backup.path());
    for _ in 0..10 {
        let held = bob.reserve(&"alice".parse().unwrap(), None, None, None).await.unwrap().reservations.remove(0);
        bob.spend(held.reservation_id, b"friends").await.unwrap();
    }
    alice.refresh().await.unwrap();
    let alice = alice.reopened(|directory| copy(backup.path(), directory));
    assert_eq!(alice.local_counts().unwrap()[&KeyPackageStatus::Spent], 0, "the backup knows of no spend");

    let report = alice.refresh().await.unwrap();
    assert_eq!((report.reconciled, report.revoked, report.warnings.as_slice()), (10, 0, &[][..]));
    assert_eq!(alice.local_counts().unwrap()[&KeyPackageStatus::Spent], 10);
    is_settled(&server, &alice).await;
    let mut group = bob.create_group(b"others").unwrap();
    let invitation = invited(&bob, &mut group, &"alice".parse().unwrap()).await.unwrap();
    assert_eq!(alice.join(&invitation.welcome).await.unwrap().members().count(), 2);
}

#[rstest]
#[tokio::test]
async fn what_was_uploaded_after_the_backup_is_withdrawn(#[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere) {
    let server = TestServer::start(db).await;
    let alice = Owner::of(&server, "alice").await;
    let backup = tempfile::tempdir().unwrap();
    copy(alice.directory(), backup.path());
    alice.revoke(None).await.unwrap();
    alice.refresh().await.unwrap();
    // The server has 33 now whose keys the backup lacks.
    let alice = alice.reopened(|directory| copy(backup.path(), directory));
    let report = alice.refresh().await.unwrap();
    assert_eq!((report.revoked, report.generated, report.pool.fresh), (33, 33, 32));
    assert_eq!(report.warnings, [Warning::ForeignKeyPackages { count: 33 }]);
    is_settled(&server, &alice).await;
    let bob = Owner::of(&server, "bob").await;
    let mut group = bob.create_group(b"friends").unwrap();
    let invitation = invited(&bob, &mut group, &"alice".parse().unwrap()).await.unwrap();
    alice.join(&invitation.welcome).await.unwrap();
}

#[rstest]
#[tokio::test]
async fn two_clients_on_one_backup_are_told_and_stop_fighting(
    #[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere,
) {
    let server = TestServer::start(db).await;
    let one = Owner::of(&server, "alice").await;
    let two = one.copied();
    one.revoke(None).await.unwrap();
    let (mut uploaded, mut told) = (0, 0);
    for _ in 0..10 {
        for client in [&one, &two] {
            match client.refresh().await {
                Ok(report) => uploaded += report.uploaded,
                Err(error) => {
                    assert!(matches!(error, Error::TwoClients { foreign: 33 }) && !error.is_retryable(), "{error}");
                    told += 1;
                }
            }
        }
    }
    assert!(told >= 8, "told {told} times in 20 refreshes");
    assert!(uploaded <= 4 * 33, "{uploaded} were uploaded: they go on fighting");
    // The user chooses the client to keep by a rotation there.
    let report = two.rotate(&|_| ()).await.unwrap();
    assert_eq!(report.pool.fresh, 32);
    is_settled(&server, &two).await;
    let told = one.refresh().await.unwrap_err();
    assert!(matches!(told, Error::TwoClients { .. }), "{told}");
    is_settled(&server, &two).await;
}
