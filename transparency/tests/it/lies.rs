//! Each lie of a server is caught by the party that the documentation names: with evidence that others can verify, or as a
//! report or doubt where the documentation says so.

use keypool_transparency::{
    adder::{self, EarlierHandOut, Spend},
    answers::Found,
    commitment::Event,
    contradiction::Dossier,
    evidence::{Evidence, EvidenceFile, Kind},
    key_package::KeyPackageFields,
    leaf::Leaf,
    note::Note,
    owner::{TrailRow, Welcome},
    package::{PackageId, Step},
    receipt::Promise,
    verdict::{Problem, StepText, Unknown, Verdict},
    verification::{Doubt, Invalid, Outcome, verify},
};

use crate::world::{Server, TTL, Viewer, fields, witness, witnessed};

const A: &str = "anna/phone";
const B: &str = "bert/phone";

/// The evidence of a verdict, checked as a stranger does: from its JSON.
pub fn proven(server: &Server, verdict: Verdict, expected: Kind) -> EvidenceFile {
    let Verdict::Proven { evidence, .. } = verdict else { panic!("not proven: {verdict:?}") };
    accepted(server, *evidence, expected)
}

pub fn accepted(server: &Server, evidence: EvidenceFile, expected: Kind) -> EvidenceFile {
    let read = EvidenceFile::from_json(evidence.to_json().as_bytes()).unwrap();
    assert_eq!(read, evidence);
    assert_eq!(verify(&read, &server.policy()), Outcome::Proven(expected));
    evidence
}

/// Hands package 0 to a second adder under a number of the server's choice, as if the first one did not hold it.
pub fn hand_out_again(server: &mut Server, n: u32, actor: &str) -> (usize, Leaf) {
    let id = server.packages[0].id;
    let mut second = server.new_hand_out(actor, Some(n));
    let record = server.record(Event::Reserve, id, Some(&second));
    let before = server.book.get(&Step::Open(n).tag(&id)).cloned();
    let leaf = server.log_step(&Step::Open(n), &record);
    second.receipts.push(server.receipt(actor, vec![Promise::Leaf(leaf)]));
    server.hand_outs.push((0, second));
    if let Some(before) = before {
        server.book.insert(leaf.tag(), before);
    }
    (server.hand_outs.len() - 1, leaf)
}

/// Shows a step with another event than the log had at first.
fn end_as(server: &mut Server, n: u32, event: Event, hand_out: usize) -> Leaf {
    let (id, hand_out) = (server.packages[0].id, server.hand_outs[hand_out].1.clone());
    let record = server.record(event, id, Some(&hand_out));
    server.log_step(&Step::End(n), &record)
}

/// Evidence for a tag at two indexes, as an auditor writes it.
pub fn auditors_evidence(server: &Server) -> EvidenceFile {
    let (one, other) = server.repeated_tag().unwrap();
    EvidenceFile::new(Evidence::TagRepeated { one: server.statement(one), other: server.statement(other) }, Vec::new())
}

#[test]
fn one_number_for_two_adders_with_two_leaves_is_found_by_the_auditor() {
    let mut server = Server::new(1, 0);
    let first = server.reserve(0, A).unwrap();
    let (second, _) = hand_out_again(&mut server, 0, B);
    server.sequence();
    assert_eq!(server.check_adder(first), Verdict::Fine);
    accepted(&server, auditors_evidence(&server), Kind::TagRepeated);
    // The second adder sees the first one's leaf instead of what its receipt promised.
    proven(&server, server.check_adder(second), Kind::TagRepeated);
}

#[test]
fn one_number_for_two_adders_with_one_leaf_is_found_by_the_second() {
    let mut server = Server::new(1, 0);
    server.reserve(0, A).unwrap();
    let (second, _) = hand_out_again(&mut server, 0, B);
    server.outbox.pop();
    server.sequence();
    assert_eq!(server.repeated_tag(), None);
    proven(&server, server.check_adder(second), Kind::TagRepeated);
    // Without a receipt it knows, and cannot prove it: HTTP answers are not signed.
    server.hand_outs[second].1.receipts.clear();
    let problem = Problem::Differs(StepText(Step::Open(0)), "actor");
    let answers = server.answers(server.packages[0].id, &[Step::Open(0)], Viewer::Owner);
    assert_eq!(server.check_adder_with(second, &answers, &server.policy()), Verdict::Report(problem));
}

