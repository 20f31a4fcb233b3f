//! The schema goes up, down and up again, and is the same set of steps on both databases.

use std::{collections::BTreeSet, fs, path::PathBuf, sync::Arc};

use diesel::{
    Connection, PgConnection, QueryableByName, RunQueryDsl, SqliteConnection, backend::Backend, sql_types::BigInt,
};
use diesel_migrations::MigrationHarness;
use jiff::SignedDuration;
use keypool_validation::token::Token;
use rstest::rstest;
use serde_json::{Value, json};

use crate::support::{Database, Device, Http, Raw, TestServer, encode, group, migrations, now, repository};

fn steps(folder: &str) -> PathBuf {
    repository().join("migrations").join(folder)
}

#[derive(QueryableByName)]
struct Count {
    #[diesel(sql_type = BigInt)]
    n: i64,
}

const TABLES_OF_POSTGRES: &str =
    "SELECT count(*) AS n FROM pg_tables WHERE schemaname = 'public' AND tablename NOT LIKE '%diesel%'";
const TABLES_OF_SQLITE: &str = "SELECT count(*) AS n FROM sqlite_master WHERE type = 'table' \
                                AND name NOT LIKE '%diesel%' AND name NOT LIKE 'sqlite%'";

fn up_down_up<DB: Backend, C: MigrationHarness<DB>>(conn: &mut C, folder: &str, tables: impl Fn(&mut C) -> i64) {
    conn.run_pending_migrations(migrations(folder)).unwrap();
    let up = tables(conn);
    assert!(up > 0);
    conn.revert_all_migrations(migrations(folder)).unwrap();
    assert_eq!(tables(conn), 0, "a table outlived its migration");
    conn.run_pending_migrations(migrations(folder)).unwrap();
    assert_eq!(tables(conn), up);
}

#[rstest]
fn migrations_go_down_and_up_again(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let place = db.fresh();
    match db {
        Database::Postgres => {
            let mut conn = PgConnection::establish(&place.url).unwrap();
            up_down_up(&mut conn, "postgres", |conn| {
                diesel::sql_query(TABLES_OF_POSTGRES).get_result::<Count>(conn).unwrap().n
            });
        }
        Database::Sqlite => {
            let mut conn = SqliteConnection::establish(place.url.trim_start_matches("sqlite://")).unwrap();
            up_down_up(&mut conn, "sqlite", |conn| {
                diesel::sql_query(TABLES_OF_SQLITE).get_result::<Count>(conn).unwrap().n
            });
        }
    }
}

#[test]
fn both_databases_have_the_same_steps() {
    let names = |folder| -> BTreeSet<_> {
        fs::read_dir(steps(folder)).unwrap().map(|entry| entry.unwrap().file_name()).collect()
    };
    assert_eq!(names("postgres"), names("sqlite"));
}

fn step_up(database: &mut Raw) {
    match database {
        Raw::Postgres(conn) => drop(conn.run_next_migration(migrations("postgres")).unwrap()),
        Raw::Sqlite(conn) => drop(conn.run_next_migration(migrations("sqlite")).unwrap()),
    }
}

fn step_down(database: &mut Raw) {
    match database {
        Raw::Postgres(conn) => drop(conn.revert_last_migration(migrations("postgres")).unwrap()),
        Raw::Sqlite(conn) => drop(conn.revert_last_migration(migrations("sqlite")).unwrap()),
    }
}

/// Ref, bytes, last resort, state, when its reservation ends, when it ended.
type Package<'a> = (u8, &'a [u8], &'a str, &'a str, Option<i64>, Option<i64>);

/// The rows of the first version of the schema: Alice's pool with a KeyPackage of each kind, and Bob.
struct Old {
    fresh: Vec<u8>,
    returned: Vec<u8>,
    last_resort: Vec<u8>,
    alice: Token,
    bob: Token,
}

