//! A model of a server, its adders and owners: everything of Keypool that matters for the log, without Keypool.

use std::collections::{BTreeMap, HashSet};

use keypool_transparency::{
    adder::{self, HandOut, Spend},
    answers::{Answer, Answers, Found},
    commitment::{Event, LogSecret, Opening, Record},
    contradiction::Dossier,
    key_package::KeyPackageFields,
    leaf::{Leaf, shuffled_batch},
    note::SignerKey,
    owner::{self, OwnPackage, TrailRow},
    package::{Bind, PackageId, ReservationId, Step, Tag},
    policy::Policy,
    receipt::{Promise, Receipt},
    statement::Statement,
    verdict::Verdict,
};

use crate::support::Log;

pub const TTL: u64 = 60;
pub const OWNER: &str = "alice/laptop";

/// The device that asks.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Viewer<'a> {
    Owner,
    Adder(&'a HandOut),
}

/// A package on the server.
#[derive(Clone)]
pub struct Package {
    pub fields: KeyPackageFields,
    pub id: PackageId,
    /// The number of the next hand-out, or of the present one.
    pub n: u32,
    pub held: Option<usize>,
    pub gone: bool,
    pub rows: Vec<TrailRow>,
}

/// A server that is honest as long as only its verbs are used.
pub struct Server {
    pub log: Log,
    pub now: u64,
    pub packages: Vec<Package>,
    /// Hand-outs, each with the index of its package.
    pub hand_outs: Vec<(usize, HandOut)>,
    /// What the server shows of each step.
    pub book: BTreeMap<Tag, (Leaf, Opening)>,
    /// Leaves that are not in the log yet.
    pub outbox: Vec<Leaf>,
    pub secret: LogSecret,
    random: u64,
}

pub fn fields(seed: u8, last_resort: bool) -> KeyPackageFields {
    KeyPackageFields {
        ciphersuite: 1,
        signed: [seed; 32],
        signature: 0..0,
        not_before: 10_000_000,
        not_after: 10_000_000 + 80 * 86_400,
        last_resort,
    }
}

impl Server {
    pub fn new(packages: u8, last_resorts: u8) -> Self {
        let all = (0..packages + last_resorts).map(|seed| fields(seed, seed >= packages));
        let package = |fields: KeyPackageFields| {
            let id = PackageId::of(&fields);
            Package { fields, id, n: 0, held: None, gone: false, rows: Vec::new() }
        };
        Self {
            log: Log::new(1),
            now: 11_000_000,
            packages: all.map(package).collect(),
            hand_outs: Vec::new(),
            book: BTreeMap::new(),
            outbox: Vec::new(),
            secret: LogSecret([5; 32]),
            random: 0x9e37_79b9_7f4a_7c15,
        }
    }

    pub fn random(&mut self, bytes: &mut [u8]) {
        bytes.fill_with(|| {
            self.random ^= self.random << 13;
            self.random ^= self.random >> 7;
            self.random ^= self.random << 17;
            u8::try_from(self.random >> 56).unwrap()
        });
    }

    pub fn policy(&self) -> Policy {
        Policy::of_logs([self.log.key.verifier().clone()])
    }

    pub fn record(&self, event: Event, package: PackageId, hand_out: Option<&HandOut>) -> Record {
        let until = hand_out.and_then(|hand_out| hand_out.until).filter(|_| event == Event::Reserve).unwrap_or(0);
        Record {
            event,
            package,
            owner: OWNER.to_owned(),
            at: self.now,
            until,
            actor: hand_out.map_or(String::new(), |hand_out| hand_out.actor.clone()),
            group_id: hand_out.map_or(Vec::new(), |hand_out| hand_out.group_id.clone()),
            reservation_id: hand_out.map_or(ReservationId::default(), |hand_out| hand_out.reservation_id),
            bind: hand_out.map_or(Bind::default(), |hand_out| hand_out.bind),
        }
    }

    /// Logs a step and writes it to the trail.
    pub fn step(&mut self, package: usize, step: Step, event: Event, hand_out: Option<&HandOut>) -> Leaf {
        let record = self.record(event, self.packages[package].id, hand_out);
        let n = matches!(step, Step::Open(_) | Step::End(_)).then(|| step.n());
        let Record { at, actor, group_id, reservation_id, .. } = record.clone();
        self.packages[package].rows.push(TrailRow { event, n, at, actor, group_id, reservation_id });
        self.log_step(&step, &record)
    }

    /// Logs a step alone.
    pub fn log_step(&mut self, step: &Step, record: &Record) -> Leaf {
        let (leaf, opening) = self.secret.seal(step, record);
        self.book.insert(leaf.tag(), (leaf, opening));
        self.outbox.push(leaf);
        leaf
    }