#[test]
fn an_opening_that_does_not_open_the_leaf_is_reported() {
    let mut server = Server::new(1, 0);
    let first = server.reserve(0, A).unwrap();
    server.sequence();
    let mut answers = server.adder_answers(first);
    let Found::Included { opening: Some(opening), .. } = &mut answers.proofs[0].found else { panic!() };
    opening.details.at += 1;
    let verdict = server.check_adder_with(first, &answers, &server.policy());
    assert!(matches!(verdict, Verdict::Report(Problem::WrongOpening(..))), "{verdict:?}");
}

#[test]
fn a_false_lapse_after_a_spend_is_found_by_the_adder_who_spent() {
    for with_receipt in [true, false] {
        let mut server = Server::new(1, 0);
        let first = server.reserve(0, A).unwrap();
        assert!(server.spend(first));
        server.outbox.pop();
        end_as(&mut server, 0, Event::Lapse, first);
        let (second, _) = hand_out_again(&mut server, 1, B);
        server.sequence();
        assert_eq!(server.check_adder(second), Verdict::Fine, "the second adder cannot know");
        if with_receipt {
            proven(&server, server.check_adder(first), Kind::TagRepeated);
            let mut own = server.own_package(0);
            own.rows.last_mut().unwrap().event = Event::Lapse;
            own.welcomes.push(Welcome { sender: A.to_owned(), group_id: b"group".to_vec() });
            own.rows.push(trail_row(&server, second));
            assert_eq!(server.check_owner(&own), Verdict::Report(Problem::UnexpectedWelcome(A.to_owned())));
        } else {
            server.hand_outs[first].1.receipts.clear();
            let problem = Problem::Differs(StepText(Step::End(0)), "event");
            assert_eq!(server.check_adder(first), Verdict::Report(problem));
        }
    }
}

fn trail_row(server: &Server, hand_out: usize) -> TrailRow {
    let hand_out = &server.hand_outs[hand_out].1;
    TrailRow {
        event: Event::Reserve,
        n: hand_out.n,
        at: server.now,
        actor: hand_out.actor.clone(),
        group_id: hand_out.group_id.clone(),
        reservation_id: hand_out.reservation_id,
    }
}

#[test]
fn a_late_spend_after_the_next_ones_spend_is_found_by_the_late_adder() {
    let mut server = Server::new(1, 0);
    let late = server.reserve(0, A).unwrap();
    server.now += TTL;
    let between = server.reserve(0, B).unwrap();
    assert!(server.spend(between));
    assert!(!server.spend(late), "an honest server refuses");
    // The lying one logs the late spend as hand-out 2.
    let id = server.packages[0].id;
    let mut own = server.hand_outs[late].1.clone();
    (own.n, own.until, own.spend) = (Some(2), None, Spend::Acknowledged);
    for (step, event) in [(Step::Open(2), Event::Reserve), (Step::End(2), Event::Spend)] {
        let record = server.record(event, id, Some(&own));
        server.log_step(&step, &record);
    }
    server.hand_outs[late].1 = own;
    server.sequence();
    assert_eq!(server.check_adder(between), Verdict::Fine);
    proven(&server, server.check_adder(late), Kind::HandedOutAfterEnd);
}

#[test]
fn a_late_spend_under_the_next_ones_number_is_found_by_the_late_adder_with_its_receipt() {
    let mut server = Server::new(1, 0);
    let late = server.reserve(0, A).unwrap();
    server.now += TTL;
    let between = server.reserve(0, B).unwrap();
    let id = server.packages[0].id;
    let mut own = server.hand_outs[late].1.clone();
    (own.n, own.until, own.spend) = (Some(1), None, Spend::Acknowledged);
    let record = server.record(Event::Reserve, id, Some(&own));
    let (leaf, _) = server.secret.seal(&Step::Open(1), &record);
    own.receipts.push(server.receipt(A, vec![Promise::Leaf(leaf)]));
    server.hand_outs[late].1 = own;
    server.sequence();
    assert_eq!(server.check_adder(between), Verdict::Fine);
    proven(&server, server.check_adder(late), Kind::TagRepeated);
    // Both are members of the group of the owner's device: together they have it, too.
    let evidence = server.dossier(0).evidence(&id, &server.policy()).unwrap();
    accepted(&server, evidence, Kind::TagRepeated);
}

