//! A recorded history, and the rules that it has to follow.

use std::{
    collections::{HashMap, HashSet},
    fmt,
};

use jiff::Timestamp;
use serde_json::Value;

use crate::support::Answer;

/// The server retires a KeyPackage that came back so often.
const MOST_HAND_OUTS: usize = 16;

/// The outcome of a request.
#[derive(Debug)]
pub enum Step {
    Uploaded(Vec<String>),
    Revoked(Vec<String>),
    Reserved {
        reservation: String,
        one: String,
        until: Timestamp,
    },
    /// The user had nothing to reserve.
    Exhausted(String),
    Spent {
        reservation: String,
        one: String,
        group: String,
    },
    /// The reservation was lost to another, or to a revocation.
    Lost {
        one: String,
    },
    /// The reservation was spent for another group before.
    SpentBefore {
        reservation: String,
    },
    Released {
        reservation: String,
    },
}

/// A request: it happened at some moment between `start` and `end`.
#[derive(Debug)]
pub struct Done {
    pub by: String,
    pub start: Timestamp,
    pub end: Timestamp,
    pub step: Step,
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("{value} is no text")).to_owned()
}

fn time(value: &Value) -> Timestamp {
    text(value).parse().unwrap()
}

/// The refs of a list.
pub fn refs(list: &Value, key: &str) -> Vec<String> {
    list.as_array().unwrap().iter().map(|one| text(&one[key])).collect()
}

impl Step {
    pub fn reserved(target: &str, answer: &Answer) -> Self {
        if answer.status == 404 {
            assert_eq!(answer.json["type"], "pool-exhausted", "{}", answer.text);
            return Self::Exhausted(target.to_owned());
        }
        let one = &answer.clone().ok()["reservations"][0];
        let (reservation, until) = (text(&one["reservation_id"]), time(&one["expires_at"]));
        Self::Reserved { reservation, one: text(&one["keypackage_ref"]), until }
    }

    pub fn spent(held: &Value, group: &str, answer: &Answer) -> Self {
        let (reservation, one) = (text(&held["reservation_id"]), text(&held["keypackage_ref"]));
        match answer.json["type"].as_str() {
            None => {
                assert_eq!(text(&answer.clone().ok()["keypackage_ref"]), one, "a spend spent something else");
                Self::Spent { reservation, one, group: group.to_owned() }
            }
            Some("reservation-lapsed") => Self::Lost { one },
            Some("already-spent") => Self::SpentBefore { reservation },
            Some(_) => panic!("{}", answer.text),
        }
    }

    pub fn released(held: &Value, answer: &Answer) -> Self {
        let (reservation, one) = (text(&held["reservation_id"]), text(&held["keypackage_ref"]));
        match answer.json["type"].as_str() {
            None => Self::Released { reservation },
            Some("reservation-lapsed") => Self::Lost { one },
            Some("already-spent") => Self::SpentBefore { reservation },
            Some(_) => panic!("{}", answer.text),
        }
    }
}

/// All that was answered, and what the server says in the end.
#[derive(Default)]
pub struct History {
    pub done: Vec<Done>,
    pub inventory: Vec<Value>,
    /// The audit trails, each from its beginning.
    pub trail: Vec<Value>,
}

/// A reservation, as far as answers tell: it was surely live between `surely`, and surely not outside of `possibly`.
struct Life<'a> {
    reservation: &'a str,
    surely: (Timestamp, Timestamp),
    possibly: (Timestamp, Timestamp),
}

impl History {
    pub fn check(&self) {
        let lives = self.lives();
        for (one, lives) in &lives {
            never_live_twice(one, lives);
        }
        self.no_spend_is_lost();
        self.what_was_lost_went_to_somebody(&lives);
        self.nobody_was_turned_away_from_a_full_pool(&lives);
        self.the_trail_tells_the_same();
    }

