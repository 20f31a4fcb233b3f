//! Reservations under an attack of slow readers, waiting devices and queues of large messages, in turns with
//! reservations without it, on a server with the memory of docker-compose.yml.

mod attack;
mod group;

use std::time::Duration;

use anyhow::Result;
use clap::Args;
use serde::Serialize;

use crate::{
    pace::Pace,
    people,
    postgres::Postgres,
    progress,
    report::{self, Rounds},
    requests::{Kind, Mix},
    stage::Stage,
};
use attack::Attack;
use group::MemoryGroup;

/// The sizes of the measurement.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct Plan {
    /// Connections that request a document or large messages, and read nothing
    #[arg(long, value_name = "NUMBER", default_value_t = 10_000)]
    readers: usize,
    /// Devices that wait for messages
    #[arg(long, value_name = "NUMBER", default_value_t = 10_000)]
    waiting: usize,
    /// Devices with four messages of 1 MB each in their queues, which some readers fetch
    #[arg(long, value_name = "NUMBER", default_value_t = 50)]
    queues: usize,
    /// The memory that the server may use, in MiB. As root, a control group enforces it
    #[arg(long, value_name = "NUMBER", default_value_t = 256)]
    memory: u32,
    /// Number of rounds
    #[arg(long, value_name = "NUMBER", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Duration of each round, in seconds
    #[arg(long, value_name = "NUMBER", default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..))]
    seconds: u64,
    /// Reservations a second, at fixed times; a latency counts from the time when the request was due
    #[arg(long, value_name = "NUMBER", default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..))]
    rate: u32,
    /// Connections that reserve
    #[arg(long, value_name = "NUMBER", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..))]
    connections: u16,
}

/// The findings.
#[derive(Debug, Serialize)]
pub(crate) struct Findings {
    /// The 99th percentile of reservations, in milliseconds.
    p99_ms: Rounds,
    /// Reservations that got another status than 200, under attack and without.
    refused: [u64; 2],
    /// The server's peak memory, in megabytes.
    server_peak_mb: f64,
    /// The server's memory limit.
    memory_mib: u32,
    /// Whether a control group enforced the limit.
    is_limited: bool,
    /// The most simultaneous connections under attack.
    most_open: usize,
    /// Connections that the server closed or refused.
    ended: usize,
}

const USERS: u64 = 1_000;

/// The adders connect before the attack begins, so that their latencies include no wait for a connection.
const ONSET: Duration = Duration::from_secs(1);

pub(crate) async fn measure(plan: Plan) -> Result<Findings> {
    let postgres = Postgres::start()?;
    let group = MemoryGroup::make(plan.memory);
    let needed = u64::from(plan.rate) * plan.seconds * 2 * u64::from(plan.rounds) + USERS;
    let stage = Stage::set_within(&postgres, "siege", (USERS, needed * 2), plan.connections, plan.memory).await?;
    if let Some(group) = &group {
        group.take(stage.server.id())?;
    }
    let names: Vec<_> = (0..plan.waiting).map(|number| format!("waiting-{number}")).collect();
    let waiting = people::register(&stage.server.address, &names).await?;
    let queues = attack::fill_queues(&stage.server.address, plan.queues).await?;
    stage.warm_up().await?;
    let pace = Pace::Fixed(plan.rate.into(), Duration::from_secs(plan.seconds));
    let mut findings = Findings {
        p99_ms: Rounds::between(["under_siege", "without"]),
        refused: [0, 0],
        server_peak_mb: f64::NAN,
        memory_mib: plan.memory,
        is_limited: group.is_some(),
        most_open: 0,
        ended: 0,
    };
    let bar = progress::bar(u64::from(plan.rounds) * 2, "")?;
    for _ in 0..plan.rounds {
        bar.set_message("without");
        let without = stage.run(Mix::RESERVE, pace).await?;
        bar.inc(1);
        bar.set_message("under siege");
        let attack = async {
            tokio::time::sleep(ONSET).await;
            Attack::begin(&stage.server.address, plan.readers, &waiting, &queues)
        };
        let (under_siege, attack) = tokio::join!(stage.run(Mix::RESERVE, pace), attack);
        let under_siege = under_siege?;
        let (most_open, ended) = attack.end()?;
        bar.inc(1);
        findings.p99_ms.add(under_siege.percentile(Kind::Reserve, 99.0), without.percentile(Kind::Reserve, 99.0));
        findings.refused[0] += under_siege.refused();
        findings.refused[1] += without.refused();
        findings.most_open = findings.most_open.max(most_open);
        findings.ended += ended;
    }
    bar.finish_and_clear();
    findings.server_peak_mb = stage.server.peak_memory_mb();
    Ok(findings)
}

pub(crate) fn text(findings: &Findings) -> String {
    let table = report::rounds([("p99 of reserve in ms, under siege; without", &findings.p99_ms)]);
    let limit =
        if findings.is_limited { "which a control group sees to" } else { "which nothing sees to: run it as root" };
    format!(
        "{table}\nrefused under siege: {}; without: {}\nthe server lives, and had {:.0} MB at most of {} MiB, {limit}\n{} \
         connections were open at most, and {} were ended",
        findings.refused[0],
        findings.refused[1],
        findings.server_peak_mb,
        findings.memory_mib,
        findings.most_open,
        findings.ended
    )
}
