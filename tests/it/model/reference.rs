//! The pool as the design has it, in plain collections: what each call has to answer, and what is to be seen then. Of
//! what the server may choose, it says whether the choice was allowed.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use jiff::Timestamp;
use keypool_openapi::{
    DeviceOf, KeyPackageRef, MissingDevice, MissingReason, ProblemType, RejectionReason, Reservation, ReservationId,
    State,
};

/// A device by its number.
pub type Who = usize;
/// Seconds, since the epoch or of a span.
pub type Seconds = i64;

/// How long an ended KeyPackage stays known past its `not_after`.
const KNOWN_FOR: Seconds = 7 * 86_400;

/// The operator's settings.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    pub retire: bool,
    pub capacity: usize,
    pub target: u64,
    pub low: u64,
    pub min_remaining: Seconds,
}

/// How a life ended, but for what time does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    Spent { group: Vec<u8>, at: Seconds },
    Revoked,
}

/// The newest reservation of a KeyPackage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hold {
    pub id: ReservationId,
    pub by: Who,
    pub until: Seconds,
}

/// The history of a KeyPackage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Life {
    pub not_after: Seconds,
    pub last_resort: bool,
    pub hold: Option<Hold>,
    pub end: Option<End>,
}

impl Life {
    /// Its state by its history and the time: the event that came first has ended it.
    pub fn state(&self, now: Seconds, retire: bool) -> State {
        let until = self.hold.map(|hold| hold.until);
        match self.end {
            Some(End::Spent { .. }) => State::Spent,
            Some(End::Revoked) => State::Revoked,
            None if retire && until.is_some_and(|until| until <= now && until < self.not_after) => State::Retired,
            None if self.not_after <= now => State::Expired,
            None if until.is_some_and(|until| until > now) => State::Reserved,
            None => State::Available,
        }
    }
}

#[derive(Clone, Debug)]
pub struct Package {
    pub owner: Who,
    pub suite: u16,
    pub uses: u64,
    pub life: Life,
}

/// A KeyPackage that is offered to the pool.
#[derive(Clone, Debug)]
pub struct Offer {
    pub keypackage_ref: KeyPackageRef,
    pub suite: u16,
    pub not_after: Seconds,
    pub last_resort: bool,
}

#[derive(Clone, Debug)]
struct Reserved {
    keypackage_ref: KeyPackageRef,
    by: Who,
    last_resort: bool,
    released: bool,
    /// For which group a last resort was spent, and when.
    spent: Option<(Vec<u8>, Seconds)>,
}

/// The pools of a few devices.
pub struct Model {
    pub rules: Rules,
    pub names: Vec<DeviceOf>,
    pub now: Seconds,
    pub registered: Vec<bool>,
    pub last_upload: Vec<Option<Seconds>>,
    packages: BTreeMap<KeyPackageRef, Package>,
    reservations: HashMap<ReservationId, Reserved>,
}

impl Model {
    pub fn new(rules: Rules, names: Vec<DeviceOf>, now: Seconds) -> Self {
        let (registered, last_upload) = (vec![true; names.len()], vec![None; names.len()]);
        let (packages, reservations) = (BTreeMap::new(), HashMap::new());
        Self { rules, names, now, registered, last_upload, packages, reservations }
    }

    fn state(&self, package: &Package) -> State {
        package.life.state(self.now, self.rules.retire)
    }

    pub fn of(&self, owner: Who) -> impl Iterator<Item = (&KeyPackageRef, &Package, State)> {
        let own = self.packages.iter().filter(move |(_, package)| package.owner == owner);
        own.map(|(keypackage_ref, package)| (keypackage_ref, package, self.state(package)))
    }

    fn is_live(state: State) -> bool {
        matches!(state, State::Available | State::Reserved)
    }

    /// The result for each package of an upload.
    pub fn upload(&mut self, owner: Who, offers: &[Offer]) -> Vec<Result<(), RejectionReason>> {
        let is_over: Vec<_> = offers.iter().map(|offer| self.is_known_to_be_over(owner, offer)).collect();
        let mut outcomes = Vec::new();
        for (index, offer) in offers.iter().enumerate() {
            let is_there_twice = offers[..index].iter().any(|other| other.keypackage_ref == offer.keypackage_ref);
            let is_second = offers
                .iter()
                .zip(&outcomes)
                .any(|(other, outcome)| outcome == &Ok(()) && (other.last_resort, other.suite) == (true, offer.suite));
            outcomes.push(if offer.not_after <= self.now {
                Err(RejectionReason::LifetimeExpired)
            } else if is_there_twice || is_over[index] {
                Err(RejectionReason::Duplicate)
            } else if offer.not_after < self.usable_until() && !self.packages.contains_key(&offer.keypackage_ref) {
                Err(RejectionReason::NeverAvailable)
            } else if offer.last_resort && is_second {
                Err(RejectionReason::SecondLastResort)
            } else {
                self.put(owner, offer)
            });
        }
        if outcomes.iter().any(Result::is_ok) {
            self.last_upload[owner] = Some(self.now);
        }
        outcomes
    }

