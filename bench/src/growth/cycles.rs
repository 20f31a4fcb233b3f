//! Many cycles of reserve and spend, and their effect on speed and size.

use std::collections::BTreeMap;

use anyhow::Result;
use serde::Serialize;

use super::{plan::Plan, sizes::users_of};
use crate::{
    pace::Pace,
    postgres::Postgres,
    progress,
    report::{as_f64, table},
    requests::Mix,
    stage::Stage,
};

/// The tables that grow with each cycle.
const TABLES: [&str; 2] = ["key_packages", "audit_events"];

/// The number of parts of the cycles; each shows its rate.
const PARTS: u64 = 20;

/// Before and after the cycles.
#[derive(Debug, Serialize)]
pub(crate) struct Past {
    cycles: u64,
    /// Reservations a second, before and after.
    reserve: [f64; 2],
    /// The rate after the cycles over the rate before.
    reserve_ratio: f64,
    /// Cycles a second, in each part.
    cycles_a_second: Vec<f64>,
    /// Bytes of each table with its indexes, before and after.
    bytes: BTreeMap<&'static str, [u64; 2]>,
    /// Requests that got another status than 200.
    refused: u64,
    /// The server's memory before and after, in megabytes.
    server_memory_mb: [f64; 2],
}

/// Uses as many KeyPackages as cycles, and enough more for the measurements before and after.
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
