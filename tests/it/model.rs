//! Random histories of a few devices, each step compared with a reference model that is written from the design.
//!
//! proptest makes the histories up and shrinks one that fails; which of several allowed KeyPackages is handed out, the
//! server chooses, and the model follows.

mod arena;
mod audit;
mod compare;
mod reference;
mod reserve;
mod step;
mod view;
mod world;

use std::sync::atomic::Ordering;

use keypool_server::config::OnLapse;
use proptest::test_runner::{Config, FileFailurePersistence, TestError, TestRunner};
use proptest_state_machine::ReferenceStateMachine;
use rstest::rstest;

use crate::support::Database;
use arena::Arena;
use step::{History, Step};

/// For each database and each of the operator's choices.
const HISTORIES: u32 = 300;
const LONGEST: usize = 30;
/// How often a shorter case is tried before it counts as one that works: it may fail by what the server chooses.
const TRIES: usize = 4;

#[rstest]
fn any_history_goes_as_the_model_says(
    #[values(OnLapse::Release, OnLapse::Retire)] on_lapse: OnLapse,
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
) {
    let arena = Arena::start(db, on_lapse);
    let mut runner = TestRunner::new(Config {
        cases: HISTORIES,
        source_file: Some(file!()),
        // The seeds of what failed: tried first from then on.
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("regressions"))),
        ..Config::default()
    });
    let outcome = runner.run(&History::sequential_strategy(1..=LONGEST), |(_, steps, seen)| {
        // proptest counts the steps that were taken until it begins to shrink.
        let tries = if seen.is_some() { 1 } else { TRIES };
        for _ in 0..tries {
            arena.play(&steps, || {
                if let Some(seen) = &seen {
                    seen.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        Ok(())
    });
    match outcome {
        Ok(()) => arena.has_a_whole_log(),
        Err(TestError::Fail(reason, (_, steps, _))) => panic!("{reason}\n\nwith these steps:\n{}", listed(&steps)),
        Err(abort) => panic!("{abort}"),
    }
}

fn listed(steps: &[Step]) -> String {
    let lines: Vec<_> = steps.iter().map(|step| format!("  {step:?}")).collect();
    lines.join("\n")
}
