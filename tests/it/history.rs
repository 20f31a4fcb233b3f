//! Sixteen clients at once for ten seconds; every answer is written down, and the whole is checked for an order in which
//! it could have happened.

mod check;

use std::time::Duration;

use jiff::Timestamp;
use rand::{RngExt, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use rstest::rstest;
use serde_json::{Value, json};

use self::check::{Done, History, Step};
use crate::support::{Answer, Anywhere, Device, Http, Running, group, hot_client, now};

const CLIENTS: usize = 16;
/// The first so many clients have pools that all reserve from.
const OWNERS: usize = 4;
const SPAN: Duration = Duration::from_secs(10);
/// Few and short-lived, so that clients meet: pools run dry, reservations lapse.
const UPLOAD: usize = 5;
const TTL: u64 = 1;

struct Client {
    http: Http,
    user: String,
    device: Option<Device>,
    rng: StdRng,
    /// Reservations that it holds or held.
    held: Vec<Value>,
    /// The KeyPackages that it has uploaded.
    own: Vec<String>,
    done: Vec<Done>,
}

impl Client {
    async fn new(server: &Running, number: usize, seed: u64) -> Self {
        let user = format!("user-{number}");
        let http = Http::over(hot_client(), &server.base).registered(&user, "main").await;
        let device = (number < OWNERS).then(|| Device::new(&user, "main"));
        let rng = StdRng::seed_from_u64(seed + number as u64);
        Self { http, user, device, rng, held: Vec::new(), own: Vec::new(), done: Vec::new() }
    }

    async fn run(mut self, until: Timestamp) -> Self {
        while now() < until {
            self.step().await;
        }
        self
    }

    async fn step(&mut self) {
        let choice = self.rng.random_range(0..100);
        match choice {
            0..10 if self.device.is_some() => self.upload().await,
            10..12 if self.device.is_some() => self.revoke().await,
            12..60 => self.reserve().await,
            60..90 => self.spend().await,
            _ => self.release().await,
        }
    }

    /// Sends a request, and records its answer, and the times before and after it.
    async fn call(&mut self, path: &str, body: &Value, step: impl FnOnce(&Answer) -> Step) -> Answer {
        let start = now();
        let answer = self.http.post(path, body).await;
        let end = now();
        assert!(answer.status < 500, "{path}: {} {}", answer.status, answer.text);
        self.done.push(Done { by: self.user.clone(), start, end, step: step(&answer) });
        answer
    }

    async fn upload(&mut self) {
        let packages = self.device.as_ref().unwrap().key_packages(UPLOAD);
        let packages: Vec<_> = packages.iter().map(|package| crate::support::encode(package)).collect();
        let refs = |answer: &Answer| check::refs(&answer.json["accepted"], "keypackage_ref");
        let answer = self
            .call("/keypackages/upload", &json!({"keypackages": packages}), |answer| Step::Uploaded(refs(answer)))
            .await;
        self.own.extend(refs(&answer));
    }

    async fn revoke(&mut self) {
        let Some(one) = self.own.choose(&mut self.rng).cloned() else { return };
        let body = json!({"refs": [one]});
        self.call("/keypackages/revoke", &body, |answer| {
            let revoked = answer.json["revoked"].as_array().unwrap();
            Step::Revoked(revoked.iter().map(|one| one.as_str().unwrap().to_owned()).collect())
        })
        .await;
    }

    async fn reserve(&mut self) {
        let target = format!("user-{}", self.rng.random_range(0..OWNERS));
        let body = json!({"target_user": target, "ttl": TTL});
        let answer = self.call("/keypackages/reserve", &body, |answer| Step::reserved(&target, answer)).await;
        if answer.status == 200 {
            self.held.push(answer.json["reservations"][0].clone());
        }
    }

    async fn spend(&mut self) {
        let Some(held) = self.held.choose(&mut self.rng).cloned() else { return };
        let group_id = group(&format!("{}-{}", self.user, self.rng.random_range(0..2)));
        let body = json!({"reservation_id": held["reservation_id"], "group_id": group_id});
        self.call("/keypackages/spend", &body, |answer| Step::spent(&held, &group_id, answer)).await;
    }

    async fn release(&mut self) {
        let Some(held) = self.held.choose(&mut self.rng).cloned() else { return };
        let body = json!({"reservation_id": held["reservation_id"]});
        self.call("/keypackages/release", &body, |answer| Step::released(&held, answer)).await;
    }
}

/// All pages of a list.
pub async fn pages(http: &Http, path: &str, from: &str, items: &str) -> Vec<Value> {
    let (mut all, mut next) = (Vec::new(), Value::Null);
    loop {
        let from = match &next {
            Value::Null => String::new(),
            Value::String(text) => format!("&{from}={text}"),
            number => format!("&{from}={number}"),
        };
        let page = http.get(&format!("{path}?limit=1000{from}")).await.ok();
        all.extend(page[items].as_array().unwrap().iter().cloned());
        next = page["next"].clone();
        if next.is_null() {
            return all;
        }
    }
}

#[rstest]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_sixteen_clients_saw_could_have_happened(#[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere) {
    let server = Running::start(db).await;
    let seed = rand::random();
    println!("seed {seed}");
    let mut clients = Vec::new();
    for number in 0..CLIENTS {
        clients.push(Client::new(&server, number, seed).await);
    }
    let until = now() + SPAN;
    let running: Vec<_> = clients.into_iter().map(|client| tokio::spawn(client.run(until))).collect();
    let mut history = History::default();
    let mut owners = Vec::new();
    for client in running {
        let client = client.await.unwrap();
        history.done.extend(client.done);
        if client.device.is_some() {
            owners.push(client.http);
        }
    }
    for owner in &owners {
        history.inventory.extend(pages(owner, "/keypackages/inventory", "after", "keypackages").await);
        let mut trail = pages(owner, "/keypackages/audit", "before", "events").await;
        trail.reverse();
        history.trail.extend(trail);
    }
    history.check();
    println!("{history}");
}
