//! A real server whose operator lies, by writing into its database behind its back. The party that docs/transparency.md names
//! finds it.

use std::{path::Path, process::Command};

use jiff::SignedDuration;
use keypool_client::{
    Error, Finding, KeyPackagePoolConfig, LogError, RefreshReport, Result, Warning, openmls::prelude::Ciphersuite,
};
use keypool_openapi::{Reservation, ReservationId};
use keypool_server::config::Limits;
use keypool_transparency::{
    contradiction::Dossier, files::ProofFile, key_package::KeyPackageFields, package::PackageId,
};
use rstest::rstest;

use super::{
    checks::policy,
    twins::{put_beside, twin},
};
use crate::support::{Database, Device, Owner, Raw, TestServer, binary, new_device};

/// What the operator writes to make the KeyPackage look as if it had never been handed out.
const NEVER: &str = "reservation = NULL, reserved_by = NULL, reserved_until = NULL, step = -1, opened = NULL";
/// To make it look as if its first hand-out had lapsed.
const LAPSED: &str = "reserved_until = 1, step = 2";

struct Scene {
    server: TestServer,
    alice: Owner,
    bob: Owner,
    carol: Owner,
}

impl Scene {
    /// Alice has one KeyPackage and a last resort.
    async fn new(db: Database) -> Self {
        let server = TestServer::start_with(db, |config| config.limits = Limits::Off).await;
        let one = KeyPackagePoolConfig { target_pool_size: 1, low_watermark: 1, ..KeyPackagePoolConfig::DEFAULT };
        let (alice, _) = Owner::with(&server, &new_device(&server.base, "alice"), one).await;
        // The server forgets the bytes of what is spent.
        server.database().run("CREATE TABLE kept_packages AS SELECT keypackage_ref, key_package FROM key_packages");
        let (bob, carol) = (Owner::of(&server, "bob").await, Owner::of(&server, "carol").await);
        Self { server, alice, bob, carol }
    }

    /// Makes Alice's KeyPackage look as if nobody held it.
    fn frees(&self, with: &str) {
        self.writes(&format!(
            "UPDATE key_packages SET state = 'available', ended_at = NULL, spent_group = NULL, {with}, key_package = (
                     SELECT kept.key_package FROM kept_packages AS kept
                     WHERE kept.keypackage_ref = key_packages.keypackage_ref
                 )
             WHERE NOT last_resort AND device_id IN (SELECT id FROM devices WHERE user_name = 'alice')"
        ));
    }

    fn writes(&self, sql: &str) {
        self.server.database().run(sql);
    }

    /// Changes each event of an action before anybody reads it.
    fn changes_events(&self, action: &str, column: &str, value: &str) {
        let mut database = self.server.database();
        let sql = match database {
            Raw::Postgres(_) => format!(
                "CREATE FUNCTION lie() RETURNS trigger LANGUAGE plpgsql AS
                     $$ BEGIN NEW.{column} := {value}; RETURN NEW; END $$;
                 CREATE TRIGGER lie BEFORE INSERT ON audit_events FOR EACH ROW WHEN (NEW.action = '{action}')
                     EXECUTE FUNCTION lie()"
            ),
            Raw::Sqlite(_) => format!(
                "CREATE TRIGGER lie AFTER INSERT ON audit_events WHEN NEW.action = '{action}'
                     BEGIN UPDATE audit_events SET {column} = {value} WHERE id = NEW.id; END"
            ),
        };
        database.run(&sql);
    }

    fn key(who: &Owner) -> String {
        who.log().state().unwrap().first_key.unwrap()
    }

    /// The device has found that the server lied, and does not use it any more.
    fn is_stopped(who: &Owner, outcome: Result<RefreshReport>) -> Finding {
        let Err(Error::Log(LogError::Misbehaved(finding))) = outcome else { panic!("{outcome:?}") };
        assert_eq!(who.log().findings().unwrap(), [(*finding).clone()]);
        *finding
    }

    /// The file alone convinces everybody who has the log's key.
    fn is_proven(who: &Owner, outcome: Result<RefreshReport>, problem: &str) {
        let finding = Self::is_stopped(who, outcome);
        assert!(finding.is_proven && finding.problem.contains(problem), "{finding:?}");
        assert_eq!(judged(&finding.file, &Self::key(who)), Some(1));
    }

    /// The device knows it, and cannot prove it to others.
    fn is_reported(who: &Owner, outcome: Result<RefreshReport>, problem: &str) {
        let finding = Self::is_stopped(who, outcome);
        assert!(!finding.is_proven && finding.problem.contains(problem), "{finding:?}");
    }

    /// A stranger who reads the log finds a tag twice.
    fn is_found_by_auditors(&self, key: &str, origin_path: &str) {
        let directory = tempfile::tempdir().unwrap();
        let url = format!("{}/{origin_path}", self.server.base);
        let output = Command::new(binary("keypool-verify"))
            .current_dir(directory.path())
            .args(["audit", "--log", &url, "--state", "state", "--vkey", key])
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stdout));
        assert_eq!(judged(&directory.path().join("state/evidence.json"), key), Some(1));
    }
}

