//! Random histories of honest devices that change their keys, are lost, are registered anew, and change groups meanwhile:
//! nobody refuses anybody, and everybody who is left hears everybody.

use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use jiff::SignedDuration;
use keypool_client::{CIPHERSUITE, Error, Event, Group, GroupState, KeyPackagePoolConfig, NewDevice};
use keypool_openapi::ProblemType;
use keypool_server::config::Limits;
use keypool_validation::key_package::CredentialBinding;
use openmls::prelude::Ciphersuite;
use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};
use rstest::rstest;
use secrecy::SecretString;
use serde_json::{Value, json};

use crate::support::{Database, Device, Http, Owner, Party, TestServer, encode, new_device, now};

const HISTORIES: u32 = 8;

/// The most rounds until no device receives anything more.
const ROUNDS: usize = 10;

const CHACHA: Ciphersuite = Ciphersuite::MLS_128_DHKEMX25519_CHACHA20POLY1305_SHA256_Ed25519;

/// The ciphersuites of the people's devices. Groups are of the first.
const SUITES: [&[Ciphersuite]; 3] = [&[CIPHERSUITE, CHACHA], &[CIPHERSUITE, CHACHA], &[CHACHA]];

/// Something that a person does, or that happens to them. The second number says in which of their groups.
#[derive(Clone, Debug)]
enum Step {
    Found(usize),
    Invite(usize, usize, usize),
    Remove(usize, usize, usize),
    Update(usize, usize),
    Renew(usize, usize),
    Leave(usize, usize),
    Say(usize, usize),
    Receive(usize),
    Refresh(usize),
    Rotate(usize),
    /// The device is removed, and registered anew under the same name, with a new data directory.
    RegisterAnew(usize),
    /// The device is lost. The operator enrols a new one, which removes it.
    Lose(usize),
    /// An adder reserves a KeyPackage of theirs, and commits it later.
    Hold(usize),
    CommitHeld,
    Advance(i64),
}

fn step() -> impl Strategy<Value = Step> {
    let who = || 0..SUITES.len();
    let which = || 0..4_usize;
    prop_oneof![
        2 => who().prop_map(Step::Found),
        6 => (who(), who(), which()).prop_map(|(by, whom, group)| Step::Invite(by, whom, group)),
        2 => (who(), who(), which()).prop_map(|(by, whom, group)| Step::Remove(by, whom, group)),
        2 => (who(), which()).prop_map(|(by, group)| Step::Update(by, group)),
        1 => (who(), which()).prop_map(|(by, group)| Step::Renew(by, group)),
        1 => (who(), which()).prop_map(|(by, group)| Step::Leave(by, group)),
        2 => (who(), which()).prop_map(|(by, group)| Step::Say(by, group)),
        5 => who().prop_map(Step::Receive),
        1 => who().prop_map(Step::Refresh),
        5 => who().prop_map(Step::Rotate),
        2 => who().prop_map(Step::RegisterAnew),
        2 => who().prop_map(Step::Lose),
        2 => who().prop_map(Step::Hold),
        1 => Just(Step::CommitHeld),
        1 => (1..90_i64).prop_map(Step::Advance),
    ]
}

/// An adder that makes a group with KeyPackages that it reserved a while ago.
struct Adder {
    http: Http,
    party: Party,
    held: Vec<Value>,
}

struct History<'s> {
    server: &'s TestServer,
    number: u32,
    people: Vec<Owner>,
    adder: Adder,
    made: usize,
    /// The people who asked to leave a group, each with the group. They do nothing there any more.
    leaving: BTreeSet<(usize, String)>,
}

impl<'s> History<'s> {
    async fn begin(server: &'s TestServer, number: u32) -> Self {
        let name = format!("adder-{number}");
        let http = server.anyone().registered(&name, "laptop").await;
        let device = Device::new(&name, "laptop").of_suite(CHACHA);
        http.uploaded(&[device.key_package()]).await;
        let adder = Adder { http, party: device.founds(&name), held: Vec::new() };
        let mut history = Self { server, number, people: Vec::new(), adder, made: 0, leaving: BTreeSet::new() };
        for person in 0..SUITES.len() {
            let owner = history.owner(person, "laptop", None).await;
            history.people.push(owner);
        }
        history
    }

