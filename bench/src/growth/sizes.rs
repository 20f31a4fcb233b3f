//! Databases of different sizes on one PostgreSQL, in turns.

use anyhow::Result;
use comfy_table::Table;
use serde::Serialize;

use super::plan::Plan;
use crate::{
    pace::Pace,
    postgres::Postgres,
    progress,
    report::{self, Rounds, as_f64},
    requests::Mix,
    stage::Stage,
};

/// KeyPackages of each user, by default.
const EACH: u64 = 100;

/// Users in the sizes that differ by KeyPackages.
const USERS: u64 = 10_000;

/// The findings for a database of one size.
#[derive(Debug, Serialize)]
pub(crate) struct Size {
    users: u64,
    packages: u64,
    /// Reservations a second, here and in the first size of its kind.
    reserve: Rounds,
    /// Requests that got another status than 200.
    refused: u64,
    /// From the server's start on the filled database until it listened, in milliseconds.
    start_ms: f64,
    /// The server's memory, in megabytes.
    server_memory_mb: f64,
}

/// The number of users for so many KeyPackages. If there are too few KeyPackages, there are fewer users, since a user
/// with a single KeyPackage soon has none.
pub(super) fn users_of(packages: u64) -> u64 {
    USERS.min(packages / EACH)
}

/// Few, more and many KeyPackages.
pub(super) fn by_packages(plan: Plan) -> Vec<(u64, u64)> {
    let sizes = [plan.packages / 1_000, plan.packages / 10, plan.packages];
    sizes.map(|packages| packages.max(10_000)).map(|packages| (users_of(packages), packages)).into()
}

/// One, some and many users, with fewer KeyPackages if one user has all of them.
pub(super) fn by_users(plan: Plan) -> Vec<(u64, u64)> {
    let packages = plan.packages / 10;
    vec![(1, packages / 10), ((plan.users / 100).max(1), packages), (plan.users, packages)]
}

/// A database, and how many of its KeyPackages were reserved since it was filled.
struct Measured<'a> {
    stage: Stage<'a>,
    packages: u64,
    taken: u64,
    found: Size,
}

impl Measured<'_> {
    /// Reservations a second. When two in five KeyPackages are reserved, the pools are filled again.
    async fn rate(&mut self, requests: u64) -> Result<f64> {
        let (mut left, mut done, mut seconds) = (requests, 0.0, 0.0);
        while left > 0 {
            let room = self.packages * 2 / 5;
            if self.taken >= room {
                self.stage.database.refill(self.stage.cast.users, self.packages)?;
                self.taken = 0;
            }
            let count = left.min(room - self.taken);
            let measured = self.stage.run(Mix::RESERVE, Pace::Count(count)).await?;
            self.found.refused += measured.refused();
            seconds += measured.took.as_secs_f64();
            done += as_f64(count - measured.refused());
            self.taken += count;
            left -= count;
        }
        Ok(done / seconds)
    }
}

pub(super) async fn measure(plan: Plan, sizes: &[(u64, u64)]) -> Result<Vec<Size>> {
    let postgres = Postgres::start()?;
    let mut all = Vec::new();
    for (number, &(users, packages)) in sizes.iter().enumerate() {
        let stage = Stage::set(&postgres, &format!("size_{number}"), (users, packages), plan.connections).await?;
        let found = Size {
            users,
            packages,
            reserve: Rounds::between(["here", "in_the_first"]),
            refused: 0,
            start_ms: stage.server.start.as_secs_f64() * 1e3,
            server_memory_mb: f64::NAN,
        };
        all.push(Measured { stage, packages, taken: 0, found });
    }
    // Warm-up, so that no round includes the first plans and cold caches.
    for one in &mut all {
        one.rate(1_000).await?;
    }
    let bar = progress::bar(u64::from(plan.rounds) * all.len() as u64, "")?;
    for _ in 0..plan.rounds {
        let mut first = None;
        for one in &mut all {
            bar.set_message(format!("{} KeyPackages of {} users", one.packages, one.found.users));
            let rate = one.rate(plan.requests()).await?;
            one.found.reserve.add(rate, *first.get_or_insert(rate));
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    let memory = |one: Measured<'_>| Size { server_memory_mb: one.stage.server.memory_mb(), ..one.found };
    Ok(all.into_iter().map(memory).collect())
}

pub(super) fn table<'a>(sizes: impl IntoIterator<Item = &'a Size>) -> Table {
    let mut table = report::table([
        "users",
        "KeyPackages",
        "reserve, a second",
        "of the first",
        "lowest",
        "highest",
        "refused",
        "start ms",
        "memory MB",
    ]);
    for size in sizes {
        let [rate, _, ratio, lowest, highest] = size.reserve.figures();
        table.add_row([
            size.users.to_string(),
            size.packages.to_string(),
            format!("{rate:.0}"),
            format!("{ratio:.2}"),
            format!("{lowest:.2}"),
            format!("{highest:.2}"),
            size.refused.to_string(),
            format!("{:.0}", size.start_ms),
            format!("{:.0}", size.server_memory_mb),
        ]);
    }
    table
}
