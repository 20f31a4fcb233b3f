//! A steady load, while servers and the database are killed, rolled, restarted and frozen: nothing that was answered is
//! lost, and nothing is reserved twice.

use std::{
    collections::HashMap,
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    readme::blocks_of,
    support::{
        Device, Http, PATIENCE,
        compose::{Compose, docker},
        group, hot_client, repository,
    },
};

const OWNERS: usize = 8;
const PACKAGES: usize = 1_000;
const ADDERS: usize = 8;

/// Each adder makes so many invitations a second.
const PACE: Duration = Duration::from_millis(100);

/// Within so much of the database's return, requests are answered again.
const RECOVERY: Duration = Duration::from_secs(5);

#[derive(Default)]
struct Load {
    stop: AtomicBool,
    answered: AtomicUsize,
    failed: AtomicUsize,
    /// Connections that broke under a request, which was sent again.
    broken: AtomicUsize,
}

/// The answers to one adder: refs by their reservations, and the spent ones.
#[derive(Default)]
struct Done {
    reserved: HashMap<String, String>,
    spent: Vec<String>,
}

impl Load {
    /// Sends a request until it is answered: a connection that breaks is no answer. `None` where it failed.
    async fn call(&self, caller: &Http, path: &str, body: &Value) -> Option<Value> {
        let answer = loop {
            match caller.try_post(path, body).await {
                Ok(answer) => break answer,
                Err(error) if error.is_connect() || error.is_request() => {
                    self.broken.fetch_add(1, Ordering::Relaxed);
                }
                Err(error) => panic!("{error}"),
            }
        };
        let is_ok = answer.status == 200;
        assert!(is_ok || [502, 503, 504].contains(&answer.status), "{} {}", answer.status, answer.text);
        if is_ok { &self.answered } else { &self.failed }.fetch_add(1, Ordering::Relaxed);
        is_ok.then_some(answer.json)
    }

    async fn invite(&self, adder: &Http, owner: usize, done: &mut Done) {
        let caller = adder.with_key(&Uuid::new_v4().to_string());
        let want = json!({"target_user": format!("owner-{owner}"), "ttl": 600});
        let Some(answer) = self.call(&caller, "/keypackages/reserve", &want).await else { return };
        let reservation = &answer["reservations"][0];
        let text = |key: &str| reservation[key].as_str().unwrap().to_owned();
        done.reserved.insert(text("reservation_id"), text("keypackage_ref"));
        let spend = json!({"reservation_id": reservation["reservation_id"], "group_id": group("friends")});
        if self.call(adder, "/keypackages/spend", &spend).await.is_some() {
            done.spent.push(text("reservation_id"));
        }
    }

    async fn run(self: Arc<Self>, adder: Http) -> (Http, Done) {
        let mut done = Done::default();
        for turn in 0.. {
            if self.stop.load(Ordering::Relaxed) {
                break;
            }
            self.invite(&adder, turn % OWNERS, &mut done).await;
            tokio::time::sleep(PACE).await;
        }
        (adder, done)
    }

    fn failures(&self) -> usize {
        self.failed.load(Ordering::Relaxed) + self.broken.load(Ordering::Relaxed)
    }

    fn answered(&self) -> usize {
        self.answered.load(Ordering::Relaxed)
    }