/// The exit code of `keypool-verify evidence`.
fn judged(file: &Path, key: &str) -> Option<i32> {
    Command::new(binary("keypool-verify"))
        .arg("evidence")
        .arg(file)
        .args(["--vkey", key])
        .output()
        .unwrap()
        .status
        .code()
}

async fn reserved(by: &Owner) -> Result<Reservation> {
    Ok(by.reserve(&"alice".parse().unwrap(), None, None, None).await?.reservations.remove(0))
}

/// What a device has of a hand-out, for others.
async fn exported(by: &Owner, id: ReservationId) -> (ProofFile, PackageId) {
    let exported = by.log().export_proof(id).await.unwrap();
    let package = PackageId::of(&KeyPackageFields::parse(&exported.key_package).unwrap());
    (serde_json::from_str(&exported.proof).unwrap(), package)
}

#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn one_number_for_two_adders_is_found_by_strangers(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let scene = Scene::new(db).await;
    let first = reserved(&scene.bob).await.unwrap();
    scene.server.sequence().await;
    scene.frees(NEVER);
    let second = reserved(&scene.carol).await.unwrap();
    assert_eq!((first.keypackage_ref, first.handout), (second.keypackage_ref, second.handout));
    scene.server.sequence().await;
    let anyone = scene.server.anyone();
    let path = anyone.get("/log").await.ok()["origin"]["path"].as_str().unwrap().to_owned();
    scene.is_found_by_auditors(&Scene::key(&scene.bob), &path);
    // The two of them, with what each has.
    let (bobs, package) = exported(&scene.bob, first.reservation_id).await;
    let (carols, _) = exported(&scene.carol, second.reservation_id).await;
    let receipts = [bobs.hand_out.receipts, carols.hand_out.receipts].concat();
    let dossier = Dossier { receipts, ..Dossier::default() };
    assert!(dossier.evidence(&package, &policy(&anyone).await).is_some());
}

#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn a_hand_out_after_a_spend_is_proven_by_the_second_adder(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
) {
    let scene = Scene::new(db).await;
    let first = reserved(&scene.bob).await.unwrap();
    scene.bob.spend(first.reservation_id, b"friends").await.unwrap();
    scene.frees(LAPSED);
    let second = reserved(&scene.carol).await.unwrap();
    assert_eq!(second.handout, Some(1));
    scene.server.sequence().await;
    let outcome = scene.carol.refresh().await;
    Scene::is_proven(&scene.carol, outcome, "handed out after the end of hand-out 0");
    // All that uses the server is refused, also by a new process, until the user decides otherwise.
    let stopped = scene.carol.status().await.unwrap_err();
    assert!(matches!(stopped, Error::Log(LogError::Misbehaved(_))), "{stopped:?}");
    let carol = scene.carol.reopened(|_| {});
    assert!(matches!(carol.status().await, Err(Error::Log(LogError::Misbehaved(_)))));
    carol.log().dismiss_findings().unwrap();
    carol.status().await.unwrap();
}

#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn a_reservation_that_ends_early_is_reported_by_the_adder_that_lost_it(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
) {
    let scene = Scene::new(db).await;
    let first = reserved(&scene.bob).await.unwrap();
    let past = (scene.server.now() - SignedDuration::from_mins(5)).as_second();
    scene.writes(&format!("UPDATE key_packages SET reserved_until = {past} WHERE reservation IS NOT NULL"));
    let second = reserved(&scene.carol).await.unwrap();
    assert_eq!((first.keypackage_ref, second.handout), (second.keypackage_ref, Some(1)));
    scene.bob.spend(first.reservation_id, b"friends").await.unwrap_err();
    scene.server.sequence().await;
    let outcome = scene.bob.refresh().await;
    Scene::is_reported(&scene.bob, outcome, "before the time until which the reservation held");
    // The next adder's receipt has the time of the next hand-out: with it, everybody is convinced.
    let carols = scene.carol.refresh().await.unwrap();
    assert_eq!(carols.log.unwrap().checked, 1);
}

