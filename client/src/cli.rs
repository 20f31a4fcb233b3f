//! The command line.

use std::{ffi::OsString, path::PathBuf, process::ExitCode, time::Duration};

use clap::{Args, Parser, Subcommand};
use keypool_openapi::{DeviceName, ReservationId, UserName};
use secrecy::{ExposeSecret, SecretString};

use crate::{
    client::{MlsClient, NewDevice, Settings},
    error::{Error, Result},
};
use output::Output;

mod output;

const EXAMPLES: &str = "\
Example: alice makes a device, and bob reserves one of her KeyPackages and spends it.

  keypool --data-dir alice init --server http://localhost:8080 --user alice
  keypool --data-dir bob init --server http://localhost:8080 --user bob
  keypool --data-dir bob reserve alice
  keypool --data-dir bob spend RESERVATION_ID --group friends
  keypool --data-dir alice status

Exit codes: 0 done, 1 failed, 2 wrong usage.";

/// Keeps this device's KeyPackages on a Keypool server, and reserves those of others.
#[derive(Debug, Parser)]
#[command(name = "keypool", version, after_help = EXAMPLES, max_term_width = 100)]
struct Cli {
    /// Where this device's keys and metadata are kept [default: keypool in the platform's data directory]
    #[arg(long, global = true, value_name = "DIR", env = "KEYPOOL_DATA_DIR")]
    data_dir: Option<PathBuf>,
    /// Print JSON, errors too, for programs
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make this device: identity, registration, 32 KeyPackages and a last resort
    ///
    /// May be run again with the same arguments, and then finishes what is unfinished.
    #[command(after_help = "Example: keypool init --server http://localhost:8080 --user alice --device laptop")]
    Init(InitArgs),
    /// Bring the pool in order: remove what expired, upload what is missing
    #[command(
        after_help = "Example: keypool refresh\n\nRun it as often as you like: where all is in order, it changes nothing."
    )]
    Refresh,
    /// Show how this device's pool on the server is doing
    #[command(
        after_help = "Example: keypool status --json\n\nThe JSON is the server's answer to GET /keypackages/status."
    )]
    Status,
    /// Reserve a KeyPackage of each of a user's devices
    #[command(after_help = "Example: keypool reserve bob --device phone --ttl 120")]
    Reserve(ReserveArgs),
    /// Say that a reserved KeyPackage is in a Commit
    #[command(after_help = "Example: keypool spend 1f-67e55044-10b1-426f-9247-bb680e5fe0c8 --group friends")]
    Spend {
        /// The reservation, as `keypool reserve` printed it
        reservation_id: ReservationId,
        /// The group's name; its bytes are the group id
        #[arg(long, value_name = "NAME")]
        group: String,
    },
    /// Give a reserved KeyPackage back
    #[command(after_help = "Example: keypool release 1f-67e55044-10b1-426f-9247-bb680e5fe0c8")]
    Release {
        /// The reservation, as `keypool reserve` printed it
        reservation_id: ReservationId,
    },
    /// Print this device's bearer token, which is a secret
    #[command(
        after_help = "Example: curl -H \"Authorization: Bearer $(keypool token)\" http://localhost:8080/keypackages/status"
    )]
    Token,
}

#[derive(Debug, Args)]
struct InitArgs {
    /// The server's address
    #[arg(long, value_name = "URL")]
    server: String,
    /// The user whose device this is
    #[arg(long, value_name = "NAME")]
    user: UserName,
    /// The device's name, unique among the user's
    #[arg(long, value_name = "NAME", default_value = "main")]
    device: DeviceName,
    /// The token of another device of the user, needed for all but the first
    #[arg(long, value_name = "TOKEN", env = "KEYPOOL_USER_TOKEN", hide_env_values = true)]
    user_token: Option<SecretString>,
}

#[derive(Debug, Args)]
struct ReserveArgs {
    /// The user to be added to a group
    user: UserName,
    /// Only this device of the user
    #[arg(long, value_name = "NAME")]
    device: Option<DeviceName>,
    /// Only KeyPackages of this ciphersuite, by its number in RFC 9420
    #[arg(long, value_name = "NUMBER")]
    ciphersuite: Option<u16>,
    /// How long to hold them [default: as the server has it]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    ttl: Option<u64>,
}

