//! Many sequencers at once: none loses a step, none logs one twice, and no checkpoint contradicts another.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use keypool_server::config::Limits;
use keypool_transparency::{
    checkpoint::Checkpoint,
    merkle::{leaf_hash, root},
};
use rstest::rstest;

use super::checks::{entries, is_whole, policy};
use crate::support::{Database, Device, Http, TestServer, hot_client};

const PACKAGES: usize = 600;
const ADDERS: usize = 8;
const SEQUENCERS: usize = 32;

/// Reserves until nothing is left, and spends every other one. Returns how many steps were answered.
async fn use_up(bob: Http, base: String) -> usize {
    let (bob, mut steps) = (bob.at(&base), 0);
    loop {
        let answer = bob.post("/keypackages/reserve", &serde_json::json!({"target_user": "alice", "ttl": 600})).await;
        if answer.status == 404 {
            return steps;
        }
        steps += 1;
        if steps % 2 == 0 {
            let reservation = answer.ok()["reservations"][0].clone();
            bob.spend(&reservation, "friends").await.ok();
            steps += 1;
        }
    }
}

#[rstest]
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn any_number_of_sequencers_log_each_step_once(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let first = TestServer::start_with(db, |config| config.limits = Limits::Off).await;
    let mut servers = vec![first];
    if let Database::Postgres = db {
        for _ in 0..3 {
            servers.push(servers[0].beside(|config| config.limits = Limits::Off).await);
        }
    }
    let servers = Arc::new(servers);
    let anyone = Http::over(hot_client(), &servers[0].base);
    let alice = anyone.registered("alice", "laptop").await;
    alice.uploaded(&Device::new("alice", "laptop").key_packages(PACKAGES)).await;
    let bob = anyone.registered("bob", "phone").await;
    let policy = Arc::new(policy(&anyone).await);
    let path = anyone.get("/log").await.ok()["origin"]["path"].as_str().unwrap().to_owned();
    let is_over = Arc::new(AtomicBool::new(false));
    let sequencer = |number: usize| {
        let (servers, policy, path, is_over) =
            (Arc::clone(&servers), Arc::clone(&policy), path.clone(), Arc::clone(&is_over));
        tokio::spawn(async move {
            let server = &servers[number % servers.len()];
            let mut seen: Vec<Checkpoint> = Vec::new();
            while !is_over.load(Ordering::Relaxed) {
                server.sequence().await;
                let note = server.anyone().get(&format!("/{path}/checkpoint")).await.text.parse().unwrap();
                seen.push(policy.log_keys().checkpoint(&note).unwrap());
            }
            seen
        })
    };
    let sequencers: Vec<_> = (0..SEQUENCERS).map(sequencer).collect();
    let adders: Vec<_> = (0..ADDERS)
        .map(|number| tokio::spawn(use_up(bob.clone(), servers[number % servers.len()].base.clone())))
        .collect();
    let mut answered = 0;
    for adder in adders {
        answered += adder.await.unwrap();
    }
    is_over.store(true, Ordering::Relaxed);
    let mut seen = Vec::new();
    for sequencer in sequencers {
        seen.extend(sequencer.await.unwrap());
    }
    assert_eq!(is_whole(&servers[0]).await, answered);
    let hashes: Vec<_> = entries(&servers[0]).await.iter().map(|entry| leaf_hash(entry)).collect();
    seen.sort_by_key(|checkpoint| checkpoint.size);
    seen.dedup();
    assert!(seen.len() > 3, "hardly any checkpoint was seen");
    for checkpoint in seen {
        let size = usize::try_from(checkpoint.size).unwrap();
        assert_eq!(root(&hashes[..size]), checkpoint.root, "at {size} the log contradicts what it signed");
    }
}
