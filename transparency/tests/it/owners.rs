//! What an owner finds when it compares its trail with the log.

use keypool_transparency::{
    commitment::Event,
    evidence::Kind,
    owner::{TrailRow, check},
    package::Step,
    receipt::Promise,
    verdict::{Problem, StepText, Unknown, Verdict},
};

use crate::{
    lies::{hand_out_again, proven},
    world::{Server, TTL, Viewer},
};

const A: &str = "anna/phone";
const B: &str = "bert/phone";

#[test]
fn a_hand_out_that_the_trail_leaves_out_is_found_by_the_owner() {
    let mut server = Server::new(1, 0);
    server.reserve(0, A).unwrap();
    server.now += TTL;
    server.lapse(0);
    server.sequence();
    let denied = Step::Open(1).tag(&server.packages[0].id);
    let before = server.receipt("alice/laptop", vec![Promise::None(denied)]);
    let mut own = server.own_package(0);
    hand_out_again(&mut server, 1, B);
    server.sequence();
    // The trail was read before: the owner has to read it again.
    let newer = Verdict::CannotTell(Unknown::Newer(StepText(Step::Open(1))));
    assert_eq!(server.check_owner(&own), newer);
    own.as_of = server.log.size();
    assert_eq!(server.check_owner(&own), Verdict::Report(Problem::LeftOut(StepText(Step::Open(1)))));
    own.receipts = vec![before];
    assert_eq!(server.check_owner(&own), Verdict::Report(Problem::LeftOut(StepText(Step::Open(1)))));
    own.receipts.push(server.receipt("alice/laptop", vec![Promise::None(denied)]));
    proven(&server, server.check_owner(&own), Kind::FalseReceipt);
}

#[test]
fn a_trail_that_tells_another_story_is_found_by_the_owner() {
    let mut server = Server::new(1, 0);
    let first = server.reserve(0, A).unwrap();
    server.spend(first);
    server.sequence();
    let own = server.own_package(0);
    assert_eq!(server.check_owner(&own), Verdict::Fine);
    let differs = |step, what| Verdict::Report(Problem::Differs(StepText(step), what));
    let mut other = own.clone();
    other.rows[1].actor = B.to_owned();
    assert_eq!(server.check_owner(&other), differs(Step::End(0), "actor"));
    let mut other = own.clone();
    other.rows[1].group_id = b"other".to_vec();
    assert_eq!(server.check_owner(&other), differs(Step::End(0), "group"));
    // The trail does not name the group of a reserve.
    let mut other = own.clone();
    other.rows[0].group_id = Vec::new();
    assert_eq!(server.check_owner(&other), Verdict::Fine);
    let mut other = own.clone();
    other.rows[0].at += 1;
    assert_eq!(server.check_owner(&other), differs(Step::Open(0), "time"));
    let mut other = own.clone();
    other.rows[1].event = Event::Release;
    assert_eq!(server.check_owner(&other), differs(Step::End(0), "event"));
    let mut other = own.clone();
    other.rows.remove(1);
    assert_eq!(server.check_owner(&other), Verdict::Report(Problem::LeftOut(StepText(Step::End(0)))));
    let mut other = own.clone();
    other.rows[1].n = Some(1);
    let answers = server.answers(other.package, &other.steps(), Viewer::Owner);
    let answers = answers.check(&server.policy().log_keys()).unwrap();
    let out_of_order = |step| Verdict::Report(Problem::OutOfOrder(StepText(step)));
    assert_eq!(check(&other, &answers, &server.policy()), out_of_order(Step::End(1)));
    let mut other = own.clone();
    other.rows[1].event = Event::Release;
    other.rows.push(TrailRow { n: Some(1), event: Event::Spend, ..other.rows[1].clone() });
    assert_eq!(check(&other, &answers, &server.policy()), out_of_order(Step::End(1)));
    let mut other = own;
    other.rows.swap(0, 1);
    let answers = server.answers(other.package, &other.steps(), Viewer::Owner);
    let answers = answers.check(&server.policy().log_keys()).unwrap();
    assert!(matches!(check(&other, &answers, &server.policy()), Verdict::Report(Problem::HandedOutAfter(..))));
}

/// What happens while an owner checks is pending, and no accusation.
#[test]
fn a_step_that_begins_while_the_owner_checks_is_pending() {
    let mut server = Server::new(1, 0);
    server.sequence();
    let own = server.own_package(0);
    assert_eq!(server.check_owner(&own), Verdict::Fine);
    server.reserve(0, A).unwrap();
    let pending = Verdict::CannotTell(Unknown::Pending(StepText(Step::Open(0))));
    assert_eq!(server.check_owner(&own), pending);
}
