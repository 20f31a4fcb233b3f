//! Evidence that an accuser invents, or changes, proves nothing.

use keypool_transparency::{
    adder::Spend,
    commitment::{Event, Opening},
    evidence::{Evidence, EvidenceFile, Kind},
    leaf::{Kept, Leaf, TextLeaf},
    note::{Note, SignerKey},
    origin::key_note,
    package::{ReservationId, Step, Tag},
    policy::Policy,
    receipt::{Promise, Receipt},
    statement::{Heir, Statement},
    verification::{Doubt, Invalid, Outcome, verify},
};
use proptest::prelude::*;
use rstest::rstest;

use crate::{
    lies::{accepted, auditors_evidence},
    support::Log,
    world::{Server, TTL},
};

const A: &str = "anna/phone";
const B: &str = "bert/phone";

/// An honest history: A's reservation lapsed in time, B spent, another package was revoked.
fn honest() -> Server {
    let mut server = Server::new(2, 0);
    let first = server.reserve(0, A).unwrap();
    server.now += TTL;
    let second = server.reserve(0, B).unwrap();
    server.spend(second);
    server.reserve(1, A).unwrap();
    server.revoke(1);
    server.hand_outs[first].1.spend = Spend::RefusedEarly;
    server.sequence();
    server
}

fn of(server: &Server, package: usize, step: Step) -> (Statement, Opening) {
    let (leaf, opening) = server.book[&step.tag(&server.packages[package].id)].clone();
    (server.statement(usize::try_from(server.index(&leaf).unwrap()).unwrap()), opening)
}

fn outcome(server: &Server, evidence: Evidence) -> Outcome {
    verify(&EvidenceFile::new(evidence, Vec::new()), &server.policy())
}

fn receipt_of(server: &Server, hand_out: usize) -> (String, Leaf) {
    let signed = server.hand_outs[hand_out].1.receipts[0].clone();
    let leaf = *Receipt::unverified(&signed).unwrap().leaves().next().unwrap();
    (signed, leaf)
}

#[test]
fn an_honest_repetition_is_no_repeated_tag() {
    let server = honest();
    let (one, _) = of(&server, 0, Step::Open(0));
    let (other, _) = of(&server, 0, Step::Open(1));
    let (receipt, leaf) = receipt_of(&server, 0);
    let promised = Statement::Receipt { leaf, receipt };
    let evidence =
        |one: &Statement, other: &Statement| Evidence::TagRepeated { one: one.clone(), other: other.clone() };
    for (one, other, invalid) in [
        (&one, &one, Invalid::NoContradiction),
        (&one, &promised, Invalid::NoContradiction),
        (&promised, &promised, Invalid::NoContradiction),
        (&one, &other, Invalid::DifferentTags),
    ] {
        assert_eq!(outcome(&server, evidence(one, other)), Outcome::Invalid(invalid));
    }
}

/// A signature of another key under the log's name, or a note that names another log, accuses nobody.
#[test]
fn a_forged_signature_proves_nothing() {
    let server = honest();
    let (one, _) = of(&server, 0, Step::Open(0));
    let thief = SignerKey::new(server.log.name(), &[66; 32]).unwrap();
    let other = Leaf::new(&one.leaf().tag(), &[6; 32]);
    let receipt = |key: &SignerKey, origin: &str| {
        let promises = vec![Promise::Leaf(other)];
        let receipt = Receipt { origin: origin.to_owned(), size: 1, time: 1, to: A.to_owned(), promises };
        Statement::Receipt { leaf: other, receipt: receipt.sign(key).unwrap() }
    };
    let forged = Evidence::TagRepeated { one: one.clone(), other: receipt(&thief, server.log.name()) };
    assert!(matches!(outcome(&server, forged.clone()), Outcome::Invalid(Invalid::Statement(_))));
    // The real key would make it evidence.
    let real = Evidence::TagRepeated { one: one.clone(), other: receipt(&server.log.key, server.log.name()) };
    assert_eq!(outcome(&server, real), Outcome::Proven(Kind::TagRepeated));
    let elsewhere = Log::new(2);
    let unknown = Evidence::TagRepeated { one: one.clone(), other: receipt(&elsewhere.key, elsewhere.name()) };
    let doubt = Outcome::CannotTell(Doubt::UnknownLog(elsewhere.name().to_owned()));
    assert_eq!(outcome(&server, unknown.clone()), doubt);
    let both = Policy::of_logs([&server.log, &elsewhere].map(|log| log.key.verifier().clone()));
    let different = Outcome::Invalid(Invalid::DifferentLogs);
    assert_eq!(verify(&EvidenceFile::new(unknown, Vec::new()), &both), different);
    // A key note of the thief leads nowhere.
    let note = key_note(&thief, thief.verifier()).unwrap();
    let file = EvidenceFile::new(forged, vec![note]);
    assert!(matches!(verify(&file, &server.policy()), Outcome::Invalid(Invalid::KeyNote(_))));
}

