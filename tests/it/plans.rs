//! How PostgreSQL finds what it is asked for.

use crate::support::{Database, Device, TestServer};

/// Until a table is first analysed it looks small, and small tables are read as a whole: by plans that stay while it grows.
#[tokio::test]
async fn nothing_is_looked_for_in_a_whole_table_that_looks_small() {
    let server = TestServer::start(Database::Postgres).await;
    let mut database = server.database();
    // What a connection did is counted when it has ended.
    database.end_others();
    database.run("SELECT pg_stat_reset()");
    let anyone = server.anyone();
    let (alice, bob) = (anyone.registered("alice", "laptop").await, anyone.registered("bob", "phone").await);
    let packages = Device::new("alice", "laptop").key_packages(20);
    for _ in 0..2 {
        alice.uploaded(&packages).await;
    }
    let (one, other) = (bob.reserved("alice").await, bob.reserved("alice").await);
    bob.spend(&one, "friends").await.ok();
    bob.release(&other).await.ok();
    alice.status().await;
    for list in ["/keypackages/inventory", "/keypackages/audit", "/users/bob/devices"] {
        alice.get(list).await.ok();
    }
    database.end_others();
    // What ages is for the sweeper alone: who goes through it goes through all pools.
    let by_age = "SELECT idx_scan AS n FROM pg_stat_user_indexes WHERE indexrelname = 'key_packages_ageing'";
    assert_eq!(database.number(by_age), 0);
    server.sweep().await;
    database.end_others();
    assert!(database.number(by_age) > 0);
    let read = |table: &str| format!("SELECT seq_scan AS n FROM pg_stat_user_tables WHERE relname = '{table}'");
    for table in ["users", "devices", "hpke_keys", "audit_events", "idempotency_keys"] {
        assert_eq!(database.number(&read(table)), 0, "{table} was read as a whole");
    }
    // The server counts the pools once when it starts.
    assert!(database.number(&read("key_packages")) <= 1, "key_packages was read as a whole");
}
