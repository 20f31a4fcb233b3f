//! Whether more KeyPackages, more users or a long past make Keypool slower.

use anyhow::Result;
use clap::Args;
use serde::Serialize;

mod cycles;
mod sizes;

use cycles::Past;
use sizes::Size;

/// How much is measured.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct Plan {
    /// How often each size is measured, in turns
    #[arg(long, value_name = "NUMBER", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// About how long each time, in seconds: 10,000 reservations for each of them
    #[arg(long, value_name = "NUMBER", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..))]
    seconds: u64,
    /// The most KeyPackages; a tenth and a thousandth of them are measured, too
    #[arg(long, value_name = "NUMBER", default_value_t = 10_000_000, value_parser = clap::value_parser!(u64).range(10_000..))]
    packages: u64,
    /// The most users; a hundredth of them and a single one are measured, too
    #[arg(long, value_name = "NUMBER", default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..))]
    users: u64,
    /// How often a KeyPackage is reserved and spent, without a pause
    #[arg(long, value_name = "NUMBER", default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..))]
    cycles: u64,
    /// Connections to Keypool
    #[arg(long, value_name = "NUMBER", default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..))]
    connections: u16,
}

impl Plan {
    /// Reservations that are measured at once.
    fn requests(self) -> u64 {
        self.seconds * 10_000
    }
}

/// What it found.
#[derive(Debug, Serialize)]
pub(crate) struct Findings {
    /// The fewest KeyPackages first.
    by_packages: Vec<Size>,
    /// The fewest users first.
    by_users: Vec<Size>,
    /// Before and after the cycles.
    past: Past,
}

pub(crate) async fn measure(plan: Plan) -> Result<Findings> {
    Ok(Findings {
        by_packages: sizes::measure(plan, &sizes::by_packages(plan)).await?,
        by_users: sizes::measure(plan, &sizes::by_users(plan)).await?,
        past: cycles::measure(plan).await?,
    })
}

pub(crate) fn text(findings: &Findings) -> String {
    let Findings { by_packages, by_users, past } = findings;
    let sizes = sizes::table([by_packages.as_slice(), by_users.as_slice()].into_iter().flatten());
    format!("{sizes}\n{}", past.text())
}
