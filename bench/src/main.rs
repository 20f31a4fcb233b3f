//! Measures Keypool side by side with what it stands on, in turns within one run: machines are noisy, and only the ratio
//! of neighbours says something.

use clap::{Parser, Subcommand};

mod client;
mod report;
mod wake;

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
        Command::Wake { server, other, rounds } => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            report::print_waits(&runtime.block_on(wake::measure(&server, &other, rounds))?, cli.json)
        }
    }
}
