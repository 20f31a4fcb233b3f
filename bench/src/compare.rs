//! Keypool through HTTP, and the bare database, in turns on the same machine.

use clap::Args;

pub(crate) mod postgres;
pub(crate) mod sqlite;

/// The sizes of the measurement.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct Plan {
    /// Number of rounds
    #[arg(long, value_name = "NUMBER", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    pub rounds: u32,
    /// Duration of each measurement, in seconds
    #[arg(long, value_name = "NUMBER", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..))]
    pub seconds: u64,
    /// Users of the KeyPackages
    #[arg(long, value_name = "NUMBER", default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub users: u64,
    /// Number of KeyPackages
    #[arg(long, value_name = "NUMBER", default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub packages: u64,
    /// Connections to Keypool
    #[arg(long, value_name = "NUMBER", default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..))]
    pub connections: u16,
}
