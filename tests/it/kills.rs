//! Servers with clocks that are apart, on one PostgreSQL, all of them killed again and again: nothing that was answered is
//! lost, nothing is held by two, nothing is spent twice.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use rand::{RngExt, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    history::pages,
    support::{
        Answer, Device, Http, OtherClock, Place, Postgres, ServerProcess, encode, free_port, group, hot_client, now,
    },
};

/// How far the servers are ahead of PostgreSQL, in seconds. One is as far off as no server may be.
const AHEAD: [i64; 4] = [0, 1, -1, 90];
/// So much sooner than it says, a reservation may end by the clock of another server.
const APART: SignedDuration = SignedDuration::from_secs(2);
const TTL: u64 = 5;
const SPAN: Duration = Duration::from_secs(15);
const OWNERS: usize = 4;
const CLAIMERS: usize = 12;
/// Uploaded at once: few, so that claimers meet.
const UPLOAD: usize = 5;

/// A KeyPackage that was surely one claimer's, from one moment to another.
#[derive(Debug)]
struct Life {
    by: String,
    from: Timestamp,
    until: Timestamp,
}

/// The answers that clients got.
#[derive(Debug, Default)]
struct Told {
    lives: HashMap<String, Vec<Life>>,
    uploaded: HashSet<String>,
    /// For which group each KeyPackage was spent.
    spent: HashMap<String, String>,
    unanswered: usize,
}

#[derive(Debug)]
struct Scene {
    servers: Vec<String>,
    told: Mutex<Told>,
    stop: AtomicBool,
}

impl Scene {
    fn told(&self, note: impl FnOnce(&mut Told)) {
        note(&mut self.told.lock().unwrap());
    }

