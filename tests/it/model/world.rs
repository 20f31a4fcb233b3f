//! A server, and the model beside it: each step is done to both, and what they show is compared.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use jiff::SignedDuration;
use keypool_openapi::{
    AuditEvent, AuditPage, Base64Bytes, DeviceOf, InventoryItem, InventoryPage, KeyPackageRef, MissingDevice,
    MissingReason, PoolStatus, Problem, ProblemType, RejectionReason, ReleaseResponse, RemovedDevice, Reservation,
    ReservationId, ReserveResponse, RevokeResponse, SpendResponse, State, UploadResponse,
};
use keypool_server::config::{Limits, OnLapse};
use keypool_validation::key_package::CredentialBinding;
use openmls::prelude::Ciphersuite;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tls_codec::{Serialize, VLBytes};
use tokio::runtime::Runtime;
use uuid::Uuid;

use super::{
    reference::{Model, Offer, Rules, Seconds, Who, time},
    sight::item,
    step::{DEVICES, Parcel, SECOND, Step, Wish},
    trail::replay,
};
use crate::support::{Answer, Database, Device, Http, TestServer, encode, group, hot_client};

/// A reservation where the request does not say, and how long its `Idempotency-Key` is remembered.
const TTL: Seconds = 60;
const REMEMBERED: Seconds = 3_600;

/// All on one page, or on several.
const LONG_PAGE: usize = 1_000;
const SHORT_PAGE: usize = 4;

/// A server for any number of histories, each with users of its own.
pub struct Arena {
    runtime: Runtime,
    server: TestServer,
    anyone: Http,
    rules: Rules,
    histories: AtomicUsize,
}

impl Arena {
    pub fn start(db: Database, on_lapse: OnLapse) -> Self {
        let rules = Rules { retire: on_lapse == OnLapse::Retire, capacity: 4, target: 4, low: 2, min_remaining: 300 };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let server = runtime.block_on(TestServer::start_with(db, |config| {
            config.on_lapse = on_lapse;
            config.limits = Limits::Off;
            // Anybody may upload anything: also another's packages.
            config.credential_binding = CredentialBinding::Off;
            (config.pool_capacity, config.pool_target, config.low_watermark) = (4, 4, 2);
            // Shorter than a reservation may be: one can outlive its package.
            config.min_remaining = Duration::from_mins(5);
            // Time runs on for decades.
            config.max_lifetime *= 1_000;
            config.audit_retention *= 1_000;
            // In several batches.
            config.sweep_batch = 2;
        }));
        // OpenMLS judges by the system's time, which runs on by itself: from here it lags behind for good.
        server.advance(SignedDuration::from_hours(24));
        let anyone = Http::over(hot_client(), &server.base);
        Self { runtime, server, anyone, rules, histories: AtomicUsize::new(0) }
    }

    /// Plays a history: after every step, the status of each pool is compared, and all that is to be seen of those that
    /// the step may change; in the end, all of all.
    pub fn play(&self, steps: &[Step], mut before_each: impl FnMut()) {
        let mut world = self.enter();
        for step in steps {
            before_each();
            let mut changed = world.may_change(step);
            world.take(step);
            changed.retain(|who| world.model.registered[*who]);
            world.compare(&changed, LONG_PAGE);
        }
        let all: Vec<_> = world.there().collect();
        world.compare(&all, SHORT_PAGE);
    }

    /// Devices that nobody has heard of before, and their model.
    fn enter(&self) -> World<'_> {
        let history = self.histories.fetch_add(1, Ordering::Relaxed);
        let name = |who: Who| DeviceOf {
            user: format!("{}-{history}", ["alice", "bob"][who / 2]).parse().unwrap(),
            device: ["laptop", "phone"][who % 2].parse().unwrap(),
        };
        let names: Vec<_> = (0..DEVICES).map(name).collect();
        let model = Model::new(self.rules, names.clone(), self.server.now().as_second());
        let mut world = World {
            arena: self,
            model,
            callers: Vec::new(),
            names,
            made: Vec::new(),
            bytes: BTreeMap::new(),
            reservations: Vec::new(),
            kept: BTreeMap::new(),
        };
        for who in 0..DEVICES {
            world.callers.push(self.anyone.clone());
            world.register(who);
        }
        world
    }
}

/// A reservation that was answered.
#[derive(Clone, Copy)]
struct Taken {
    id: ReservationId,
    by: Who,
    owner: Who,
}

/// An answer to an idempotent request: until when it is given again, to which request, and the answer.
type Kept = (Seconds, Wish, Value);

