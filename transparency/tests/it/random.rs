//! An honest server is never accused, in random histories of its adders and owners; a lie after such a history is caught.

use keypool_transparency::{
    adder::{HandOut, Spend},
    commitment::Event,
    evidence::Kind,
    owner::Welcome,
    package::Step,
    receipt::Promise,
    verdict::Verdict,
    verification::{Outcome, verify},
};
use proptest::prelude::*;

use crate::world::{Server, TTL};

#[derive(Clone, Debug)]
pub enum Act {
    Reserve(usize, u8),
    Spend(usize),
    Release(usize),
    Revoke(usize),
    Wait(u64),
    Sequence,
}

pub fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        6 => (0..4_usize, 0..3_u8).prop_map(|(package, adder)| Act::Reserve(package, adder)),
        4 => (0..40_usize).prop_map(Act::Spend),
        2 => (0..40_usize).prop_map(Act::Release),
        1 => (0..4_usize).prop_map(Act::Revoke),
        3 => (1..=TTL).prop_map(Act::Wait),
        3 => Just(Act::Sequence),
    ]
}

pub fn perform(server: &mut Server, act: &Act) {
    let hand_outs = server.hand_outs.len();
    match act {
        Act::Reserve(package, adder) => {
            server.reserve(*package, &format!("adder{adder}/phone"));
        }
        Act::Spend(index) if hand_outs > 0 => {
            server.spend(index % hand_outs);
        }
        Act::Release(index) if hand_outs > 0 => server.release(index % hand_outs),
        Act::Spend(_) | Act::Release(_) => {}
        Act::Revoke(package) => server.revoke(*package),
        Act::Wait(seconds) => {
            server.now += seconds;
            // The sweeper comes now and then.
            if seconds.is_multiple_of(2) {
                (0..4).for_each(|package| server.lapse(package));
            }
        }
        Act::Sequence => server.sequence(),
    }
}

fn is_no_accusation(verdict: &Verdict) -> bool {
    matches!(verdict, Verdict::Fine | Verdict::CannotTell(_))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn nobody_accuses_it(acts in proptest::collection::vec(act(), 1..60)) {
        let mut server = Server::new(3, 1);
        let mut denials = Vec::new();
        let mut trails = Vec::new();
        for (round, act) in acts.iter().enumerate() {
            perform(&mut server, act);
            if round % 7 == 0 {
                // A receipt that denies what has not happened, and a trail that will be old when it is checked.
                let package = &server.packages[round % 3];
                let next = if package.held.is_some() { package.n + 1 } else { package.n };
                let denied = Step::Open(next).tag(&package.id);
                if !server.book.contains_key(&denied) {
                    denials.push((round % 3, server.receipt("bob/phone", vec![Promise::None(denied)])));
                }
                trails.push(server.own_package(round % 3));
            }
            for hand_out in 0..server.hand_outs.len() {
                let verdict = server.check_adder(hand_out);
                prop_assert!(is_no_accusation(&verdict), "{act:?}: {verdict:?}");
            }
        }
        server.sequence();
        prop_assert_eq!(server.repeated_tag(), None);
        prop_assert!(server.has_no_repeated_leaf());
        for hand_out in 0..server.hand_outs.len() {
            prop_assert_eq!(server.check_adder(hand_out), Verdict::Fine);
        }
        for old in trails {
            let verdict = server.check_owner(&old);
            prop_assert!(is_no_accusation(&verdict), "{verdict:?}");
        }
        for package in 0..4 {
            let mut own = server.own_package(package);
            own.receipts = denials.iter().filter(|(of, _)| *of == package).map(|(_, text)| text.clone()).collect();
            let spends = own.rows.iter().filter(|row| row.event == Event::Spend);
            own.welcomes =
                spends.map(|row| Welcome { sender: row.actor.clone(), group_id: row.group_id.clone() }).collect();
            prop_assert_eq!(server.check_owner(&own), Verdict::Fine);
            // All parties together find nothing either.
            let mut all = server.dossier(package);
            all.receipts.extend(own.receipts);
            prop_assert_eq!(all.evidence(&own.package, &server.policy()), None);
        }
    }

    /// A lie at any point of any history, about any package that it fits.
    #[test]
    fn a_lie_after_any_history_is_caught(
        acts in proptest::collection::vec(act(), 20..60),
        lie in 0..3_usize,
        pick in any::<prop::sample::Index>(),
        sequence_first in any::<bool>(),
    ) {
        let mut server = Server::new(4, 0);
        for act in &acts {
            perform(&mut server, act);
        }
        if sequence_first {
            server.sequence();
        }
        let is_spent = |hand_out: &HandOut| hand_out.spend == Spend::Acknowledged;
        let fitting: Vec<usize> = (0..server.hand_outs.len())
            .filter(|index| lie == 0 || is_spent(&server.hand_outs[*index].1))
            .collect();
        prop_assume!(!fitting.is_empty());
        let victim = fitting[pick.index(fitting.len())];
        let (package, own) = server.hand_outs[victim].clone();
        let (id, n) = (server.packages[package].id, own.n.unwrap());
        match lie {
            // The same number for another adder.
            0 => {
                let other = server.new_hand_out("eve/phone", Some(n));
                let record = server.record(Event::Reserve, id, Some(&other));
                server.log_step(&Step::Open(n), &record);
            }
            // The next number after a spend.
            1 => {
                let other = server.new_hand_out("eve/phone", Some(n + 1));
                let record = server.record(Event::Reserve, id, Some(&other));
                server.log_step(&Step::Open(n + 1), &record);
                server.hand_outs.push((package, other));
            }
            // A spend that becomes a lapse.
            _ => {
                let record = server.record(Event::Lapse, id, Some(&own));
                server.log_step(&Step::End(n), &record);
            }
        }
        server.sequence();
        let proven = |verdict: Verdict| match verdict {
            Verdict::Proven { evidence, .. } => Some(verify(&evidence, &server.policy())),
            _ => None,
        };
        let (catcher, kind) = match lie {
            1 => (server.hand_outs.len() - 1, Kind::HandedOutAfterEnd),
            _ => (victim, Kind::TagRepeated),
        };
        prop_assert_eq!(proven(server.check_adder(catcher)), Some(Outcome::Proven(kind)));
        prop_assert_eq!(server.repeated_tag().is_some(), lie != 1, "the auditor");
        // All others have nothing to say against each other's packages.
        for (index, (of, _)) in server.hand_outs.iter().enumerate().filter(|(_, (of, _))| *of != package) {
            prop_assert_eq!(server.check_adder(index), Verdict::Fine, "{}", of);
        }
    }
}