    /// The reservations of each KeyPackage.
    fn lives(&self) -> HashMap<&str, Vec<Life<'_>>> {
        // When somebody first tried to end a reservation, and when it had surely ended.
        let mut tried: HashMap<&str, Timestamp> = HashMap::new();
        let mut ended: HashMap<&str, Timestamp> = HashMap::new();
        let mut spent: HashSet<&str> = HashSet::new();
        let mut revoked: HashMap<&str, Timestamp> = HashMap::new();
        for done in &self.done {
            match &done.step {
                Step::Released { reservation } => {
                    tried.entry(reservation).and_modify(|at| *at = done.start.min(*at)).or_insert(done.start);
                    ended.entry(reservation).and_modify(|at| *at = done.end.min(*at)).or_insert(done.end);
                }
                Step::Spent { reservation, .. } => drop(spent.insert(reservation)),
                Step::Revoked(refs) => {
                    for one in refs {
                        revoked.insert(one, done.start);
                    }
                }
                _ => {}
            }
        }
        let mut lives: HashMap<&str, Vec<Life<'_>>> = HashMap::new();
        for done in &self.done {
            let Step::Reserved { reservation, one, until } = &done.step else { continue };
            let is_spent = spent.contains(reservation.as_str());
            let free = |at: Option<&Timestamp>| at.map_or(*until, |at| (*at).min(*until));
            let (surely, possibly) = if is_spent {
                (Timestamp::MAX, Timestamp::MAX)
            } else {
                (free(tried.get(reservation.as_str())), free(ended.get(reservation.as_str())))
            };
            let surely = revoked.get(one.as_str()).map_or(surely, |at| surely.min(*at));
            lives.entry(one).or_default().push(Life {
                reservation,
                surely: (done.end, surely),
                possibly: (done.start, possibly),
            });
        }
        lives
    }

    /// A KeyPackage that an answer calls spent is spent, by one reservation, for the group of that answer.
    fn no_spend_is_lost(&self) {
        let states: HashMap<_, _> = self.inventory.iter().map(|item| (text(&item["keypackage_ref"]), item)).collect();
        let mut by: HashMap<&str, (&str, &str)> = HashMap::new();
        for done in &self.done {
            let Step::Spent { reservation, one, group } = &done.step else { continue };
            let item = states.get(one).unwrap_or_else(|| panic!("{one} was spent, and is not known any more"));
            assert_eq!(item["state"], "spent", "the spend of {one} is lost");
            assert_eq!(item["group_id"], group.as_str(), "{one} was spent for another group");
            let first = by.entry(one).or_insert((reservation, group));
            assert_eq!(*first, (reservation.as_str(), group.as_str()), "{one} was spent twice");
        }
        for done in &self.done {
            let Step::SpentBefore { reservation } = &done.step else { continue };
            let spent = by.values().any(|(by, _)| by == reservation);
            assert!(spent, "{reservation} was said to be spent, and nobody was told that it is");
        }
    }

    /// A reservation that is lost was lost to somebody: to another reservation, or to its owner.
    fn what_was_lost_went_to_somebody(&self, lives: &HashMap<&str, Vec<Life<'_>>>) {
        let revoked: HashSet<_> = self
            .done
            .iter()
            .filter_map(|done| if let Step::Revoked(refs) = &done.step { Some(refs) } else { None })
            .flatten()
            .collect();
        for done in &self.done {
            let Step::Lost { one } = &done.step else { continue };
            let others = lives.get(one.as_str()).map_or(0, Vec::len);
            assert!(others > 1 || revoked.contains(one), "{one} was lost to nobody by {}", done.by);
        }
    }

    /// A client that was told `pool-exhausted` asked at a time when each KeyPackage of the pool could have been held.
    fn nobody_was_turned_away_from_a_full_pool(&self, lives: &HashMap<&str, Vec<Life<'_>>>) {
        let mut pools: HashMap<&str, Vec<(&str, Timestamp)>> = HashMap::new();
        let mut revoked: HashMap<&str, Timestamp> = HashMap::new();
        for done in &self.done {
            match &done.step {
                Step::Uploaded(refs) => {
                    pools.entry(&done.by).or_default().extend(refs.iter().map(|one| (one.as_str(), done.end)));
                }
                Step::Revoked(refs) => revoked.extend(refs.iter().map(|one| (one.as_str(), done.start))),
                _ => {}
            }
        }
        for done in &self.done {
            let Step::Exhausted(user) = &done.step else { continue };
            for (one, since) in pools.get(user.as_str()).into_iter().flatten() {
                let there = *since < done.start && revoked.get(one).is_none_or(|at| *at > done.end);
                let held = |life: &Life<'_>| life.possibly.0 <= done.end && life.possibly.1 >= done.start;
                let lives = lives.get(one).map_or(&[][..], Vec::as_slice);
                let before = lives.iter().filter(|life| life.possibly.0 <= done.end).count();
                assert!(
                    !there || lives.iter().any(held) || before >= MOST_HAND_OUTS,
                    "{user} was called exhausted from {} to {}, and had {one}, which was handed out {before} times",
                    done.start,
                    done.end
                );
            }
        }
    }

    /// Every answer is in the audit trail, in an order that agrees with the clients' clocks.
    fn the_trail_tells_the_same(&self) {
        let mut order: HashMap<String, Vec<(String, i64)>> = HashMap::new();
        for event in &self.trail {
            let entry = (text(&event["action"]), event["id"].as_i64().unwrap());
            order.entry(text(&event["keypackage_ref"])).or_default().push(entry);
        }
        for (one, events) in &order {
            assert!(events.windows(2).all(|pair| pair[0].1 < pair[1].1), "the trail of {one} is out of order");
            let spends = events.iter().filter(|(action, _)| action == "spend").count();
            assert!(spends <= 1, "{one} was spent {spends} times");
            let end = events.iter().position(|(action, _)| action == "spend" || action == "revoke");
            assert!(end.is_none_or(|at| at + 1 == events.len()), "{one} lived on after its end: {events:?}");
        }
        let told: HashSet<_> = self
            .trail
            .iter()
            .filter(|event| event["action"] == "reserve")
            .map(|event| text(&event["reservation_id"]))
            .collect();
        let answered: HashSet<_> = self
            .done
            .iter()
            .filter_map(
                |done| if let Step::Reserved { reservation, .. } = &done.step { Some(reservation) } else { None },
            )
            .cloned()
            .collect();
        assert_eq!(told, answered, "the trail and the answers name other reservations");
    }
}

/// No two reservations of one KeyPackage were both live at any moment.
fn never_live_twice(one: &str, lives: &[Life<'_>]) {
    for (index, life) in lives.iter().enumerate() {
        for other in &lives[index + 1..] {
            let from = life.surely.0.max(other.surely.0);
            let to = life.surely.1.min(other.surely.1);
            assert!(from >= to, "{one} was held by {} and {} at once", life.reservation, other.reservation);
        }
    }
}

impl fmt::Display for History {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = |which: fn(&Step) -> bool| self.done.iter().filter(|done| which(&done.step)).count();
        write!(
            f,
            "{} requests: {} reserved, {} exhausted, {} spent, {} lost, {} released; {} KeyPackages, {} events",
            self.done.len(),
            count(|step| matches!(step, Step::Reserved { .. })),
            count(|step| matches!(step, Step::Exhausted(_))),
            count(|step| matches!(step, Step::Spent { .. })),
            count(|step| matches!(step, Step::Lost { .. })),
            count(|step| matches!(step, Step::Released { .. })),
            self.inventory.len(),
            self.trail.len(),
        )
    }
}
