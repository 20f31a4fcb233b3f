//! A refresh repairs the pool after any event, and a second refresh finds nothing to do.

use std::time::Duration;

use jiff::SignedDuration;
use keypool_client::{
    CIPHERSUITE, Error, Event, KeyPackagePoolConfig, KeyPackageStatus, MlsClient, PoolStore as _, RefreshReport,
    Settings, Warning,
    openmls::prelude::{Ciphersuite, MlsMessageBodyIn, MlsMessageIn, OpenMlsProvider, ProtocolVersion},
};
use keypool_openapi::{Health, PoolStatus, Reservation, State, UserName};
use keypool_server::config::Limits;
use rstest::rstest;
use serde_json::json;
use tls_codec::Deserialize;

use super::helpers::invited;
use crate::support::{Anywhere, Database, Owner, TestServer, data_directory, new_device};

const P256: Ciphersuite = Ciphersuite::MLS_128_DHKEMP256_AES128GCM_SHA256_P256;
const DAY: SignedDuration = SignedDuration::from_hours(24);

/// Reserves so many KeyPackages of a user, and answers the reservations.
async fn reserved(by: &Owner, user: &str, count: usize) -> Vec<Reservation> {
    let user: UserName = user.parse().unwrap();
    let mut held = Vec::new();
    for _ in 0..count {
        held.extend(by.reserve(&user, None, None, None).await.unwrap().reservations);
    }
    held
}

/// A refresh that must have nothing to do, in one request, or in two if there is something to compare with the server's log.
pub async fn is_settled(server: &TestServer, owner: &Owner) {
    let before = server.requests().await;
    let report = owner.refresh().await.unwrap();
    assert!(report.changed_nothing(), "{report:?}");
    let now = server.requests().await;
    let compares = report.log.as_ref().is_some_and(|log| log.checked + log.waiting + log.unknown > 0);
    assert_eq!(now, before.map(|before| before + 1 + u64::from(compares)));
    agree(owner, &report.pool);
}

/// That the two sides know of the same KeyPackages, with the same counts, and that all here have their keys.
fn agree(owner: &MlsClient, pool: &PoolStatus) {
    assert!(owner.pool().agrees_with(pool).unwrap());
    let (rows, keys, without) = owner.rows_and_keys().unwrap();
    assert_eq!((rows, without), (keys, 0));
}

fn count(owner: &MlsClient, status: KeyPackageStatus) -> usize {
    owner.local_counts().unwrap()[&status]
}

fn done(report: &RefreshReport) -> (usize, usize, usize, usize, usize) {
    (report.removed, report.reconciled, report.revoked, report.generated, report.uploaded)
}

#[rstest]
#[tokio::test]
async fn a_device_fills_its_pool_and_a_second_refresh_is_one_request(
    #[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere,
) {
    let server = TestServer::start(db).await;
    let (alice, report) =
        Owner::with(&server, &new_device(&server.base, "alice"), KeyPackagePoolConfig::default()).await;
    assert_eq!(done(&report), (0, 0, 0, 33, 33));
    assert_eq!((report.pool.fresh, report.pool.last_resort.present), (32, true));
    assert_eq!((report.rejected.len(), report.warnings.len()), (0, 0));
    assert_eq!(count(&alice, KeyPackageStatus::Available), 33);
    is_settled(&server, &alice).await;

    // 24 of 32 handed out: 8 fresh are the low watermark, and one less is below it. A user holds 8 at the same time.
    let bob = Owner::of(&server, "bob").await;
    for _ in 0..2 {
        for held in reserved(&bob, "alice", 8).await {
            bob.spend(held.reservation_id, b"friends").await.unwrap();
        }
    }
    reserved(&bob, "alice", 8).await;
    assert_eq!(done(&alice.refresh().await.unwrap()), (0, 24, 0, 0, 0));
    assert_eq!(count(&alice, KeyPackageStatus::Reserved), 8);
    is_settled(&server, &alice).await;
    let carol = Owner::of(&server, "carol").await;
    reserved(&carol, "alice", 1).await;
    let refilled = alice.refresh().await.unwrap();
    assert_eq!(done(&refilled), (0, 1, 0, 25, 25));
    assert_eq!(refilled.pool.fresh, 32);
    assert_eq!(refilled.warnings, [Warning::Draining { user: "bob".parse().unwrap(), handed_out: 24 }]);
    agree(&alice, &refilled.pool);
}

