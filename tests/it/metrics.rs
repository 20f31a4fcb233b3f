//! The server's metrics for operators.

use keypool_openapi::ProblemType;
use reqwest::Method;
use rstest::rstest;
use serde_json::json;

use crate::{
    commits::update,
    operator::{ADMIN, with_an_admin},
    support::{Database, Device, TestServer, encode},
};

const REFUSED: &str = "reservations_total{outcome=\"too-many-requests\"}";

#[rstest]
#[tokio::test]
async fn what_limits_refuse_is_counted(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let server = TestServer::start_with(db, |config| {
        (config.pair_per_minute, config.pair_burst) = (1, 3);
        (config.requester_per_minute, config.requester_burst) = (100, 100);
        config.max_live_reservations = 2;
    });
    let server = server.await;
    let alice = server.anyone().registered("alice", "laptop").await;
    let bob = server.anyone().registered("bob", "phone").await;
    alice.uploaded(&Device::new("alice", "laptop").key_packages(8)).await;
    bob.reserved("alice").await;
    bob.reserved("alice").await;
    assert_eq!(server.metric(REFUSED).await, "0");
    // He holds as many as he may, and then asks too often.
    bob.reserve("alice").await.is_problem(429, ProblemType::TooManyRequests);
    assert_eq!(server.metric(REFUSED).await, "1");
    bob.reserve("alice").await.is_problem(429, ProblemType::TooManyRequests);
    assert_eq!(server.metric(REFUSED).await, "2");
    // One request that names more users than he may ask for at a time.
    let many: Vec<_> = (0..100).map(|n| format!("user-{n}")).collect();
    bob.post("/keypackages/reserve", &json!({"targets": many})).await.is_problem(429, ProblemType::TooManyRequests);
    assert_eq!(server.metric(REFUSED).await, "102");
    assert_eq!(server.metric("reservations_total{outcome=\"reserved\"}").await, "2");
}

#[rstest]
#[tokio::test]
async fn a_census_counts_what_is_there(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let server = TestServer::start(db).await;
    let alice = server.anyone().registered("alice", "laptop").await;
    let phone = alice.registered("alice", "phone").await;
    let bob = server.anyone().registered("bob", "phone").await;
    server.anyone().registered("carol", "phone").await;
    let zoe = server.anyone().registered("zoe", "phone").await;
    zoe.uploaded(&[Device::new("zoe", "phone").key_package()]).await;
    zoe.delete("/devices/phone").await.ok();
    alice.uploaded(&Device::new("alice", "laptop").key_packages(8)).await;
    phone.uploaded(&Device::new("alice", "phone").key_packages(2)).await;
    // Bob's pool has a last resort alone: two adders would get the same one.
    bob.uploaded(&[Device::new("bob", "phone").last_resort()]).await;
    phone.get("/messages").await.ok();
    let body = |text: &[u8]| json!({"message": encode(text), "recipients": [{"user": "alice", "device": "laptop"}, {"user": "alice", "device": "phone"}]});
    let mut party = Device::new("bob", "phone").founds("friends");
    update(&bob, &mut party, &[]).await.ok();
    let message = party.says("hello");
    bob.post(&format!("/groups/{}/messages", party.path()), &body(&message)).await.ok();
    server.advance(jiff::SignedDuration::from_secs(90));
    server.census().await;
    for (name, value) in [
        ("users", "3"),
        ("devices", "4"),
        ("devices_without_upload", "1"),
        ("pools{health=\"good\"}", "1"),
        ("pools{health=\"low\"}", "1"),
        ("pools{health=\"empty\"}", "1"),
        ("pool_packages{state=\"available\"}", "11"),
        ("pool_packages{state=\"revoked\"}", "1"),
        ("queued_messages", "2"),
        ("oldest_message_seconds", "90"),
    ] {
        assert_eq!(server.metric(name).await, value, "{name}");
    }
    // A pool counts as the status has it: one that was returned makes it low, and none empty.
    let mut reservations = Vec::new();
    for _ in 0..2 {
        let body = json!({"target_user": "alice", "device": "phone"});
        reservations.push(bob.post("/keypackages/reserve", &body).await.ok()["reservations"][0].clone());
    }
    server.census().await;
    assert_eq!(server.metric("pools{health=\"empty\"}").await, "2");
    bob.release(&reservations[0]).await.ok();
    server.census().await;
    assert_eq!(server.metric("pools{health=\"empty\"}").await, "1");
    assert_eq!(
        (server.metric("pools{health=\"low\"}").await, phone.status().await["health"].clone()),
        ("1".into(), json!("low"))
    );
}

