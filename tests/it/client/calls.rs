//! Calls over a network that loses things.

use std::time::{Duration, Instant};

use keypool_client::{ApiClient, Error, MlsClient, Settings};
use keypool_openapi::{
    Action, Base64Bytes, RegisterRequest, ReleaseRequest, ReserveRequest, RevokeRequest, SpendRequest, State,
    UploadRequest,
};
use rstest::rstest;

use super::helpers::invited;
use super::refresh::is_settled;
use crate::support::{Database, Device, Fault, Owner, PATIENCE, Proxy, TestServer, encode, new_device};

fn header<'h>(request: &'h str, name: &str) -> Option<&'h str> {
    request
        .lines()
        .find_map(|line| line.split_once(": ").filter(|(found, _)| found.eq_ignore_ascii_case(name)))
        .map(|(_, value)| value)
}

#[rstest]
#[tokio::test]
async fn every_call_survives_a_lost_request_and_a_lost_answer(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
    #[values(Fault::Lost, Fault::LostAnswer, Fault::Busy(0))] fault: Fault,
) {
    let server = TestServer::start(db).await;
    let proxy = Proxy::before(&server.base).await;
    let twice = |proxy: &Proxy| {
        let seen = proxy.seen();
        assert_eq!(seen.len(), 2, "{seen:?}");
        assert_eq!(seen[0], seen[1], "the second try is not the first again");
        seen[0].clone()
    };
    let anyone = ApiClient::new(&proxy.base, None).unwrap();
    let request = RegisterRequest { user: "alice".parse().unwrap(), device: "laptop".parse().unwrap() };
    proxy.next(&[fault]);
    let registered = anyone.register(&request, Some(&"k".repeat(32))).await.unwrap();
    twice(&proxy);
    let alice = ApiClient::new(&proxy.base, Some(registered.token.into())).unwrap();
    let packages = Device::new("alice", "laptop").key_packages(3);
    let keypackages = packages.iter().map(|bytes| encode(bytes)).collect();
    proxy.next(&[fault]);
    assert_eq!(alice.upload_key_packages(&UploadRequest::of(keypackages)).await.unwrap().accepted.len(), 3);
    twice(&proxy);

    let bob = server.anyone().registered("bob", "phone").await;
    let bob = ApiClient::new(&proxy.base, Some(bob.token.unwrap().into())).unwrap();
    proxy.next(&[fault]);
    let reserve = ReserveRequest::of("alice".parse().unwrap());
    let held = bob.reserve_key_package(&reserve).await.unwrap().reservations.remove(0);
    assert!(header(&twice(&proxy), "idempotency-key").is_some_and(|key| key.len() >= 32));
    proxy.next(&[fault]);
    let status = alice.get_key_package_status().await.unwrap();
    twice(&proxy);
    assert_eq!((status.reserved, status.fresh), (1, 2), "a lost answer holds nothing");
    let other = bob.reserve_key_package(&reserve).await.unwrap().reservations.remove(0);
    assert_ne!(other.keypackage_ref, held.keypackage_ref, "another call has another key");
    proxy.seen();

    proxy.next(&[fault]);
    let reservation_id = held.reservation_id;
    let spend = SpendRequest::new(reservation_id, Base64Bytes(b"friends".to_vec()));
    assert_eq!(bob.spend_key_package(&spend).await.unwrap().state, State::Spent);
    twice(&proxy);
    proxy.next(&[fault]);
    let release = ReleaseRequest { reservation_id: other.reservation_id };
    assert_eq!(bob.release_key_package(&release).await.unwrap().state, State::Available);
    twice(&proxy);
    proxy.next(&[fault]);
    assert_eq!(bob.devices(&"alice".parse().unwrap()).await.unwrap().devices.len(), 1);
    twice(&proxy);
    proxy.next(&[fault]);
    let revoked = alice.revoke_key_packages(&RevokeRequest { refs: None, all: Some(true) }).await.unwrap();
    assert_eq!(revoked.pool.revoked, 2);
    twice(&proxy);
    proxy.next(&[fault]);
    assert_eq!(alice.get_inventory().await.unwrap().len(), 3);
    twice(&proxy);
    proxy.next(&[fault]);
    let trail = alice.get_audit_trail(None, 100).await.unwrap();
    assert_eq!(trail.events.iter().filter(|event| event.action == Action::Spend).count(), 1);
    twice(&proxy);
}

