//! The answer to a `reserve`, and to a repetition with the same `Idempotency-Key`.

use keypool_openapi::{DeviceOf, MissingDevice, MissingReason, Problem, ProblemType, Reservation, ReserveResponse};
use serde_json::{Value, json};

use super::{
    reference::{Seconds, Who},
    step::{DEVICES, ReserveRequest},
    world::{TTL, Taken, World, parse, refused},
};
use crate::support::{Answer, group};

/// How long an `Idempotency-Key` is remembered.
const REMEMBERED: Seconds = 3_600;

/// An answer to an idempotent request: until when it is given again, to which request, and the answer.
pub type Kept = (Seconds, ReserveRequest, Value);

impl World<'_> {
    pub fn reserve(&mut self, by: Who, request: &ReserveRequest, key: Option<u8>) {
        let users: Vec<_> = request.users.iter().map(|user| &self.names[2 * user].user).collect();
        let device = request.device.map(|device| &self.names[device].device);
        let (suite, ttl) = (request.suite, request.ttl);
        let body =
            json!({"targets": users, "device": device, "ciphersuite": suite, "ttl": ttl, "group_id": group("friends")});
        let Some(answer) = self.ask(by, key, "/keypackages/reserve", &body) else { return };
        if self.is_repeated(by, request, key, &answer) {
            return;
        }
        let (reservations, mut missing) = reserved(&answer);
        let has_some = |who: &Who| !self.model.candidates(*who, suite).is_empty();
        let (having, lacking): (Vec<_>, Vec<_>) = self.owners(request).into_iter().partition(has_some);
        missing.sort_by(|one, other| (&one.user, &one.device).cmp(&(&other.user, &other.device)));
        assert_eq!(missing, self.missing(request, &lacking));
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
    fn is_repeated(&mut self, by: Who, request: &ReserveRequest, key: Option<u8>, answer: &Answer) -> bool {
        let Some(key) = key else { return false };
        match self.kept.get(&(by, key)).filter(|(until, ..)| *until > self.model.now) {
            Some((_, before, first)) if before == request => self.is_answered_again(answer, first),
            Some(_) => answer.is_problem(422, ProblemType::IdempotencyMismatch),
            None if answer.status == 200 => {
                let kept = (self.model.now + REMEMBERED, request.clone(), answer.json.clone());
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

    /// The owner of a reserved package.
    fn who(&self, reservation: &Reservation) -> Who {
        let is_it = |name: &DeviceOf| (&name.user, &name.device) == (&reservation.user, &reservation.device);
        self.names.iter().position(is_it).unwrap_or_else(|| panic!("{reservation:?} is of nobody here"))
    }

    /// The devices that a request is for.
    pub fn owners(&self, request: &ReserveRequest) -> Vec<Who> {
        let is_meant = |who: &Who| {
            request.users.contains(&(who / 2))
                && request.device.is_none_or(|device| device == who % 2)
                && self.model.registered[*who]
        };
        (0..DEVICES).filter(is_meant).collect()
    }

    /// The expected `missing`: devices without a KeyPackage, and users without such a device.
    fn missing(&self, request: &ReserveRequest, lacking: &[Who]) -> Vec<MissingDevice> {
        let owners = self.owners(request);
        let mut missing: Vec<_> = lacking.iter().map(|who| self.model.miss(*who, request.suite)).collect();
        for user in request.users.iter().filter(|user| owners.iter().all(|who| who / 2 != **user)) {
            missing.push(MissingDevice {
                user: self.names[2 * user].user.clone(),
                device: request.device.map(|device| self.names[device].device.clone()),
                reason: MissingReason::UnknownDevice,
                ciphersuites: Vec::new(),
            });
        }
        missing
    }
}

/// The reservations and the missing devices; a problem if nothing was reserved, with the reason of a missing device.
fn reserved(answer: &Answer) -> (Vec<Reservation>, Vec<MissingDevice>) {
    if answer.status == 200 {
        let ReserveResponse { reservations, missing, .. } = parse(answer.json.clone());
        assert!(!reservations.is_empty());
        return (reservations, missing);
    }
    let Problem { kind, missing, .. } = parse(answer.json.clone());
    answer.is_problem(404, kind);
    assert!(missing.iter().any(|miss| <&str>::from(miss.reason) == <&str>::from(kind)), "{}", answer.text);
    (Vec::new(), missing)
}
