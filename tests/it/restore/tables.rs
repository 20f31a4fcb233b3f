//! Tables that come back from a backup into the database that is served, and databases that go back by themselves.

use std::{path::Path, sync::Arc};

use diesel::{Connection, connection::SimpleConnection};
use jiff::SignedDuration;
use rstest::rstest;
use serde_json::Value;
use tempfile::NamedTempFile;

use super::{blocking, fresh, seen, spent};
use crate::support::{Database, Device, Http, Place, Postgres, Raw, ServerProcess, TestServer, output, program};

/// The tables that are loaded from the backup.
#[derive(Clone, Copy, Debug)]
enum Loaded {
    Everything,
    KeyPackages,
    Lineage,
}

impl Loaded {
    fn tables(self) -> &'static [&'static str] {
        match self {
            Self::Everything => &[
                "users",
                "devices",
                "key_packages",
                "hpke_keys",
                "audit_events",
                "idempotency_keys",
                "enrolments",
                "commits",
                "envelopes",
                "deliveries",
                "signature_keys",
                "lineage",
            ],
            Self::KeyPackages => &["key_packages"],
            Self::Lineage => &["lineage"],
        }
    }

    /// Empties the tables, and loads them as an operator does: the schema stays. Nobody sees them empty: a server that opens
    /// a connection then writes a witness, and the backup's would be a second one.
    fn load(self, place: &Place, backup: &Path) {
        let tables = self.tables();
        let mut database = place.open();
        if let Raw::Postgres(_) = database {
            drop(database);
            let script = NamedTempFile::new().unwrap();
            let mut restore = program("pg_restore");
            restore.args(["--data-only", "--disable-triggers", "--exit-on-error", "--file"]).arg(script.path());
            restore.args(tables.iter().map(|table| format!("--table={table}")));
            output(restore.arg(backup));
            let truncate = format!("TRUNCATE {}", tables.join(", "));
            let mut load = program("psql");
            load.args([
                "--no-psqlrc",
                "--quiet",
                "--single-transaction",
                "--set=ON_ERROR_STOP=1",
                "--dbname",
                &place.url,
            ]);
            output(load.args(["--command", &truncate, "--file"]).arg(script.path()));
            return;
        }
        database.run(&format!("PRAGMA foreign_keys = OFF; ATTACH '{}' AS backup", backup.display()));
        for table in tables {
            let columns = match *table {
                // The others are generated.
                "key_packages" => {
                    "keypackage_ref, device_id, ciphersuite, key_package, not_after, last_resort, state, reservation, \
                     reserved_by, reserved_until, ended_at, spent_group"
                }
                _ => "*",
            };
            let into = if columns == "*" { String::new() } else { format!(" ({columns})") };
            database.run(&format!(
                "BEGIN; DELETE FROM {table}; INSERT INTO {table}{into} SELECT {columns} FROM backup.{table}; COMMIT"
            ));
        }
    }
}

/// A server, and Alice's pool on it, of which all was spent after the backup.
struct Scene {
    server: TestServer,
    alice: Http,
    backup: NamedTempFile,
}

impl Scene {
    async fn new(db: Database, change: impl FnOnce(&mut keypool_server::config::Config)) -> Self {
        let place = Arc::new(fresh(db).await);
        let server = TestServer::start_at(Arc::clone(&place), change).await;
        let anyone = server.anyone();
        let (alice, bob) = (anyone.registered("alice", "laptop").await, anyone.registered("bob", "phone").await);
        alice.uploaded(&Device::new("alice", "laptop").key_packages(5)).await;
        let backup = blocking(move || place.backup()).await;
        spent(&bob, "alice", 5).await;
        server.sweep().await;
        Self { server, alice, backup }
    }

    /// Loads tables of the backup behind the server's back.
    async fn load(&self, what: Loaded) {
        let (place, backup) = (self.server.place(), self.backup.path().to_owned());
        blocking(move || what.load(&place, &backup)).await;
    }
}

/// Had they been spent, nothing of them would be left to withdraw.
async fn is_fenced(alice: &Http) -> bool {
    let (fresh, fenced_at) = seen(alice).await;
    assert_eq!(fresh, 0, "what was spent is handed out again");
    fenced_at.is_string()
}

