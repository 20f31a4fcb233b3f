//! Every field of a leaf counts: a server that logs another value is found out.

use keypool_transparency::{
    adder::Spend,
    answers::{BadAnswers, Found},
    commitment::{Details, Event, Opening, Record, WrongOpening},
    evidence::{Evidence, EvidenceFile, Kind},
    leaf::Leaf,
    merkle::leaf_hash,
    note::Note,
    package::{Bind, PackageId, ReservationId, Step},
    policy::Policy,
    receipt::{Promise, Receipt},
    statement::Statement,
    verdict::{Problem, StepText, Verdict},
    verification::{Doubt, Invalid, Outcome, verify},
};
use rstest::rstest;

use crate::{
    support::Log,
    world::{Server, TTL, witness, witnessed},
};

const A: &str = "anna/phone";

fn change(record: &mut Record, field: &str) {
    match field {
        "owner" => record.owner.push('x'),
        "actor" => record.actor.push('x'),
        "group" => record.group_id.push(0),
        "reservation" => record.reservation_id = ReservationId([9; 24]),
        "bind" => record.bind = Bind([9; 32]),
        "time until which it holds" => record.until += 1,
        field => panic!("{field}"),
    }
}

/// Nobody can prove this alone, since the adder has no receipt: it knows, and reports.
#[rstest]
fn an_adder_compares_each_field_of_its_own_leaves(
    #[values("owner", "actor", "group", "reservation", "bind", "time until which it holds")] field: &'static str,
    #[values(Step::Open(0), Step::End(0))] step: Step,
) {
    let mut server = Server::new(1, 0);
    let first = server.reserve(0, A).unwrap();
    server.spend(first);
    let (leaf, opening) = server.book[&step.tag(&server.packages[0].id)].clone();
    let hand_out = server.hand_outs[first].1.clone();
    let mut record = server.record(opening.details.event, opening.details.package, Some(&hand_out));
    change(&mut record, field);
    server.outbox.retain(|other| *other != leaf);
    server.log_step(&step, &record);
    server.hand_outs[first].1.receipts.clear();
    server.sequence();
    let expected = match (field, step) {
        ("time until which it holds", Step::End(_)) => Verdict::Fine,
        _ => Verdict::Report(Problem::Differs(StepText(step), field)),
    };
    assert_eq!(server.check_adder(first), expected);
}

#[test]
fn an_adder_wants_the_owners_name_in_earlier_ends() {
    let mut server = Server::new(1, 0);
    let first = server.reserve(0, A).unwrap();
    server.now += TTL;
    let second = server.reserve(0, "bert/phone").unwrap();
    let hand_out = server.hand_outs[first].1.clone();
    let mut record = server.record(Event::Lapse, server.packages[0].id, Some(&hand_out));
    change(&mut record, "owner");
    server.log_step(&Step::End(0), &record);
    server.sequence();
    assert_eq!(server.check_adder(second), Verdict::Report(Problem::Differs(StepText(Step::End(0)), "owner")));
}

#[test]
fn a_receipt_is_checked_when_it_arrives() {
    let mut server = Server::new(1, 0);
    let first = server.reserve(0, A).unwrap();
    let id = server.packages[0].id;
    let (leaf, opening) = server.book[&Step::Open(0).tag(&id)].clone();
    let hand_out = server.hand_outs[first].1.clone();
    let receipt = Receipt::unverified(&hand_out.receipts[0]).unwrap();
    let check = |receipt: &Receipt, event, opening: &Opening| hand_out.check_receipt(&id, receipt, event, opening);
    let text = StepText(Step::Open(0));
    assert_eq!(check(&receipt, Event::Reserve, &opening), Ok(leaf));
    assert_eq!(check(&receipt, Event::Spend, &opening), Err(Problem::Missing(StepText(Step::End(0)))));
    let other = Receipt { to: "bert/phone".to_owned(), ..receipt.clone() };
    assert_eq!(check(&other, Event::Reserve, &opening), Err(Problem::Differs(text, "device in its receipt")));
    let other = Receipt { promises: Vec::new(), ..receipt.clone() };
    assert_eq!(check(&other, Event::Reserve, &opening), Err(Problem::Missing(text)));
    assert_eq!(check(&receipt, Event::Reserve, &opening.first_level()), Err(Problem::Differs(text, "actor")));
    let mut record = server.record(Event::Reserve, id, Some(&hand_out));
    change(&mut record, "bind");
    let (other, sealed) = server.secret.seal(&Step::Open(0), &record);
    let wrong = WrongOpening::Commitment;
    assert_eq!(check(&receipt, Event::Reserve, &sealed), Err(Problem::WrongOpening(text, wrong)));
    let receipt = Receipt { promises: vec![Promise::Leaf(other)], ..receipt };
    assert_eq!(check(&receipt, Event::Reserve, &sealed), Err(Problem::Differs(text, "bind")));
}

