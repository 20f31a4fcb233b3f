//! The plans of PostgreSQL: which rows and index entries a statement reads.

use jiff::SignedDuration;
use keypool_openapi::ProblemType;
use rstest::rstest;
use serde_json::json;

use crate::support::{Database, Device, Raw, TestServer};

/// The KeyPackages in Bob's pool.
const MANY: &str = "INSERT INTO key_packages \
    (keypackage_ref, device_id, ciphersuite, key_package, not_after, last_resort, state) \
    SELECT sha256(n::text::bytea), id, 1, '', 4000000000 + n, false, 'available' \
    FROM devices, generate_series(1, 20000) n WHERE user_name = 'bob'";

/// Until a table is first analysed nothing is known of what is in it. While it looks small, it is read as a whole, by plans
/// that stay while it grows; when it looks large, any index looks good.
#[rstest]
#[tokio::test]
async fn each_looks_at_its_own_whatever_else_there_is(#[values(false, true)] is_large: bool) {
    let server = TestServer::start(Database::Postgres).await;
    let mut database = server.database();
    let anyone = server.anyone();
    let (alice, bob) = (anyone.registered("alice", "laptop").await, anyone.registered("bob", "phone").await);
    if is_large {
        database.run(MANY);
    }
    // PostgreSQL counts a connection's work when it ends, and the next connections plan anew.
    database.end_others();
    database.run("SELECT pg_stat_reset()");
    let packages = Device::new("alice", "laptop").key_packages(20);
    for _ in 0..2 {
        alice.uploaded(&packages).await;
    }
    let (one, other) = (bob.with_key("one").reserved("alice").await, bob.reserved("alice").await);
    bob.spend(&one, "friends").await.ok();
    bob.release(&other).await.ok();
    alice.status().await;
    for list in ["/keypackages/inventory", "/keypackages/audit", "/users/bob/devices"] {
        alice.get(list).await.ok();
    }
    database.end_others();
    let (entries, _) = read(&mut database, "key_packages");
    assert!(entries < 2_000, "{entries} index entries were read where alice has 20 KeyPackages");
    server.sweep().await;
    database.end_others();
    let scans = |table: &str| format!("SELECT seq_scan AS n FROM pg_stat_user_tables WHERE relname = '{table}'");
    for table in ["users", "devices", "hpke_keys", "audit_events", "idempotency_keys", "signature_keys"] {
        assert_eq!(database.number(&scans(table)), 0, "{table} was read as a whole");
    }
    // The server counts the pools once when it starts.
    assert!(database.number(&scans("key_packages")) <= 1, "key_packages was read as a whole");
}

/// How many index entries, and how many rows of the table as a whole, were read.
pub fn read(database: &mut Raw, table: &str) -> (i64, i64) {
    let mut number = |columns: &str, counted: &str| {
        database.number(&format!("SELECT sum({columns})::bigint AS n FROM {counted} WHERE relname = '{table}'"))
    };
    (number("idx_tup_read", "pg_stat_user_indexes"), number("seq_tup_read", "pg_stat_user_tables"))
}

/// Earlier reservations in Alice's trail.
const LONG_TRAIL: &str = "INSERT INTO audit_events \
    (device_id, keypackage_ref, action, actor, reservation, last_resort, at) \
    SELECT id, '', 'reserve', id, decode(md5(n::text), 'hex'), false, 0 \
    FROM devices, generate_series(1, 20000) n WHERE user_name = 'alice'";

#[tokio::test]
async fn what_became_of_a_reservation_is_found_in_a_long_trail() {
    let server = TestServer::start(Database::Postgres).await;
    let mut database = server.database();
    let anyone = server.anyone();
    let (alice, bob) = (anyone.registered("alice", "laptop").await, anyone.registered("bob", "phone").await);
    alice.uploaded(&Device::new("alice", "laptop").key_packages(1)).await;
    database.run(LONG_TRAIL);
    let lost = bob.reserved("alice").await;
    server.advance(SignedDuration::from_secs(61));
    bob.reserved("alice").await;
    database.end_others();
    database.run("SELECT pg_stat_reset()");
    bob.spend(&lost, "friends").await.is_problem(409, ProblemType::ReservationLapsed);
    bob.release(&lost).await.is_problem(409, ProblemType::ReservationLapsed);
    database.end_others();
    let (entries, rows) = read(&mut database, "audit_events");
    assert!(entries + rows < 10, "{entries} index entries and {rows} rows were read for one reservation");
    assert!(entries > 0);
}

/// The used KeyPackages of all of Alice's devices.
const SPENT: &str = "INSERT INTO key_packages \
    (keypackage_ref, device_id, ciphersuite, key_package, not_after, last_resort, state, reservation, reserved_by, \
    reserved_until, ended_at, spent_group) SELECT sha256((id * 100000 + n)::text::bytea), id, 1, '', 4000000000 + n, \
    false, 'spent', sha256((id * 100000 + n)::text::bytea), id, 0, 0, '' \
    FROM devices, generate_series(1, 10000) n WHERE user_name = 'alice'";

