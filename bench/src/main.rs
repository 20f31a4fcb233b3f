//! Measures Keypool: under load, and in turns with a baseline within one run. Machines are noisy, so only ratios within
//! a run are meaningful.

use anyhow::bail;
use clap::{Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    drive::{Backend, Load},
    latency::Latencies,
};

mod client;
mod compare;
mod cores;
mod drive;
mod growth;
mod hot;
mod http;
mod latency;
mod load;
mod pace;
mod packages;
mod people;
mod plot;
mod postgres;
mod progress;
mod replicas;
mod report;
mod requests;
mod seed;
mod server;
mod siege;
mod sqlite;
mod stage;
mod transparency;
mod uploads;
mod wake;

const EXAMPLES: &str = "\
Examples, with keypool-bench for cargo run --release --package keypool-bench --:
  keypool-bench mixed --seconds 60                      all kinds of requests, as fast as the server answers
  keypool-bench mixed --seconds 60 --rate 2000 --plot latency.svg
  keypool-bench reserve --server http://127.0.0.1:8080  against a running server with KEYPOOL_LIMITS=off
  keypool-bench upload --database sqlite                against a new server on an SQLite file
  keypool-bench compare                                 beside pgbench on the same PostgreSQL
  keypool-bench compare --database sqlite               beside a bare thread on a copy of the same file
  keypool-bench growth --json                           on larger and larger databases
  keypool-bench siege                                   under an attack

All but client and wake need the server beside this program, and PostgreSQL's programs to measure PostgreSQL:
  cargo build --release --package keypool-server
Build with --release: an unoptimised build gives other figures.";

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
    /// Load a server with reservations
    Reserve(drive::Plan),
    /// Load a server with reservations, each of which is spent
    Spend(drive::Plan),
    /// Load a server with uploads of 32 KeyPackages each
    Upload(drive::Plan),
    /// Load a server with requests for the status of full pools
    Status(drive::Plan),
    /// Load a server with 60 % status, 20 % reserve, 15 % spend and 5 % upload, of 4 KeyPackages each
    Mixed(drive::Plan),
    /// Reserve through HTTP and in the bare database, in turns
    ///
    /// On PostgreSQL beside pgbench, with one statement a reservation; on SQLite beside a bare thread, with one statement a
    /// reservation on a copy of the file. On PostgreSQL reservations that are spent, and the status, are measured, too.
    Compare {
        #[command(flatten)]
        plan: compare::Plan,
        /// The database
        #[arg(long, value_enum, default_value_t = Backend::Postgres)]
        database: Backend,
    },
    /// Reserve from databases with more and more KeyPackages and users, in turns, and after many cycles of reserve and
    /// spend
    Growth(growth::Plan),
    /// Reserve from a single user, with and without another open transaction, and from many users, in turns
    Hot(hot::Plan),
    /// Reserve through two servers of one PostgreSQL and through one, in turns
    Replicas(compare::Plan),
    /// Upload through HTTP, validate on all cores, and reserve with and without uploads, in turns
    Uploads(uploads::Plan),
    /// Reserve beside 10,000 slow readers, 10,000 waiting devices and queues of large messages, and without them, in turns
    ///
    /// The server has the memory of docker-compose.yml. The measurement opens 20,000 files: run `ulimit -n 65536`
    /// before it.
    Siege(siege::Plan),
    /// Reserve and spend with the transparency log, with receipts and without the log, in turns
    Log(transparency::Plan),
    /// Generate KeyPackages into the client's file, and into OpenMLS's memory
    Client {
        /// Number of rounds
        #[arg(long, value_name = "NUMBER", default_value_t = 15, value_parser = clap::value_parser!(u32).range(1..))]
        rounds: u32,
    },
    /// Measure the time from a message at one server to the recipient that waits at another server of the same database
    Wake {
        /// The sender's server
        #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8080")]
        server: String,
        /// The recipient's server
        #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8081")]
        other: String,
        /// Number of messages
        #[arg(long, value_name = "NUMBER", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
        rounds: u32,
    },
}

fn main() -> anyhow::Result<()> {
    let Cli { json, command } = Cli::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut terminated = signal(SignalKind::terminate())?;
        // Dropping `run` stops its servers and deletes its databases; exiting would not.
        tokio::select! {
            done = run(command, json) => done,
            _ = tokio::signal::ctrl_c() => bail!("interrupted"),
            _ = terminated.recv() => bail!("terminated"),
        }
    })
}

async fn run(command: Command, json: bool) -> anyhow::Result<()> {
    let drive = async |load, plan| report::print(&drive::measure(load, &plan).await?, json, Latencies::text);
    match command {
        Command::Reserve(plan) => drive(Load::RESERVE, plan).await,
        Command::Spend(plan) => drive(Load::SPEND, plan).await,
        Command::Upload(plan) => drive(Load::UPLOAD, plan).await,
        Command::Status(plan) => drive(Load::STATUS, plan).await,
        Command::Mixed(plan) => drive(Load::MIXED, plan).await,
        Command::Compare { plan, database: Backend::Postgres } => {
            report::print(&compare::postgres::measure(plan).await?, json, compare::postgres::text)
        }
        Command::Compare { plan, database: Backend::Sqlite } => {
            report::print(&compare::sqlite::measure(plan).await?, json, compare::sqlite::text)
        }
        Command::Growth(plan) => report::print(&growth::measure(plan).await?, json, growth::text),
        Command::Hot(plan) => report::print(&hot::measure(plan).await?, json, hot::text),
        Command::Replicas(plan) => report::print(&replicas::measure(plan).await?, json, replicas::text),
        Command::Uploads(plan) => report::print(&uploads::measure(plan).await?, json, uploads::text),
        Command::Siege(plan) => report::print(&siege::measure(plan).await?, json, siege::text),
        Command::Log(plan) => report::print(&transparency::measure(plan).await?, json, transparency::text),
        Command::Client { rounds } => {
            report::print(&client::measure(rounds)?, json, |found| report::comparisons(found))
        }
        Command::Wake { server, other, rounds } => {
            report::print(&wake::measure(&server, &other, rounds).await?, json, ToString::to_string)
        }
    }
}
