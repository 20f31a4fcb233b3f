//! Many at once: nothing is handed out twice, and nobody is told "exhausted" too early.

use std::collections::HashSet;

use keypool_openapi::ProblemType;
use keypool_server::config::Limits;
use rstest::rstest;

use crate::support::{Anywhere, Database, Device, Http, ServerProcess, TestServer, hot_client};

const PACKAGES: usize = 1_000;
const TASKS: usize = 32;

/// Fills alice's pool at one server, and has 32 tasks empty it through all of them. Answers bob there.
async fn race(bases: &[&str], last_resort: bool) -> Http {
    let anyone = Http::over(hot_client(), bases[0]);
    let alice = anyone.registered("alice", "laptop").await;
    let device = Device::new("alice", "laptop");
    alice.uploaded(&device.key_packages(PACKAGES)).await;
    if last_resort {
        alice.uploaded(&[device.last_resort()]).await;
    }
    let bob = anyone.registered("bob", "phone").await;
    let tasks: Vec<_> = (0..TASKS)
        .map(|task| {
            let bob = bob.at(bases[task % bases.len()]);
            tokio::spawn(until_empty(bob))
        })
        .collect();
    let mut refs = Vec::new();
    for task in tasks {
        refs.extend(task.await.unwrap());
    }
    let distinct: HashSet<_> = refs.iter().collect();
    assert_eq!((refs.len(), distinct.len()), (PACKAGES, PACKAGES));
    assert_eq!(alice.status().await["reserved"], PACKAGES);
    bob
}

/// Reserves until there is nothing but a last resort, if that. Any other answer fails the test.
async fn until_empty(bob: Http) -> Vec<String> {
    let mut refs = Vec::new();
    loop {
        let answer = bob.post("/keypackages/reserve", &serde_json::json!({"target_user": "alice", "ttl": 600})).await;
        if answer.status == 404 {
            answer.is_problem(404, ProblemType::PoolExhausted);
            return refs;
        }
        let reservation = answer.ok()["reservations"][0].clone();
        if reservation["last_resort"] == true {
            return refs;
        }
        refs.push(reservation["keypackage_ref"].as_str().unwrap().to_owned());
    }
}

#[rstest]
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn never_reserves_twice(
    #[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere,
    #[values(false, true)] last_resort: bool,
) {
    let server = TestServer::start_with(db, |config| config.limits = Limits::Off).await;
    let bob = race(&[&server.base], last_resort).await;
    let steps = server.logged().await;
    assert!(steps.is_none_or(|steps| steps >= PACKAGES), "{steps:?}");
    let after = bob.reserve("alice").await;
    if last_resort {
        assert_eq!(after.ok()["reservations"][0]["last_resort"], true);
    } else {
        after.is_problem(404, ProblemType::PoolExhausted);
    }
}

#[rstest]
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_last_resort_is_for_all_at_once(#[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere) {
    let server = TestServer::start_with(db, |config| config.limits = Limits::Off).await;
    let anyone = Http::over(hot_client(), &server.base);
    let alice = anyone.registered("alice", "laptop").await;
    alice.uploaded(&[Device::new("alice", "laptop").last_resort()]).await;
    let bob = anyone.registered("bob", "phone").await;
    let adder = |bob: Http| async move {
        let reservation = bob.reserved("alice").await;
        bob.spend(&reservation, "friends").await.ok();
        reservation["reservation_id"].to_string()
    };
    let tasks: Vec<_> = (0..TASKS).map(|_| tokio::spawn(adder(bob.clone()))).collect();
    let mut ids = HashSet::new();
    for task in tasks {
        assert!(ids.insert(task.await.unwrap()), "a reservation was answered twice");
    }
    assert_eq!(alice.status().await["last_resort"], serde_json::json!({"present": true, "uses": TASKS}));
    let steps = server.logged().await;
    assert!(steps.is_none_or(|steps| steps == 2 * TASKS), "{steps:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn two_servers_on_one_postgres_never_reserve_twice() {
    let place = Database::Postgres.fresh();
    let place = std::sync::Arc::new(place);
    let (mut one, mut two) = (ServerProcess::spawn(&place), ServerProcess::spawn(&place));
    one.ready().await;
    two.ready().await;
    race(&[&one.base, &two.base], false).await;
    assert_eq!(crate::log::is_whole_at(place).await, PACKAGES);
}

#[tokio::test]
async fn servers_that_start_at_once_on_an_empty_postgres_all_come_up() {
    let place = Database::Postgres.fresh();
    let mut servers: Vec<_> = (0..5).map(|_| ServerProcess::spawn(&place)).collect();
    for server in &mut servers {
        server.ready().await;
    }
}
