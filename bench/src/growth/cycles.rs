//! A KeyPackage reserved and spent, over and over, and what it leaves behind.

use std::collections::BTreeMap;

use anyhow::Result;
use serde::Serialize;

use super::{Plan, sizes::users_of};
use crate::{
    pace::Pace,
    postgres::Postgres,
    progress,
    report::{as_f64, table},
    requests::Mix,
    stage::Stage,
};

/// What grows with what is done.
const TABLES: [&str; 2] = ["key_packages", "audit_events"];

/// The cycles are done in so many parts, to see how the rate goes.
const PARTS: u64 = 20;

/// Before and after the cycles.
#[derive(Debug, Serialize)]
pub(crate) struct Past {
    cycles: u64,
    /// Reservations a second, before and after.
    reserve: [f64; 2],
    /// What it is after over what it was before.
    reserve_ratio: f64,
    /// Cycles a second, of each twentieth of them.
    cycles_a_second: Vec<f64>,
    /// Bytes of each table with its indexes, before and after.
    bytes: BTreeMap<&'static str, [u64; 2]>,
    /// Requests that were not answered with 200.
    refused: u64,
    /// The server's memory before and after, in megabytes.
    server_memory_mb: [f64; 2],
}

/// With as many KeyPackages as there are cycles, and enough beside them for what is measured before and after.
pub(super) async fn measure(plan: Plan) -> Result<Past> {
    let postgres = Postgres::start()?;
    let packages = plan.cycles + (plan.packages / 10).max(plan.requests() * 4);
    let stage = Stage::set(&postgres, "past", (users_of(packages), packages), plan.connections).await?;
    let requests = Pace::Count(plan.requests());
    let sizes = || TABLES.iter().map(|table| Ok((*table, stage.database.size_of(table)?))).collect::<Result<Vec<_>>>();
    stage.warm_up().await?;
    let (bytes_before, memory_before) = (sizes()?, stage.server.memory_mb());
    let before = stage.run(Mix::RESERVE, requests).await?;
    let bar = progress::bar(PARTS, "twentieths of the cycles")?;
    let (mut cycles_a_second, mut refused) = (Vec::new(), before.refused());
    for _ in 0..PARTS {
        let part = stage.run(Mix::SPEND, Pace::Count(plan.cycles.div_ceil(PARTS) * 2)).await?;
        cycles_a_second.push(part.rate() / 2.0);
        refused += part.refused();
        bar.inc(1);
    }
    bar.finish_and_clear();
    let after = stage.run(Mix::RESERVE, requests).await?;
    let bytes = bytes_before.into_iter().zip(sizes()?).map(|((table, before), (_, after))| (table, [before, after]));
    Ok(Past {
        cycles: plan.cycles,
        reserve: [before.rate(), after.rate()],
        reserve_ratio: after.rate() / before.rate(),
        cycles_a_second,
        bytes: bytes.collect(),
        refused: refused + after.refused(),
        server_memory_mb: [memory_before, stage.server.memory_mb()],
    })
}

impl Past {
    pub(super) fn text(&self) -> String {
        let mut table = table(["", "before", "after", "ratio"]);
        let mut row = |what: &str, [before, after]: [f64; 2]| {
            table.add_row([
                what.to_owned(),
                format!("{before:.0}"),
                format!("{after:.0}"),
                format!("{:.2}", after / before),
            ]);
        };
        row("reserve, a second", self.reserve);
        for (name, bytes) in &self.bytes {
            row(&format!("{name} with its indexes, MB"), bytes.map(|bytes| as_f64(bytes) / 1e6));
        }
        row("the server's memory, MB", self.server_memory_mb);
        format!("{} times reserved and spent, {} requests of it refused:\n{table}", self.cycles, self.refused)
    }
}