impl Old {
    fn new() -> Self {
        let device = Device::new("alice", "laptop");
        let token = || Token::generate().unwrap();
        Self {
            fresh: device.key_package(),
            returned: device.key_package(),
            last_resort: device.last_resort(),
            alice: token(),
            bob: token(),
        }
    }

    fn fill(&self, database: &mut Raw) {
        let (t, f) = match database {
            Raw::Postgres(_) => ("true", "false"),
            Raw::Sqlite(_) => ("1", "0"),
        };
        let second = now().as_second();
        let (past, soon, end) = (second - 60, second + 600, second + 86_400 * 14);
        database.run("INSERT INTO users (name, created_at) VALUES ('alice', 1), ('bob', 1)");
        for (user, device, token) in [("alice", "laptop", &self.alice), ("bob", "phone", &self.bob)] {
            let hash = database.bytes(&token.hash());
            let columns = "user_name, device_name, token_hash, created_at, last_upload";
            database.run(&format!("INSERT INTO devices ({columns}) VALUES ('{user}', '{device}', {hash}, 1, {past})"));
        }
        let packages: [Package<'_>; 7] = [
            (1, &self.fresh, f, "available", None, None),
            (2, b"held", f, "reserved", Some(soon), None),
            (3, &self.returned, f, "reserved", Some(past), None),
            (4, b"", f, "spent", Some(past), Some(past)),
            (5, b"", f, "revoked", None, Some(past)),
            (6, b"", f, "expired", None, Some(past)),
            (7, &self.last_resort, t, "available", None, None),
        ];
        let null = || "NULL".to_owned();
        for (byte, bytes, last_resort, state, until, ended) in packages {
            let (name, bytes) = (database.bytes(&[byte; 32]), database.bytes(bytes));
            let nonce = database.bytes(&[byte; 16]);
            let (reservation, by) = if until.is_some() { (nonce.as_str(), "2") } else { ("NULL", "NULL") };
            let (until, ended) =
                (until.map_or_else(null, |at| at.to_string()), ended.map_or_else(null, |at| at.to_string()));
            let group = if state == "spent" { database.bytes(b"friends") } else { null() };
            database.run(&format!(
                "INSERT INTO key_packages (keypackage_ref, device_id, ciphersuite, key_package, not_after, last_resort, \
                 state, uploaded_at, reservation, reserved_by, reserved_until, ended_at, spent_group) VALUES ({name}, 1, \
                 1, {bytes}, {end}, {last_resort}, '{state}', {past}, {reservation}, {by}, {until}, {ended}, {group});\
                 INSERT INTO hpke_keys VALUES (1, {name}, {name}, {end});\
                 INSERT INTO audit_events (device_id, keypackage_ref, action, actor, last_resort, at) VALUES (1, {name}, \
                 'upload', 1, {last_resort}, {past});"
            ));
        }
    }
}

/// The rows that a database should not let in.
fn assert_refuses(database: &mut Raw, states: &[&str]) {
    let name = database.bytes(&[99; 32]);
    let nonce = database.bytes(&[2; 16]);
    let no = if matches!(database, Raw::Postgres(_)) { "false" } else { "0" };
    let fresh = database.number("SELECT count(*) AS n FROM key_packages WHERE fresh");
    let end = now().as_second() + 3_600;
    let insert = |device: i64, state: &str, reservation: &str, more: &str| {
        format!(
            "INSERT INTO key_packages (keypackage_ref, device_id, ciphersuite, key_package, not_after, last_resort, state, \
             reservation, reserved_by, reserved_until{more}) VALUES ({name}, {device}, 1, {name}, {end}, {no}, '{state}', \
             {reservation}"
        )
    };
    let old = states.contains(&"retired");
    let (more, value) = if old { (", uploaded_at", ", 1") } else { ("", "") };
    for state in states {
        let sql = format!("{}, NULL, NULL{value})", insert(1, state, "NULL", more));
        database.try_run(&sql).expect_err(state);
    }
    for (device, reservation, by, until, why) in [
        (77, "NULL", "NULL", "NULL", "a device that is not there"),
        (1, nonce.as_str(), "NULL", "NULL", "a reservation of nobody"),
        (1, nonce.as_str(), "2", "1", "a reservation twice"),
    ] {
        // The newest schema leaves that to the server on PostgreSQL, which holds the device's row for an upload.
        if device == 77 && !old && matches!(database, Raw::Postgres(_)) {
            continue;
        }
        let sql = format!("{}, {by}, {until}{value})", insert(device, "available", reservation, more));
        database.try_run(&sql).expect_err(why);
    }
    let sql = format!("{}, NULL, NULL{value})", insert(1, "available", "NULL", more));
    database.run(&sql);
    assert_eq!(database.number("SELECT count(*) AS n FROM key_packages WHERE fresh"), fresh + 1);
    database.run(&format!("DELETE FROM key_packages WHERE keypackage_ref = {name}"));
}