    /// Whether it is, or was, another's, or was in this pool and can never come back.
    fn is_known_to_be_over(&self, owner: Who, offer: &Offer) -> bool {
        let known = self.packages.get(&offer.keypackage_ref);
        known.is_some_and(|known| known.owner != owner || !Self::is_live(self.state(known)))
    }

    fn put(&mut self, owner: Who, offer: &Offer) -> Result<(), RejectionReason> {
        let Offer { keypackage_ref, suite, not_after, last_resort } = offer.clone();
        if self.packages.contains_key(&keypackage_ref) {
            return Ok(());
        }
        let is_alike = |package: &Package| (package.suite, package.life.last_resort) == (suite, last_resort);
        let alike = self.of(owner).filter(|(_, package, state)| is_alike(package) && Self::is_live(*state));
        let alike: Vec<_> = alike.map(|(keypackage_ref, ..)| keypackage_ref.clone()).collect();
        if last_resort {
            for old in &alike {
                self.end(old, End::Revoked);
            }
        } else if self.kept(owner, suite) >= self.rules.capacity {
            return Err(RejectionReason::PoolFull);
        }
        let life = Life { not_after, last_resort, hold: None, end: None };
        self.packages.insert(keypackage_ref, Package { owner, suite, uses: 0, life });
        Ok(())
    }

    /// How many KeyPackages count against the capacity: those that are held, and those that may be handed out.
    fn kept(&self, owner: Who, suite: u16) -> usize {
        let is_kept = |(_, package, state): &(&KeyPackageRef, &Package, State)| {
            package.suite == suite
                && !package.life.last_resort
                && (*state == State::Reserved || self.is_offered(package, *state))
        };
        self.of(owner).filter(is_kept).count()
    }

    fn end(&mut self, keypackage_ref: &KeyPackageRef, end: End) {
        self.packages.get_mut(keypackage_ref).unwrap().life.end = Some(end);
    }

    /// A package that expires before this is not handed out.
    pub fn usable_until(&self) -> Seconds {
        self.now + self.rules.min_remaining.max(1)
    }

    /// Whether a KeyPackage in this state may be handed out.
    pub fn is_offered(&self, package: &Package, state: State) -> bool {
        state == State::Available && package.life.not_after >= self.usable_until()
    }

    /// The candidates for the next reservation: fresh ones, or else returned ones, or else the last resort.
    pub fn candidates(&self, owner: Who, suite: Option<u16>) -> Vec<&KeyPackageRef> {
        let tier = |package: &Package| (package.life.last_resort, package.life.hold.is_some());
        let fits = |package: &Package| suite.is_none_or(|suite| suite == package.suite);
        let fitting = || self.of(owner).filter(|(_, package, state)| self.is_offered(package, *state) && fits(package));
        let best = fitting().map(|(_, package, _)| tier(package)).min();
        fitting().filter(|(_, package, _)| Some(tier(package)) == best).map(|(r, ..)| r).collect()
    }

    /// A reservation that was answered: it has to be one of the candidates, as it was uploaded.
    pub fn handed_out(&mut self, by: Who, owner: Who, suite: Option<u16>, ttl: Seconds, given: &Reservation) {
        assert!(
            self.candidates(owner, suite).contains(&&given.keypackage_ref),
            "{given:?} is not to be handed out now"
        );
        let (id, until, keypackage_ref) = (given.reservation_id, self.now + ttl, given.keypackage_ref.clone());
        let package = self.packages.get_mut(&given.keypackage_ref).unwrap();
        let Life { not_after, last_resort, .. } = package.life;
        let stated = (given.ciphersuite, given.not_after.as_second(), given.last_resort, given.expires_at.as_second());
        assert_eq!(stated, (package.suite, not_after, last_resort, until), "{given:?}");
        if last_resort {
            package.uses += 1;
        } else {
            package.life.hold = Some(Hold { id, by, until });
        }
        let reserved = Reserved { keypackage_ref, by, last_resort, released: false, spent: None };
        assert!(self.reservations.insert(id, reserved).is_none(), "{id} is given a second time");
    }

    /// The reason for a device without a candidate.
    pub fn miss(&self, owner: Who, suite: Option<u16>) -> MissingDevice {
        let there = |is_usable: bool| {
            let idle = self.of(owner).filter(|(.., state)| matches!(state, State::Available | State::Expired));
            let found = idle.filter(move |(_, package, _)| !is_usable || package.life.not_after >= self.usable_until());
            found.map(|(_, package, _)| package.suite).collect::<BTreeSet<_>>()
        };
        let (all, usable) = (there(false), there(true));
        let reason = if all.is_empty() {
            MissingReason::PoolExhausted
        } else if suite.is_some_and(|suite| !all.contains(&suite)) && !usable.is_empty() {
            MissingReason::NoMatchingCiphersuite
        } else {
            MissingReason::PoolExpired
        };
        let ciphersuites = usable.into_iter().collect();
        let DeviceOf { user, device } = self.names[owner].clone();
        MissingDevice { user, device: Some(device), reason, ciphersuites }
    }