    /// Waits until some more requests are answered, and says how long that took.
    async fn goes_on(&self) -> Duration {
        let (begun, before) = (Instant::now(), self.answered());
        while self.answered() < before + 2 * ADDERS {
            assert!(begun.elapsed() < PATIENCE, "nothing is answered any more");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        begun.elapsed()
    }
}

/// Runs a command of Docker without holding up the load.
async fn docker_does(args: &[&str]) -> String {
    let args: Vec<_> = args.iter().map(|&arg| arg.to_owned()).collect();
    let run = move || docker(&args.iter().map(String::as_str).collect::<Vec<_>>());
    tokio::task::spawn_blocking(run).await.unwrap()
}

/// Sends a signal to every process of a container, the first one before those that it starts. With STOP and CONT that is
/// `docker pause`, which gives up where a process waits for the disk.
async fn signal_all(container: &str, signal: &str) {
    docker_does(&["kill", "--signal", signal, container]).await;
    docker_does(&["exec", container, "sh", "-c", &format!("kill -s {signal} -- -1")]).await;
}

async fn is_healthy(container: &str) {
    let patience = Instant::now() + PATIENCE;
    while docker_does(&["inspect", "--format", "{{.State.Health.Status}}", container]).await.trim() != "healthy" {
        assert!(Instant::now() < patience, "{container} does not get well");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn owners(anyone: &Http) -> Vec<Http> {
    let mut owners = Vec::new();
    for number in 0..OWNERS {
        let user = format!("owner-{number}");
        let owner = anyone.registered(&user, "main").await;
        owner.uploaded(&Device::new(&user, "main").key_packages(PACKAGES)).await;
        owners.push(owner);
    }
    owners
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs containers"]
async fn whatever_fails_nothing_answered_is_lost_and_nothing_is_reserved_twice() {
    let deployment = Compose::up("faults", &["proxy"]);
    deployment.ready().await;
    let (old, database) = (deployment.containers("server"), deployment.containers("postgres").remove(0));
    let anyone = Http::over(hot_client(), &deployment.base);
    let owners = owners(&anyone).await;
    let load = Arc::new(Load::default());
    let mut adders = Vec::new();
    for number in 0..ADDERS {
        let adder = anyone.registered(&format!("adder-{number}"), "main").await;
        adders.push(tokio::spawn(Arc::clone(&load).run(adder)));
    }
    load.goes_on().await;

    // All servers are replaced as the operator's page says: nobody notices.
    let before = load.failures();
    let page = fs::read_to_string(repository().join("docs/operations.md")).unwrap();
    let deployment = Arc::new(deployment);
    let upgraded = Arc::clone(&deployment);
    tokio::task::spawn_blocking(move || upgraded.script(&blocks_of(&page, "```sh upgrade"))).await.unwrap();
    load.goes_on().await;
    assert_eq!(load.failures() - before, 0, "an upgrade failed requests");
    let servers = deployment.containers("server");
    assert_eq!((old.len(), servers.len()), (2, 2));
    assert!(servers.iter().all(|server| !old.contains(server)), "{old:?} are still among {servers:?}");

    // One server is killed: its requests may fail, and the other server goes on.
    docker_does(&["kill", "--signal", "KILL", &servers[0]]).await;
    println!("after a server was killed: {:?}", load.goes_on().await);
    docker_does(&["start", &servers[0]]).await;
    is_healthy(&servers[0]).await;
    let by_the_kill = load.failures() - before;

    docker_does(&["restart", "--time", "30", &database]).await;
    let after_restart = load.goes_on().await;
    signal_all(&database, "STOP").await;
    let before = load.answered();
    tokio::time::sleep(Duration::from_secs(10)).await;
    // Answers of the database to earlier requests may be on their way.
    assert!(load.answered() <= before + ADDERS, "the database was not frozen");
    signal_all(&database, "CONT").await;
    let after_freeze = load.goes_on().await;
    println!(
        "failed by the kill: {by_the_kill}; back {after_restart:?} after a restart, {after_freeze:?} after a freeze"
    );
    assert!(after_restart < RECOVERY && after_freeze < RECOVERY);

    load.stop.store(true, Ordering::Relaxed);
    let mut reserved = HashMap::new();
    let mut spent = 0;
    for adder in adders {
        let (adder, done) = adder.await.unwrap();
        for (reservation, keypackage_ref) in &done.reserved {
            let twice = reserved.insert(keypackage_ref.clone(), reservation.clone());
            assert_eq!(twice, None, "{keypackage_ref} was reserved twice");
        }
        for reservation in &done.spent {
            let again = json!({"reservation_id": reservation, "group_id": group("friends")});
            let answer = adder.post("/keypackages/spend", &again).await.ok();
            assert_eq!(answer["keypackage_ref"], done.reserved[reservation]);
            spent += 1;
        }
    }
    let mut known = 0;
    for owner in &owners {
        known += owner.status().await["spent"].as_u64().unwrap();
    }
    println!("{} reserved and {spent} spent as answered; the server knows of {known} spent", reserved.len());
    assert!(spent > 500 && known >= spent, "{spent} were spent as answered, and the server knows of {known}");
}
