//! Measures Keypool side by side with what it stands on, in turns within one run: machines are noisy, and only the ratio
//! of neighbours says something.

use clap::{Parser, Subcommand};

mod client;
mod compare;
mod load;
mod postgres;
mod report;
mod wake;

const EXAMPLES: &str = "\
Examples:
  cargo build --release --package keypool-server && cargo run --release --package keypool-bench -- compare
  cargo run --release --package keypool-bench -- client --rounds 15

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
    /// Reserve through HTTP, and in one statement each by pgbench, in turns on a PostgreSQL of its own
    ///
    /// Needs PostgreSQL's programs, and the server beside this program: cargo build --release --package keypool-server.
    Compare {
        /// How often each is measured, in turns
        #[arg(long, value_name = "NUMBER", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
        rounds: u32,
        /// For how long each time, in seconds
        #[arg(long, value_name = "NUMBER", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..))]
        seconds: u64,
        /// Over how many users the KeyPackages are spread
        #[arg(long, value_name = "NUMBER", default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..))]
        users: u64,
        /// How many KeyPackages there are
        #[arg(long, value_name = "NUMBER", default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..))]
        packages: u64,
        /// Connections to Keypool
        #[arg(long, value_name = "NUMBER", default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..))]
        connections: u16,
    },
    /// Send a message by one server, and see how long it takes to wake who waits at another of the same database
    Wake {
        /// The server that the message is sent by
        #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8080")]
        server: String,
        /// The server that the receiver waits at
        #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8081")]
        other: String,
        /// How many messages
        #[arg(long, value_name = "NUMBER", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
        rounds: u32,
    },
}

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    match cli.command {
        Command::Client { rounds } => report::print(&client::measure(rounds)?, cli.json),
        Command::Compare { rounds, seconds, users, packages, connections } => {
            let plan = compare::Plan { rounds, seconds, users, packages, connections: connections.into() };
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            report::print_findings(&runtime.block_on(compare::measure(plan))?, cli.json, compare::table)
        }
        Command::Wake { server, other, rounds } => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            report::print_waits(&runtime.block_on(wake::measure(&server, &other, rounds))?, cli.json)
        }
    }
}
