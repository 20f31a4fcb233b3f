//! The steps that proptest generates and shrinks.

use jiff::SignedDuration;
use proptest::{
    collection::vec,
    option,
    prelude::*,
    sample::select,
    strategy::{BoxedStrategy, Union},
};
use proptest_state_machine::ReferenceStateMachine;

use super::reference::{Seconds, Who};

/// The devices: two of the first user, one of the second.
pub const DEVICES: usize = 3;
/// The one that comes and goes.
pub const SECOND: Who = 1;
/// The ciphersuites that packages are of.
pub const SUITES: [u16; 2] = [1, 3];

const MINUTE: Seconds = 60;
const HOUR: Seconds = 60 * MINUTE;
const DAY: Seconds = 24 * HOUR;
/// Sums of them hit `not_after`, the ends of reservations, and the other bounds exactly.
const SPANS: [Seconds; 10] = [1, 30, MINUTE, 5 * MINUTE, 10 * MINUTE, HOUR, 2 * HOUR, DAY, 2 * DAY, 7 * DAY];
/// The shortest is never handed out.
const LIVES: [Seconds; 6] = [20 * DAY, 2 * DAY, DAY, 2 * HOUR, 10 * MINUTE, 5 * MINUTE - 1];
const TTLS: [Seconds; 4] = [1, 30, 2 * MINUTE, 10 * MINUTE];

/// A KeyPackage of an upload.
#[derive(Clone, Debug)]
pub enum Parcel {
    New {
        suite: u16,
        lives: Seconds,
        last_resort: bool,
    },
    /// One that was made before, by whomever, so many before the newest.
    Again(usize),
}

/// The targets of a `reserve`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReserveRequest {
    /// Of the first user, of the second.
    pub users: Vec<usize>,
    /// Of the first or the second device alone.
    pub device: Option<usize>,
    pub suite: Option<u16>,
    pub ttl: Option<Seconds>,
}

/// One call, or what time or the sweeper does.
#[derive(Clone, Debug)]
pub enum Step {
    Upload {
        by: Who,
        parcels: Vec<Parcel>,
    },
    Reserve {
        by: Who,
        request: ReserveRequest,
        key: Option<u8>,
    },
    /// The reservation that is so many before the newest, by its adder or by another device.
    Spend {
        nth: usize,
        by: Option<Who>,
        group: u8,
    },
    Release {
        nth: usize,
        by: Option<Who>,
    },
    /// The packages that are so many before the newest, of any device.
    Revoke {
        by: Who,
        nths: Vec<usize>,
    },
    RevokeAll {
        by: Who,
    },
    Advance(SignedDuration),
    Sweep,
    /// The first user's second device.
    Remove,
    Register,
}

/// How much there is to be used by further steps, to make up such that mean something.
#[derive(Clone, Debug, Default)]
pub struct History {
    uploads: usize,
    reserves: usize,
}

impl ReferenceStateMachine for History {
    type State = Self;
    type Transition = Step;

    fn init_state() -> BoxedStrategy<Self> {
        Just(Self::default()).boxed()
    }

    fn transitions(state: &Self) -> BoxedStrategy<Step> {
        let if_any = |n: usize, weight| if n > 0 { weight } else { 1 };
        Union::new_weighted(vec![
            (if_any(state.uploads, 24), Just(Step::Sweep).boxed()),
            (if_any(state.uploads, 60), advance().boxed()),
            (60, upload().boxed()),
            (if_any(state.uploads, 100), reserve().boxed()),
            (if_any(state.reserves, 60), spend().boxed()),
            (if_any(state.reserves, 50), release().boxed()),
            (if_any(state.uploads, 15), revoke().boxed()),
            (if_any(state.uploads, 5), who().prop_map(|by| Step::RevokeAll { by }).boxed()),
            (5, Just(Step::Remove).boxed()),
            (8, Just(Step::Register).boxed()),
        ])
        .boxed()
    }

    fn apply(mut state: Self, step: &Step) -> Self {
        state.uploads += usize::from(matches!(step, Step::Upload { .. }));
        state.reserves += usize::from(matches!(step, Step::Reserve { .. }));
        state
    }
}

/// Mostly the first: what happens to one pool is worth more than the same spread over all.
fn who() -> impl Strategy<Value = Who> {
    prop_oneof![3 => Just(0), 4 => 0..DEVICES]
}

/// Mostly one of the last few.
fn nth() -> impl Strategy<Value = usize> {
    prop_oneof![3 => 0..3_usize, 1 => 0..40_usize]
}

fn advance() -> impl Strategy<Value = Step> {
    select(&SPANS[..]).prop_map(|seconds| Step::Advance(SignedDuration::from_secs(seconds)))
}

fn upload() -> impl Strategy<Value = Step> {
    let new = (select(&SUITES[..]), select(&LIVES[..]), prop::bool::weighted(0.2));
    let new = new.prop_map(|(suite, lives, last_resort)| Parcel::New { suite, lives, last_resort });
    let parcel = prop_oneof![9 => new, 1 => nth().prop_map(Parcel::Again)];
    (who(), vec(parcel, 1..6)).prop_map(|(by, parcels)| Step::Upload { by, parcels })
}

fn reserve() -> impl Strategy<Value = Step> {
    let users = prop_oneof![4 => Just(vec![0]), 1 => Just(vec![1]), 1 => Just(vec![0, 1])];
    let request = (users, option::of(0..2_usize), option::of(select(&SUITES[..])), option::of(select(&TTLS[..])));
    let request = request.prop_map(|(users, device, suite, ttl)| ReserveRequest { users, device, suite, ttl });
    let key = prop_oneof![4 => Just(None), 1 => Just(Some(0)), 1 => Just(Some(1))];
    (who(), request, key).prop_map(|(by, request, key)| Step::Reserve { by, request, key })
}

fn by() -> impl Strategy<Value = Option<Who>> {
    prop_oneof![6 => Just(None), 1 => (0..DEVICES).prop_map(Some)]
}

fn spend() -> impl Strategy<Value = Step> {
    (nth(), by(), prop_oneof![4 => Just(0), 1 => Just(1)]).prop_map(|(nth, by, group)| Step::Spend { nth, by, group })
}

fn release() -> impl Strategy<Value = Step> {
    (nth(), by()).prop_map(|(nth, by)| Step::Release { nth, by })
}

fn revoke() -> impl Strategy<Value = Step> {
    (who(), vec(nth(), 1..4)).prop_map(|(by, nths)| Step::Revoke { by, nths })
}
