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
    sqlite::{Bare, File},
};

/// Reservations of the bare thread in one transaction.
const BATCH: u32 = 128;

/// The findings of the comparison.
#[derive(Debug, Serialize)]
pub(crate) struct Findings {
    /// Reservations a second: the `writer` does 128 in each transaction.
    reserve: Rounds,
    /// Reservations a second: the `writer` does as many, with the row of the trail that the server writes, too.
    reserve_with_trail: Rounds,
    /// Reservations a second: the `writer` does one in each transaction.
    reserve_singly: Rounds,
    /// The 99th percentile of reservations in milliseconds, of each round.
    reserve_p99_ms: Vec<f64>,
    /// Requests that got another status than 200.
    refused: u64,
    /// The server's memory at the end, in megabytes.
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
    // Warm-up, so that no round includes cold caches.
    load::run(Mix::RESERVE, &cast, connections, Pace::Full(Duration::from_secs(1))).await?;
    let bare = |batch, trail, span| copy.reserve(plan.users, Bare { batch, trail }, span);
    bare(BATCH, false, Duration::from_secs(1))?;
    let [mut reserve, mut reserve_with_trail, mut reserve_singly] =
        std::array::from_fn(|_| Rounds::between(["keypool", "writer"]));
    let (mut reserve_p99_ms, mut refused) = (Vec::new(), 0);
    let bar = progress::bar(u64::from(plan.rounds) * 4, "")?;
    for _ in 0..plan.rounds {
        bar.set_message("a bare thread, 128 in each transaction");
        let batches = bare(BATCH, false, span)?;
        bar.inc(1);
        bar.set_message("Keypool: reserve");
        let keypool = load::run(Mix::RESERVE, &cast, connections, Pace::Full(span)).await?;
        bar.inc(1);
        bar.set_message("a bare thread, 128 in each transaction, with the trail");
        let with_trail = bare(BATCH, true, span)?;
        bar.inc(1);
        bar.set_message("a bare thread, one in each transaction");
        let singly = bare(1, false, span)?;
        bar.inc(1);
        reserve.add(keypool.rate(), batches);
        reserve_with_trail.add(keypool.rate(), with_trail);
        reserve_singly.add(keypool.rate(), singly);
        reserve_p99_ms.push(keypool.percentile(Kind::Reserve, 99.0));
        refused += keypool.refused();
    }
    bar.finish_and_clear();
    let server_memory_mb = server.memory_mb();
    Ok(Findings { reserve, reserve_with_trail, reserve_singly, reserve_p99_ms, refused, server_memory_mb })
}

pub(crate) fn text(findings: &Findings) -> String {
    let table = rounds([
        ("reserve, a second; a bare thread, 128 in each transaction", &findings.reserve),
        ("the same; with the row of the trail that the server writes", &findings.reserve_with_trail),
        ("reserve, a second; a bare thread, one in each transaction", &findings.reserve_singly),
    ]);
    let p99 = median(findings.reserve_p99_ms.iter().copied());
    format!(
        "{table}\n99 of 100 reservations took {p99:.1} ms at most; {} were refused; the server has {:.0} MB",
        findings.refused, findings.server_memory_mb
    )
}