#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn a_false_last_resort_is_refused_before_it_is_used(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
) {
    let scene = Scene::new(db).await;
    let of_alice = "device_id IN (SELECT id FROM devices WHERE user_name = 'alice')";
    let (truth, lie) = match db {
        Database::Postgres => ("true", "false"),
        Database::Sqlite => ("1", "0"),
    };
    scene.writes(&format!("DELETE FROM key_packages WHERE last_resort = {truth} AND {of_alice}"));
    scene.writes(&format!("UPDATE key_packages SET last_resort = {truth} WHERE last_resort = {lie} AND {of_alice}"));
    let refused = reserved(&scene.bob).await.unwrap_err();
    let Error::Log(LogError::Misbehaved(finding)) = refused else { panic!("{refused:?}") };
    assert!(!finding.is_proven && finding.problem.contains("no last_resort extension"), "{finding:?}");
}

#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn a_second_ref_of_the_same_keys_is_proven_by_the_adder_of_both(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
) {
    let scene = Scene::new(db).await;
    let suite = Ciphersuite::MLS_128_DHKEMP256_AES128GCM_SHA256_P256;
    let dave = Device::new("dave", "laptop").of_suite(suite);
    let http = scene.server.anyone().registered("dave", "laptop").await;
    let package = dave.key_package();
    http.uploaded(&[&package]).await;
    let of_dave = async || {
        let answer = scene.bob.reserve(&"dave".parse().unwrap(), None, Some(2), None).await?;
        Ok::<_, Error>(answer.reservations[0].clone())
    };
    of_dave().await.unwrap();
    put_beside(&mut scene.server.database(), &twin(&package));
    let refused = of_dave().await.unwrap_err();
    let Error::Log(LogError::Misbehaved(finding)) = refused else { panic!("{refused:?}") };
    assert!(finding.is_proven && finding.problem.contains("handed out to this device before"), "{finding:?}");
    assert_eq!(judged(&finding.file, &Scene::key(&scene.bob)), Some(1));
}

#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn a_hand_out_after_a_revoke_is_proven_by_its_owner_and_by_its_adder(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
) {
    let scene = Scene::new(db).await;
    reserved(&scene.bob).await.unwrap();
    scene.alice.revoke(None).await.unwrap();
    scene.frees(LAPSED);
    assert_eq!(reserved(&scene.carol).await.unwrap().handout, Some(1));
    scene.server.sequence().await;
    let outcome = scene.carol.refresh().await;
    Scene::is_proven(&scene.carol, outcome, "handed out after the end of hand-out 0");
    // The server tells the owner that it is revoked.
    scene.writes("UPDATE key_packages SET state = 'revoked', ended_at = 1 WHERE reservation IS NOT NULL");
    let outcome = scene.alice.refresh().await;
    Scene::is_proven(&scene.alice, outcome, "handed out after the end of hand-out 0");
}

/// The receipt of the answer and the leaf of the log differ.
#[rstest]
#[case::another_bind("reserve", "bind", "NULL")]
#[case::another_end("spend", "action", "'lapse'")]
#[case::another_group("spend", "group_id", "NULL")]
#[case::another_spender("spend", "actor", "(SELECT id FROM devices WHERE user_name = 'carol')")]
#[tokio::test(flavor = "multi_thread")]
async fn a_leaf_that_is_not_the_promised_one_is_proven_by_the_adder(
    #[case] action: &str,
    #[case] column: &str,
    #[case] value: &str,
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
) {
    let scene = Scene::new(db).await;
    scene.changes_events(action, column, value);
    let reservation = reserved(&scene.bob).await.unwrap();
    scene.bob.spend(reservation.reservation_id, b"friends").await.unwrap();
    scene.server.sequence().await;
    let finding = match scene.bob.refresh().await {
        Err(Error::Log(LogError::Misbehaved(finding))) => finding,
        // The server does not give away another's opening, and the receipt still contradicts the leaf.
        outcome => panic!("{outcome:?}"),
    };
    assert!(finding.is_proven, "{finding:?}");
    assert_eq!(judged(&finding.file, &Scene::key(&scene.bob)), Some(1));
}

