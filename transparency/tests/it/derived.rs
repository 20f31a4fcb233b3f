//! What owners and adders take from the answers themselves: a trail, and the number of a late spend.

use keypool_transparency::{
    adder::{self, HandOut, Spend},
    answers::{Answers, Found},
    commitment::Event,
    owner::{self, OwnPackage, Welcome},
    package::{Bind, Step},
    verdict::{Problem, StepText, Unknown, Verdict},
};
use rstest::rstest;

use crate::world::{OWNER, Server, TTL, Viewer};

const A: &str = "anna/phone";
const B: &str = "bert/phone";

fn all_steps(server: &Server, package: usize) -> Vec<Step> {
    let last_resort = server.packages[package].rows.iter().filter(|row| row.n.is_none());
    let numbered = (0..4).flat_map(|n| [Step::Open(n), Step::End(n)]);
    numbered
        .chain(last_resort.flat_map(|row| [Step::Use(row.reservation_id), Step::Used(row.reservation_id)]))
        .collect()
}

fn answers(server: &Server, package: usize) -> Answers {
    let mut answers = server.answers(server.packages[package].id, &all_steps(server, package), Viewer::Owner);
    // A server names each step once.
    answers.proofs.dedup_by_key(|answer| answer.tag);
    answers.proofs.sort_by_key(|answer| answer.tag);
    answers.proofs.dedup_by_key(|answer| answer.tag);
    answers
}

fn check_shown(server: &Server, package: usize, answers: &Answers, welcomes: &[Welcome]) -> Verdict {
    let checked = answers.check(&server.policy().log_keys()).unwrap();
    match OwnPackage::shown(server.packages[package].id, OWNER, &checked) {
        Ok(own) => owner::check(&OwnPackage { welcomes: welcomes.to_vec(), ..own }, &checked, &server.policy()),
        Err(verdict) => verdict,
    }
}

fn welcome(sender: &str) -> Welcome {
    Welcome { sender: sender.to_owned(), group_id: b"group".to_vec() }
}

/// Makes one package of each fate.
fn fates() -> Server {
    let mut server = Server::new(4, 1);
    let spent = server.reserve(0, A).unwrap();
    server.spend(spent);
    let released = server.reserve(1, A).unwrap();
    server.release(released);
    let lapsed = server.reserve(1, B).unwrap();
    server.now += TTL;
    server.lapse(1);
    server.spend(lapsed);
    server.revoke(2);
    let used = server.reserve(4, A).unwrap();
    server.reserve(4, B).unwrap();
    server.spend(used);
    server
}

#[test]
fn the_trail_that_a_log_shows_is_that_of_the_server() {
    let mut server = fates();
    server.sequence();
    for package in 0..5 {
        let answers = answers(&server, package);
        let checked = answers.check(&server.policy().log_keys()).unwrap();
        let shown = OwnPackage::shown(server.packages[package].id, OWNER, &checked).unwrap();
        assert_eq!(shown.rows.len(), server.packages[package].rows.len(), "{package}");
        for row in &server.packages[package].rows {
            assert!(shown.rows.contains(row), "{package}: {row:?}");
        }
        if package < 4 {
            assert_eq!(check_shown(&server, package, &answers, &[]), Verdict::Fine, "{package}");
        }
    }
}

#[rstest]
#[case::spent(0, A)]
#[case::spent_late(1, B)]
#[case::last_resort(4, A)]
fn a_welcome_is_by_the_device_that_spent(#[case] package: usize, #[case] sender: &str) {
    let mut server = fates();
    let unexpected = |sender: &str| Verdict::Report(Problem::UnexpectedWelcome(sender.to_owned()));
    let before = check_shown(&server, package, &answers(&server, package), &[welcome(sender)]);
    assert!(matches!(before, Verdict::CannotTell(Unknown::Pending(_))), "{before:?}");
    server.sequence();
    let answers = answers(&server, package);
    assert_eq!(check_shown(&server, package, &answers, &[welcome(sender)]), Verdict::Fine);
    assert_eq!(check_shown(&server, package, &answers, &[welcome("carl/phone")]), unexpected("carl/phone"));
    let elsewhere = Welcome { group_id: b"other".to_vec(), ..welcome(sender) };
    assert_eq!(check_shown(&server, package, &answers, &[elsewhere]), unexpected(sender));
}

