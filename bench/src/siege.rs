//! What strangers and devices that mean harm cost everybody else: reservations beside slow readers, waiting devices and queues of
//! large messages, and without them, in turns, at a server that has as little memory as docker-compose.yml gives it.

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

/// How much is measured.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct Plan {
    /// Connections that ask for a document or for large messages, and read nothing
    #[arg(long, value_name = "NUMBER", default_value_t = 10_000)]
    readers: usize,
    /// Devices that wait for messages
    #[arg(long, value_name = "NUMBER", default_value_t = 10_000)]
    waiting: usize,
    /// Devices with four messages of 1 MB each in their queues, which some of the readers ask for
    #[arg(long, value_name = "NUMBER", default_value_t = 50)]
    queues: usize,
    /// The memory that the server may use, in MiB. As root, a control group sees to it
    #[arg(long, value_name = "NUMBER", default_value_t = 256)]
    memory: u32,
    /// How often each is measured, in turns
    #[arg(long, value_name = "NUMBER", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// How long each takes, in seconds
    #[arg(long, value_name = "NUMBER", default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..))]
    seconds: u64,
    /// Reservations a second, at fixed times, with latencies from when each was due
    #[arg(long, value_name = "NUMBER", default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..))]
    rate: u32,
    /// Connections that reserve
    #[arg(long, value_name = "NUMBER", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..))]
    connections: u16,
}

/// What it found.
#[derive(Debug, Serialize)]
pub(crate) struct Findings {
    /// The 99th percentile of reservations, in milliseconds.
    p99_ms: Rounds,
    /// Reservations that were not answered with 200, under siege and without.
    refused: [u64; 2],
    /// The most that the server ever had, in megabytes.
    server_peak_mb: f64,
    /// What it may have.
    memory_mib: u32,
    /// Whether a control group saw to that.
    is_limited: bool,
    /// The most connections that were open to it at the same time under siege.
    most_open: usize,
    /// Connections that it ended, or that could not be made.
    ended: usize,
}

const USERS: u64 = 1_000;

/// Those who reserve are connected when the attack begins, so that their latencies have no wait for a connection.
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