    fn is_over(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Asks any server, once. `None` if it is away or cannot answer now: the request may have taken effect.
    async fn ask(&self, rng: &mut StdRng, caller: &Http, path: &str, body: &Value) -> Option<Answer> {
        let server = self.servers.choose(rng).unwrap();
        let answer = caller.at(server).try_post(path, body).await.ok().filter(|answer| answer.status != 503);
        if answer.is_none() {
            self.told(|told| told.unanswered += 1);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(answer.as_ref().is_none_or(|answer| answer.status < 500), "{answer:?}");
        answer
    }

    /// Asks until there is an answer: for requests that may be repeated.
    async fn insist(&self, rng: &mut StdRng, caller: &Http, path: &str, body: &Value) -> Answer {
        loop {
            if let Some(answer) = self.ask(rng, caller, path, body).await {
                return answer;
            }
        }
    }
}

async fn supply(scene: Arc<Scene>, owner: Http, device: Device, mut rng: StdRng) {
    while !scene.is_over() {
        let packages: Vec<_> = device.key_packages(UPLOAD).iter().map(|one| encode(one)).collect();
        let answer = scene.insist(&mut rng, &owner, "/keypackages/upload", &json!({"keypackages": packages})).await;
        let (accepted, rejected) = (answer.json["accepted"].clone(), answer.ok()["rejected"].clone());
        // Of an upload whose answer was lost, some may have been spent before it is repeated.
        assert!(rejected.as_array().unwrap().iter().all(|one| one["reason"] == "duplicate"), "{rejected}");
        let accepted = accepted.as_array().unwrap();
        scene.told(|told| told.uploaded.extend(accepted.iter().map(|one| text(&one["keypackage_ref"]))));
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

async fn claim(scene: Arc<Scene>, claimer: Http, mut rng: StdRng) {
    while !scene.is_over() {
        let body = json!({"target_user": format!("owner-{}", rng.random_range(0..OWNERS)), "ttl": TTL});
        let answer = scene.ask(&mut rng, &claimer, "/keypackages/reserve", &body).await;
        let Some(answer) = answer.filter(|answer| answer.status == 200) else { continue };
        let held = answer.ok()["reservations"][0].clone();
        let (one, by) = (text(&held["keypackage_ref"]), text(&held["reservation_id"]));
        let until = text(&held["expires_at"]).parse::<Timestamp>().unwrap() - APART;
        let life = Life { by: by.clone(), from: now(), until };
        scene.told(|told| told.lives.entry(one.clone()).or_default().push(life));
        // Some are spent at once, some late, some never.
        tokio::time::sleep(Duration::from_millis(rng.random_range(0..40))).await;
        if rng.random_bool(0.5) {
            let group_id = group(&Uuid::new_v4().to_string());
            let body = json!({"reservation_id": by, "group_id": group_id});
            let answer = scene.insist(&mut rng, &claimer, "/keypackages/spend", &body).await;
            if answer.status == 200 {
                let life = Life { by, from: now(), until: Timestamp::MAX };
                scene.told(|told| {
                    told.lives.get_mut(&one).unwrap().push(life);
                    let before = told.spent.insert(one.clone(), group_id);
                    assert_eq!(before, None, "{one} was spent twice");
                });
            }
        }
    }
}

/// Kills a random server or the database, and restarts it, until the scene is over. Returns the running servers.
async fn kill(
    scene: Arc<Scene>,
    machines: Arc<Machines>,
    mut servers: Vec<ServerProcess>,
    mut rng: StdRng,
) -> Vec<ServerProcess> {
    while !scene.is_over() {
        tokio::time::sleep(Duration::from_millis(rng.random_range(100..700))).await;
        let victim = rng.random_range(0..=servers.len());
        if victim < servers.len() {
            servers.remove(victim).kill();
            servers.insert(victim, machines.start(&scene.servers[victim], AHEAD[victim]));
        } else {
            let its = Arc::clone(&machines);
            let crash = move || {
                its.postgres.stop("immediate");
                its.postgres.go_on();
            };
            tokio::task::spawn_blocking(crash).await.unwrap();
        }
    }
    servers
}

struct Machines {
    postgres: Postgres,
    place: Place,
    clock: OtherClock,
}

impl Machines {
    fn new() -> Self {
        let postgres = Postgres::start();
        let place = Place::at(postgres.url("postgres"));
        Self { postgres, place, clock: OtherClock::build() }
    }

    fn start(&self, base: &str, ahead: i64) -> ServerProcess {
        let address = base.split_once("//").unwrap().1;
        ServerProcess::spawn_at(&self.place, address, |command| {
            self.clock.set(command, ahead);
            command.env("KEYPOOL_LOG", "off").env("KEYPOOL_SWEEP_INTERVAL", "1s");
        })
    }
}

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let again = self.lives.values().filter(|lives| lives.iter().any(|life| life.by != lives[0].by)).count();
        write!(
            f,
            "{} uploaded, {} held, {again} of them by several in turn, {} spent; {} requests without an answer",
            self.uploaded.len(),
            self.lives.len(),
            self.spent.len(),
            self.unanswered
        )
    }
}

impl Told {
    /// No two held a KeyPackage at the same moment.
    fn nothing_was_held_by_two(&self) {
        for (one, lives) in &self.lives {
            for (index, life) in lives.iter().enumerate() {
                for other in lives[index + 1..].iter().filter(|other| other.by != life.by) {
                    let (from, until) = (life.from.max(other.from), life.until.min(other.until));
                    assert!(from >= until, "{one} was held by two: {life:?} and {other:?}");
                }
            }
        }
    }

    /// The owners' pools at the end.
    async fn nothing_is_lost_or_spent_twice(&self, owners: &[Http]) {
        let (mut items, mut events) = (HashMap::new(), Vec::new());
        for owner in owners {
            let own = pages(owner, "/keypackages/inventory", "after", "keypackages").await;
            items.extend(own.into_iter().map(|item| (text(&item["keypackage_ref"]), item)));
            events.extend(pages(owner, "/keypackages/audit", "before", "events").await);
        }
        let lost: Vec<_> = self.uploaded.iter().filter(|one| !items.contains_key(*one)).collect();
        assert!(lost.is_empty(), "uploads that were answered are lost: {lost:?}");
        for (one, group_id) in &self.spent {
            let item = &items[one];
            assert_eq!(
                (&item["state"], &item["group_id"]),
                (&json!("spent"), &json!(group_id)),
                "the spend of {one} is lost"
            );
        }
        let mut spends = HashSet::new();
        for event in events.iter().filter(|event| event["action"] == "spend") {
            assert!(spends.insert(text(&event["keypackage_ref"])), "spent twice: {event}");
        }
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_is_killed_and_however_clocks_differ_nothing_is_held_by_two_or_lost() {
    let machines = Arc::new(tokio::task::spawn_blocking(Machines::new).await.unwrap());
    let bases = AHEAD.map(|_| format!("http://127.0.0.1:{}", free_port())).to_vec();
    let mut servers: Vec<_> = bases.iter().zip(AHEAD).map(|(base, ahead)| machines.start(base, ahead)).collect();
    for server in servers.iter_mut().zip(AHEAD).filter(|(_, ahead)| *ahead < 90).map(|(server, _)| server) {
        server.ready().await;
    }
    let seed = rand::random();
    println!("seed {seed}");
    let mut rngs = (seed..).map(StdRng::seed_from_u64);
    let scene = Arc::new(Scene { servers: bases, told: Mutex::default(), stop: AtomicBool::new(false) });
    let anyone = Http::over(hot_client(), &scene.servers[0]);
    let (mut owners, mut clients) = (Vec::new(), Vec::new());
    for number in 0..OWNERS {
        let user = format!("owner-{number}");
        let owner = anyone.registered(&user, "main").await;
        owners.push(owner.clone());
        clients.push(tokio::spawn(supply(Arc::clone(&scene), owner, Device::new(&user, "main"), rngs.next().unwrap())));
    }
    for number in 0..CLAIMERS {
        let claimer = anyone.registered(&format!("claimer-{number}"), "main").await;
        clients.push(tokio::spawn(claim(Arc::clone(&scene), claimer, rngs.next().unwrap())));
    }
    let killer = tokio::spawn(kill(Arc::clone(&scene), Arc::clone(&machines), servers, rngs.next().unwrap()));
    tokio::time::sleep(SPAN).await;
    scene.stop.store(true, Ordering::Relaxed);
    let mut servers = killer.await.unwrap();
    for client in clients {
        client.await.unwrap();
    }
    servers[0].ready().await;
    let is_ready = anyone.at(&scene.servers[3]).is_ready().await;
    let told = std::mem::take(&mut *scene.told.lock().unwrap());
    println!("{told}");
    told.nothing_was_held_by_two();
    told.nothing_is_lost_or_spent_twice(&owners).await;
    assert!(!is_ready, "a server whose clock is 90 s off is ready");
    assert!(told.spent.len() > 30 && told.unanswered > 30, "hardly anything happened");
    drop(servers);
    let place = Arc::new(Place::at(machines.postgres.url("postgres")));
    assert!(crate::log::is_whole_at(place).await >= 2 * told.spent.len(), "the log misses hand-outs");
}
