//! A server and the model: each step runs on both, and their answers are compared.

use std::collections::BTreeMap;

use keypool_openapi::{
    Base64Bytes, DeviceOf, KeyPackageRef, ProblemType, RejectionReason, ReleaseResponse, RemovedDevice, ReservationId,
    RevokeResponse, SpendResponse, State, UploadResponse,
};
use openmls::prelude::Ciphersuite;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tls_codec::{Serialize, VLBytes};
use uuid::Uuid;

use super::{
    arena::Arena,
    reference::{Model, Offer, Seconds, Who, time},
    reserve::Kept,
    step::{DEVICES, Parcel, SECOND, Step},
};
use crate::support::{Answer, Device, Http, encode};

/// A reservation where the request does not say.
pub const TTL: Seconds = 60;

/// A reservation that was answered.
#[derive(Clone, Copy)]
pub struct Taken {
    pub id: ReservationId,
    pub by: Who,
    pub owner: Who,
}

/// One history.
pub struct World<'a> {
    pub arena: &'a Arena,
    pub model: Model,
    pub callers: Vec<Http>,
    pub names: Vec<DeviceOf>,
    pub made: Vec<Offer>,
    pub bytes: BTreeMap<KeyPackageRef, Vec<u8>>,
    pub reservations: Vec<Taken>,
    pub kept: BTreeMap<(Who, u8), Kept>,
}

impl World<'_> {
    pub fn may_change(&self, step: &Step) -> Vec<Who> {
        match step {
            Step::Upload { by, .. } | Step::Revoke { by, .. } | Step::RevokeAll { by } => vec![*by],
            Step::Reserve { request, .. } => self.owners(request),
            Step::Spend { nth, .. } | Step::Release { nth, .. } => vec![self.reservation(*nth).owner],
            Step::Sweep => (0..DEVICES).collect(),
            Step::Remove | Step::Register => vec![SECOND],
            Step::Advance(_) => Vec::new(),
        }
    }

    /// Does this to the server and to the model; the answers have to be the same.
    pub fn take(&mut self, step: &Step) {
        match step {
            Step::Upload { by, parcels } => self.upload(*by, parcels),
            Step::Reserve { by, request, key } => self.reserve(*by, request, *key),
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

    /// The answer to a device; `None` if it was removed and got 401.
    pub fn ask(&self, by: Who, key: Option<u8>, path: &str, body: &Value) -> Option<Answer> {
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
                let bytes = match (last_resort, self.made.len() % 2) {
                    (false, _) => device.key_package(),
                    // The two forms are one to the server.
                    (true, 0) => device.last_resort(),
                    (true, _) => device.marking_by_a_component().key_package(),
                };
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
    pub fn register(&mut self, who: Who) {
        let DeviceOf { user, device } = self.names[who].clone();
        let answer = self.arena.runtime.block_on(self.callers[who - who % 2].register(user.as_str(), device.as_str()));
        if self.callers[who].token.is_some() && self.model.registered[who] {
            return answer.is_problem(409, ProblemType::AlreadyRegistered);
        }
        self.model.registered[who] = true;
        self.callers[who] = self.arena.anyone.with_token(answer.ok()["token"].as_str().unwrap());
    }
}

pub fn parse<T: DeserializeOwned>(json: Value) -> T {
    serde_json::from_value(json).unwrap()
}

#[track_caller]
pub fn refused(answer: &Answer, problem: ProblemType) {
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