/// Runs the `keypool` command with the program's arguments, and answers its exit code: 0 done, 1 failed, 2 wrong usage.
pub async fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args: Vec<OsString> = args.into_iter().collect();
    match Cli::try_parse_from(&args) {
        Ok(cli) => {
            let output = Output::new(cli.json);
            match run(cli, &output).await {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => {
                    output.error(&error);
                    ExitCode::FAILURE
                }
            }
        }
        Err(usage) if usage.use_stderr() && args.iter().any(|arg| arg == "--json") => {
            Output::new(true).usage(&usage);
            ExitCode::from(2)
        }
        Err(usage) => {
            let code = if usage.use_stderr() { ExitCode::from(2) } else { ExitCode::SUCCESS };
            // A closed terminal is nothing to report to it.
            let _ = usage.print();
            code
        }
    }
}

async fn run(cli: Cli, output: &Output) -> Result<()> {
    let directory = match cli.data_dir {
        Some(directory) => directory,
        None => default_data_dir()?,
    };
    if let Command::Init(args) = cli.command {
        let new = NewDevice { server: args.server, user: args.user, device: args.device, user_token: args.user_token };
        let (client, report) = output
            .with_progress(
                |progress| async move { MlsClient::init(&directory, &new, Settings::default(), &progress).await },
            )
            .await?;
        output.initialised(client.identity(), &report);
        return Ok(());
    }
    let client = existing(directory)?;
    match cli.command {
        Command::Init(_) => {}
        Command::Refresh => {
            let client = &client;
            let report =
                output.with_progress(|progress| async move { client.refresh_key_packages(&progress).await }).await?;
            output.refreshed(&report);
        }
        Command::Status => output.status(&client.status().await?),
        Command::Reserve(ReserveArgs { user, device, ciphersuite, ttl }) => {
            let ttl = ttl.map(Duration::from_secs);
            output.reserved(&client.reserve(&user, device.as_ref(), ciphersuite, ttl).await?);
        }
        Command::Spend { reservation_id, group } => {
            output.spent(&client.spend(reservation_id, group.as_bytes()).await?);
        }
        Command::Release { reservation_id } => output.released(&client.release(reservation_id).await?),
        Command::Token => {
            if let Some(token) = client.identity().token() {
                output.token(token.expose_secret());
            }
        }
    }
    Ok(())
}

/// Opens the device of a directory, and makes no directory where there is none.
fn existing(directory: PathBuf) -> Result<MlsClient> {
    if directory.is_dir() { MlsClient::open(&directory) } else { Err(Error::NotInitialised(directory)) }
}

fn default_data_dir() -> Result<PathBuf> {
    let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let home = |below: &str| std::env::home_dir().map(|home| home.join(below));
    let base = if cfg!(target_os = "windows") {
        absolute("LOCALAPPDATA")
    } else if cfg!(target_os = "macos") {
        home("Library/Application Support")
    } else {
        absolute("XDG_DATA_HOME").or_else(|| home(".local/share"))
    };
    base.map(|base| base.join("keypool"))
        .ok_or_else(|| Error::Config("this machine names no data directory: choose one with --data-dir".to_owned()))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_global_options_may_follow_every_subcommand() {
        let id = "1f-67e55044-10b1-426f-9247-bb680e5fe0c8";
        let subcommands: [&[&str]; 7] = [
            &["init", "--server", "http://localhost:8080", "--user", "alice"],
            &["refresh"],
            &["status"],
            &["reserve", "bob"],
            &["spend", id, "--group", "friends"],
            &["release", id],
            &["token"],
        ];
        for subcommand in subcommands {
            let args = [&["keypool"], subcommand, &["--data-dir", "somewhere", "--json"]].concat();
            let cli = Cli::try_parse_from(args).unwrap();
            assert!(cli.json);
            assert_eq!(cli.data_dir, Some("somewhere".into()));
        }
    }
}