#[rstest]
#[tokio::test]
async fn who_reserved_and_spent_what_is_known_after_a_refresh(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
) {
    let server = TestServer::start(db).await;
    let (alice, bob) = (Owner::of(&server, "alice").await, Owner::of(&server, "bob").await);
    let held = reserved(&bob, "alice", 2).await;
    bob.spend(held[0].reservation_id, b"friends").await.unwrap();
    assert_eq!(done(&alice.refresh().await.unwrap()), (0, 2, 0, 0, 0));
    let row = |index: usize| alice.store().find_metadata(&held[index].keypackage_ref).unwrap().unwrap();
    assert_eq!((row(0).status, row(1).status), (KeyPackageStatus::Spent, KeyPackageStatus::Reserved));
    assert_eq!(row(0).spent_group_id.as_deref(), Some(&b"friends"[..]));
    assert_eq!(row(0).spent_by.as_deref(), Some("bob/laptop"));
    assert_eq!(row(0).spent_at.unwrap().as_second(), server.now().as_second());
    assert_eq!((row(1).reserved_by.as_deref(), row(1).reserved_at.is_some()), (Some("bob/laptop"), true));
    assert_eq!(row(1).reservation_id, Some(held[1].reservation_id));
    assert_eq!(row(1).reservation_expires_at, Some(held[1].expires_at));
    is_settled(&server, &alice).await;

    server.advance(SignedDuration::from_secs(60));
    alice.advance(SignedDuration::from_secs(60));
    let lapsed = alice.refresh().await.unwrap();
    assert_eq!((done(&lapsed), lapsed.pool.lapsed), ((0, 1, 0, 0, 0), 1));
    assert_eq!(row(1).status, KeyPackageStatus::Available);
    assert_eq!(alice.pool().get_fresh_count(CIPHERSUITE, server.now()).unwrap(), 30);
    is_settled(&server, &alice).await;
}

#[rstest]
#[tokio::test]
async fn what_the_server_offers_without_keys_here_is_withdrawn(
    #[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere,
) {
    let server = TestServer::start(db).await;
    let (alice, bob) = (Owner::of(&server, "alice").await, Owner::of(&server, "bob").await);
    // Bob adds her without ever telling the server, and she joins: her keys are gone, and the server does not know.
    let held = reserved(&bob, "alice", 1).await.remove(0);
    let message = MlsMessageIn::tls_deserialize(&mut held.keypackage.0.as_slice()).unwrap();
    let MlsMessageBodyIn::KeyPackage(package) = message.extract() else { panic!("no KeyPackage") };
    let package = package.validate(bob.provider().crypto(), ProtocolVersion::Mls10).unwrap();
    let mut group = bob.create_group(b"friends").unwrap();
    let signer = bob.identity().signer(CIPHERSUITE).unwrap();
    let (_, welcome, _) = group.add_members(&bob.provider(), &*signer, &[package]).unwrap();
    alice.join(&welcome.to_bytes().unwrap()).await.unwrap();
    let lost = held.keypackage_ref;
    let report = alice.refresh().await.unwrap();
    assert_eq!(done(&report), (0, 0, 1, 0, 0));
    let item = alice.inventory().await.unwrap().into_iter().find(|item| item.keypackage_ref == lost).unwrap();
    assert_eq!(item.state, State::Revoked);
    // The log shows no spend by Bob.
    let is_of_log = |warning: &Warning| matches!(warning, Warning::UnexpectedWelcome { .. });
    assert!(report.warnings.iter().all(is_of_log), "a join is no other client: {:?}", report.warnings);
    is_settled(&server, &alice).await;
}