#[test]
fn a_last_resort_that_is_none_is_reported_by_the_adder() {
    let mut server = Server::new(1, 0);
    let mut hand_out = server.new_hand_out(A, None);
    let record = server.record(Event::Reserve, server.packages[0].id, Some(&hand_out));
    let leaf = server.log_step(&Step::Use(hand_out.reservation_id), &record);
    hand_out.receipts.push(server.receipt(A, vec![Promise::Leaf(leaf)]));
    server.hand_outs.push((0, hand_out));
    server.sequence();
    assert_eq!(server.check_adder(0), Verdict::Report(Problem::NotLastResort));
}

#[test]
fn a_second_ref_of_the_same_keys_is_the_same_package() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/seeds/key_package/suite-2");
    let bytes = std::fs::read(path).unwrap();
    let mut other = bytes.clone();
    *other.last_mut().unwrap() ^= 1;
    let [one, other] = [bytes, other].map(|bytes| KeyPackageFields::parse(&bytes).unwrap());
    assert_eq!(PackageId::of(&one), PackageId::of(&other));
    // An adder that holds it, or has spent it, refuses it under a new number, too.
    let mut server = Server::new(1, 0);
    let first = server.reserve(0, A).unwrap();
    let (second, _) = hand_out_again(&mut server, 1, A);
    end_as(&mut server, 0, Event::Lapse, first);
    server.sequence();
    let answers = server.adder_answers(second);
    let answers = answers.check(&server.policy().log_keys()).unwrap();
    let hand_out = &server.hand_outs[second].1;
    for (held, spend, expected) in [
        (true, Spend::Not, Verdict::Report(Problem::HeldAlready)),
        (false, Spend::Acknowledged, Verdict::Report(Problem::HeldAlready)),
        (false, Spend::Not, Verdict::Fine),
    ] {
        let mut earlier = EarlierHandOut { hand_out: server.hand_outs[first].1.clone(), held };
        earlier.hand_out.spend = spend;
        let verdict = adder::check(hand_out, &fields(0, false), &[earlier], &answers, &server.policy());
        assert_eq!(verdict, expected);
    }
    // Hand-outs are numbered: a later one to the same adder has a greater number.
    let mut earlier = EarlierHandOut { hand_out: server.hand_outs[first].1.clone(), held: false };
    for (n, expected) in [(0, Verdict::Fine), (1, Verdict::Report(Problem::HeldAlready))] {
        earlier.hand_out.n = Some(n);
        let earlier = std::slice::from_ref(&earlier);
        let verdict = adder::check(hand_out, &fields(0, false), earlier, &answers, &server.policy());
        assert_eq!(verdict, expected);
    }
}

#[test]
fn a_number_above_the_last_possible_one_is_reported() {
    let mut server = Server::new(1, 0);
    for n in [16, 17, u32::MAX] {
        let hand_out = server.new_hand_out(A, Some(n));
        assert!(hand_out.steps().len() <= 18);
        server.hand_outs.push((0, hand_out));
        let is_reported =
            server.check_adder(server.hand_outs.len() - 1) == Verdict::Report(Problem::TooManyHandOuts(n));
        assert_eq!(is_reported, n > 16);
    }
}

#[test]
fn a_package_that_outlives_the_log_is_refused() {
    let mut server = Server::new(1, 0);
    let first = server.reserve(0, A).unwrap();
    server.sequence();
    let mut long = fields(0, false);
    long.not_before -= 11 * 86_400;
    let answers = server.adder_answers(first);
    let answers = answers.check(&server.policy().log_keys()).unwrap();
    let verdict = adder::check(&server.hand_outs[first].1, &long, &[], &answers, &server.policy());
    assert_eq!(verdict, Verdict::Report(Problem::LivesTooLong));
}