fn held_by_bob(byte: u8) -> Value {
    let nonce = uuid::Uuid::from_bytes([byte; 16]);
    json!({"reservation_id": format!("1-{nonce}")})
}

async fn assert_whole(alice: &Http, bob: &Http, old: &Old) {
    let status = alice.status().await;
    let counts =
        ["fresh", "lapsed", "reserved", "spent", "revoked", "expired"].map(|key| status[key].as_u64().unwrap());
    assert_eq!(counts, [1, 1, 1, 1, 1, 1]);
    assert_eq!(status["last_resort"], json!({"present": true, "uses": 0}));
    let trail = alice.get("/keypackages/audit").await.ok();
    let uploads = trail["events"].as_array().unwrap().iter().filter(|event| event["action"] == "upload").count();
    assert_eq!(uploads, 7);
    bob.spend(&held_by_bob(4), "friends").await.ok();
    for package in [&old.fresh, &old.returned, &old.last_resort] {
        assert_eq!(bob.reserved("alice").await["keypackage"], encode(package));
    }
    bob.spend(&held_by_bob(2), "friends").await.ok();
}

#[rstest]
#[tokio::test]
async fn what_was_there_outlives_going_up_and_down(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let place = Arc::new(tokio::task::spawn_blocking(move || db.fresh()).await.unwrap());
    let mut database = place.open();
    step_up(&mut database);
    let old = Old::new();
    old.fill(&mut database);

    let server = TestServer::start_at(Arc::clone(&place), |_| ()).await;
    assert_refuses(&mut database, &["nonsense"]);
    let alice = server.anyone().with_token(old.alice.reveal());
    let bob = server.anyone().with_token(old.bob.reveal());
    assert_whole(&alice, &bob, &old).await;
    let phone = alice.registered("alice", "phone").await;
    phone.uploaded(&[Device::new("alice", "phone").key_package()]).await;
    alice.delete("/devices/phone").await.ok();
    server.advance(SignedDuration::from_mins(1));
    server.sweep().await;
    database.run("UPDATE key_packages SET state = 'retired', ended_at = 1 WHERE reserved_until IS NOT NULL AND live");
    let trail = database.number("SELECT count(*) AS n FROM audit_events WHERE action <> 'lapse'");
    let packages = database.number("SELECT count(*) AS n FROM key_packages WHERE device_id > 0");
    let keys = database.number("SELECT count(*) AS n FROM hpke_keys");
    drop(server);

    // All the way down to the first version again.
    for _ in 1..fs::read_dir(steps("sqlite")).unwrap().count() {
        step_down(&mut database);
    }
    assert_refuses(&mut database, &["nonsense", "retired"]);
    assert_eq!(database.number("SELECT count(*) AS n FROM audit_events"), trail);
    assert_eq!(database.number("SELECT count(*) AS n FROM key_packages"), packages);
    assert_eq!(database.number("SELECT count(*) AS n FROM hpke_keys"), keys);
    let of = |condition: &str| format!("SELECT count(*) AS n FROM key_packages WHERE {condition}");
    // One was revoked before, one by the removal, two were retired.
    assert_eq!(database.number(&of("state = 'revoked'")), 4);
    assert_eq!(database.number(&of("state = 'spent'")), 2);
    assert_eq!(database.number(&of("uploaded_at < 1000000000")), 0, "when it was uploaded is lost");
    let hash = database.bytes(&Token::from_header(&format!("Bearer {}", phone.token.unwrap())).unwrap().hash());
    let sql = format!("SELECT count(*) AS n FROM devices WHERE token_hash = {hash}");
    assert_eq!(database.number(&sql), 0, "the token of a removed device is valid again");

    let server = TestServer::start_at(Arc::clone(&place), |_| ()).await;
    let (alice, bob) = (alice.at(&server.base), bob.at(&server.base));
    alice.uploaded(&[Device::new("alice", "laptop").key_package()]).await;
    let body = json!({"target_user": "alice", "device": "laptop", "group_id": group("friends")});
    let reservation = bob.post("/keypackages/reserve", &body).await.ok()["reservations"][0].clone();
    assert_eq!(reservation["last_resort"], false);
    bob.spend(&reservation, "friends").await.ok();
}

