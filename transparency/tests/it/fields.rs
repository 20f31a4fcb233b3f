//! Every field of a leaf counts: a server that logs another value is found out.

use keypool_transparency::{
    adder::Spend,
    answers::{BadAnswers, Found},
    commitment::{Details, Event, Opening, Record, WrongOpening},
    evidence::{Evidence, EvidenceFile, Kind},
    leaf::Leaf,
    merkle::leaf_hash,
    package::{Bind, PackageId, ReservationId, Step},
    policy::Policy,
    receipt::{Promise, Receipt},
    verdict::{Problem, StepText, Verdict},
    verification::{Invalid, Outcome, verify},
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
    let open = keypool_transparency::statement::Statement::Receipt {
        leaf: open,
        receipt: receipt.sign(&elsewhere.key).unwrap(),
    };
    let both = Policy::of_logs([&server.log, &elsewhere].map(|log| log.key.verifier().clone()));
    let evidence = Evidence::HandedOutAfterEnd { end, details: opening.details, open, later: 1 };
    assert_eq!(outcome(evidence, &both), Outcome::Invalid(Invalid::DifferentLogs));
}

#[test]
fn a_leaf_that_is_there_is_not_missing() {
    let mut server = Server::new(1, 0);
    let first = server.reserve(0, A).unwrap();
    let leaf = server.outbox[0];
    let mut checkpoint = |time| {
        server.sequence();
        server.log.append(&[[8; 65], [9; 65]]);
        let mut note = server.log.checkpoint();
        for i in [1, 2] {
            witness(i).cosign(&mut note, time);
        }
        note
    };
    let (smaller, larger) = (checkpoint(11_000_000), checkpoint(11_000_000 + 86_400));
    let hashes: Vec<_> = server.log.entries.iter().map(|entry| leaf_hash(entry)).collect();
    let receipt = server.hand_outs[first].1.receipts[0].clone();
    let evidence = Evidence::LeafMissing { receipt, leaf, smaller, larger, leaf_hashes: hashes.concat() };
    let outcome = verify(&EvidenceFile::new(evidence, Vec::new()), &witnessed(&server.log));
    assert_eq!(outcome, Outcome::Invalid(Invalid::NotMissing));
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