    pub fn new_hand_out(&mut self, actor: &str, n: Option<u32>) -> HandOut {
        let (mut id, mut bind) = ([0; 24], [0; 32]);
        self.random(&mut id);
        self.random(&mut bind);
        HandOut {
            n,
            owner: OWNER.to_owned(),
            actor: actor.to_owned(),
            group_id: b"group".to_vec(),
            spent_for: Vec::new(),
            reservation_id: ReservationId(id),
            bind: Bind(bind),
            until: Some(self.now + TTL),
            spend: Spend::Not,
            receipts: Vec::new(),
        }
    }

    pub fn receipt(&self, to: &str, promises: Vec<Promise>) -> String {
        let (origin, size) = (self.log.name().to_owned(), self.log.size());
        Receipt { origin, size, time: self.now, to: to.to_owned(), promises }.sign(&self.log.key).unwrap()
    }

    /// Reserves a package and gives the number of the hand-out.
    pub fn reserve(&mut self, package: usize, actor: &str) -> Option<usize> {
        self.lapse(package);
        let Package { held, gone, n, fields, .. } = &self.packages[package];
        if held.is_some() || *gone || *n > 15 {
            return None;
        }
        let last_resort = fields.last_resort;
        let mut hand_out = self.new_hand_out(actor, (!last_resort).then_some(*n));
        let step = hand_out.n.map_or(Step::Use(hand_out.reservation_id), Step::Open);
        let leaf = self.step(package, step, Event::Reserve, Some(&hand_out));
        hand_out.receipts.push(self.receipt(actor, vec![Promise::Leaf(leaf)]));
        self.hand_outs.push((package, hand_out));
        let index = self.hand_outs.len() - 1;
        self.packages[package].held = (!last_resort).then_some(index);
        Some(index)
    }

    /// Ends the present hand-out of a package.
    pub fn end(&mut self, package: usize, event: Event) -> Option<Leaf> {
        let hand_out = self.packages[package].held.take()?;
        let hand_out = self.hand_outs[hand_out].1.clone();
        let leaf = self.step(package, Step::End(hand_out.n?), event, Some(&hand_out));
        self.packages[package].n += 1;
        Some(leaf)
    }

    /// Sweeps a reservation whose time has run out.
    pub fn lapse(&mut self, package: usize) {
        let held = self.packages[package].held.map(|hand_out| &self.hand_outs[hand_out].1);
        if held.is_some_and(|hand_out| hand_out.until.is_some_and(|until| until <= self.now)) {
            self.end(package, Event::Lapse);
        }
    }

    pub fn release(&mut self, hand_out: usize) {
        let package = self.hand_outs[hand_out].0;
        if self.packages[package].held == Some(hand_out) {
            self.end(package, Event::Release);
        }
    }

    /// Spends a reservation in time, or late if nobody has reserved the package since.
    pub fn spend(&mut self, hand_out: usize) -> bool {
        let (package, mut own) = self.hand_outs[hand_out].clone();
        if own.spend == Spend::Acknowledged {
            return true;
        }
        let leaves = if own.n.is_none() {
            vec![self.step(package, Step::Used(own.reservation_id), Event::Spend, Some(&own))]
        } else if self.packages[package].held == Some(hand_out) {
            self.packages[package].gone = true;
            self.end(package, Event::Spend).into_iter().collect()
        } else if own.n.map(|n| n + 1) == Some(self.packages[package].n)
            && self.packages[package].held.is_none()
            && !self.packages[package].gone
        {
            let n = self.packages[package].n;
            (own.n, own.until) = (Some(n), None);
            self.packages[package].gone = true;
            let open = self.step(package, Step::Open(n), Event::Reserve, Some(&own));
            vec![open, self.step(package, Step::End(n), Event::Spend, Some(&own))]
        } else {
            return false;
        };
        own.receipts.push(self.receipt(&own.actor, leaves.into_iter().map(Promise::Leaf).collect()));
        own.spend = Spend::Acknowledged;
        self.hand_outs[hand_out].1 = own;
        true
    }

    pub fn revoke(&mut self, package: usize) {
        if self.packages[package].gone || self.packages[package].fields.last_resort {
            return;
        }
        self.packages[package].gone = true;
        if self.end(package, Event::Revoke).is_none() {
            let n = self.packages[package].n;
            self.step(package, Step::End(n), Event::Revoke, None);
        }
    }