/// How many of the two tables show that they were loaded from a backup.
const LOADED_POSTGRES: &str = "SELECT (SELECT count(*) FROM lineage WHERE xmin::text::bigint IS DISTINCT FROM witness) \
    + (SELECT count(*) FROM key_packages WHERE device_id = 0 AND xmin::text::bigint IS DISTINCT FROM ended_at) AS n";
const LOADED_SQLITE: &str = "SELECT count(*) AS n FROM lineage JOIN key_packages ON device_id = 0 \
    WHERE ended_at IS NOT generation";

#[rstest]
fn no_migration_looks_as_if_a_table_had_been_loaded_from_a_backup(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
) {
    let place = db.fresh();
    let mut database = place.open();
    let mut steps: Vec<_> = fs::read_dir(steps("sqlite")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    steps.sort();
    for step in steps {
        step_up(&mut database);
        if *step < *"2026-11-29-300000" {
            continue;
        }
        let loaded = if db == Database::Postgres { LOADED_POSTGRES } else { LOADED_SQLITE };
        assert_eq!(database.number(loaded), 0, "{step:?}: see \"Add a migration\" in docs/development.md");
        assert_eq!(database.number("SELECT count(*) AS n FROM key_packages WHERE device_id = 0"), 1, "{step:?}");
        if db == Database::Sqlite {
            // As a server of the version before does it.
            database.run("UPDATE lineage SET generation = generation + 1");
            assert_eq!(database.number(loaded), 0, "{step:?}: its trigger is gone");
        }
    }
}

#[rstest]
fn old_commits_are_told_from_the_newest_of_their_group(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let place = db.fresh();
    let mut database = place.open();
    let steps = fs::read_dir(steps("sqlite")).unwrap().map(|entry| entry.unwrap().file_name());
    for _ in steps.filter(|step| **step < *"2026-11-24-700000") {
        step_up(&mut database);
    }
    for (group, epoch) in [("a", 0), ("a", 1), ("a", 3), ("b", 7)] {
        let group = database.bytes(group.as_bytes());
        database
            .run(&format!("INSERT INTO commits (group_id, epoch, digest, at) VALUES ({group}, {epoch}, {group}, 1)"));
    }
    step_up(&mut database);
    assert_eq!(database.number("SELECT count(*) AS n FROM commits WHERE superseded AND epoch IN (0, 1)"), 2);
    assert_eq!(database.number("SELECT count(*) AS n FROM commits WHERE NOT superseded AND epoch IN (3, 7)"), 2);
    step_down(&mut database);
    assert_eq!(database.number("SELECT count(*) AS n FROM commits"), 4);
}