/// The server promised that hand-out 1 had not begun, and shows it in the trail with an older leaf.
#[test]
fn an_owner_compares_its_receipts_with_the_trail() {
    let mut server = Server::new(1, 0);
    server.reserve(0, A).unwrap();
    server.now += TTL;
    server.reserve(0, "bert/phone").unwrap();
    server.sequence();
    let mut own = server.own_package(0);
    assert_eq!(server.check_owner(&own), Verdict::Fine);
    let denied = Step::Open(1).tag(&own.package);
    own.receipts.push(server.receipt("alice/laptop", vec![Promise::None(denied)]));
    let Verdict::Proven { problem, evidence } = server.check_owner(&own) else { panic!() };
    assert_eq!(problem, Problem::ReceiptContradicts(StepText(Step::Open(1))));
    assert_eq!(verify(&evidence, &server.policy()), Outcome::Proven(Kind::FalseReceipt));
}

#[test]
fn an_opening_shows_the_number_of_its_tag() {
    let package = PackageId([1; 32]);
    let details = Details {
        salt: [2; 32],
        event: Event::Lapse,
        package,
        n: 3,
        owner: "alice/laptop".to_owned(),
        at: 1,
        until: 0,
        actor_commit: [4; 32],
    };
    for (n, expected) in [(3, Ok(())), (2, Err(WrongOpening::Number))] {
        let leaf = Leaf::new(&Step::End(n).tag(&package), &details.commitment());
        assert_eq!(details.open(&leaf, &Step::End(n)), expected);
    }
    let leaf = Leaf::new(&Step::End(3).tag(&PackageId([9; 32])), &details.commitment());
    assert_eq!(details.open(&leaf, &Step::End(3)), Err(WrongOpening::Tag));
    let leaf = Leaf::new(&Step::Open(3).tag(&package), &details.commitment());
    assert_eq!(details.open(&leaf, &Step::Open(3)), Err(WrongOpening::Event));
}

/// Statements of two logs, or of two hand-outs, do not add up.
#[test]
fn evidence_is_of_one_log_and_one_hand_out() {
    let mut server = Server::new(1, 0);
    let first = server.reserve(0, A).unwrap();
    server.now += TTL;
    let second = server.reserve(0, "bert/phone").unwrap();
    server.now += 5;
    server.end(0, Event::Lapse);
    server.reserve(0, A).unwrap();
    server.hand_outs[first].1.spend = Spend::RefusedEarly;
    server.sequence();
    let id = server.packages[0].id;
    let of = |step: Step| {
        let (leaf, opening) = server.book[&step.tag(&id)].clone();
        (server.statement(usize::try_from(server.index(&leaf).unwrap()).unwrap()), opening.details)
    };
    let ((open, open_details), (end, end_details)) = (of(Step::Open(1)), of(Step::End(0)));
    let receipt = server.hand_outs[second].1.receipts[0].clone();
    assert!(receipt.contains("keypool/receipt/v1"));
    let early = Evidence::LapsedEarly { open, open_details, end, end_details, next: None };
    let outcome = |evidence, policy: &Policy| verify(&EvidenceFile::new(evidence, Vec::new()), policy);
    assert_eq!(outcome(early, &server.policy()), Outcome::Invalid(Invalid::DifferentTags));
    // A later hand-out in another log says nothing of this one.
    let mut server = Server::new(1, 0);
    server.reserve(0, A).unwrap();
    server.revoke(0);
    server.sequence();
    let (leaf, opening) = server.book[&Step::End(0).tag(&id)].clone();
    let end = server.statement(usize::try_from(server.index(&leaf).unwrap()).unwrap());
    let elsewhere = Log::new(2);
    let open = Leaf::new(&Step::Open(1).tag(&id), &[7; 32]);
    let promises = vec![Promise::Leaf(open)];
    let receipt = Receipt { origin: elsewhere.name().to_owned(), size: 0, time: 1, to: A.to_owned(), promises };
    let open = Statement::Receipt { leaf: open, receipt: receipt.sign(&elsewhere.key).unwrap() };
    let both = Policy::of_logs([&server.log, &elsewhere].map(|log| log.key.verifier().clone()));
    let evidence = Evidence::HandedOutAfterEnd { end, details: opening.details, open, later: 1 };
    assert_eq!(outcome(evidence, &both), Outcome::Invalid(Invalid::DifferentLogs));
}

