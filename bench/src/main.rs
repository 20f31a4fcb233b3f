//! Measures Keypool side by side with what it stands on, in turns within one run: machines are noisy, and only the ratio
//! of neighbours says something.

use clap::{Parser, Subcommand};

mod client;
mod report;

const EXAMPLES: &str = "\
Example: cargo run --release --package keypool-bench -- client --rounds 15

Build with --release: an unoptimised client is measured otherwise.";

/// Measures Keypool.
#[derive(Debug, Parser)]
#[command(version, after_help = EXAMPLES)]
struct Cli {
    /// Print JSON, for programs
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Generate KeyPackages into the client's file, and into OpenMLS's memory
    Client {
        /// How often each is measured, in turns
        #[arg(long, value_name = "NUMBER", default_value_t = 15, value_parser = clap::value_parser!(u32).range(1..))]
        rounds: u32,
    },
}

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    let comparisons = match cli.command {
        Command::Client { rounds } => client::measure(rounds)?,
    };
    report::print(&comparisons, cli.json)
}