    /// Writes the outbox to the log.
    pub fn sequence(&mut self) {
        let leaves = std::mem::take(&mut self.outbox);
        let mut state = self.random;
        let mut random = |bytes: &mut [u8]| {
            bytes.fill_with(|| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                u8::try_from(state >> 56).unwrap()
            });
        };
        let batch: Vec<_> =
            shuffled_batch(&leaves, &mut random).into_iter().map(|(leaf, _)| *leaf.as_bytes()).collect();
        self.random = state | 1;
        self.log.append(&batch);
    }

    pub fn index(&self, leaf: &Leaf) -> Option<u64> {
        self.log.entries.iter().position(|entry| entry == leaf.as_bytes()).map(|index| index as u64)
    }

    fn find(&self, tag: &Tag, viewer: Viewer<'_>, own: bool) -> Found {
        let Some((leaf, opening)) = self.book.get(tag) else { return Found::None };
        let Some(index) = self.index(leaf) else { return Found::Pending };
        let path = self.log.tree(self.log.size()).inclusion(index).unwrap();
        let opening = if viewer == Viewer::Owner || own { opening.clone() } else { opening.first_level() };
        Found::Included { leaf: *leaf, index, path, opening: Some(opening), heirs: Vec::new() }
    }

    pub fn answers(&self, package: PackageId, steps: &[Step], viewer: Viewer<'_>) -> Answers {
        let is_own = |step: &Step| match viewer {
            Viewer::Owner => true,
            Viewer::Adder(hand_out) => hand_out.n.is_none_or(|n| step.n() == n),
        };
        let answer = |step: &Step| {
            let tag = step.tag(&package);
            Answer { tag, found: self.find(&tag, viewer, is_own(step)) }
        };
        Answers {
            checkpoint: self.log.checkpoint(),
            proofs: steps.iter().map(answer).collect(),
            receipt: None,
            consistency: Vec::new(),
            heirs: Vec::new(),
        }
    }

    pub fn adder_answers(&self, hand_out: usize) -> Answers {
        let (package, hand_out) = &self.hand_outs[hand_out];
        self.answers(self.packages[*package].id, &hand_out.steps(), Viewer::Adder(hand_out))
    }

    pub fn check_adder(&self, hand_out: usize) -> Verdict {
        self.check_adder_with(hand_out, &self.adder_answers(hand_out), &self.policy())
    }

    pub fn check_adder_with(&self, hand_out: usize, answers: &Answers, policy: &Policy) -> Verdict {
        let (package, hand_out) = &self.hand_outs[hand_out];
        let answers = answers.check(&policy.log_keys()).unwrap();
        adder::check(hand_out, &self.packages[*package].fields, &[], &answers, policy)
    }

    pub fn own_package(&self, package: usize) -> OwnPackage {
        let Package { id, rows, .. } = &self.packages[package];
        OwnPackage {
            package: *id,
            owner: OWNER.to_owned(),
            rows: rows.clone(),
            as_of: self.log.size(),
            welcomes: Vec::new(),
            receipts: Vec::new(),
        }
    }

    pub fn check_owner(&self, own: &OwnPackage) -> Verdict {
        let answers = self.answers(own.package, &own.steps(), Viewer::Owner);
        owner::check(own, &answers.check(&self.policy().log_keys()).unwrap(), &self.policy())
    }

    /// Everything that all parties hold about a package.
    pub fn dossier(&self, package: usize) -> Dossier {
        let (keys, id) = (self.policy().log_keys(), self.packages[package].id);
        let own = self.own_package(package);
        let answers = self.answers(id, &own.steps(), Viewer::Owner);
        let mut all = own.dossier(&answers.check(&keys).unwrap());
        for (index, (_, hand_out)) in self.hand_outs.iter().enumerate().filter(|(_, (of, _))| *of == package) {
            let answers = self.adder_answers(index);
            all.merge(adder::dossier(hand_out, &id, &[], &answers.check(&keys).unwrap()));
        }
        all
    }

    /// The auditor's one rule: two indexes with one tag.
    pub fn repeated_tag(&self) -> Option<(usize, usize)> {
        let mut seen = BTreeMap::new();
        self.log.entries.iter().enumerate().find_map(|(index, entry)| {
            let first = seen.insert(entry[1..33].to_vec(), index)?;
            Some((first, index))
        })
    }

    /// The statement of an entry, with the newest checkpoint.
    pub fn statement(&self, index: usize) -> Statement {
        let path = self.log.tree(self.log.size()).inclusion(index as u64).unwrap();
        let leaf = Leaf::from_bytes(&self.log.entries[index]).unwrap();
        let checkpoint = self.log.checkpoint();
        Statement::Included { leaf, index: index as u64, path, heirs: Vec::new(), checkpoint }
    }

    pub fn has_no_repeated_leaf(&self) -> bool {
        self.log.entries.iter().collect::<HashSet<_>>().len() == self.log.entries.len()
    }
}

pub fn witness(i: u8) -> SignerKey {
    SignerKey::cosigner(&format!("witness.example/{i}"), &[i; 32]).unwrap()
}

/// A policy that believes a log and requires two of three witnesses.
pub fn witnessed(log: &Log) -> Policy {
    let [one, two, three] = [1, 2, 3].map(|i| witness(i).verifier().to_string());
    let witnesses = format!("witness w1 {one}\nwitness w2 {two}\nwitness w3 {three}\n");
    let text = format!("log {}\n{witnesses}group g 2 w1 w2 w3\nquorum g\n", log.key.verifier());
    text.parse().unwrap()
}