#[test]
fn honest_checkpoints_are_no_fork() {
    let mut server = honest();
    let (small, size) = (server.log.checkpoint(), server.log.size());
    server.log.append(&[[4; 65]; 40]);
    let large = server.log.checkpoint();
    let path = server.log.tree(server.log.size()).explicit_consistency(size).unwrap();
    let fork = |smaller: &Note, larger: &Note, path: &[[u8; 32]]| {
        outcome(&server, Evidence::Fork { smaller: smaller.clone(), larger: larger.clone(), path: path.to_vec() })
    };
    assert_eq!(fork(&small, &large, &path), Outcome::Invalid(Invalid::NoContradiction));
    assert_eq!(fork(&small, &small, &[]), Outcome::Invalid(Invalid::NoContradiction));
    assert_eq!(fork(&large, &small, &path), Outcome::Invalid(Invalid::WrongSizes));
    for wrong in [&[][..], &path[1..], &[[9; 32]], &[&path[..], &[[9; 32]]].concat()] {
        assert_eq!(fork(&small, &large, wrong), Outcome::Invalid(Invalid::WrongPath));
    }
    let empty = Log::new(1);
    assert_eq!(fork(&empty.checkpoint(), &large, &[]), Outcome::Invalid(Invalid::NoContradiction));
    // An empty tree has one root.
    let mut wrong = empty.checkpoint_at(0);
    wrong.root = [1; 32];
    assert_eq!(fork(&wrong.sign(&empty.key).unwrap(), &large, &[]), Outcome::Proven(Kind::Fork));
}

#[test]
fn an_honest_end_is_no_hand_out_after_it() {
    let server = honest();
    let (lapse, lapse_opening) = of(&server, 0, Step::End(0));
    let (spend, spend_opening) = of(&server, 0, Step::End(1));
    let (open, _) = of(&server, 0, Step::Open(1));
    let (revoke, revoke_opening) = of(&server, 1, Step::End(0));
    let evidence = |end: &Statement, opening: &Opening, later| {
        let details = opening.details.clone();
        outcome(&server, Evidence::HandedOutAfterEnd { end: end.clone(), details, open: open.clone(), later })
    };
    assert_eq!(evidence(&lapse, &lapse_opening, 1), Outcome::Invalid(Invalid::OtherEvent));
    assert_eq!(evidence(&spend, &spend_opening, 1), Outcome::Invalid(Invalid::NotLater));
    assert_eq!(evidence(&spend, &spend_opening, 2), Outcome::Invalid(Invalid::DifferentTags));
    assert_eq!(evidence(&revoke, &revoke_opening, 1), Outcome::Invalid(Invalid::DifferentTags));
    let mut invented = lapse_opening;
    invented.details.event = Event::Spend;
    assert!(matches!(evidence(&lapse, &invented, 1), Outcome::Invalid(Invalid::Opening(_))));
}

#[test]
fn a_lapse_in_time_is_not_early() {
    let server = honest();
    let (open, opened) = of(&server, 0, Step::Open(0));
    let (end, ended) = of(&server, 0, Step::End(0));
    let (receipt, leaf) = receipt_of(&server, 1);
    let early = |opened: &Opening, next: Option<Statement>| {
        let (open_details, end_details) = (opened.details.clone(), ended.details.clone());
        outcome(
            &server,
            Evidence::LapsedEarly { open: open.clone(), open_details, end: end.clone(), end_details, next },
        )
    };
    let next = Statement::Receipt { leaf, receipt };
    assert_eq!(early(&opened, Some(next.clone())), Outcome::Invalid(Invalid::NotEarly));
    assert_eq!(early(&opened, None), Outcome::CannotTell(Doubt::NoWitnesses));
    let mut invented = opened.clone();
    invented.details.until += 3600;
    assert!(matches!(early(&invented, Some(next)), Outcome::Invalid(Invalid::Opening(_))));
    // A receipt of A's own reservation is older, and of another tag.
    let (receipt, leaf) = receipt_of(&server, 0);
    let own = Statement::Receipt { leaf, receipt };
    assert_eq!(early(&opened, Some(own)), Outcome::Invalid(Invalid::DifferentTags));
    // The next leaf without a receipt has no time.
    let (included, _) = of(&server, 0, Step::Open(1));
    assert_eq!(early(&opened, Some(included)), Outcome::Invalid(Invalid::NotEarly));
}

