//! Two servers on one PostgreSQL, and one with all connections, in turns.

use std::time::Duration;

use anyhow::Result;
use serde::Serialize;

use crate::{
    compare::Plan,
    load,
    pace::Pace,
    postgres::Postgres,
    progress,
    report::{self, Rounds},
    requests::{Cast, Mix},
    server::Server,
    stage::Stage,
};

/// The findings.
#[derive(Debug, Serialize)]
pub(crate) struct Findings {
    /// Reservations a second: two servers with half of the connections each, and one with all of them.
    reserve: Rounds,
    /// Requests that got another status than 200.
    refused: u64,
    /// The memory of both servers at the end, in megabytes.
    server_memory_mb: [f64; 2],
}

pub(crate) async fn measure(plan: Plan) -> Result<Findings> {
    let postgres = Postgres::start()?;
    let one = Stage::set(&postgres, "keypool", (plan.users, plan.packages), plan.connections).await?;
    let second = Server::start(&one.database.url).await?;
    let (adders, users) = (one.cast.adders.clone(), (one.cast.prefix.as_str(), plan.users));
    let other = Cast::new(second.address.clone(), adders, users).into();
    let (half, pace) = (usize::from(plan.connections).div_ceil(2), Pace::Full(Duration::from_secs(plan.seconds)));
    one.warm_up().await?;
    load::run(Mix::RESERVE, &other, half, Pace::Full(Duration::from_secs(1))).await?;
    let (mut reserve, mut refused) = (Rounds::between(["two_servers", "one_server"]), 0);
    let bar = progress::bar(u64::from(plan.rounds) * 2, "")?;
    for _ in 0..plan.rounds {
        bar.set_message("one server");
        let alone = one.run(Mix::RESERVE, pace).await?;
        bar.inc(1);
        bar.set_message("two servers");
        let (first, second) = tokio::try_join!(
            load::run(Mix::RESERVE, &one.cast, half, pace),
            load::run(Mix::RESERVE, &other, half, pace)
        )?;
        bar.inc(1);
        reserve.add(first.rate() + second.rate(), alone.rate());
        refused += alone.refused() + first.refused() + second.refused();
    }
    bar.finish_and_clear();
    Ok(Findings { reserve, refused, server_memory_mb: [one.server.memory_mb(), second.memory_mb()] })
}

pub(crate) fn text(findings: &Findings) -> String {
    let table = report::rounds([("reserve, a second, two servers; one with all connections", &findings.reserve)]);
    let [first, second] = findings.server_memory_mb;
    format!("{table}\n{} were refused; the servers have {first:.0} and {second:.0} MB", findings.refused)
}