/// A promised leaf that is there, or a checkpoint that is not later or of another log, is no missing leaf.
#[test]
fn a_leaf_that_is_there_is_not_missing() {
    let mut server = Server::new(1, 0);
    let first = server.reserve(0, A).unwrap();
    let leaf = server.outbox[0];
    let begin = server.now;
    let mut checkpoint = |time| {
        server.sequence();
        server.log.append(&[[8; 65], [9; 65]]);
        cosigned(server.log.checkpoint(), time)
    };
    let (smaller, larger) = (checkpoint(begin), checkpoint(begin + 86_400));
    let mut hashes: Vec<_> = server.log.entries.iter().map(|entry| leaf_hash(entry)).collect();
    let receipt = server.hand_outs[first].1.receipts[0].clone();
    let policy = |log: &Log| {
        let mut policy = witnessed(&server.log);
        policy.logs.extend(Policy::of_logs([log.key.verifier().clone()]).logs);
        policy
    };
    let outcome = |hashes: &[[u8; 32]], smaller: &Note, larger: &Note| {
        let (smaller, larger, leaf_hashes) = (smaller.clone(), larger.clone(), hashes.concat());
        let evidence = Evidence::LeafMissing { receipt: receipt.clone(), leaf, smaller, larger, leaf_hashes };
        verify(&EvidenceFile::new(evidence, Vec::new()), &policy(&Log::new(2)))
    };
    assert_eq!(outcome(&hashes, &smaller, &larger), Outcome::Invalid(Invalid::NotMissing));
    // An accuser puts another hash in the leaf's place.
    let place = hashes.iter().position(|hash| *hash == leaf.hash()).unwrap();
    hashes[place] = [7; 32];
    assert_eq!(outcome(&hashes, &smaller, &larger), Outcome::Invalid(Invalid::WrongPath));
    // Cosignatures that are older than the receipt say nothing about it.
    let early = cosigned(server.log.checkpoint_at(18).sign(&server.log.key).unwrap(), begin - 1);
    assert_eq!(outcome(&hashes, &early, &larger), Outcome::CannotTell(Doubt::NoQuorum));
    let mut other = Log::new(2);
    other.append(&[[1; 65]; 40]);
    let elsewhere = cosigned(other.checkpoint(), begin + 86_400);
    assert_eq!(outcome(&hashes, &smaller, &elsewhere), Outcome::Invalid(Invalid::DifferentLogs));
}

fn cosigned(mut checkpoint: Note, time: u64) -> Note {
    for i in [1, 2] {
        witness(i).cosign(&mut checkpoint, time);
    }
    checkpoint
}