    /// A device of a person, with a small pool.
    async fn owner(&self, person: usize, device: &str, user_token: Option<SecretString>) -> Owner {
        let ciphersuites = SUITES[person].to_vec();
        let base = new_device(&self.server.base, &format!("person-{}-{person}", self.number));
        let new = NewDevice { device: device.parse().unwrap(), user_token, ciphersuites, ..base };
        let pool = KeyPackagePoolConfig {
            target_pool_size: 3,
            low_watermark: 1,
            hard_cap: 8,
            lifetime: Duration::from_hours(14 * 24),
            ..KeyPackagePoolConfig::DEFAULT
        };
        Owner::with(self.server, &new, pool).await.0
    }

    /// One of the named groups of a person.
    fn group(&self, person: usize, which: usize) -> Option<Group> {
        let mut groups = self.people[person].membership().groups().unwrap();
        groups.retain(|group| is_open(group) && !self.leaving.contains(&(person, group.id.clone())));
        (!groups.is_empty()).then(|| groups.swap_remove(which % groups.len()))
    }

    async fn take(&mut self, step: &Step) {
        match *step {
            Step::Found(by) => {
                self.made += 1;
                self.people[by].membership().create_named_group(&format!("group {}", self.made)).unwrap();
            }
            Step::Invite(by, whom, which) => {
                let Some(group) = self.group(by, which) else { return };
                let user = self.people[whom].identity().user().clone();
                is_honest(self.people[by].membership().invite(&group.group_id, &[user]).await);
            }
            Step::Remove(by, whom, which) => {
                let Some(group) = self.group(by, which) else { return };
                let user = self.people[whom].identity().user().clone();
                is_honest(self.people[by].membership().remove(&group.group_id, &user).await);
            }
            Step::Update(by, which) => {
                let Some(group) = self.group(by, which) else { return };
                is_honest(self.people[by].membership().update_keys(&group.group_id).await);
            }
            Step::Renew(by, which) => {
                let Some(group) = self.group(by, which) else { return };
                is_honest(self.people[by].membership().renew(&group.group_id, &[]).await);
            }
            Step::Leave(by, which) => {
                let Some(group) = self.group(by, which) else { return };
                self.people[by].membership().leave(&group.group_id).await.unwrap();
                self.leaving.insert((by, group.id));
            }
            Step::Say(by, which) => {
                let Some(group) = self.group(by, which) else { return };
                is_honest(self.people[by].membership().send(&group.group_id, "hello").await);
            }
            Step::Receive(who) => {
                receive(&self.people[who]).await;
            }
            Step::Refresh(who) => {
                self.people[who].refresh().await.unwrap();
            }
            Step::Rotate(who) => {
                let report = self.people[who].rotate(&|_| ()).await.unwrap();
                assert_eq!(report.rejected, []);
            }
            Step::RegisterAnew(who) => {
                let device = self.people[who].identity().device().to_string();
                self.people[who].http().delete(&format!("/devices/{device}")).await.ok();
                let token = self.enrol(who);
                self.people[who] = self.owner(who, &device, Some(token)).await;
            }
            Step::Lose(who) => {
                let lost = self.people[who].identity().device().to_string();
                let token = self.enrol(who);
                self.made += 1;
                self.people[who] = self.owner(who, &format!("device-{}", self.made), Some(token)).await;
                self.people[who].http().delete(&format!("/devices/{lost}")).await.ok();
            }
            Step::Hold(who) => {
                let body = json!({
                    "target_user": self.people[who].identity().user(), "ciphersuite": u16::from(CHACHA),
                });
                // One with an empty pool has none to give.
                let answer = self.adder.http.post("/keypackages/reserve", &body).await;
                self.adder.held.extend(answer.json["reservations"].as_array().into_iter().flatten().cloned());
            }
            Step::CommitHeld => self.commit_held().await,
            // OpenMLS takes what begins up to an hour ahead of the machine's clock.
            Step::Advance(_) if self.server.now() > now() + SignedDuration::from_mins(50) => {}
            Step::Advance(seconds) => {
                let span = SignedDuration::from_secs(seconds);
                self.server.advance(span);
                for owner in &self.people {
                    owner.advance(span);
                }
                self.server.sweep().await;
            }
        }
    }

    fn enrol(&self, person: usize) -> SecretString {
        let user = self.people[person].identity().user().as_str();
        self.server.enrol(user, SignedDuration::from_hours(1)).into()
    }