#[rstest]
#[tokio::test]
async fn a_pool_with_nothing_else_is_not_searched_through_all_that_was_spent(#[values(false, true)] is_analysed: bool) {
    let server = TestServer::start(Database::Postgres).await;
    let mut database = server.database();
    let anyone = server.anyone();
    let (alice, bob) = (anyone.registered("alice", "laptop").await, anyone.registered("bob", "phone").await);
    alice.registered("alice", "phone").await;
    alice.uploaded(&[Device::new("alice", "laptop").last_resort()]).await;
    let mut other = server.database();
    other.run(SPENT);
    if is_analysed {
        other.run("ANALYZE");
    }
    database.end_others();
    database.run("SELECT pg_stat_reset()");
    let answer = bob.reserve("alice").await.ok();
    assert_eq!(
        (&answer["reservations"][0]["last_resort"], &answer["missing"][0]["device"]),
        (&json!(true), &json!("phone"))
    );
    database.end_others();
    let (entries, rows) = read(&mut database, "key_packages");
    assert!(entries + rows < 50, "{entries} index entries and {rows} rows were read for one last resort");
    assert!(entries > 0);
}

/// The reservations of 40 devices, half of which have lapsed.
const RESERVED: &str = "INSERT INTO key_packages \
    (keypackage_ref, device_id, ciphersuite, key_package, not_after, last_resort, state, reservation, reserved_by, \
    reserved_until) SELECT sha256(n::text::bytea), id, 1, '', 4000000000 + n, false, 'reserved', \
    sha256(n::text::bytea), 1000 + n % 40, CASE WHEN n > 4000 THEN n ELSE 4000000000 END \
    FROM devices, generate_series(1, 8000) n WHERE user_name = 'alice'";

#[rstest]
#[tokio::test]
async fn a_sweep_goes_through_what_is_reserved_once(#[values(false, true)] is_analysed: bool) {
    let server = TestServer::start_with(Database::Postgres, |config| config.sweep_batch = 100).await;
    let mut database = server.database();
    server.anyone().registered("alice", "laptop").await;
    let mut other = server.database();
    other.run(RESERVED);
    if is_analysed {
        other.run("ANALYZE");
    }
    database.end_others();
    database.run("SELECT pg_stat_reset()");
    assert_eq!(server.sweep().await.lapsed, 4_000);
    database.end_others();
    let pages =
        "SELECT idx_blks_hit + idx_blks_read AS n FROM pg_statio_user_indexes WHERE indexrelname = 'key_packages_held'";
    let pages = database.number(pages);
    // Some 70 have them all.
    assert!(pages < 300, "{pages} pages were read for 4,000 reservations that had lapsed");
}

/// Groups where nothing has happened for long.
const IDLE_GROUPS: &str = "INSERT INTO commits (group_id, epoch, digest, at, superseded) \
    SELECT sha256((n / 2)::text::bytea), n % 2, '', 0, n IN (0, 2, 4) FROM generate_series(0, 20000) n \
    WHERE n % 2 = 1 OR n < 6";

#[tokio::test]
async fn a_sweep_does_not_go_through_the_groups_that_are_idle() {
    let server = TestServer::start(Database::Postgres).await;
    let mut database = server.database();
    database.run(IDLE_GROUPS);
    database.end_others();
    database.run("SELECT pg_stat_reset()");
    assert_eq!(server.sweep().await.forgotten, 3);
    database.end_others();
    let (entries, rows) = read(&mut database, "commits");
    assert!(entries + rows < 20, "{entries} index entries and {rows} rows were read for three Commits");
    assert_eq!(database.number("SELECT count(*) AS n FROM commits"), 10_000);
}

#[tokio::test]
async fn a_census_of_very_many_looks_at_some() {
    let server = TestServer::start(Database::Postgres).await;
    server.anyone().registered("bob", "phone").await;
    server.database().run(MANY);
    let mut database = server.database();
    let counted = async || {
        server.census().await;
        server.metric("pool_packages{state=\"available\"}").await.parse::<u64>().unwrap()
    };
    assert_eq!(counted().await, 20_000);
    // As if it had been four times as many as are counted one by one.
    database.run("ALTER TABLE key_packages SET (autovacuum_enabled = false)");
    database.run("UPDATE pg_class SET reltuples = 1000000 WHERE oid = 'key_packages'::regclass");
    database.end_others();
    database.run("SELECT pg_stat_reset()");
    let estimated = counted().await;
    assert!((10_000..30_000).contains(&estimated), "{estimated} were counted where there are 20,000");
    database.end_others();
    let pages = "SELECT heap_blks_hit + heap_blks_read AS n FROM pg_statio_user_tables WHERE relname = 'key_packages'";
    let (read, all) = (database.number(pages), database.number("SELECT pg_relation_size('key_packages') / 8192 AS n"));
    assert!(read > 0 && read < all / 2, "{read} of {all} pages were read");
}
