//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use keypool_transparency::{encoding::Malformed, note::VerifierKey, package::Bind};

/// Checks what a Keypool server says, without believing the server.
#[derive(Debug, Parser)]
#[command(
    name = "keypool-verify",
    version,
    after_help = "Exit codes: 0 good; 1 misbehaviour proven, evidence written; 2 wrong command line; 3 cannot tell, or \
                  wrong and not proven to others.\n\nExample: audit a log every minute\n  keypool-verify audit --log \
                  https://keypool.example/log/1-0a1b2c3d --vkey keypool/…+…+… --state audit --every 60"
)]
pub struct CommandLine {
    /// Write one line of JSON.
    #[arg(long, global = true)]
    pub json: bool,
    /// What to check.
    #[command(subcommand)]
    pub command: Command,
}

/// What to check.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Check that an adder alone has the KeyPackage that it was handed.
    #[command(after_help = "Example:\n  keypool-verify proof hand-out.json --policy policy.txt --keypackage alice.kp \
                            --bind 'q6urq6ur…='")]
    Proof(ProofArgs),
    /// Check the hand-outs of an owner's KeyPackages: the adder of each, and that none is left out.
    #[command(
        after_help = "Example: with the files of an own audit, hand-outs that the server leaves out are found\n  \
                            keypool-verify handouts export.json --policy policy.txt --state audit"
    )]
    Handouts(HandoutsArgs),
    /// Follow a log: its checkpoints are consistent, its tiles match them, and no tag repeats.
    #[command(
        after_help = "It can be stopped at any moment, and goes on where it was.\n\nExample:\n  keypool-verify audit \
                            --log https://keypool.example/log/1-0a1b2c3d --policy policy.txt --state audit"
    )]
    Audit(AuditArgs),
    /// Check evidence against a server, such as an audit or a client writes it.
    #[command(after_help = "Example:\n  keypool-verify evidence evidence.json --policy policy.txt")]
    Evidence(EvidenceArgs),
}

/// The keys to believe.
#[derive(Args, Debug)]
#[group(required = false, multiple = true)]
pub struct Trust {
    /// Trust policy with the keys of logs and witnesses (C2SP tlog-policy).
    #[arg(long, value_name = "FILE")]
    pub policy: Option<PathBuf>,
    /// A log's public key: its vkey.
    #[arg(long, value_name = "VKEY", value_parser = log_key)]
    pub vkey: Option<VerifierKey>,
}

/// Arguments of `proof`.
#[derive(Args, Debug)]
pub struct ProofArgs {
    /// What the adder exported.
    pub file: PathBuf,
    #[command(flatten)]
    pub trust: Trust,
    /// The bytes of the KeyPackage, as an MLS message.
    #[arg(long, value_name = "FILE")]
    pub keypackage: PathBuf,
    /// The random bytes that the adder drew for the reservation, in base64.
    #[arg(long, value_name = "BASE64")]
    pub bind: Bind,
    /// Where evidence is written.
    #[arg(long, value_name = "FILE", default_value = "evidence.json")]
    pub out: PathBuf,
}

/// Arguments of `handouts`.
#[derive(Args, Debug)]
pub struct HandoutsArgs {
    /// What the owner exported.
    pub file: PathBuf,
    #[command(flatten)]
    pub trust: Trust,
    /// The directory of an audit of the same log.
    #[arg(long, value_name = "DIR")]
    pub state: Option<PathBuf>,
    /// Where evidence is written.
    #[arg(long, value_name = "FILE", default_value = "evidence.json")]
    pub out: PathBuf,
}

/// Arguments of `audit`.
#[derive(Args, Debug)]
pub struct AuditArgs {
    /// The log: its https:// or http:// prefix, or a directory with its tiles.
    #[arg(long, value_name = "URL")]
    pub log: String,
    /// Where the audit keeps what it has seen: 13 bytes a leaf.
    #[arg(long, value_name = "DIR")]
    pub state: PathBuf,
    #[command(flatten)]
    pub trust: Trust,
    /// Leaves between two saves: 16 bytes of memory each, and what is read again after a stop.
    #[arg(long, value_name = "LEAVES", default_value_t = 1_000_000, value_parser = clap::value_parser!(u32).range(1..=100_000_000))]
    pub batch: u32,
    /// Look for a newer checkpoint this many seconds after each pass, until something is wrong.
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    pub every: Option<u64>,
}

/// Arguments of `evidence`.
#[derive(Args, Debug)]
pub struct EvidenceArgs {
    /// The evidence.
    pub file: PathBuf,
    #[command(flatten)]
    pub trust: Trust,
}

fn log_key(text: &str) -> Result<VerifierKey, String> {
    let key: VerifierKey = text.parse().map_err(|error: Malformed| error.to_string())?;
    if key.signs_notes() { Ok(key) } else { Err("it is the key of a witness, not of a log".to_owned()) }
}