#[test]
fn an_honest_receipt_is_not_false() {
    let mut server = honest();
    let (leaf, opening) = of(&server, 0, Step::Open(1));
    let (receipt, promised) = receipt_of(&server, 1);
    let none = |receipt: &str, leaf: &Statement| {
        outcome(&server, Evidence::FalseNone { receipt: receipt.to_owned(), leaf: leaf.clone() })
    };
    assert_eq!(none(&receipt, &leaf), Outcome::Invalid(Invalid::NotDenied));
    let denial = |size| Receipt {
        origin: server.log.name().to_owned(),
        size,
        time: 1,
        to: A.to_owned(),
        promises: vec![Promise::None(leaf.leaf().tag())],
    };
    let index = server.index(leaf.leaf()).unwrap();
    let denied = |size| denial(size).sign(&server.log.key).unwrap();
    assert_eq!(none(&denied(index), &leaf), Outcome::Invalid(Invalid::NotBelow));
    assert_eq!(none(&denied(index + 1), &leaf), Outcome::Proven(Kind::FalseReceipt));
    let only_promised = Statement::Receipt { leaf: promised, receipt: receipt.clone() };
    assert_eq!(none(&denied(index + 1), &only_promised), Outcome::Invalid(Invalid::NotBelow));
    let actor = |opening: &Opening, leaf: Leaf| {
        outcome(&server, Evidence::OtherActor { receipt: receipt.clone(), leaf, opening: opening.clone() })
    };
    assert_eq!(actor(&opening, promised), Outcome::Invalid(Invalid::SameActor));
    assert_eq!(actor(&opening.first_level(), promised), Outcome::Invalid(Invalid::NoActor));
    let mut invented = opening.clone();
    invented.actor.as_mut().unwrap().actor = "mallory/phone".to_owned();
    assert!(matches!(actor(&invented, promised), Outcome::Invalid(Invalid::Opening(_))));
    let (_, other) = receipt_of(&server, 0);
    assert!(matches!(actor(&opening, other), Outcome::Invalid(Invalid::Statement(_))));
    server.sequence();
}

/// One piece of evidence of each kind that a server alone can commit.
fn all_evidence() -> (Server, Vec<EvidenceFile>) {
    let mut server = honest();
    let id = server.packages[1].id;
    // A second leaf of one tag, a hand-out after the revoke, a denial.
    let hand_out = server.hand_outs[0].1.clone();
    let record = server.record(Event::Reserve, id, Some(&hand_out));
    server.log_step(&Step::Open(0), &record);
    server.log_step(&Step::Open(1), &record);
    server.sequence();
    let (end, revoked) = of(&server, 1, Step::End(0));
    let (open, opening) = of(&server, 1, Step::Open(1));
    let denied = vec![Promise::None(open.leaf().tag()), Promise::Leaf(*open.leaf())];
    let receipt = server.receipt(B, denied);
    let path = Vec::new();
    let mut other = Log::new(1);
    other.append(&vec![[1; 65]; server.log.entries.len()]);
    let (smaller, larger) = (server.log.checkpoint(), other.checkpoint());
    let evidence = vec![
        auditors_evidence(&server).evidence,
        Evidence::Fork { smaller, larger, path },
        Evidence::HandedOutAfterEnd { end, details: revoked.details, open: open.clone(), later: 1 },
        Evidence::FalseNone { receipt: receipt.clone(), leaf: open.clone() },
        Evidence::OtherActor { receipt, leaf: *open.leaf(), opening },
    ];
    let files = evidence.into_iter().map(|evidence| EvidenceFile::new(evidence, Vec::new())).collect();
    (server, files)
}