    /// Whether a KeyPackage is held by this reservation now; a last resort, whether it is still offered.
    pub fn still_holds(&self, id: ReservationId) -> bool {
        let Some(reserved) = self.reservations.get(&id) else { return false };
        let Some(package) = self.packages.get(&reserved.keypackage_ref) else { return false };
        let state = self.state(package);
        if reserved.last_resort {
            state == State::Available
        } else {
            state == State::Reserved && package.life.hold.is_some_and(|hold| hold.id == id)
        }
    }

    /// The state that a spend ends in, and when it was done first.
    pub fn spend(&mut self, by: Who, id: ReservationId, group: &[u8]) -> Result<(State, Seconds), ProblemType> {
        let now = self.now;
        let reserved = self.reservations.get_mut(&id).ok_or(ProblemType::UnknownReservation)?;
        if reserved.by != by {
            return Err(ProblemType::NotYourReservation);
        }
        let (spent_for, at) = if reserved.last_resort {
            let package = self.packages.get(&reserved.keypackage_ref);
            let revoked = package.filter(|package| matches!(package.life.end, Some(End::Revoked)));
            let is_replaced = |old: &Package| {
                self.packages.values().any(|one| {
                    (one.owner, one.suite) == (old.owner, old.suite) && one.life.last_resort && one.life.end.is_none()
                })
            };
            if revoked.is_some_and(|old| !is_replaced(old)) && reserved.spent.is_none() {
                return Err(ProblemType::ReservationLapsed);
            }
            reserved.spent.get_or_insert((group.to_vec(), now)).clone()
        } else {
            let package = self.packages.get_mut(&reserved.keypackage_ref);
            let held = package.filter(|package| package.life.hold.is_some_and(|hold| hold.id == id));
            // However late, it is marked while nobody has reserved it since.
            let end = &mut held.ok_or(ProblemType::ReservationLapsed)?.life.end;
            match end.get_or_insert(End::Spent { group: group.to_vec(), at: now }) {
                End::Spent { group, at } => (group.clone(), *at),
                End::Revoked => return Err(ProblemType::ReservationLapsed),
            }
        };
        let state = if reserved.last_resort { State::Available } else { State::Spent };
        if spent_for == group { Ok((state, at)) } else { Err(ProblemType::AlreadySpent) }
    }

    /// The state after a release.
    pub fn release(&mut self, by: Who, id: ReservationId) -> Result<State, ProblemType> {
        let reserved = self.reservations.get_mut(&id).ok_or(ProblemType::UnknownReservation)?;
        if reserved.by != by {
            return Err(ProblemType::NotYourReservation);
        }
        if reserved.last_resort {
            return Ok(State::Available);
        }
        let package = self.packages.get_mut(&reserved.keypackage_ref);
        let held = package.filter(|package| package.life.hold.is_some_and(|hold| hold.id == id));
        let Some(life) = held.map(|package| &mut package.life) else {
            // Another's by now; what was released once stays released.
            return if reserved.released { Ok(State::Available) } else { Err(ProblemType::ReservationLapsed) };
        };
        match life.state(self.now, self.rules.retire) {
            State::Spent => Err(ProblemType::AlreadySpent),
            State::Reserved => {
                life.hold = life.hold.map(|hold| Hold { until: self.now, ..hold });
                reserved.released = true;
                Ok(life.state(self.now, self.rules.retire))
            }
            over => Ok(over),
        }
    }

    /// The state of each of these before they were revoked; `None` for what is not in the pool.
    pub fn revoke(&mut self, owner: Who, refs: &[KeyPackageRef]) -> Vec<Option<State>> {
        let states = refs.iter().map(|keypackage_ref| {
            let own = self.packages.get(keypackage_ref).filter(|package| package.owner == owner);
            own.map(|package| self.state(package))
        });
        let states: Vec<_> = states.collect();
        for (keypackage_ref, _) in refs.iter().zip(&states).filter(|(_, state)| state.is_some_and(Self::is_live)) {
            self.end(keypackage_ref, End::Revoked);
        }
        states
    }

    /// The packages that can be revoked.
    pub fn live(&self, owner: Who) -> Vec<KeyPackageRef> {
        self.of(owner).filter(|(.., state)| Self::is_live(*state)).map(|(r, ..)| r.clone()).collect()
    }

    /// A sweep forgets KeyPackages, and with them their reservations; all else it does has been true before.
    pub fn sweep(&mut self) {
        let now = self.now;
        self.packages.retain(|_, package| package.life.not_after + KNOWN_FOR > now);
        self.reservations.retain(|_, reserved| self.packages.contains_key(&reserved.keypackage_ref));
    }
}

pub fn time(second: Seconds) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}