/// A registration without a key cannot be repeated: its answer holds the token.
#[rstest]
#[tokio::test]
async fn what_is_not_safe_to_repeat_is_not_repeated(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let server = TestServer::start(db).await;
    let proxy = Proxy::before(&server.base).await;
    proxy.next(&[Fault::LostAnswer]);
    let request = RegisterRequest { user: "alice".parse().unwrap(), device: "laptop".parse().unwrap() };
    let lost = ApiClient::new(&proxy.base, None).unwrap().register(&request, None).await.err();
    assert!(matches!(lost, Some(Error::Unreachable { .. })), "{lost:?}");
    assert_eq!(proxy.seen().len(), 1);
}

#[rstest]
#[tokio::test]
async fn the_time_that_is_asked_for_is_waited_and_a_longer_one_than_there_is_is_not(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
) {
    let server = TestServer::start(db).await;
    let alice = server.anyone().registered("alice", "laptop").await;
    let proxy = Proxy::before(&server.base).await;
    let alice = ApiClient::new(&proxy.base, Some(alice.token.unwrap().into())).unwrap();
    proxy.next(&[Fault::Busy(1)]);
    let started = Instant::now();
    alice.get_key_package_status().await.unwrap();
    assert!(started.elapsed() >= Duration::from_secs(1), "tried again after {:?}", started.elapsed());
    proxy.seen();
    proxy.next(&[Fault::Busy(3_600)]);
    let busy = alice.get_key_package_status().await.unwrap_err();
    assert!(busy.is_retryable() && busy.retry_after() == Some(Duration::from_hours(1)), "{busy}");
    assert_eq!(proxy.seen().len(), 1);
}

#[rstest]
#[tokio::test]
async fn a_refusal_is_not_repeated_and_keeps_its_words(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let server = TestServer::start(db).await;
    let alice = server.anyone().registered("alice", "laptop").await;
    let proxy = Proxy::before(&server.base).await;
    let alice = ApiClient::new(&proxy.base, Some(alice.token.unwrap().into())).unwrap();
    let refused = alice.reserve_key_package(&ReserveRequest::of("nobody".parse().unwrap())).await.unwrap_err();
    assert!(refused.to_string().contains("nobody") && !refused.is_retryable(), "{refused}");
    assert_eq!(proxy.seen().len(), 1);
}

/// `init` ends with one device and a full pool, also if any of the answers is lost.
#[rstest]
#[tokio::test]
async fn init_finishes_over_a_network_that_loses_every_other_answer(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
) {
    let server = TestServer::start(db).await;
    let proxy = Proxy::before(&server.base).await;
    proxy.next(&[Fault::LostAnswer, Fault::LostAnswer, Fault::Lost, Fault::LostAnswer, Fault::LostAnswer]);
    let directory = tempfile::tempdir().unwrap();
    let new = new_device(&proxy.base, "alice");
    let (_, report) = MlsClient::init(directory.path(), &new, Settings::default(), &|_| ()).await.unwrap();
    assert_eq!((report.generated, report.uploaded, report.pool.fresh), (33, 33, 32));
    assert_eq!(report.pool.total, 32);
}

/// An upload whose answer never comes, and of which something is spent before the device comes back.
#[rstest]
#[tokio::test]
async fn an_upload_whose_answer_never_came_is_found_by_the_next_refresh(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
) {
    let server = TestServer::start(db).await;
    let alice = Owner::of(&server, "alice").await;
    alice.revoke(None).await.unwrap();
    {
        // Cut off where the upload is under way.
        let refresh = alice.refresh();
        tokio::pin!(refresh);
        let patience = Instant::now() + PATIENCE;
        while server.anyone().get("/metrics").await.text.contains(r#"route="/keypackages/upload",status="200"} 1"#) {
            let _ = futures_util::poll!(refresh.as_mut());
            assert!(Instant::now() < patience, "nothing is uploaded");
        }
    }
    let bob = Owner::of(&server, "bob").await;
    let mut group = bob.create_group(b"friends").unwrap();
    let invitation = invited(&bob, &mut group, &"alice".parse().unwrap()).await.unwrap();
    let report = alice.refresh().await.unwrap();
    assert_eq!((report.uploaded, report.pool.fresh), (0, 31), "nothing is uploaded twice");
    is_settled(&server, &alice).await;
    alice.join(&invitation.welcome).await.unwrap();
}