/// The answer to the Commit has a receipt, too.
#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_is_logged_as_a_lapse_is_proven_by_the_adder(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
) {
    let scene = Scene::new(db).await;
    scene.changes_events("spend", "action", "'lapse'");
    let group = scene.bob.membership().create_named_group("friends").unwrap();
    scene.bob.membership().invite(&group.group_id, &["alice".parse().unwrap()]).await.unwrap();
    scene.server.sequence().await;
    let outcome = scene.bob.refresh().await;
    Scene::is_proven(&scene.bob, outcome, "another event");
}

#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn a_welcome_by_nobody_to_whom_it_was_handed_accuses_nobody(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
) {
    let scene = Scene::new(db).await;
    scene.changes_events("spend", "actor", "(SELECT id FROM devices WHERE user_name = 'carol')");
    let group = scene.bob.membership().create_named_group("friends").unwrap();
    scene.bob.membership().invite(&group.group_id, &["alice".parse().unwrap()]).await.unwrap();
    scene.alice.hears().await;
    scene.server.sequence().await;
    let report = scene.alice.refresh().await.unwrap();
    let unexpected = Warning::UnexpectedWelcome { from: "bob/laptop".to_owned() };
    assert!(report.warnings.contains(&unexpected), "{:?}", report.warnings);
    scene.alice.status().await.unwrap();
}

/// The server says that another device made the reservation. That is no proof, as nothing is that is not signed.
#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn a_reservation_that_is_logged_as_anothers_cannot_be_told(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
) {
    let scene = Scene::new(db).await;
    reserved(&scene.bob).await.unwrap();
    scene.changes_events("reserve", "actor", "(SELECT id FROM devices WHERE user_name = 'carol')");
    reserved(&scene.bob).await.unwrap();
    scene.server.sequence().await;
    let log = scene.bob.refresh().await.unwrap().log.unwrap();
    assert_eq!((log.checked, log.unknown), (1, 1), "and the other one is checked all the same");
}

/// A leaf that never comes proves nothing until witnesses have seen two later checkpoints.
#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn a_leaf_that_is_left_out_cannot_be_told(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let scene = Scene::new(db).await;
    scene.changes_events("reserve", "step", "NULL");
    reserved(&scene.bob).await.unwrap();
    scene.server.sequence().await;
    let log = scene.bob.refresh().await.unwrap().log.unwrap();
    assert_eq!((log.checked, log.unknown), (0, 1));
}

/// The tables of the log.
const TABLES: [&str; 3] = ["log_state", "log_tiles", "log_positions"];

#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn two_histories_are_proven_by_a_device_that_saw_one(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
) {
    let scene = Scene::new(db).await;
    scene.server.sequence().await;
    for table in TABLES {
        scene.writes(&format!("CREATE TABLE kept_{table} AS SELECT * FROM {table}"));
    }
    reserved(&scene.bob).await.unwrap();
    scene.server.sequence().await;
    let before = scene.carol.refresh().await.unwrap().log.unwrap();
    for table in TABLES {
        scene.writes(&format!("DELETE FROM {table}; INSERT INTO {table} SELECT * FROM kept_{table}"));
    }
    // An older checkpoint proves nothing: a replica or a cache may have it.
    let older = scene.carol.refresh().await.unwrap();
    assert_eq!(older.warnings, []);
    let mut larger = 0;
    while larger <= before.size {
        // The last resort, again and again.
        reserved(&scene.bob).await.unwrap();
        scene.server.sequence().await;
        let size = scene.server.database().number("SELECT size AS n FROM log_state");
        larger = u64::try_from(size).unwrap();
    }
    let outcome = scene.carol.refresh().await;
    Scene::is_proven(&scene.carol, outcome, "two histories");
}

/// The owner's trail lacks a hand-out that the log has. Its answers do not show that; an auditor's files do.
#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn a_hand_out_that_is_missing_from_the_trail_cannot_be_told_by_the_owner_alone(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
) {
    let scene = Scene::new(db).await;
    let held = reserved(&scene.bob).await.unwrap();
    scene.bob.spend(held.reservation_id, b"friends").await.unwrap();
    scene.server.sequence().await;
    let fine = scene.alice.log().verify_trail(&|_| {}).await.unwrap();
    assert!(fine.len() == 1 && fine[0].agrees == Some(true), "{fine:?}");
    scene.writes("DELETE FROM audit_events WHERE action = 'spend'");
    let told = scene.alice.log().verify_trail(&|_| {}).await.unwrap();
    assert!(told.len() == 1 && told[0].agrees.is_none(), "{told:?}");
}
