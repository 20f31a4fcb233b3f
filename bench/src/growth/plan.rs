//! The sizes of the measurement.

use clap::Args;

/// The sizes of the measurement.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct Plan {
    /// Number of rounds
    #[arg(long, value_name = "NUMBER", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    pub rounds: u32,
    /// Approximate duration of each measurement, in seconds: 10,000 reservations for each second
    #[arg(long, value_name = "NUMBER", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..))]
    pub seconds: u64,
    /// The most KeyPackages; a tenth and a thousandth of them are measured, too
    #[arg(long, value_name = "NUMBER", default_value_t = 10_000_000, value_parser = clap::value_parser!(u64).range(10_000..))]
    pub packages: u64,
    /// The most users; a hundredth of them and a single one are measured, too
    #[arg(long, value_name = "NUMBER", default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub users: u64,
    /// Number of cycles of reserve and spend
    #[arg(long, value_name = "NUMBER", default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub cycles: u64,
    /// Connections to Keypool
    #[arg(long, value_name = "NUMBER", default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..))]
    pub connections: u16,
}

impl Plan {
    /// Reservations in each measurement.
    pub fn requests(self) -> u64 {
        self.seconds * 10_000
    }
}