/// Statements of two logs do not add up, whichever kind of evidence they are for.
#[test]
fn all_parts_of_evidence_are_of_one_log() {
    let mut server = Server::new(1, 0);
    let first = server.reserve(0, A).unwrap();
    server.now += 5;
    server.end(0, Event::Lapse);
    server.hand_outs[first].1.spend = Spend::RefusedEarly;
    server.sequence();
    let (id, other) = (server.packages[0].id, Log::new(2));
    let policy = Policy::of_logs([&server.log, &other].map(|log| log.key.verifier().clone()));
    let outcome = |evidence| verify(&EvidenceFile::new(evidence, Vec::new()), &policy);
    let of = |step: Step| {
        let (leaf, opening) = server.book[&step.tag(&id)].clone();
        (server.statement(usize::try_from(server.index(&leaf).unwrap()).unwrap()), opening.details)
    };
    let ((open, open_details), (end, end_details)) = (of(Step::Open(0)), of(Step::End(0)));
    let signed_by = |log: &Log, promise| {
        let (origin, to) = (log.name().to_owned(), A.to_owned());
        Receipt { origin, size: 1000, time: server.now, to, promises: vec![promise] }.sign(&log.key).unwrap()
    };
    let next = Leaf::new(&Step::Open(1).tag(&id), &[5; 32]);
    for (log, expected) in
        [(&server.log, Outcome::Proven(Kind::LapsedEarly)), (&other, Outcome::Invalid(Invalid::DifferentLogs))]
    {
        let next = Statement::Receipt { leaf: next, receipt: signed_by(log, Promise::Leaf(next)) };
        let (open, end) = (open.clone(), end.clone());
        let (open_details, end_details) = (open_details.clone(), end_details.clone());
        assert_eq!(outcome(Evidence::LapsedEarly { open, open_details, end, end_details, next: Some(next) }), expected);
    }
    // An end that is no lapse was not early.
    let released = Evidence::LapsedEarly {
        open: open.clone(),
        open_details: open_details.clone(),
        end: open.clone(),
        end_details: open_details,
        next: None,
    };
    assert!(matches!(outcome(released), Outcome::Invalid(Invalid::Opening(_))));
    for (log, expected) in
        [(&server.log, Outcome::Proven(Kind::FalseReceipt)), (&other, Outcome::Invalid(Invalid::DifferentLogs))]
    {
        let receipt = signed_by(log, Promise::None(open.leaf().tag()));
        assert_eq!(outcome(Evidence::FalseNone { receipt, leaf: open.clone() }), expected);
    }
    let fork = Evidence::Fork { smaller: server.log.checkpoint(), larger: other.checkpoint(), path: Vec::new() };
    assert_eq!(outcome(fork), Outcome::Invalid(Invalid::DifferentLogs));
}

/// A release before the time is no early lapse: the adder asked for it, or cannot prove that it did not.
#[test]
fn an_early_release_is_no_early_lapse() {
    let mut server = Server::new(1, 0);
    server.reserve(0, A).unwrap();
    server.end(0, Event::Release);
    let second = server.reserve(0, "bert/phone").unwrap();
    server.sequence();
    let id = server.packages[0].id;
    let of = |step: Step| {
        let (leaf, opening) = server.book[&step.tag(&id)].clone();
        (server.statement(usize::try_from(server.index(&leaf).unwrap()).unwrap()), opening.details)
    };
    let ((open, open_details), (end, end_details)) = (of(Step::Open(0)), of(Step::End(0)));
    let (leaf, receipt) = (*of(Step::Open(1)).0.leaf(), server.hand_outs[second].1.receipts[0].clone());
    let next = Some(Statement::Receipt { leaf, receipt });
    let evidence = Evidence::LapsedEarly { open, open_details, end, end_details, next };
    let outcome = verify(&EvidenceFile::new(evidence, Vec::new()), &server.policy());
    assert_eq!(outcome, Outcome::Invalid(Invalid::OtherEvent));
}

/// Answers that do not fit their checkpoint are not believed, and prove nothing: HTTP answers are not signed.
#[test]
fn answers_have_the_tags_and_paths_that_they_say() {
    let mut server = Server::new(1, 0);
    let first = server.reserve(0, A).unwrap();
    server.spend(first);
    server.sequence();
    let good = server.adder_answers(first);
    let keys = server.policy().log_keys();
    assert!(good.check(&keys).is_ok());
    let (tag, other) = (good.proofs[0].tag, good.proofs[1].tag);
    let mut answers = good.clone();
    answers.proofs[0].tag = Step::Open(5).tag(&server.packages[0].id);
    assert_eq!(answers.check(&keys).unwrap_err(), BadAnswers::OtherTag(answers.proofs[0].tag));
    let mut answers = good.clone();
    let Found::Included { index, .. } = &mut answers.proofs[0].found else { panic!() };
    *index ^= 1;
    assert_eq!(answers.check(&keys).unwrap_err(), BadAnswers::NotIncluded(tag));
    let mut answers = good.clone();
    answers.proofs.push(good.proofs[1].clone());
    assert_eq!(answers.check(&keys).unwrap_err(), BadAnswers::Twice(other));
    server.log.append(&[[3; 65]]);
    let mut answers = good;
    answers.checkpoint = server.log.checkpoint();
    assert_eq!(answers.check(&keys).unwrap_err(), BadAnswers::NotIncluded(tag));
}