#[rstest]
#[tokio::test]
async fn tables_that_are_loaded_from_a_backup_are_noticed_at_the_start(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
    #[values(Loaded::Everything, Loaded::KeyPackages, Loaded::Lineage)] what: Loaded,
) {
    let Scene { server, alice, backup } = Scene::new(db, |_| {}).await;
    let place = server.stopped_at();
    let (its, path) = (Arc::clone(&place), backup.path().to_owned());
    blocking(move || what.load(&its, &path)).await;
    let server = TestServer::start_at(place, |_| {}).await;
    assert!(is_fenced(&alice.at(&server.base)).await);
    // Once is enough.
    let fence = seen(&alice.at(&server.base)).await;
    server.sweep().await;
    let second = server.beside(|_| {}).await;
    second.sweep().await;
    assert_eq!(seen(&alice.at(&server.base)).await, fence);
}

#[rstest]
#[tokio::test]
async fn tables_that_are_loaded_from_a_backup_are_noticed_by_the_sweep_of_a_server_that_runs(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
    #[values(Loaded::Everything, Loaded::KeyPackages, Loaded::Lineage)] what: Loaded,
) {
    let scene = Scene::new(db, |_| {}).await;
    let second = scene.server.beside(|_| {}).await;
    scene.load(what).await;
    scene.server.sweep().await;
    assert!(is_fenced(&scene.alice).await);
    let fence = seen(&scene.alice).await;
    // Another server that runs knows of the fence, and does not add one.
    second.sweep().await;
    scene.server.sweep().await;
    assert_eq!(seen(&scene.alice).await, fence);
}

#[rstest]
#[tokio::test]
async fn tables_that_are_loaded_from_a_backup_are_noticed_by_each_new_connection(
    #[values(Loaded::Everything, Loaded::KeyPackages, Loaded::Lineage)] what: Loaded,
) {
    let scene = Scene::new(Database::Postgres, |_| {}).await;
    scene.load(what).await;
    scene.server.database().end_others();
    assert!(is_fenced(&scene.alice).await);
}

#[rstest]
#[tokio::test]
async fn an_emptied_table_of_witnesses_is_noticed(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
    #[values("lineage", "key_packages")] table: &str,
) {
    let scene = Scene::new(db, |_| {}).await;
    scene.server.database().run(&format!("DELETE FROM {table}"));
    scene.server.sweep().await;
    assert!(is_fenced(&scene.alice).await);
}

#[tokio::test]
async fn an_operator_who_vouches_for_the_tables_has_them_as_they_are() {
    let scene = Scene::new(Database::Postgres, |config| {
        config.on_restore = keypool_server::config::OnRestore::Trust;
    })
    .await;
    scene.load(Loaded::KeyPackages).await;
    for _ in 0..2 {
        scene.server.sweep().await;
        assert_eq!(seen(&scene.alice).await, (5, Value::Null));
    }
    // It was vouched for once, and is known from then on.
    let fencing = scene.server.beside(|config| config.on_restore = keypool_server::config::OnRestore::Fence).await;
    assert_eq!(seen(&scene.alice.at(&fencing.base)).await, (5, Value::Null));
}

#[tokio::test]
async fn what_postgresql_does_to_its_tables_is_no_restore() {
    let scene = Scene::new(Database::Postgres, |_| {}).await;
    scene.alice.uploaded(&Device::new("alice", "laptop").key_packages(5)).await;
    for tidying in [
        "VACUUM FREEZE",
        "VACUUM FULL",
        "CLUSTER lineage USING lineage_pkey",
        "CLUSTER key_packages USING key_packages_pkey",
        "REINDEX TABLE key_packages",
        "ANALYZE",
    ] {
        scene.server.database().run(tidying);
        scene.server.database().end_others();
        assert_eq!(seen(&scene.alice).await, (5, Value::Null), "{tidying}");
        scene.server.sweep().await;
        assert_eq!(seen(&scene.alice).await, (5, Value::Null), "{tidying}");
    }
}