/// The first adder alone cannot prove that a lapse was early; with the second one's receipt, or witnesses, it can.
#[test]
fn an_early_lapse_is_found_by_the_adder_and_proven_by_a_later_receipt_or_by_witnesses() {
    let mut server = Server::new(1, 0);
    let first = server.reserve(0, A).unwrap();
    server.now += 5;
    server.end(0, Event::Lapse);
    let second = server.reserve(0, B).unwrap();
    server.hand_outs[first].1.spend = Spend::RefusedEarly;
    server.sequence();
    assert_eq!(server.check_adder(second), Verdict::Fine);
    let problem = Problem::EndedEarly(StepText(Step::End(0)), Event::Lapse);
    assert_eq!(server.check_adder(first), Verdict::Report(problem));
    let id = server.packages[0].id;
    let evidence = server.dossier(0).evidence(&id, &server.policy()).unwrap();
    accepted(&server, evidence, Kind::LapsedEarly);
    let mut answers = server.adder_answers(first);
    for (time, is_proven) in [(server.now + TTL - 5 - 10, false), (server.now + TTL - 5 - 11, true)] {
        let mut note = server.log.checkpoint();
        for i in [1, 3] {
            witness(i).cosign(&mut note, time);
        }
        answers.checkpoint = note;
        let verdict = server.check_adder_with(first, &answers, &witnessed(&server.log));
        assert_eq!(matches!(verdict, Verdict::Proven { .. }), is_proven, "{verdict:?}");
    }
}

#[test]
fn a_false_release_is_reported_by_the_adder() {
    let mut server = Server::new(1, 0);
    let first = server.reserve(0, A).unwrap();
    server.end(0, Event::Release);
    server.hand_outs[first].1.spend = Spend::RefusedEarly;
    server.sequence();
    let problem = Problem::EndedEarly(StepText(Step::End(0)), Event::Release);
    assert_eq!(server.check_adder(first), Verdict::Report(problem));
    // A refusal because the owner revoked the package is no lie.
    let mut server = Server::new(1, 0);
    let first = server.reserve(0, A).unwrap();
    server.revoke(0);
    server.hand_outs[first].1.spend = Spend::RefusedEarly;
    server.sequence();
    assert_eq!(server.check_adder(first), Verdict::Fine);
}

#[test]
fn a_hand_out_after_a_revoke_is_found_by_the_adder_and_by_the_owner() {
    let mut server = Server::new(1, 0);
    server.reserve(0, A).unwrap();
    server.revoke(0);
    let (second, _) = hand_out_again(&mut server, 1, B);
    server.sequence();
    proven(&server, server.check_adder(second), Kind::HandedOutAfterEnd);
    let own = server.own_package(0);
    proven(&server, server.check_owner(&own), Kind::HandedOutAfterEnd);
}

#[test]
fn a_leaf_that_is_replaced_after_a_receipt_is_found_by_the_adder() {
    let mut server = Server::new(1, 0);
    let first = server.reserve(0, A).unwrap();
    server.outbox.clear();
    server.now += 1;
    let (id, hand_out) = (server.packages[0].id, server.hand_outs[first].1.clone());
    let record = server.record(Event::Reserve, id, Some(&hand_out));
    server.log_step(&Step::Open(0), &record);
    server.sequence();
    proven(&server, server.check_adder(first), Kind::TagRepeated);
}

/// A receipt's leaf that never comes is only pending, until witnesses have cosigned the log without it for a day.
#[test]
fn a_leaf_that_is_left_out_after_a_receipt_is_proven_by_witnesses() {
    let mut server = Server::new(1, 0);
    server.sequence();
    server.log.append(&[[7; 65]]);
    let first = server.reserve(0, A).unwrap();
    let left_out = server.outbox.pop().unwrap();
    let pending = Verdict::CannotTell(Unknown::Pending(StepText(Step::Open(0))));
    assert_eq!(server.check_adder(first), pending);
    let policy = witnessed(&server.log);
    let checkpoint = |server: &mut Server, seconds: u64| {
        let time = server.now + seconds;
        server.log.append(&[[8; 65], [9; 65]]);
        let mut note = server.log.checkpoint();
        for i in [1, 2] {
            witness(i).cosign(&mut note, time);
        }
        note
    };
    let smaller = checkpoint(&mut server, 5);
    let receipt = server.hand_outs[first].1.receipts[0].clone();
    for (days, expected) in [(0, Outcome::CannotTell(Doubt::NoQuorum)), (86_400, Outcome::Proven(Kind::LeafMissing))] {
        let larger = checkpoint(&mut server, 5 + days);
        let evidence = |leaf_hashes| Evidence::LeafMissing {
            receipt: receipt.clone(),
            leaf: left_out,
            smaller: smaller.clone(),
            larger: larger.clone(),
            leaf_hashes,
        };
        let hashes: Vec<_> =
            server.log.entries.iter().map(|entry| keypool_transparency::merkle::leaf_hash(entry)).collect();
        let file = EvidenceFile::new(evidence(hashes.concat()), Vec::new());
        assert_eq!(verify(&file, &policy), expected);
        assert_eq!(verify(&file, &server.policy()), Outcome::CannotTell(Doubt::NoWitnesses));
        // The smaller checkpoint has to be larger than the receipt's size: the log has gone on since.
        let mut same = evidence(hashes.concat());
        let Evidence::LeafMissing { smaller, .. } = &mut same else { panic!() };
        *smaller = server.log.checkpoint_at(1).sign(&server.log.key).unwrap();
        let file = EvidenceFile::new(same, Vec::new());
        assert_eq!(verify(&file, &policy), Outcome::Invalid(Invalid::WrongSizes));
        let file = EvidenceFile::new(evidence(hashes[1..].concat()), Vec::new());
        assert!(!matches!(verify(&file, &policy), Outcome::Proven(_)));
    }
    assert_eq!(server.check_adder(first), pending);
}