#[rstest]
#[tokio::test]
async fn what_the_server_has_lost_is_uploaded_again(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let server = TestServer::start(db).await;
    let (alice, bob) = (Owner::of(&server, "alice").await, Owner::of(&server, "bob").await);
    let held = reserved(&bob, "alice", 1).await.remove(0);
    alice.refresh().await.unwrap();
    // All but the first three, of which the reserved one may be one.
    let inventory = alice.inventory().await.unwrap();
    let lost: Vec<_> =
        inventory.iter().map(|item| &item.keypackage_ref).take(3).chain([&held.keypackage_ref]).collect();
    let mut database = server.database();
    for one in &lost {
        let one = database.bytes(one.as_bytes());
        database.run(&format!("DELETE FROM hpke_keys WHERE keypackage_ref = {one}"));
        database.run(&format!("DELETE FROM key_packages WHERE keypackage_ref = {one}"));
    }
    let lost_fresh = lost.iter().filter(|one| ***one != held.keypackage_ref).count().min(3);
    let report = alice.refresh().await.unwrap();
    assert_eq!((report.revoked, report.generated, report.uploaded), (0, 0, lost_fresh));
    assert_eq!(report.pool.fresh, 31);
    // Somebody may have this one: it is not offered a second time.
    let row = alice.store().find_metadata(&held.keypackage_ref).unwrap().unwrap();
    let kept = row.keep_until.unwrap().as_second() - server.now().as_second();
    assert_eq!((row.status, kept), (KeyPackageStatus::Failed, DAY.as_secs()));
    is_settled(&server, &alice).await;
}

#[rstest]
#[tokio::test]
async fn what_was_revoked_elsewhere_is_made_anew(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let server = TestServer::start(db).await;
    let alice = Owner::of(&server, "alice").await;
    assert_eq!(alice.revoke(None).await.unwrap().revoked.len(), 33);
    let report = alice.refresh().await.unwrap();
    assert_eq!((done(&report), report.pool.fresh), ((0, 33, 0, 33, 33), 32));
    assert_eq!(count(&alice, KeyPackageStatus::Failed), 33, "somebody may hold one: they are kept for a day");
    is_settled(&server, &alice).await;
    server.advance(DAY);
    alice.advance(DAY);
    assert_eq!(alice.refresh().await.unwrap().removed, 33);
    is_settled(&server, &alice).await;
}

/// A server whose time is near the end of what a device that begins now generates, so that the end can come while
/// OpenMLS, which goes by the machine's clock, still takes what is generated then.
async fn near_the_end(db: Database) -> (TestServer, Owner, SignedDuration) {
    let lifetime = DAY * 30;
    let then = crate::support::now() - lifetime + SignedDuration::from_mins(30);
    let server = TestServer::start_then(db, then, |config| config.limits = Limits::Off).await;
    let (alice, _) = Owner::with(&server, &new_device(&server.base, "alice"), for_a_month()).await;
    (server, alice, lifetime)
}

fn for_a_month() -> KeyPackagePoolConfig {
    KeyPackagePoolConfig { lifetime: Duration::from_hours(30 * 24), ..KeyPackagePoolConfig::default() }
}

#[rstest]
#[tokio::test]
async fn what_expires_is_replaced_and_removed_a_day_later(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
) {
    let (server, alice, lifetime) = near_the_end(db).await;
    server.advance(lifetime);
    alice.advance(lifetime);
    let report = alice.refresh().await.unwrap();
    assert_eq!((done(&report), report.pool.fresh), ((0, 0, 0, 33, 33), 32));
    assert_eq!(count(&alice, KeyPackageStatus::Expired), 33);
    is_settled(&server, &alice).await;
    server.advance(DAY);
    alice.advance(DAY);
    assert_eq!(alice.refresh().await.unwrap().removed, 33);
    is_settled(&server, &alice).await;
}

#[rstest]
#[tokio::test]
async fn an_invitation_under_way_over_the_end_of_its_package_still_joins(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
) {
    let (server, alice, lifetime) = near_the_end(db).await;
    let (bob, _) = Owner::with(&server, &new_device(&server.base, "bob"), for_a_month()).await;
    let group = bob.membership().create_named_group("friends").unwrap();
    bob.membership().invite(&group.group_id, &["alice".parse().unwrap()]).await.unwrap();
    server.advance(lifetime);
    alice.advance(lifetime);
    let report = alice.refresh().await.unwrap();
    assert_eq!(report.pool.fresh, 32);
    alice.hears().await;
    assert_eq!(alice.membership().members(&group.group_id).unwrap().len(), 2);
}