    /// Adds those whose KeyPackages are held, if all are held still.
    async fn commit_held(&mut self) {
        let Adder { http, party, held } = &mut self.adder;
        // OpenMLS adds each key once, whether both are new or one is a member's.
        let held: BTreeMap<String, Value> = held
            .drain(..)
            .filter(|one| !party.knows(one))
            .map(|one| (format!("{}/{}", one["user"], one["device"]), one))
            .collect();
        if held.is_empty() {
            return;
        }
        let held: Vec<_> = held.values().collect();
        let (commit, welcome) = party.adds(&held);
        let ids: Vec<_> = held.iter().map(|one| one["reservation_id"].clone()).collect();
        let body = json!({
            "commit": encode(&commit), "welcome": encode(&welcome), "reservations": ids, "recipients": [],
        });
        let answer = http.post(&format!("/groups/{}/commits", party.path()), &body).await;
        // A reservation that lapsed, or whose KeyPackage was withdrawn, fails the Commit.
        if answer.status == 200 { party.merges() } else { party.clears() }
    }

    /// Every remaining device processes its queue, and receives the texts of all others in each group.
    async fn end(&self) {
        self.settle().await;
        let mut groups: BTreeMap<String, Vec<(usize, Group)>> = BTreeMap::new();
        for (person, owner) in self.people.iter().enumerate() {
            for group in owner.membership().groups().unwrap().into_iter().filter(is_open) {
                groups.entry(group.id.clone()).or_default().push((person, group));
            }
        }
        for members in groups.values() {
            let (first, group) = &members[0];
            for (person, other) in members {
                assert_eq!((other.epoch, other.members), (group.epoch, group.members), "{first} and {person}");
            }
            for (by, group) in members.iter().filter(|(by, group)| !self.leaving.contains(&(*by, group.id.clone()))) {
                let text = format!("{by} in {}", group.id);
                self.people[*by].membership().send(&group.group_id, &text).await.unwrap();
                for (other, _) in members.iter().filter(|(other, _)| other != by) {
                    let heard = receive(&self.people[*other]).await;
                    let is_it = |event: &Event| matches!(event, Event::Text { text: said, .. } if *said == text);
                    assert!(heard.iter().any(is_it), "{other} did not hear {text}: {heard:?}");
                }
            }
        }
    }

    async fn settle(&self) {
        for _ in 0..ROUNDS {
            let mut came = 0;
            for owner in &self.people {
                came += receive(owner).await.len();
            }
            if came == 0 {
                return;
            }
        }
        panic!("there is more after {ROUNDS} rounds");
    }
}

/// Whether somebody of them has made the group, and it was not renewed here.
fn is_open(group: &Group) -> bool {
    group.name.starts_with("group ") && group.state != GroupState::ReadOnly
}

/// Accepts the errors that honest actions may have.
#[track_caller]
fn is_honest<T>(outcome: Result<T, Error>) {
    if let Err(error) = outcome {
        let is_nobody = error.problem() == Some(ProblemType::NoMatchingCiphersuite);
        assert!(
            is_nobody || matches!(error, Error::NotAMember { .. } | Error::OwnLeaf { .. }),
            "{}",
            error.with_causes()
        );
    }
}

/// Processes the queue, in which no message may be refused.
async fn receive(owner: &Owner) -> Vec<Event> {
    let heard = owner.hears().await;
    for event in &heard {
        assert!(!matches!(event, Event::Refused { .. }), "{}: {event:?}", owner.name());
    }
    heard
}

#[rstest]
fn nothing_honest_is_refused(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
    #[values(CredentialBinding::Strict, CredentialBinding::Off)] binding: CredentialBinding,
) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let server = runtime.block_on(TestServer::start_with(db, |config| {
        config.limits = Limits::Off;
        config.credential_binding = binding;
    }));
    let number = Cell::new(0);
    let config = Config { cases: HISTORIES, failure_persistence: None, max_shrink_iters: 64, ..Config::default() };
    let outcome = TestRunner::new(config).run(&prop::collection::vec(step(), 8..40), |steps| {
        number.set(number.get() + 1);
        runtime.block_on(async {
            let mut history = History::begin(&server, number.get()).await;
            for step in &steps {
                history.take(step).await;
            }
            history.end().await;
        });
        Ok(())
    });
    outcome.unwrap();
}