#[test]
fn each_piece_is_accepted_as_it_is() {
    let (server, files) = all_evidence();
    let kinds = [Kind::TagRepeated, Kind::Fork, Kind::HandedOutAfterEnd, Kind::FalseReceipt, Kind::FalseReceipt];
    for (file, kind) in files.into_iter().zip(kinds) {
        accepted(&server, file, kind);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// A changed byte is refused, unless it changes nothing that was said.
    #[test]
    fn a_changed_byte_proves_nothing(which in 0..5_usize, place in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let (server, files) = all_evidence();
        let mut json = files[which].to_json().into_bytes();
        let place = place.index(json.len());
        json[place] = byte % 0x5f + 0x20;
        if let Ok(changed) = EvidenceFile::from_json(&json) {
            let is_proven = matches!(verify(&changed, &server.policy()), Outcome::Proven(_));
            prop_assert_eq!(is_proven, changed == files[which], "{}", String::from_utf8_lossy(&json));
        }
    }
}

#[rstest]
#[case(r#"{"format":"keypool/evidence/v2","evidence":{"fork":{}}}"#, "unknown variant `keypool/evidence/v2`")]
#[case(r#"{"format":"keypool/evidence/v1","evidence":{"gossip":{}}}"#, "unknown variant `gossip`")]
#[case(r#"{"format":"keypool/evidence/v1","evidence":{"fork":{}},"more":1}"#, "unknown field `more`")]
#[case(r#"{"format":"keypool/evidence/v1"}"#, "missing field")]
fn a_file_of_another_form_is_refused(#[case] json: &str, #[case] why: &str) {
    let json = if json.contains("more") {
        let (_, files) = all_evidence();
        files[1].to_json().replacen("{\n", "{\n  \"more\": 1,\n", 1)
    } else {
        json.to_owned()
    };
    let error = EvidenceFile::from_json(json.as_bytes()).unwrap_err().to_string();
    assert!(error.contains(why), "{error}");
}

/// A restored server: origin 2 keeps a part of origin 1's log.
struct Restored {
    server: Server,
    old: Log,
    kept: u64,
    entry: TextLeaf,
}

impl Restored {
    fn new(kept: u64) -> Self {
        let mut server = honest();
        server.log.append(&[[4; 65]; 16]);
        let old = server.log.clone();
        let mut log = Log::new(2);
        let continued = Kept { origin: old.name().to_owned(), size: kept, root: old.root(kept) };
        let entry = TextLeaf::Origin { name: log.name().to_owned(), kept: Some(continued) };
        log.append(&[entry.to_bytes()]);
        server.log = log;
        Self { server, old, kept, entry }
    }

    /// A leaf of the old log, as a statement of the new one.
    fn kept_statement(&self, leaf: &Leaf) -> Statement {
        let index = self.old.entries.iter().position(|entry| entry == leaf.as_bytes()).unwrap() as u64;
        let path = self.old.tree(self.kept).inclusion(index).unwrap();
        let log = &self.server.log;
        let heir = Heir { entry: self.entry.clone(), path: log.tree(log.size()).inclusion(0).unwrap() };
        Statement::Included { leaf: *leaf, index, path, heirs: vec![heir], checkpoint: log.checkpoint() }
    }

    fn leaf(&self, step: Step) -> (Leaf, Opening) {
        self.server.book[&step.tag(&self.server.packages[0].id)].clone()
    }
}

#[test]
fn a_kept_leaf_counts_against_the_new_origin() {
    let mut restored = Restored::new(16);
    let (open, opening) = restored.leaf(Step::Open(0));
    let (spent, details) = restored.leaf(Step::End(1));
    let package = restored.server.packages[0].id;
    let hand_out = restored.server.hand_outs[0].1.clone();
    let mut again = restored.server.record(Event::Reserve, package, Some(&hand_out));
    again.at += 1;
    let repeated = restored.server.log_step(&Step::Open(0), &again);
    let later = restored.server.log_step(&Step::Open(2), &again);
    restored.server.sequence();
    let statement = |leaf: &Leaf| {
        let index = restored.server.index(leaf).unwrap();
        restored.server.statement(usize::try_from(index).unwrap())
    };
    let twice = Evidence::TagRepeated { one: restored.kept_statement(&open), other: statement(&repeated) };
    accepted(&restored.server, EvidenceFile::new(twice, Vec::new()), Kind::TagRepeated);
    let after = Evidence::HandedOutAfterEnd {
        end: restored.kept_statement(&spent),
        details: details.details,
        open: statement(&later),
        later: 2,
    };
    accepted(&restored.server, EvidenceFile::new(after, Vec::new()), Kind::HandedOutAfterEnd);
    // A receipt of the new origin speaks of its own tree alone.
    let denial = restored.server.receipt(A, vec![Promise::None(open.tag())]);
    let none = Evidence::FalseNone { receipt: denial, leaf: restored.kept_statement(&open) };
    assert_eq!(outcome(&restored.server, none), Outcome::Invalid(Invalid::NotBelow));
    assert!(opening.details.until > 0);
}

#[test]
fn a_leaf_that_was_not_kept_or_is_of_another_heir_does_not_count() {
    let restored = Restored::new(16);
    let (open, _) = restored.leaf(Step::Open(0));
    let other = Leaf::new(&open.tag(), &[9; 32]);
    let mut lost = restored.old.clone();
    lost.append(&[other.as_bytes()]);
    let Statement::Included { checkpoint, heirs, .. } = restored.kept_statement(&open) else { panic!() };
    let index = lost.size() - 1;
    let path = lost.tree(lost.size()).inclusion(index).unwrap();
    let one = restored.kept_statement(&open);
    let included =
        |heirs| Statement::Included { leaf: other, index, path: path.clone(), heirs, checkpoint: checkpoint.clone() };
    let evidence = |other| Evidence::TagRepeated { one: one.clone(), other };
    assert!(matches!(
        outcome(&restored.server, evidence(included(heirs.clone()))),
        Outcome::Invalid(Invalid::Statement(_))
    ));
    // In its own log it is there, but that is another log.
    let old = Statement::Included {
        leaf: other,
        index,
        path: path.clone(),
        heirs: Vec::new(),
        checkpoint: lost.checkpoint(),
    };
    let both = Policy::of_logs([&restored.server.log, &lost].map(|log| log.key.verifier().clone()));
    let file = EvidenceFile::new(evidence(old), Vec::new());
    assert_eq!(verify(&file, &both), Outcome::Invalid(Invalid::DifferentLogs));
    // An invented heir is in no signed tree.
    let mut invented = heirs;
    let root = lost.root(lost.size());
    let kept = Kept { origin: lost.name().to_owned(), size: lost.size(), root };
    invented[0].entry = TextLeaf::Origin { name: restored.server.log.name().to_owned(), kept: Some(kept) };
    assert!(matches!(outcome(&restored.server, evidence(included(invented))), Outcome::Invalid(Invalid::Statement(_))));
}

/// The first entry of a log counts for that log alone: one that names another origin keeps nothing.
#[test]
fn an_heir_has_to_name_the_log_that_it_begins() {
    let server = honest();
    let old = &server.log;
    let kept = |origin: &str| Some(Kept { origin: origin.to_owned(), size: old.size(), root: old.root(old.size()) });
    let leaf = Leaf::from_bytes(&old.entries[0]).unwrap();
    let path = old.tree(old.size()).inclusion(0).unwrap();
    // Origin 2 keeps origin 1, and origin 3 keeps origin 2; each is right, or names another log.
    for (name, next_kept, accepted) in [(2, 2, true), (4, 2, false), (2, 4, false)] {
        let [mut two, mut three] = [2, 3].map(Log::new);
        let named = Log::new(name);
        let entry = TextLeaf::Origin { name: named.name().to_owned(), kept: kept(old.name()) };
        two.append(&[entry.to_bytes()]);
        let kept_two = Kept { origin: Log::new(next_kept).name().to_owned(), size: 1, root: two.root(1) };
        let next = TextLeaf::Origin { name: three.name().to_owned(), kept: Some(kept_two) };
        three.append(&[next.to_bytes()]);
        let statement = |heirs, log: &Log| Statement::Included {
            leaf,
            index: 0,
            path: path.clone(),
            heirs,
            checkpoint: log.checkpoint(),
        };
        let heir = |entry: &TextLeaf| Heir { entry: entry.clone(), path: Vec::new() };
        let keys = [&two, &three].iter().map(|log| log.key.verifier().clone()).collect();
        let short = statement(vec![heir(&entry)], &two).verify(&keys);
        assert_eq!(short.is_ok(), name == 2, "{short:?}");
        let long = statement(vec![heir(&entry), heir(&next)], &three).verify(&keys);
        assert_eq!(long.is_ok(), accepted, "{long:?}");
        if let Ok(stated) = long {
            assert_eq!((stated.origin.as_str(), stated.place.unwrap().tree), (three.name(), old.name().to_owned()));
        }
    }
}

#[test]
fn key_notes_lead_from_a_pinned_key_to_a_later_log() {
    let (server, files) = all_evidence();
    let older = Log::new(9);
    let pinned = Policy::of_logs([older.key.verifier().clone()]);
    let mut file = files.into_iter().next().unwrap();
    let doubt = Outcome::CannotTell(Doubt::UnknownLog(server.log.name().to_owned()));
    assert_eq!(verify(&file, &pinned), doubt);
    file.key_notes.push(key_note(&older.key, server.log.key.verifier()).unwrap());
    assert_eq!(verify(&file, &pinned), Outcome::Proven(Kind::TagRepeated));
}

#[test]
fn the_steps_of_a_package_have_different_tags() {
    use keypool_transparency::package::PackageId;
    let package = PackageId([1; 32]);
    let tags: Vec<Tag> = [Step::Open(0), Step::End(0), Step::Open(1), Step::Use(ReservationId([0; 24]))]
        .iter()
        .map(|step| step.tag(&package))
        .collect();
    assert!(tags.iter().enumerate().all(|(i, tag)| !tags[..i].contains(tag)));
}