/// Here the keys end by their withdrawal, a day after it, and not by their lifetime.
#[rstest]
#[tokio::test]
async fn an_invitation_that_waits_is_read_before_its_keys_are_removed(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
) {
    let server = TestServer::start(db).await;
    let (alice, bob) = (Owner::of(&server, "alice").await, Owner::of(&server, "bob").await);
    let inventory = alice.inventory().await.unwrap().into_iter();
    alice.revoke(Some(inventory.filter(|one| !one.last_resort).map(|one| one.keypackage_ref).collect())).await.unwrap();
    let group = bob.membership().create_named_group("friends").unwrap();
    bob.membership().invite(&group.group_id, &["alice".parse().unwrap()]).await.unwrap();
    // Replaces the last resort, which the invitation is for.
    assert_eq!(alice.refresh().await.unwrap().generated, 33);
    server.advance(DAY);
    alice.advance(DAY);
    assert_eq!(alice.refresh().await.unwrap().removed, 33);
    assert_eq!(alice.membership().members(&group.group_id).unwrap().len(), 2);
    assert!(alice.hears().await.iter().any(|event| matches!(event, Event::Joined { .. })));
    is_settled(&server, &alice).await;
}

#[rstest]
#[tokio::test]
async fn a_last_resort_that_was_used_is_replaced_and_the_old_one_can_still_be_joined_with(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
) {
    let server = TestServer::start_with(db, |config| config.limits = Limits::Off).await;
    let (alice, bob) = (Owner::of(&server, "alice").await, Owner::of(&server, "bob").await);
    reserved(&bob, "alice", 32).await;
    let mut group = bob.create_group(b"friends").unwrap();
    let invitation = invited(&bob, &mut group, &"alice".parse().unwrap()).await.unwrap();
    assert!(invitation.added[0].last_resort);
    let report = alice.refresh().await.unwrap();
    assert_eq!((report.generated, report.uploaded), (33, 33));
    assert_eq!((report.pool.last_resort.present, report.pool.last_resort.uses), (true, 0));
    is_settled(&server, &alice).await;
    assert_eq!(alice.join(&invitation.welcome).await.unwrap().members().count(), 2);
    server.advance(DAY);
    alice.advance(DAY);
    alice.refresh().await.unwrap();
    let old = alice.store().find_metadata(&invitation.added[0].keypackage_ref).unwrap();
    assert_eq!(old, None, "its keys are kept for a day, and no longer");
}

#[rstest]
#[tokio::test]
async fn a_clock_that_jumps_deletes_nothing_and_is_told(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let server = TestServer::start(db).await;
    let alice = Owner::of(&server, "alice").await;
    for (jump, seconds) in [(DAY * 400, 400 * 86_400), (-DAY * 800, -400 * 86_400)] {
        alice.advance(jump);
        let report = alice.refresh().await.unwrap();
        assert!(report.changed_nothing(), "{report:?}");
        assert_eq!(report.warnings, [Warning::ClockSkew { seconds }]);
        assert_eq!(count(&alice, KeyPackageStatus::Available), 33);
    }
    // A KeyPackage that is generated while the clock is wrong has the server's time.
    alice.revoke(None).await.unwrap();
    let report = alice.refresh().await.unwrap();
    assert_eq!((report.uploaded, report.pool.fresh, report.rejected.len()), (33, 32, 0));
}

#[rstest]
#[tokio::test]
async fn each_ciphersuite_has_a_pool_of_its_own(#[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere) {
    let server = TestServer::start(db).await;
    let mut new = new_device(&server.base, "alice");
    new.ciphersuites.push(P256);
    let (alice, report) = Owner::with(&server, &new, KeyPackagePoolConfig::default()).await;
    assert_eq!((report.generated, report.uploaded, report.pool.fresh), (66, 66, 64));
    let parts: Vec<_> = report.pool.ciphersuites.iter().map(|part| (part.ciphersuite, part.fresh)).collect();
    assert_eq!(parts, [(1, 32), (2, 32)]);
    is_settled(&server, &alice).await;
    let bob = Owner::of(&server, "bob").await;
    for _ in 0..25 {
        let held = bob.reserve(&"alice".parse().unwrap(), None, Some(2), None).await.unwrap().reservations.remove(0);
        bob.spend(held.reservation_id, b"friends").await.unwrap();
    }
    let report = alice.refresh().await.unwrap();
    assert_eq!((report.generated, report.uploaded), (25, 25));
    let of_two = report.pool.ciphersuites.iter().find(|part| part.ciphersuite == 2).unwrap();
    assert_eq!((of_two.fresh, of_two.spent), (32, 25));
}

