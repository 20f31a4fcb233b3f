//! On PostgreSQL, beside pgbench with one statement a reservation.

use std::time::Duration;

use anyhow::Result;
use serde::Serialize;

use super::Plan;
use crate::{
    load,
    pace::Pace,
    postgres::Postgres,
    progress,
    report::{Rounds, median, rounds},
    requests::{Kind, Mix},
    stage::Stage,
};

/// The number of clients with which pgbench is fastest.
const PGBENCH_CLIENTS: usize = 16;

/// The findings of the comparison.
#[derive(Debug, Serialize)]
pub(crate) struct Findings {
    /// Reservations a second: `pgbench` has 16 clients, Keypool the given number of connections.
    reserve: Rounds,
    /// The same with an `Idempotency-Key` each.
    repeatable: Rounds,
    /// Reserve and spend a second, over pgbench's reservations.
    invite: Rounds,
    /// Milliseconds of a single reservation without other load: Keypool's median, pgbench's mean.
    alone: Rounds,
    /// The same with an `Idempotency-Key` each.
    repeatable_alone: Rounds,
    /// The 99th percentile of reservations in milliseconds at half of the round's rate, from the time when each was
    /// due; `pgbench` at half of its own rate.
    half_load_p99_ms: Rounds,
    /// Requests for a full pool's status a second; `pgbench` is `/healthz` on the same connections.
    status: Rounds,
    /// The 99th percentile of reservations in milliseconds, of each round.
    reserve_p99_ms: Vec<f64>,
    /// Requests that got another status than 200.
    refused: u64,
    /// The server's memory at the end, in megabytes.
    server_memory_mb: f64,
}

impl Findings {
    fn new() -> Self {
        let beside = || Rounds::between(["keypool", "pgbench"]);
        Self {
            reserve: beside(),
            repeatable: beside(),
            invite: beside(),
            alone: beside(),
            repeatable_alone: beside(),
            half_load_p99_ms: beside(),
            status: beside(),
            reserve_p99_ms: Vec::new(),
            refused: 0,
            server_memory_mb: f64::NAN,
        }
    }
}

pub(crate) async fn measure(plan: Plan) -> Result<Findings> {
    let postgres = Postgres::start()?;
    let stage = Stage::set(&postgres, "keypool", (plan.users, plan.packages), plan.connections).await?;
    stage.warm_up().await?;
    let bar = progress::bar(u64::from(plan.rounds) * 9, "")?;
    let mut findings = Findings::new();
    for _ in 0..plan.rounds {
        round(&mut findings, &stage, plan, |message| {
            bar.set_message(message);
            bar.inc(1);
        })
        .await?;
    }
    findings.server_memory_mb = stage.server.memory_mb();
    bar.finish_and_clear();
    Ok(findings)
}

async fn round(findings: &mut Findings, stage: &Stage<'_>, plan: Plan, step: impl Fn(&'static str)) -> Result<()> {
    let span = Duration::from_secs(plan.seconds);
    let short = plan.seconds.min(2);
    step("pgbench, 16 clients");
    let (reserved, _) = stage.database.pgbench(plan.users, PGBENCH_CLIENTS, plan.seconds)?;
    step("Keypool: reserve");
    let reserve = stage.run(Mix::RESERVE, Pace::Full(span)).await?;
    findings.reserve.add(reserve.rate(), reserved);
    findings.reserve_p99_ms.push(reserve.percentile(Kind::Reserve, 99.0));
    step("Keypool: reserve, with keys");
    let repeatable = stage.run(Mix::REPEATABLE, Pace::Full(span)).await?;
    findings.repeatable.add(repeatable.rate(), reserved);
    step("Keypool: reserve at half of that rate");
    let half = stage.run(Mix::RESERVE, Pace::Fixed(reserve.rate() / 2.0, span)).await?;
    step("pgbench at half of its rate");
    let beside = stage.database.pgbench_p99(plan.users, PGBENCH_CLIENTS, plan.seconds, reserved / 2.0)?;
    findings.half_load_p99_ms.add(half.percentile(Kind::Reserve, 99.0), beside);
    step("Keypool: reserve and spend");
    let invite = stage.run(Mix::SPEND, Pace::Full(span)).await?;
    findings.invite.add(invite.rate(), reserved);
    step("one at a time");
    let (_, alone) = stage.database.pgbench(plan.users, 1, short)?;
    let only = |mix| load::run(mix, &stage.cast, 1, Pace::Full(Duration::from_secs(short)));
    let one = only(Mix::RESERVE).await?;
    findings.alone.add(one.percentile(Kind::Reserve, 50.0), alone);
    let repeatable_one = only(Mix::REPEATABLE).await?;
    findings.repeatable_alone.add(repeatable_one.percentile(Kind::Repeatable, 50.0), alone);
    step("Keypool: status");
    let status = stage.run(Mix::STATUS, Pace::Full(span)).await?;
    step("Keypool: healthz");
    let health = stage.run(Mix::HEALTH, Pace::Full(span)).await?;
    findings.status.add(status.rate(), health.rate());
    let all = [reserve, repeatable, half, invite, one, repeatable_one, status, health];
    findings.refused += all.iter().map(load::Measured::refused).sum::<u64>();
    Ok(())
}

pub(crate) fn text(findings: &Findings) -> String {
    let table = rounds([
        ("reserve, a second; pgbench, one a statement", &findings.reserve),
        ("reserve with an Idempotency-Key, a second; the same pgbench", &findings.repeatable),
        ("reserve and spend, a second; the same pgbench", &findings.invite),
        ("one reserve alone, ms; pgbench with one client", &findings.alone),
        ("one with an Idempotency-Key alone, ms; the same pgbench", &findings.repeatable_alone),
        ("99 of 100 reserves at half load, ms; pgbench at half of its own", &findings.half_load_p99_ms),
        ("status of a full pool, a second; /healthz", &findings.status),
    ]);
    let p99 = median(findings.reserve_p99_ms.iter().copied());
    format!(
        "{table}\n99 of 100 reservations took {p99:.1} ms at most; {} were refused; the server has {:.0} MB",
        findings.refused, findings.server_memory_mb
    )
}