/// The statement of docs/development.md, before a migration that rewrites the table.
#[rstest]
#[tokio::test]
async fn a_migration_that_rewrites_a_table_writes_its_witness_first(#[values(false, true)] is_told: bool) {
    let scene = Scene::new(Database::Postgres, |_| {}).await;
    scene.alice.uploaded(&Device::new("alice", "laptop").key_packages(5)).await;
    let guide = include_str!("../../../docs/development.md");
    let mut statements = guide.split("```sql witness\n").nth(1).unwrap().split("```").next().unwrap().to_owned();
    assert!(statements.contains("key_packages") && statements.contains("lineage"), "{statements}");
    if !is_told {
        statements.clear();
    }
    scene.server.database().run(&format!(
        "BEGIN; {statements} ALTER TABLE key_packages ADD COLUMN new BOOLEAN GENERATED ALWAYS AS (last_resort) STORED; \
         ALTER TABLE lineage ADD COLUMN new BOOLEAN GENERATED ALWAYS AS (id = 1) STORED; COMMIT"
    ));
    scene.server.sweep().await;
    assert_eq!(seen(&scene.alice).await.1.is_null(), is_told);
}

/// The whole server goes back to an earlier state, as when a snapshot of its volume is put back: it says of itself that it is
/// the same, and only a server that runs knows that it had come further.
#[tokio::test]
async fn a_snapshot_of_a_volume_is_noticed_by_servers_that_run() {
    let postgres = Arc::new(blocking(Postgres::start).await);
    let place = Arc::new(Place::at(postgres.url("postgres")));
    let server = TestServer::start_at(place, |_| {}).await;
    let anyone = server.anyone();
    let (alice, bob) = (anyone.registered("alice", "laptop").await, anyone.registered("bob", "phone").await);
    alice.uploaded(&Device::new("alice", "laptop").key_packages(5)).await;
    let its = Arc::clone(&postgres);
    let snapshot = blocking(move || {
        its.stop("fast");
        let snapshot = its.snapshot();
        its.go_on();
        snapshot
    })
    .await;
    server.sweep().await;
    spent(&bob, "alice", 5).await;
    let its = Arc::clone(&postgres);
    blocking(move || {
        its.stop("immediate");
        its.put_back(&snapshot);
        its.go_on();
    })
    .await;
    assert!(is_fenced(&alice).await);
}

#[rstest]
#[tokio::test]
async fn the_witness_is_never_swept_counted_or_handed_out(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
) {
    let server = TestServer::start(db).await;
    let mut database = server.database();
    let mut witnesses = || database.number("SELECT count(*) AS n FROM key_packages WHERE device_id = 0 AND NOT live");
    server.advance(SignedDuration::from_hours(24 * 365 * 100));
    server.sweep().await;
    assert_eq!(witnesses(), 1);
    server.store().fence().unwrap();
    assert_eq!(witnesses(), 1);
    server.census().await;
    let metrics = server.anyone().get("/metrics").await.text;
    let mut counted = metrics.lines().filter(|line| line.starts_with("keypool_pool_packages{"));
    assert!(counted.all(|line| line.ends_with(" 0")), "{metrics}");
}

/// A server that may not ask the database for its identity still notices a loaded table.
#[tokio::test]
async fn it_takes_no_privilege_to_notice_a_table_that_was_loaded() {
    let postgres = Arc::new(blocking(Postgres::start).await);
    let mut owner = diesel::PgConnection::establish(&postgres.url("postgres")).unwrap();
    owner
        .batch_execute(
            "REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC; CREATE ROLE keypool LOGIN; \
             GRANT ALL ON SCHEMA public TO keypool",
        )
        .unwrap();
    let place = Place::at(postgres.url("postgres").replace("postgres@", "keypool@"));
    let server = ServerProcess::start(&place).await;
    let alice = Http::new(&server.base).registered("alice", "laptop").await;
    alice.uploaded(&Device::new("alice", "laptop").key_packages(5)).await;
    assert_eq!(seen(&alice).await, (5, Value::Null));
    let address = server.address().to_owned();
    server.kill();
    let place = blocking(move || {
        let backup = place.backup();
        Loaded::KeyPackages.load(&Place::at(postgres.url("postgres")), backup.path());
        std::mem::forget(postgres);
        place
    })
    .await;
    let server = ServerProcess::start_at(&place, &address).await;
    assert!(is_fenced(&alice).await);
    super::operator_runs(&place, "fence");
    assert_ne!(seen(&alice).await.1, Value::Null);
    drop(server);
}