#[rstest]
#[tokio::test]
async fn who_drains_is_counted_at_a_sweep(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let server = TestServer::start_with(db, |config| {
        (config.pair_burst, config.requester_burst) = (1_000, 1_000);
        (config.max_live_reservations, config.max_live_per_pair) = (1_000, 1_000);
    });
    let server = server.await;
    let alice = server.anyone().registered("alice", "laptop").await;
    alice.uploaded(&Device::new("alice", "laptop").key_packages(32)).await;
    let mallory = server.anyone().registered("mallory", "phone").await;
    for _ in 0..32 {
        mallory.reserved("alice").await;
    }
    assert_eq!(server.metric("drainers").await, "0");
    server.sweep().await;
    assert_eq!(server.metric("drainers").await, "1");
    server.sweep().await;
    assert_eq!(server.metric("drainers").await, "0");
}

#[rstest]
#[tokio::test]
async fn what_is_under_way_is_seen(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let server = TestServer::start(db).await;
    let alice = server.anyone().registered("alice", "laptop").await;
    assert_eq!(server.metric("waiting_fetches").await, "0");
    let waits = tokio::spawn({
        let alice = alice.clone();
        async move { alice.get("/messages?wait=30").await }
    });
    while server.metric("waiting_fetches").await == "0" {
        tokio::task::yield_now().await;
    }
    assert_eq!(server.metric("waiting_fetches").await, "1");
    let open: u64 = server.metric("connections").await.parse().unwrap();
    let limit: u64 = server.metric("connections_limit").await.parse().unwrap();
    assert!((2..limit).contains(&open), "{open} of {limit}");
    assert_eq!(server.metric("answer_bytes").await, "0");
    assert_ne!(server.metric("answer_bytes_limit").await, "0");
    // The newest fetches win; the waiting one is displaced.
    alice.get("/messages").await.ok();
    alice.get("/messages?wait=0").await.ok();
    waits.abort();
}

#[rstest]
#[tokio::test]
async fn low_pools_come_in_pages_and_name_whom_it_concerns(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
) {
    let server = TestServer::start_with(db, with_an_admin).await;
    let admin = server.anyone().with_token(ADMIN);
    server.anyone().registered("never", "uploaded").await;
    for (name, packages) in [("alice", 3), ("bob", 2), ("carol", 2), ("dave", 1), ("erin", 8)] {
        let http = server.anyone().registered(name, "phone").await;
        http.uploaded(&Device::new(name, "phone").key_packages(packages)).await;
    }
    let (emptied, frank) = (server.anyone().registered("frank", "phone").await, Device::new("frank", "phone"));
    emptied.uploaded(&[frank.key_package()]).await;
    emptied.post("/keypackages/revoke", &json!({"all": true})).await.ok();
    let (mut names, mut path) = (Vec::new(), "/admin/pools?limit=2".to_owned());
    loop {
        let page = admin.get(&path).await.ok();
        let pools = page["pools"].as_array().unwrap().clone();
        names.extend(
            pools.iter().map(|pool| (pool["fresh"].as_u64().unwrap(), pool["user"].as_str().unwrap().to_owned())),
        );
        let Some(next) = page["next"].as_str() else { break };
        if names.len() == 2 {
            // A pool of an earlier page that is filled makes no gap.
            emptied.uploaded(&frank.key_packages(8)).await;
        }
        path = format!("/admin/pools?limit=2&after={next}");
    }
    let expected = [(0, "frank"), (1, "dave"), (2, "bob"), (2, "carol"), (3, "alice")];
    assert_eq!(names, expected.map(|(fresh, name)| (fresh, name.to_owned())));
    for after in ["nonsense", "W10", "", "WzAsImFcdTAwMDAiLCJiIiwxXQ"] {
        let answer = admin.get(&format!("/admin/pools?after={after}")).await;
        answer.is_problem(400, ProblemType::MalformedRequest);
    }
}

#[rstest]
#[tokio::test]
async fn the_operator_reads_any_status(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let server = TestServer::start_with(db, with_an_admin).await;
    let alice = server.anyone().registered("alice", "laptop").await;
    alice.uploaded(&Device::new("alice", "laptop").key_packages(3)).await;
    let admin = server.anyone().with_token(ADMIN);
    let path = "/admin/users/alice/devices/laptop/status";
    // All but the newest checkpoint of the log, which is for the owner to compare.
    let mut own = alice.status().await;
    own.as_object_mut().unwrap().remove("log").unwrap();
    assert_eq!(admin.get(path).await.ok(), own);
    admin.get("/admin/users/alice/devices/phone/status").await.is_problem(404, ProblemType::UnknownDevice);
    admin.get("/admin/users/nobody/devices/phone/status").await.is_problem(404, ProblemType::UnknownDevice);
    alice.get(path).await.is_problem(403, ProblemType::Forbidden);
    server.anyone().try_send(Method::GET, path, None).await.unwrap().is_problem(401, ProblemType::Unauthenticated);
}