#[rstest]
#[tokio::test]
async fn a_server_that_refuses_everything_is_said_and_never_asked_in_a_loop(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
) {
    let server = TestServer::start_with(db, |config| config.ciphersuites = vec![3]).await;
    let directory = tempfile::tempdir().unwrap();
    let settings = Settings::default();
    let new = new_device(&server.base, "alice");
    let refused = MlsClient::init(directory.path(), &new, settings, &|_| ()).await.unwrap_err();
    assert!(matches!(refused, Error::AllRejected(_)) && !refused.is_retryable(), "{refused}");
    assert!(refused.to_string().contains("unsupported-ciphersuite"), "{refused}");
    let before = server.requests().await;
    let alice = MlsClient::open(directory.path()).unwrap();
    assert!(alice.refresh_key_packages(&|_| ()).await.is_err());
    assert_eq!(server.requests().await.unwrap() - before.unwrap(), 2, "a status and one upload");
    let (rows, keys, _) = alice.rows_and_keys().unwrap();
    assert_eq!((rows, keys), (33, 33), "what was refused before is gone");
}

#[rstest]
#[tokio::test]
async fn a_pool_that_starts_with_one_grows_to_its_target(#[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere) {
    let server = TestServer::start(db).await;
    let alice = Owner::of(&server, "alice").await;
    let refs: Vec<_> = alice.inventory().await.unwrap().into_iter().filter(|item| !item.last_resort).collect();
    let all_but_one = refs[1..].iter().map(|item| item.keypackage_ref.clone()).collect();
    alice.revoke(Some(all_but_one)).await.unwrap();
    assert_eq!(alice.http().status().await["fresh"], json!(1));
    let alice = alice.reopened(|_| {});
    assert_eq!(alice.refresh().await.unwrap().pool.fresh, 32);
    is_settled(&server, &alice).await;
}

/// KeyPackages that are uploaded together end together. A device that replaced them after that could not be added for a while.
#[rstest]
#[tokio::test]
async fn a_pool_is_replaced_two_days_before_it_is_no_longer_handed_out(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
) {
    let server = TestServer::start_with(db, |config| config.min_remaining = Duration::from_hours(24)).await;
    let alice = Owner::of(&server, "alice").await;
    let advance = |span| {
        server.advance(span);
        alice.advance(span);
    };
    // They are handed out until their last day.
    advance(DAY * 11);
    is_settled(&server, &alice).await;
    advance(SignedDuration::from_secs(1));
    let report = alice.refresh().await.unwrap();
    assert_eq!((done(&report), report.pool.fresh), ((0, 0, 0, 33, 33), 64));
    assert_eq!((report.pool.expiring_soon, report.pool.health), (32, Health::Good));
    is_settled(&server, &alice).await;
    advance(DAY * 2);
    let report = alice.refresh().await.unwrap();
    assert_eq!((report.pool.fresh, report.pool.expired, report.generated), (32, 32, 0));
    assert_eq!(alice.pool().as_offered_by(&report.pool).get_fresh_count(CIPHERSUITE, server.now()).unwrap(), 32);
    assert_eq!(alice.pool().get_fresh_count(CIPHERSUITE, server.now()).unwrap(), 64);
}

/// Nobody could ever add the device. It says so when it fills its pool, and not when somebody tries.
#[rstest]
#[tokio::test]
async fn a_lifetime_that_the_server_never_hands_out_is_told(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
) {
    let server = TestServer::start_with(db, |config| config.min_remaining = Duration::from_hours(20 * 24)).await;
    let directory = data_directory();
    let refused =
        MlsClient::init(directory.path(), &new_device(&server.base, "alice"), Settings::default(), &|_| ()).await;
    let told = refused.err().map(|error| error.with_causes()).unwrap_or_default();
    assert!(told.contains("valid for another 480h") && told.contains("336h"), "{told}");
}
