//! On SQLite, beside a bare thread that writes to a copy of the same file.

use std::{sync::Arc, time::Duration};

use anyhow::Result;
use serde::Serialize;

use super::Plan;
use crate::{
    load,
    pace::Pace,
    progress,
    report::{Rounds, median, rounds},
    requests::{Cast, Kind, Mix},
    server::Server,
    sqlite::File,
};

/// Reservations that the bare thread does in one transaction.
const BATCH: u32 = 128;

/// What the comparison found.
#[derive(Debug, Serialize)]
pub(crate) struct Findings {
    /// Reservations a second: the `writer` does 128 in each transaction.
    reserve: Rounds,
    /// Reservations a second: the `writer` does one in each transaction.
    reserve_singly: Rounds,
    /// Milliseconds that 99 of 100 reservations took at most, of each round.
    reserve_p99_ms: Vec<f64>,
    /// Requests that were not answered with 200.
    refused: u64,
    /// The server's memory after all of it, in megabytes.
    server_memory_mb: f64,
}

pub(crate) async fn measure(plan: Plan) -> Result<Findings> {
    let file = File::create()?;
    file.fill(plan.users, plan.packages)?;
    let connections = plan.connections.into();
    let adders = file.add_adders(connections)?;
    let copy = file.copy()?;
    let server = Server::start(&file.url()).await?;
    let cast = Arc::new(Cast::new(server.address.clone(), adders, ("user-", plan.users)));
    let span = Duration::from_secs(plan.seconds);
    // So that no round pays for cold caches.
    load::run(Mix::RESERVE, &cast, connections, Pace::Full(Duration::from_secs(1))).await?;
    copy.reserve(plan.users, BATCH, Duration::from_secs(1))?;
    let beside = || Rounds::between(["keypool", "writer"]);
    let (mut reserve, mut reserve_singly, mut reserve_p99_ms, mut refused) = (beside(), beside(), Vec::new(), 0);
    let bar = progress::bar(u64::from(plan.rounds) * 3, "")?;
    for _ in 0..plan.rounds {
        bar.set_message("a bare thread, 128 in each transaction");
        let batches = copy.reserve(plan.users, BATCH, span)?;
        bar.inc(1);
        bar.set_message("Keypool: reserve");
        let keypool = load::run(Mix::RESERVE, &cast, connections, Pace::Full(span)).await?;
        bar.inc(1);
        bar.set_message("a bare thread, one in each transaction");
        let singly = copy.reserve(plan.users, 1, span)?;
        bar.inc(1);
        reserve.add(keypool.rate(), batches);
        reserve_singly.add(keypool.rate(), singly);
        reserve_p99_ms.push(keypool.percentile(Kind::Reserve, 99.0));
        refused += keypool.refused();
    }
    bar.finish_and_clear();
    Ok(Findings { reserve, reserve_singly, reserve_p99_ms, refused, server_memory_mb: server.memory_mb() })
}

pub(crate) fn text(findings: &Findings) -> String {
    let table = rounds([
        ("reserve, a second; a bare thread, 128 in each transaction", &findings.reserve),
        ("reserve, a second; a bare thread, one in each transaction", &findings.reserve_singly),
    ]);
    let p99 = median(findings.reserve_p99_ms.iter().copied());
    format!(
        "{table}\n99 of 100 reservations took {p99:.1} ms at most; {} were refused; the server has {:.0} MB",
        findings.refused, findings.server_memory_mb
    )
}