#[test]
fn a_false_actor_is_proven_by_the_adder_with_its_receipt() {
    let mut server = Server::new(1, 0);
    let mut hand_out = server.new_hand_out(A, Some(0));
    let mut record = server.record(Event::Reserve, server.packages[0].id, Some(&hand_out));
    record.actor = B.to_owned();
    let leaf = server.log_step(&Step::Open(0), &record);
    hand_out.receipts.push(server.receipt(A, vec![Promise::Leaf(leaf)]));
    server.hand_outs.push((0, hand_out));
    server.sequence();
    proven(&server, server.check_adder(0), Kind::FalseReceipt);
}

/// Before a spend, a server keeps the group from the owner.
#[test]
fn an_owner_needs_to_see_who_used_its_package_and_not_who_did_not() {
    let mut server = Server::new(1, 0);
    let first = server.reserve(0, A).unwrap();
    server.sequence();
    let check = |server: &Server| {
        let own = server.own_package(0);
        let mut answers = server.answers(own.package, &own.steps(), Viewer::Owner);
        for answer in &mut answers.proofs {
            if let Found::Included { opening: Some(opening), .. } = &mut answer.found {
                *opening = opening.first_level();
            }
        }
        keypool_transparency::owner::check(&own, &answers.check(&server.policy().log_keys()).unwrap(), &server.policy())
    };
    assert_eq!(check(&server), Verdict::Fine);
    assert!(server.spend(first));
    server.sequence();
    assert_eq!(check(&server), Verdict::CannotTell(Unknown::NoOpening(StepText(Step::Open(0)))));
}

#[test]
fn an_erased_owner_leaves_doubt_and_no_accusation() {
    let mut server = Server::new(1, 0);
    let first = server.reserve(0, A).unwrap();
    server.sequence();
    let text = StepText(Step::Open(0));
    let mut answers = server.adder_answers(first);
    let Found::Included { opening, .. } = &mut answers.proofs[0].found else { panic!() };
    *opening = None;
    let verdict = server.check_adder_with(first, &answers, &server.policy());
    assert_eq!(verdict, Verdict::CannotTell(Unknown::NoOpening(text)));
    for (found, expected) in [
        (Found::Erased, Verdict::CannotTell(Unknown::Erased(text))),
        (Found::Pending, Verdict::CannotTell(Unknown::Pending(text))),
        (Found::None, Verdict::Report(Problem::Missing(text))),
    ] {
        answers.proofs[0].found = found;
        assert_eq!(server.check_adder_with(first, &answers, &server.policy()), expected);
    }
    answers.proofs.clear();
    let verdict = server.check_adder_with(first, &answers, &server.policy());
    assert_eq!(verdict, Verdict::CannotTell(Unknown::NotAnswered(text)));
}

/// Nobody can use what one party lacks: evidence needs what the party holds.
#[test]
fn an_empty_dossier_has_no_evidence() {
    let server = Server::new(1, 0);
    assert_eq!(Dossier::default().evidence(&server.packages[0].id, &server.policy()), None);
    let note: Note = server.log.checkpoint();
    let forged = Evidence::Fork { smaller: note.clone(), larger: note, path: Vec::new() };
    assert!(matches!(verify(&EvidenceFile::new(forged, Vec::new()), &server.policy()), Outcome::Invalid(_)));
}