#[test]
fn an_opening_that_is_wrong_or_left_out_is_told_apart() {
    let mut server = fates();
    server.sequence();
    let mut without = answers(&server, 0);
    let end = Step::End(0).tag(&server.packages[0].id);
    let change = |answers: &mut Answers, change: &dyn Fn(&mut Found)| {
        change(&mut answers.proofs.iter_mut().find(|answer| answer.tag == end).unwrap().found);
    };
    change(&mut without, &|found| {
        if let Found::Included { opening, .. } = found {
            *opening = None;
        }
    });
    let no_opening = Verdict::CannotTell(Unknown::NoOpening(StepText(Step::End(0))));
    assert_eq!(check_shown(&server, 0, &without, &[]), no_opening);
    let mut wrong = answers(&server, 0);
    change(&mut wrong, &|found| {
        if let Found::Included { opening: Some(opening), .. } = found {
            opening.details.event = Event::Lapse;
        }
    });
    let verdict = check_shown(&server, 0, &wrong, &[]);
    assert!(matches!(verdict, Verdict::Report(Problem::WrongOpening(..))), "{verdict:?}");
}

/// What the adder knows that was told of its spend, and not of the number.
fn as_reserved(server: &Server, hand_out: usize) -> HandOut {
    HandOut { spend: Spend::Acknowledged, ..server.hand_outs[hand_out].1.clone() }
}

fn check_as(server: &Server, package: usize, own: &HandOut) -> Verdict {
    let checked = answers(server, package);
    let checked = checked.check(&server.policy().log_keys()).unwrap();
    let fields = &server.packages[package].fields;
    let own = own.clone().with_late_spend(&server.packages[package].id, &checked);
    adder::check(&own, fields, &[], &checked, &server.policy())
}

#[rstest]
fn the_number_of_a_late_spend_is_found(#[values(false, true)] is_released: bool) {
    let mut server = Server::new(1, 0);
    let late = server.reserve(0, A).unwrap();
    let own = as_reserved(&server, late);
    if is_released {
        server.release(late);
    } else {
        server.now += TTL;
        server.lapse(0);
    }
    server.sequence();
    server.spend(late);
    assert!(matches!(check_as(&server, 0, &own), Verdict::CannotTell(Unknown::Pending(_))));
    server.sequence();
    assert_eq!(check_as(&server, 0, &own), Verdict::Fine);
}

/// The server says that it took the spend, logs a lapse, and hands the package to another adder.
#[test]
fn a_spend_that_is_logged_as_a_lapse_is_no_late_spend() {
    let mut server = Server::new(1, 0);
    let first = server.reserve(0, A).unwrap();
    let own = as_reserved(&server, first);
    server.now += TTL;
    server.lapse(0);
    server.sequence();
    let differs = Verdict::Report(Problem::Differs(StepText(Step::End(0)), "event"));
    assert_eq!(check_as(&server, 0, &own), differs);
    let second = server.reserve(0, B).unwrap();
    server.sequence();
    assert_eq!(check_as(&server, 0, &own), differs);
    server.spend(second);
    server.sequence();
    assert_eq!(check_as(&server, 0, &own), differs);
    // Nor is one with another's bytes the adder's own.
    assert_ne!(check_as(&server, 0, &HandOut { bind: Bind([7; 32]), ..own }), Verdict::Fine);
}

#[test]
fn a_spend_may_be_for_another_group_than_the_reservation() {
    let mut server = Server::new(1, 0);
    let first = server.reserve(0, A).unwrap();
    let reserved = server.hand_outs[first].1.clone();
    server.hand_outs[first].1.group_id = b"other".to_vec();
    server.spend(first);
    server.sequence();
    let own = HandOut { spent_for: b"other".to_vec(), spend: Spend::Acknowledged, ..reserved };
    assert_eq!(check_as(&server, 0, &own), Verdict::Fine);
    let differs = Verdict::Report(Problem::Differs(StepText(Step::End(0)), "group"));
    assert_eq!(check_as(&server, 0, &HandOut { spent_for: Vec::new(), ..own }), differs);
}

#[test]
fn the_spend_that_a_server_tells_of_is_the_one_in_the_log() {
    let mut server = Server::new(1, 0);
    let told = |server: &Server, by: &str, group: &[u8]| {
        let answers = answers(server, 0);
        let checked = answers.check(&server.policy().log_keys()).unwrap();
        let own = OwnPackage::shown(server.packages[0].id, OWNER, &checked).unwrap().with_spend_by(by, group);
        owner::check(&own, &checked, &server.policy())
    };
    let first = server.reserve(0, A).unwrap();
    server.sequence();
    let missing = Verdict::Report(Problem::Missing(StepText(Step::End(0))));
    assert_eq!(told(&server, A, b"group"), missing);
    server.spend(first);
    assert!(matches!(told(&server, A, b"group"), Verdict::CannotTell(Unknown::Pending(_))));
    server.sequence();
    let differs = |what| Verdict::Report(Problem::Differs(StepText(Step::End(0)), what));
    assert_eq!(told(&server, A, b"group"), Verdict::Fine);
    assert_eq!(told(&server, B, b"group"), differs("actor"));
    assert_eq!(told(&server, A, b"other"), differs("group"));
}
