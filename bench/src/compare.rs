//! Keypool through HTTP, and the bare database, in turns on the same machine.

use clap::Args;

pub(crate) mod postgres;
pub(crate) mod sqlite;

/// How much is measured.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct Plan {
    /// How often each is measured, in turns
    #[arg(long, value_name = "NUMBER", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    pub rounds: u32,
    /// For how long each time, in seconds
    #[arg(long, value_name = "NUMBER", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..))]
    pub seconds: u64,
    /// Over how many users the KeyPackages are spread
    #[arg(long, value_name = "NUMBER", default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub users: u64,
    /// How many KeyPackages there are
    #[arg(long, value_name = "NUMBER", default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub packages: u64,
    /// Connections to Keypool
    #[arg(long, value_name = "NUMBER", default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..))]
    pub connections: u16,
}
