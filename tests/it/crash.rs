//! `kill -9` in the middle: every answered request has taken effect, and nothing is reserved twice.

use std::{
    collections::HashSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use keypool_openapi::ProblemType;
use rstest::rstest;
use serde_json::{Value, json};

use crate::support::{Database, Device, Http, ServerProcess, encode, hot_client};

const PACKAGES: usize = 1_000;
const BATCH: usize = 10;

#[rstest]
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_killed_server_keeps_what_it_answered(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let place = Arc::new(db.fresh());
    let server = ServerProcess::start(&place).await;
    let anyone = Http::over(hot_client(), &server.base);
    let alice = anyone.registered("alice", "laptop").await;
    let bob = anyone.registered("bob", "phone").await;
    let packages = Device::new("alice", "laptop").key_packages(PACKAGES);

    let answers = Arc::new(AtomicUsize::new(0));
    let uploaded = Arc::new(Mutex::new(Vec::<Value>::new()));
    let reserved = Arc::new(Mutex::new(Vec::<Value>::new()));
    let mut tasks = Vec::new();
    for chunk in packages.chunks(PACKAGES / 4) {
        let (alice, chunk, uploaded, answers) = (alice.clone(), chunk.to_vec(), uploaded.clone(), answers.clone());
        tasks.push(tokio::spawn(async move {
            for batch in chunk.chunks(BATCH) {
                let texts: Vec<_> = batch.iter().map(|bytes| encode(bytes)).collect();
                let Ok(answer) = alice.try_post("/keypackages/upload", &json!({"keypackages": texts})).await else {
                    return;
                };
                let accepted = answer.ok()["accepted"].as_array().unwrap().clone();
                uploaded.lock().unwrap().extend(accepted.into_iter().map(|one| one["keypackage_ref"].clone()));
                answers.fetch_add(1, Ordering::SeqCst);
            }
        }));
    }
    for _ in 0..8 {
        let (bob, reserved, answers) = (bob.clone(), reserved.clone(), answers.clone());
        tasks.push(tokio::spawn(async move {
            loop {
                let body = json!({"target_user": "alice", "ttl": 600});
                let Ok(answer) = bob.try_post("/keypackages/reserve", &body).await else { return };
                if answer.status == 404 {
                    answer.is_problem(404, ProblemType::PoolExhausted);
                    continue;
                }
                reserved.lock().unwrap().push(answer.ok()["reservations"][0].clone());
                answers.fetch_add(1, Ordering::SeqCst);
            }
        }));
    }
    while answers.load(Ordering::SeqCst) < 200 {
        assert!(tasks.iter().any(|task| !task.is_finished()), "all clients have given up, some of them by a panic");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    server.kill();
    for task in tasks {
        task.await.unwrap();
    }

    let server = ServerProcess::start(&place).await;
    let (alice, bob) = (alice.at(&server.base), bob.at(&server.base));
    let (uploaded, reserved) = (uploaded.lock().unwrap().clone(), reserved.lock().unwrap().clone());
    let status = alice.status().await;
    let held = usize::try_from(status["reserved"].as_u64().unwrap()).unwrap();
    let mut named: HashSet<String> = HashSet::new();
    for reservation in &reserved {
        let spent = bob.spend(reservation, "friends").await.ok();
        assert_eq!(spent["keypackage_ref"], reservation["keypackage_ref"], "a reservation that was answered is lost");
        assert!(named.insert(spent["keypackage_ref"].to_string()), "a package was reserved twice");
    }
    for _ in 0..status["fresh"].as_u64().unwrap() {
        let fresh = bob.reserved("alice").await["keypackage_ref"].to_string();
        assert!(named.insert(fresh), "a package was reserved twice");
    }
    // Those whose answer the crash swallowed are held, and were named to nobody.
    let swallowed = held - reserved.len();
    let unnamed = uploaded.iter().filter(|uploaded| !named.contains(&uploaded.to_string())).count();
    assert!(unnamed <= swallowed, "{unnamed} uploads that were answered are lost; {swallowed} may be held unnamed");
    server.kill();
    assert!(crate::log::is_whole_at(place).await >= 2 * reserved.len());
}
