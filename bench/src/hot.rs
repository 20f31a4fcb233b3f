//! All adders reserve one user's KeyPackages, and in turns as many KeyPackages of many users.

use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Args;
use serde::Serialize;

use crate::{
    load::Measured,
    pace::Pace,
    postgres::Postgres,
    progress,
    report::{self, Rounds},
    requests::Mix,
    stage::Stage,
};

/// The sizes of the measurement.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct Plan {
    /// Number of rounds
    #[arg(long, value_name = "NUMBER", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Age of the other open transaction at the last measurement, in seconds
    #[arg(long, value_name = "NUMBER", default_value_t = 30)]
    seconds: u64,
    /// Users of the KeyPackages, when they are not all of one user
    #[arg(long, value_name = "NUMBER", default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..))]
    users: u64,
    /// Number of KeyPackages; each measurement reserves two in five of them
    #[arg(long, value_name = "NUMBER", default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..))]
    packages: u64,
    /// Connections to Keypool
    #[arg(long, value_name = "NUMBER", default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..))]
    connections: u16,
}

/// The findings.
#[derive(Debug, Serialize)]
pub(crate) struct Findings {
    /// Reservations a second, of one user and of many.
    one_user: Rounds,
    /// The same, while another transaction is open, so that PostgreSQL cannot remove dead rows since its beginning.
    beside_a_transaction: Rounds,
    /// Reservations of the one user that got another status than 200, though its pool was never empty.
    refused: u64,
    /// The same for many users, some of whose pools may run empty.
    refused_of_many: u64,
    /// The memory of the one user's server at the end, in megabytes.
    server_memory_mb: f64,
}

pub(crate) async fn measure(plan: Plan) -> Result<Findings> {
    let postgres = Postgres::start()?;
    let many = Stage::set(&postgres, "many", (plan.users, plan.packages), plan.connections).await?;
    let hot = Stage::set(&postgres, "hot", (1, plan.packages), plan.connections).await?;
    let against_many = || Rounds::between(["one_user", "many_users"]);
    let (mut one_user, mut beside_a_transaction) = (against_many(), against_many());
    let (mut refused, mut refused_of_many) = (0, 0);
    let bar = progress::bar(u64::from(plan.rounds) * 3, "")?;
    for _ in 0..plan.rounds {
        bar.set_message("many users");
        let uniform = take(&many, plan).await?;
        bar.inc(1);
        bar.set_message("one user");
        let alone = take(&hot, plan).await?;
        bar.inc(1);
        bar.set_message("one user, and another transaction");
        let (before, beside) = take_beside_a_transaction(&hot, plan).await?;
        bar.inc(1);
        one_user.add(alone.rate(), uniform.rate());
        beside_a_transaction.add(beside.rate(), uniform.rate());
        refused += alone.refused() + before.refused() + beside.refused();
        refused_of_many += uniform.refused();
    }
    bar.finish_and_clear();
    Ok(Findings { one_user, beside_a_transaction, refused, refused_of_many, server_memory_mb: hot.server.memory_mb() })
}

/// Two in five, so that two measurements do not empty the pool.
fn share(plan: Plan) -> Pace {
    Pace::Count(plan.packages * 2 / 5)
}

/// Reserves of full pools.
async fn take(stage: &Stage<'_>, plan: Plan) -> Result<Measured> {
    stage.database.refill(stage.cast.users, plan.packages)?;
    stage.run(Mix::RESERVE, share(plan)).await
}

/// The same while a transaction is open, and again when it is old: by then the search meets the dead rows of the first
/// measurement.
async fn take_beside_a_transaction(stage: &Stage<'_>, plan: Plan) -> Result<(Measured, Measured)> {
    stage.database.refill(stage.cast.users, plan.packages)?;
    let _open = stage.database.hold_transaction()?;
    let old = Instant::now() + Duration::from_secs(plan.seconds);
    let before = stage.run(Mix::RESERVE, share(plan)).await?;
    tokio::time::sleep_until(old.into()).await;
    Ok((before, stage.run(Mix::RESERVE, share(plan)).await?))
}

pub(crate) fn text(findings: &Findings) -> String {
    let table = report::rounds([
        ("reserve of one user, a second; of many", &findings.one_user),
        ("the same beside an open transaction; of many", &findings.beside_a_transaction),
    ]);
    format!(
        "{table}\nof the one user, {} were refused, which has to be 0; of many, {}; the server has {:.0} MB",
        findings.refused, findings.refused_of_many, findings.server_memory_mb
    )
}
