//! Random histories of eight devices in three groups: whatever happens, the devices that should be members talk to each other
//! at the end.

mod ending;
mod machine;
mod step;
mod world;

use std::{env, ops::Range, panic::AssertUnwindSafe, sync::Arc};

use futures_util::FutureExt as _;
use rstest::rstest;

use self::{machine::Machine, step::steps, world::World};
use crate::support::Database;

/// The histories of one run on each database, by their seeds.
const HISTORIES: [Range<u64>; 2] = [0..100, 100..200];

/// Histories to run in place of the usual ones: `7`, or `200..1000`.
const CHOSEN: &str = "TEST_GROUP_HISTORIES";

fn seeds(db: Database) -> Range<u64> {
    let Ok(chosen) = env::var(CHOSEN) else { return HISTORIES[usize::from(db == Database::Sqlite)].clone() };
    let (from, to) = chosen.split_once("..").unwrap_or((&chosen, ""));
    let from = from.parse().unwrap();
    from..to.parse().unwrap_or(from + 1)
}

#[rstest]
fn devices_find_together_whatever_happens(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let seeds = seeds(db);
    let failed: Vec<_> = runtime.block_on(async {
        let machine = Arc::new(Machine::start(db).await);
        let mut failed = Vec::new();
        for seed in seeds.clone() {
            let mut world = World::new(&machine, seed).await;
            let history = async {
                for step in steps(seed) {
                    world.take(&step).await;
                }
                world.ends().await;
            };
            let is_sound = AssertUnwindSafe(history).catch_unwind().await.is_ok();
            if !is_sound || seeds.end - seeds.start == 1 {
                println!("history {seed}:\n{}\n", world.log.join("\n"));
            }
            if !is_sound {
                failed.push(seed);
            }
        }
        failed
    });
    assert_eq!(failed, [0_u64; 0], "run one alone with {CHOSEN}=SEED; their steps are above");
}