/// One history.
struct World<'a> {
    arena: &'a Arena,
    model: Model,
    callers: Vec<Http>,
    names: Vec<DeviceOf>,
    made: Vec<Offer>,
    bytes: BTreeMap<KeyPackageRef, Vec<u8>>,
    reservations: Vec<Taken>,
    kept: BTreeMap<(Who, u8), Kept>,
}

impl World<'_> {
    fn may_change(&self, step: &Step) -> Vec<Who> {
        match step {
            Step::Upload { by, .. } | Step::Revoke { by, .. } | Step::RevokeAll { by } => vec![*by],
            Step::Reserve { wish, .. } => self.owners(wish),
            Step::Spend { nth, .. } | Step::Release { nth, .. } => vec![self.reservation(*nth).owner],
            Step::Sweep => (0..DEVICES).collect(),
            Step::Remove | Step::Register => vec![SECOND],
            Step::Advance(_) => Vec::new(),
        }
    }

    /// Does this to the server and to the model; the answers have to be the same.
    fn take(&mut self, step: &Step) {
        match step {
            Step::Upload { by, parcels } => self.upload(*by, parcels),
            Step::Reserve { by, wish, key } => self.reserve(*by, wish, *key),
            Step::Spend { nth, by, group } => self.spend(*nth, *by, *group),
            Step::Release { nth, by } => self.release(*nth, *by),
            Step::Revoke { by, nths } => self.revoke(*by, nths),
            Step::RevokeAll { by } => self.revoke_all(*by),
            Step::Advance(span) => {
                self.arena.server.advance(*span);
                self.model.now += span.as_secs();
            }
            Step::Sweep => {
                self.arena.runtime.block_on(self.arena.server.sweep());
                self.model.sweep();
            }
            Step::Remove => self.remove(),
            Step::Register => self.register(SECOND),
        }
    }

    fn call(&self, caller: &Http, path: &str, body: &Value) -> Answer {
        self.arena.runtime.block_on(caller.post(path, body))
    }

    /// What a device is answered; `None` where it is removed, and told so.
    fn ask(&self, by: Who, key: Option<u8>, path: &str, body: &Value) -> Option<Answer> {
        let caller = match key {
            Some(key) => &self.callers[by].with_key(&format!("key-{key}")),
            None => &self.callers[by],
        };
        let answer = self.call(caller, path, body);
        if self.model.registered[by] {
            return Some(answer);
        }
        answer.is_problem(401, ProblemType::Unauthenticated);
        None
    }

    fn make(&mut self, parcel: &Parcel) -> Offer {
        let offer = match *parcel {
            Parcel::Again(nth) if !self.made.is_empty() => {
                self.made[self.made.len() - 1 - nth % self.made.len()].clone()
            }
            Parcel::Again(_) => return self.make(&Parcel::New { suite: 1, lives: TTL, last_resort: false }),
            Parcel::New { suite, lives, last_resort } => {
                let not_after = self.model.now + lives;
                let device = Device::new("any", "device").of_suite(Ciphersuite::try_from(suite).unwrap());
                let device = device.valid_until(time(not_after));
                let bytes = if last_resort { device.last_resort() } else { device.key_package() };
                let offer = Offer { keypackage_ref: ref_of(&bytes), suite, not_after, last_resort };
                self.bytes.insert(offer.keypackage_ref.clone(), bytes);
                offer
            }
        };
        self.made.push(offer.clone());
        offer
    }

    fn upload(&mut self, by: Who, parcels: &[Parcel]) {
        let offers: Vec<_> = parcels.iter().map(|parcel| self.make(parcel)).collect();
        let packages: Vec<_> = offers.iter().map(|offer| encode(&self.bytes[&offer.keypackage_ref])).collect();
        let Some(answer) = self.ask(by, None, "/keypackages/upload", &json!({"keypackages": packages})) else { return };
        let expected = self.model.upload(by, &offers);
        if expected.iter().all(|outcome| *outcome == Err(RejectionReason::PoolFull)) {
            return answer.is_problem(409, ProblemType::PoolFull);
        }
        let answer: UploadResponse = parse(answer.ok());
        let mut outcomes = BTreeMap::new();
        for one in answer.accepted {
            let offer = &offers[one.index];
            let stated = (&one.keypackage_ref, one.ciphersuite, one.not_after.as_second(), one.last_resort);
            assert_eq!(stated, (&offer.keypackage_ref, offer.suite, offer.not_after, offer.last_resort));
            assert_eq!(outcomes.insert(one.index, Ok(())), None);
        }
        for one in answer.rejected {
            assert_eq!(outcomes.insert(one.index, Err(one.reason)), None);
        }
        assert_eq!(outcomes.into_values().collect::<Vec<_>>(), expected);
        self.is_the_pool(by, answer.pool);
    }

    fn reserve(&mut self, by: Who, wish: &Wish, key: Option<u8>) {
        let users: Vec<_> = wish.users.iter().map(|user| &self.names[2 * user].user).collect();
        let device = wish.device.map(|device| &self.names[device].device);
        let (suite, ttl) = (wish.suite, wish.ttl);
        let body =
            json!({"targets": users, "device": device, "ciphersuite": suite, "ttl": ttl, "group_id": group("friends")});
        let Some(answer) = self.ask(by, key, "/keypackages/reserve", &body) else { return };
        if self.is_repeated(by, wish, key, &answer) {
            return;
        }
        let (reservations, mut missing) = reserved(&answer);
        let has_some = |who: &Who| !self.model.candidates(*who, suite).is_empty();
        let (having, lacking): (Vec<_>, Vec<_>) = self.owners(wish).into_iter().partition(has_some);
        missing.sort_by(|one, other| (&one.user, &one.device).cmp(&(&other.user, &other.device)));
        assert_eq!(missing, self.missing(wish, &lacking));
        let mut given: Vec<_> = reservations.into_iter().map(|one| (self.who(&one), one)).collect();
        given.sort_by_key(|(owner, _)| *owner);
        assert_eq!(given.iter().map(|(owner, _)| *owner).collect::<Vec<_>>(), having);
        for (owner, one) in given {
            assert_eq!(one.keypackage.0, self.bytes[&one.keypackage_ref], "other bytes than were uploaded");
            self.model.handed_out(by, owner, suite, ttl.unwrap_or(TTL), &one);
            self.reservations.push(Taken { id: one.reservation_id, by, owner });
        }
    }

    /// Whether the key came before, and is answered as it has to be: to the same request the same, as far as it is still held.
    fn is_repeated(&mut self, by: Who, wish: &Wish, key: Option<u8>, answer: &Answer) -> bool {
        let Some(key) = key else { return false };
        match self.kept.get(&(by, key)).filter(|(until, ..)| *until > self.model.now) {
            Some((_, before, first)) if before == wish => self.is_answered_again(answer, first),
            Some(_) => answer.is_problem(422, ProblemType::IdempotencyMismatch),
            None if answer.status == 200 => {
                let kept = (self.model.now + REMEMBERED, wish.clone(), answer.json.clone());
                self.kept.insert((by, key), kept);
                return false;
            }
            None => return false,
        }
        true
    }

    fn is_answered_again(&self, answer: &Answer, first: &Value) {
        let first: ReserveResponse = parse(first.clone());
        let is_held = |one: &Reservation| self.model.still_holds(one.reservation_id);
        let (reservations, lost): (Vec<_>, Vec<_>) = first.reservations.into_iter().partition(is_held);
        let lost = lost.into_iter().map(|one| MissingDevice {
            user: one.user,
            device: Some(one.device),
            reason: MissingReason::ReservationLapsed,
            ciphersuites: Vec::new(),
        });
        let mut missing: Vec<_> = first.missing.into_iter().chain(lost).collect();
        missing.sort_by(|one, other| (&one.user, &one.device).cmp(&(&other.user, &other.device)));
        if reservations.is_empty() {
            refused(answer, ProblemType::ReservationLapsed);
            assert_eq!(parse::<Problem>(answer.json.clone()).missing, missing);
        } else {
            let expected = json!({"reservations": reservations, "missing": missing});
            assert_eq!(answer.clone().ok(), expected);
        }
    }

    /// Whose package a reservation is of.
    fn who(&self, reservation: &Reservation) -> Who {
        let is_it = |name: &DeviceOf| (&name.user, &name.device) == (&reservation.user, &reservation.device);
        self.names.iter().position(is_it).unwrap_or_else(|| panic!("{reservation:?} is of nobody here"))
    }

    /// The devices that a wish is for.
    fn owners(&self, wish: &Wish) -> Vec<Who> {
        let is_meant = |who: &Who| {
            wish.users.contains(&(who / 2))
                && wish.device.is_none_or(|device| device == who % 2)
                && self.model.registered[*who]
        };
        (0..DEVICES).filter(is_meant).collect()
    }

    /// What is told of the devices that have nothing, and of the users who have no device that is meant.
    fn missing(&self, wish: &Wish, lacking: &[Who]) -> Vec<MissingDevice> {
        let owners = self.owners(wish);
        let mut missing: Vec<_> = lacking.iter().map(|who| self.model.miss(*who, wish.suite)).collect();
        for user in wish.users.iter().filter(|user| owners.iter().all(|who| who / 2 != **user)) {
            missing.push(MissingDevice {
                user: self.names[2 * user].user.clone(),
                device: wish.device.map(|device| self.names[device].device.clone()),
                reason: MissingReason::UnknownDevice,
                ciphersuites: Vec::new(),
            });
        }
        missing
    }

    /// A reservation; one that never was, where there is none.
    fn reservation(&self, nth: usize) -> Taken {
        match self.reservations.len() {
            0 => Taken { id: ReservationId { owner: 1, nonce: Uuid::new_v4() }, by: 0, owner: 0 },
            n => self.reservations[n - 1 - nth % n],
        }
    }

    fn spend(&mut self, nth: usize, by: Option<Who>, group: u8) {
        let Taken { id, by: maker, .. } = self.reservation(nth);
        let (by, group) = (by.unwrap_or(maker), vec![group]);
        let body = json!({"reservation_id": id, "group_id": Base64Bytes(group.clone())});
        let Some(answer) = self.ask(by, None, "/keypackages/spend", &body) else { return };
        match self.model.spend(by, id, &group) {
            Ok(expected) => {
                let answer: SpendResponse = parse(answer.ok());
                assert_eq!((answer.state, answer.spent_at.as_second()), expected);
            }
            Err(problem) => refused(&answer, problem),
        }
    }

    fn release(&mut self, nth: usize, by: Option<Who>) {
        let Taken { id, by: maker, .. } = self.reservation(nth);
        let by = by.unwrap_or(maker);
        let body = json!({"reservation_id": id});
        let Some(answer) = self.ask(by, None, "/keypackages/release", &body) else { return };
        match self.model.release(by, id) {
            Ok(expected) => assert_eq!(parse::<ReleaseResponse>(answer.ok()).state, expected),
            Err(problem) => refused(&answer, problem),
        }
    }

    fn revoke(&mut self, by: Who, nths: &[usize]) {
        let one = |nth: &usize| match self.made.len() {
            0 => KeyPackageRef::from(vec![7; 32]),
            n => self.made[n - 1 - nth % n].keypackage_ref.clone(),
        };
        let mut refs: Vec<_> = nths.iter().map(one).collect();
        let Some(answer) = self.ask(by, None, "/keypackages/revoke", &json!({"refs": refs})) else { return };
        refs.sort_unstable();
        refs.dedup();
        let expected = self.model.revoke(by, &refs).into_iter().zip(refs);
        let answer: RevokeResponse = parse(answer.ok());
        let ended = answer.ended.into_iter().map(|one| (Some(one.state), one.keypackage_ref));
        let unknown = answer.unknown.into_iter().map(|one| (None, one));
        let mut told: Vec<_> = ended.chain(unknown).collect();
        told.extend(answer.revoked.into_iter().map(|one| (Some(State::Available), one)));
        told.sort_by(|one, other| one.1.cmp(&other.1));
        let expected: Vec<_> = expected
            .map(|(state, one)| match state {
                Some(State::Reserved) => (Some(State::Available), one),
                state => (state, one),
            })
            .collect();
        assert_eq!(told, expected, "as available: what is revoked now");
        self.is_the_pool(by, answer.pool);
    }

    fn revoke_all(&mut self, by: Who) {
        let Some(answer) = self.ask(by, None, "/keypackages/revoke", &json!({"all": true})) else { return };
        let mut answer: RevokeResponse = parse(answer.ok());
        let live = self.model.live(by);
        self.model.revoke(by, &live);
        answer.revoked.sort_unstable();
        assert_eq!((answer.revoked, answer.ended.len(), answer.unknown.len()), (live, 0, 0));
        self.is_the_pool(by, answer.pool);
    }

    fn remove(&mut self) {
        let path = format!("/devices/{}", self.names[SECOND].device);
        let answer = self.arena.runtime.block_on(self.callers[0].delete(&path));
        if !self.model.registered[SECOND] {
            return answer.is_problem(404, ProblemType::UnknownDevice);
        }
        let live = self.model.live(SECOND);
        self.model.revoke(SECOND, &live);
        self.model.registered[SECOND] = false;
        assert_eq!(parse::<RemovedDevice>(answer.ok()).revoked, live.len() as u64);
    }

    /// Registers a device: by its user's other one, where it has one.
    fn register(&mut self, who: Who) {
        let DeviceOf { user, device } = self.names[who].clone();
        let answer = self.arena.runtime.block_on(self.callers[who - who % 2].register(user.as_str(), device.as_str()));
        if self.callers[who].token.is_some() && self.model.registered[who] {
            return answer.is_problem(409, ProblemType::AlreadyRegistered);
        }
        self.model.registered[who] = true;
        self.callers[who] = self.arena.anyone.with_token(answer.ok()["token"].as_str().unwrap());
    }

    fn is_the_pool(&self, who: Who, mut shown: PoolStatus) {
        shown.draining.clear();
        let parts = [shown.available, shown.reserved, shown.spent, shown.expired, shown.revoked];
        assert_eq!(parts.iter().sum::<u64>(), shown.total, "the counts do not add up: {shown:?}");
        assert_eq!(json!(shown), json!(self.model.status(who)));
    }

    fn there(&self) -> impl Iterator<Item = Who> {
        (0..DEVICES).filter(|who| self.model.registered[*who])
    }

    /// What the devices see of their pools is what the model shows.
    fn compare(&self, closely: &[Who], page: usize) {
        for who in self.there() {
            self.is_the_pool(who, parse(self.get(who, "status")));
        }
        for who in closely {
            let shown = self.inventory(*who, page);
            assert_eq!(shown, self.model.inventory(*who));
            self.is_the_story(&self.trail(*who, page), &shown);
        }
    }

    fn get(&self, who: Who, what: &str) -> Value {
        self.arena.runtime.block_on(self.callers[who].get(&format!("/keypackages/{what}"))).ok()
    }

    fn inventory(&self, who: Who, page: usize) -> Vec<InventoryItem> {
        let (mut items, mut after) = (Vec::new(), String::new());
        loop {
            let page: InventoryPage = parse(self.get(who, &format!("inventory?limit={page}{after}")));
            items.extend(page.keypackages);
            let Some(next) = page.next else { return items };
            after = format!("&after={next}");
        }
    }

    /// All that happened, the oldest first.
    fn trail(&self, who: Who, page: usize) -> Vec<AuditEvent> {
        let (mut events, mut before) = (Vec::new(), String::new());
        loop {
            let page: AuditPage = parse(self.get(who, &format!("audit?limit={page}{before}")));
            events.extend(page.events);
            let Some(next) = page.next else { break };
            before = format!("&before={next}");
        }
        events.reverse();
        assert!(events.iter().all(|event| event.owner == self.names[who]));
        events
    }

    /// The trail, replayed, tells the inventory, and what the inventory has forgotten.
    fn is_the_story(&self, events: &[AuditEvent], inventory: &[InventoryItem]) {
        let (now, retire) = (self.model.now, self.arena.rules.retire);
        let mut lives = replay(events, &self.names, retire);
        for shown in inventory {
            let life = lives.remove(&shown.keypackage_ref).unwrap_or_else(|| panic!("{shown:?} is not in the trail"));
            let state = life.state(now, retire);
            assert_eq!(*shown, item(shown.keypackage_ref.clone(), &life, shown.ciphersuite, state, &self.names));
        }
        let gone = lives.iter().find(|(_, life)| life.not_after > now);
        assert_eq!(gone, None, "it is in the trail, and not in the inventory");
    }
}

/// What was reserved, and what was not; a problem where that is all, of a kind that one of the missing has.
fn reserved(answer: &Answer) -> (Vec<Reservation>, Vec<MissingDevice>) {
    if answer.status == 200 {
        let ReserveResponse { reservations, missing } = parse(answer.json.clone());
        assert!(!reservations.is_empty());
        return (reservations, missing);
    }
    let Problem { kind, missing, .. } = parse(answer.json.clone());
    answer.is_problem(404, kind);
    assert!(missing.iter().any(|miss| <&str>::from(miss.reason) == <&str>::from(kind)), "{}", answer.text);
    (Vec::new(), missing)
}

fn parse<T: DeserializeOwned>(json: Value) -> T {
    serde_json::from_value(json).unwrap()
}

#[track_caller]
fn refused(answer: &Answer, problem: ProblemType) {
    let status = match problem {
        ProblemType::UnknownReservation => 404,
        ProblemType::NotYourReservation => 403,
        _ => 409,
    };
    answer.is_problem(status, problem);
}

/// The ref of a KeyPackage, from its bytes (RFC 9420, section 5.2).
fn ref_of(message: &[u8]) -> KeyPackageRef {
    const HEADER: usize = 4;
    let vector = |bytes: &[u8]| VLBytes::from(bytes.to_vec()).tls_serialize_detached().unwrap();
    let input = [vector(b"MLS 1.0 KeyPackage Reference"), vector(&message[HEADER..])].concat();
    Sha256::digest(input).to_vec().into()
}
