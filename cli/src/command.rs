//! The command line.

use std::{
    ffi::OsString,
    io::{self, IsTerminal as _},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use clap::{ArgAction, Args, CommandFactory as _, Parser, Subcommand, builder::FalseyValueParser};
use clap_complete::Shell;
use etcetera::BaseStrategy as _;
use keypool_client::{
    CIPHERSUITE, DEFAULT_TIMEOUT, LocalStore, MlsClient, NewDevice, Settings, is_in_the_clear,
    openmls::prelude::Ciphersuite,
};
use keypool_openapi::{DeviceName, KeyPackageRef, ReservationId, UserName};
use secrecy::{ExposeSecret, SecretString};
use tracing::Level;
use tracing_subscriber::{filter::Targets, layer::SubscriberExt as _, util::SubscriberInitExt as _};

use crate::{
    chat::{self, ChatArgs},
    devices::{self, DeviceCommand},
    doctor::{self, Verdict},
    error::{Error, Result},
    groups::{self, GroupCommand, ReceiveArgs, SendArgs},
    link::Link,
    log::{self, LogArgs},
    output::{Output, print_help, print_raw},
    passphrase::{self, PassphraseCommand},
    retries::Retries,
    secrets,
};

const EXAMPLES: &str = "\
Example: alice makes a device; bob reserves one of her KeyPackages and spends it.

  keypool --data-dir alice init --server http://localhost:8080 --user alice
  keypool --data-dir bob init --server http://localhost:8080 --user bob
  keypool --data-dir bob reserve alice
  keypool --data-dir bob spend RESERVATION_ID --group friends
  keypool --data-dir alice status

Example: alice makes a group and invites bob; bob receives her message.

  keypool --data-dir alice group create friends
  keypool --data-dir alice group invite friends bob
  keypool --data-dir alice send friends 'hello, bob'
  keypool --data-dir bob receive

Exit codes: 0 success, 1 failure, 2 wrong usage, 3 temporary failure: the same command may succeed later, 4 the server has
broken a promise: its transparency log shows it, or does not show what it must.
Output on a terminal is coloured, unless NO_COLOR is set.";

/// The exit code for arguments that cannot be used.
const USAGE: u8 = 2;

/// The exit code for a failure after which the same command may succeed later.
const LATER: u8 = 3;

/// The exit code if the server has broken a promise.
const MISBEHAVED: u8 = 4;

/// Keeps this device's KeyPackages on a Keypool server, and reserves those of other users
#[expect(clippy::doc_markdown, reason = "clap prints these lines as they stand")]
#[derive(Debug, Parser)]
#[command(name = "keypool", version, after_help = EXAMPLES, max_term_width = 100)]
pub struct Cli {
    /// The directory for this device's keys and metadata [default: keypool in the platform's data directory]
    #[arg(long, global = true, value_name = "DIR", env = "KEYPOOL_DATA_DIR")]
    data_dir: Option<PathBuf>,
    /// A file with the passphrase of the encrypted data directory; KEYPOOL_PASSPHRASE may hold the passphrase itself
    #[arg(long, global = true, value_name = "FILE", env = "KEYPOOL_PASSPHRASE_FILE")]
    passphrase_file: Option<PathBuf>,
    /// How long to retry while the server is unreachable or busy, before exiting with 3
    #[arg(long, global = true, value_name = "SECONDS", env = "KEYPOOL_TIMEOUT", default_value_t = DEFAULT_TIMEOUT.as_secs(),
        value_parser = clap::value_parser!(u64).range(1..=86_400))]
    timeout: u64,
    /// Do not show the server the trees of groups; a member that falls behind then waits for an invitation
    #[arg(long, global = true, env = "KEYPOOL_NO_GROUP_INFO", value_parser = FalseyValueParser::new())]
    no_group_info: bool,
    /// Use a KeyPackage only once the server's transparency log has its hand-out; refuse a server without a log
    #[arg(long, global = true, env = "KEYPOOL_STRICT", value_parser = FalseyValueParser::new())]
    strict: bool,
    /// Print JSON for programs, also for errors
    #[arg(long, global = true)]
    json: bool,
    /// Log what the program does, to the standard error; -vv logs more
    #[arg(short, long, global = true, action = ArgAction::Count)]
    verbose: u8,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make this device: identity, registration, 32 KeyPackages and a last resort
    ///
    /// Run it again with the same arguments to finish an interrupted run, or to register a device anew that was removed.
    #[command(after_help = "Example: keypool init --server http://localhost:8080 --user alice --device laptop")]
    Init(InitArgs),
    /// Bring the pool up to date: reconcile with the server, delete expired KeyPackages, upload new ones
    #[command(
        after_help = "Example: keypool refresh\n\nRun it as often as you like: if nothing has to change, it changes nothing."
    )]
    Refresh,
    /// Show the status of this device's pool on the server
    #[command(
        after_help = "Example: keypool status --json\n\nThe JSON is the server's answer to GET /keypackages/status."
    )]
    Status,
    /// List the server's inventory of this device's KeyPackages
    #[command(after_help = "Example: keypool inventory --json | jq '.[] | select(.state == \"reserved\")'")]
    Inventory,
    /// Show the audit trail of this device's KeyPackages, newest first
    #[command(after_help = "Example: keypool audit --limit 20")]
    Audit {
        /// The number of events
        #[arg(long, value_name = "NUMBER", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=1000))]
        limit: u32,
        /// Only events before the one with this number
        #[arg(long, value_name = "NUMBER")]
        before: Option<i64>,
        /// Compare the whole trail with the server's transparency log, and show the result for each KeyPackage
        #[arg(long, conflicts_with_all = ["limit", "before"])]
        verify: bool,
    },
    /// Reserve a KeyPackage of each of a user's devices
    #[command(after_help = "Example: keypool reserve bob --device phone --ttl 120")]
    Reserve(ReserveArgs),
    /// Spend a reservation: its KeyPackage is in a Commit
    #[command(after_help = "Example: keypool spend 1f-67e55044-10b1-426f-9247-bb680e5fe0c8 --group friends")]
    Spend {
        /// The reservation, as `keypool reserve` printed it
        reservation_id: ReservationId,
        /// The group's name; its bytes are the group id
        #[arg(long, value_name = "NAME")]
        group: String,
    },
    /// Show the number that you and another user compare, to know that the server gave both the right keys
    ///
    /// Compare it in person or by telephone. It changes whenever one of you changes a key, or adds or removes a device.
    #[command(after_help = "Example: keypool verify bob")]
    Verify {
        /// The other user
        user: UserName,
    },
    /// Release a reservation
    #[command(after_help = "Example: keypool release 1f-67e55044-10b1-426f-9247-bb680e5fe0c8")]
    Release {
        /// The reservation, as `keypool reserve` printed it
        reservation_id: ReservationId,
    },
    /// Make, change and list groups
    #[command(subcommand)]
    Group(GroupCommand),
    /// Chat in a group; the pool is refreshed meanwhile
    ///
    /// Messages are shown as they arrive. /help lists the commands.
    #[command(after_help = "Example: keypool chat friends")]
    Chat(ChatArgs),
    /// Send a message to a group
    #[command(after_help = "Example: keypool send friends 'hello, everybody'")]
    Send(SendArgs),
    /// Receive messages, invitations, and changes of groups
    #[command(
        after_help = "Example: keypool receive --wait 30 --json\n\nItems that were printed are not printed again."
    )]
    Receive(ReceiveArgs),
    /// Revoke KeyPackages of this device
    ///
    /// Invitations that use one of them fail. `keypool refresh` makes new ones.
    #[command(after_help = "Example: keypool revoke --all")]
    Revoke {
        /// The refs of the KeyPackages, as `keypool inventory` prints them
        #[arg(value_name = "REF", required_unless_present = "all", conflicts_with = "all")]
        refs: Vec<KeyPackageRef>,
        /// All available and reserved KeyPackages
        #[arg(long)]
        all: bool,
    },
    /// Change the signature key and replace all KeyPackages
    ///
    /// Fills the pool with new KeyPackages and revokes the old ones. The old private keys stay for a day, for
    /// invitations that may still arrive. Run it if somebody may have seen this device's keys, or if two clients share
    /// its data.
    #[command(after_help = "Example: keypool rotate")]
    Rotate,
    /// Print this device's bearer token, which is a secret
    ///
    /// In Swagger UI, at /swagger-ui/ of the server, paste it under \"Authorize\".
    #[command(
        after_help = "Example: curl -H \"Authorization: Bearer $(keypool token)\" http://localhost:8080/keypackages/status"
    )]
    Token {
        /// Read another token of this device from the standard input, and use that one from now on
        #[arg(long)]
        set: bool,
    },
    /// Print the address of this device's server, or change it
    #[command(after_help = "Example: keypool server --set https://keys.example.org")]
    Server {
        /// Use the server at this address from now on. It must know this device: it is the same server that has moved
        #[arg(long, value_name = "URL")]
        set: Option<String>,
    },
    /// List your devices, let a further one in, remove one, or give one a new token
    #[command(subcommand)]
    Device(DeviceCommand),
    /// Encrypt this device's file, change its passphrase, or decrypt it
    #[command(subcommand)]
    Passphrase(PassphraseCommand),
    /// Show what this device has checked in the server's transparency log, and up to where
    ///
    /// The log shows that no KeyPackage was handed out twice. Each refresh compares it with what this device knows; if the
    /// server has broken a promise, every command that uses the server exits with 4.
    #[command(after_help = "Example: keypool log")]
    Log(LogArgs),
    /// Check this device and give advice
    ///
    /// Checks the files, the keys, the server, the clocks, and whether this device and the server agree. Changes
    /// nothing.
    #[command(after_help = "Example: keypool doctor\n\nExits with 1 if something does not work.")]
    Doctor,
    /// Print the JSON Schema of what --json prints
    ///
    /// It has a definition for each command, such as #/$defs/group-list, and #/$defs/error for what a command that fails
    /// prints to the standard error.
    #[command(after_help = "Example: keypool schema > keypool.schema.json")]
    Schema,
    /// Print the completion script of a shell
    #[command(after_help = "Example: keypool completions bash > ~/.local/share/bash-completion/completions/keypool")]
    Completions {
        /// The shell
        shell: Shell,
    },
}

#[derive(Debug, Args)]
struct InitArgs {
    /// The server's address
    #[arg(long, value_name = "URL", required_unless_present = "link")]
    server: Option<String>,
    /// The owner of this device
    #[arg(long, value_name = "NAME", required_unless_present = "link")]
    user: Option<UserName>,
    /// The device's name, unique among the user's devices
    #[arg(long, value_name = "NAME", default_value = "main")]
    device: DeviceName,
    /// The token of another device of the user. For the user's first device, the token that the server requires: an
    /// enrolment token, or one of its identity provider
    #[arg(long, value_name = "TOKEN", env = "KEYPOOL_USER_TOKEN", hide_env_values = true)]
    user_token: Option<SecretString>,
    /// The code that `keypool device link` prints on another device of the user, or the text of its QR code, which has the server
    /// and the user, too
    #[arg(long, value_name = "CODE", env = "KEYPOOL_LINK", hide_env_values = true, conflicts_with = "user_token")]
    #[arg(value_parser = Link::read)]
    link: Option<Link>,
    /// A ciphersuite in which to keep a pool, by its number in RFC 9420; may be given several times
    #[arg(long, value_name = "NUMBER", value_parser = ciphersuite, default_values_t = [u16::from(CIPHERSUITE)])]
    ciphersuite: Vec<u16>,
    /// Encrypt the data directory; asks for a passphrase if none is given
    #[arg(long)]
    encrypt: bool,
}

#[derive(Debug, Args)]
struct ReserveArgs {
    /// The user to add to a group
    user: UserName,
    /// Only this device of the user
    #[arg(long, value_name = "NAME")]
    device: Option<DeviceName>,
    /// Only KeyPackages of this ciphersuite, by its number in RFC 9420
    #[arg(long, value_name = "NUMBER")]
    ciphersuite: Option<u16>,
    /// How long to reserve them [default: the server's setting]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    ttl: Option<u64>,
}

/// Runs the `keypool` command with the program's arguments, and returns its exit code: 0 success, 1 failure, 2 wrong
/// usage, 3 temporary failure, 4 if the server has broken a promise.
pub async fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args: Vec<OsString> = args.into_iter().collect();
    match Cli::try_parse_from(&args) {
        Ok(cli) => {
            let output = Output::new(cli.json);
            log_to_stderr(cli.verbose);
            match run(cli, &output).await {
                Ok(code) => code,
                Err(error) => {
                    output.error(&error);
                    match error {
                        Error::Usage(_) => ExitCode::from(USAGE),
                        error if error.accuses_server() => ExitCode::from(MISBEHAVED),
                        error if error.is_retryable() => ExitCode::from(LATER),
                        _ => ExitCode::FAILURE,
                    }
                }
            }
        }
        Err(usage) if usage.use_stderr() && args.iter().any(|arg| arg == "--json") => {
            Output::new(true).usage(&usage);
            ExitCode::from(USAGE)
        }
        Err(usage) if usage.use_stderr() => {
            // If the terminal is closed, there is nowhere to report the error.
            let _ = usage.print();
            ExitCode::from(USAGE)
        }
        Err(help) => match print_help(&help) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                Output::new(false).error(&error);
                ExitCode::FAILURE
            }
        },
    }
}

/// Shows the library's log on the standard error.
fn log_to_stderr(verbose: u8) {
    let level = match verbose {
        0 => return,
        1 => Level::INFO,
        _ => Level::DEBUG,
    };
    let targets = Targets::new().with_target("keypool_client", level).with_target("keypool", level);
    let lines = tracing_subscriber::fmt::layer().with_writer(io::stderr).with_ansi(io::stderr().is_terminal());
    tracing_subscriber::registry().with(lines).with(targets).init();
}

async fn run(cli: Cli, output: &Output) -> Result<ExitCode> {
    let Cli { data_dir, passphrase_file, timeout, no_group_info, strict, command, .. } = cli;
    if let Command::Completions { shell } = command {
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut Cli::command(), "keypool", &mut script);
        return print_raw(&script).map(|()| ExitCode::SUCCESS);
    }
    if matches!(command, Command::Schema) {
        return Output::schema().map(|()| ExitCode::SUCCESS);
    }
    let directory = data_dir.map_or_else(default_data_dir, Ok)?;
    let passphrase = secrets::read_passphrase(passphrase_file.as_deref(), "KEYPOOL_PASSPHRASE")?;
    let retries = Retries::new();
    let settings = Settings {
        passphrase,
        timeout: Duration::from_secs(timeout),
        on_retry: Some(retries.hook()),
        group_info: !no_group_info,
        strict,
        ..Settings::default()
    };
    match command {
        Command::Init(args) => init(args, &directory, settings, output).await?,
        Command::Token { set: true } => set_token(&directory, settings, output).await?,
        Command::Server { set: Some(server) } => set_server(&server, &directory, settings, output).await?,
        Command::Passphrase(command) => passphrase::passphrase(&command, &directory, settings, output)?,
        Command::Chat(args) => {
            let client = open_device(&directory, settings)?;
            chat::run_client_loop(args, &client, &retries, output).await?;
        }
        command => {
            let client = open_device(&directory, settings)?;
            return with_device(command, &client, output).await;
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn init(args: InitArgs, directory: &Path, mut settings: Settings, output: &Output) -> Result<()> {
    let InitArgs { server, user, device, user_token, link, ciphersuite, encrypt } = args;
    let (server, user, user_token) = Link::complete(link, (server, user, user_token))?;
    settings.passphrase = match settings.passphrase {
        None if LocalStore::is_encrypted(directory)? => Some(secrets::ask_passphrase(directory)?),
        None if encrypt => {
            Some(secrets::ask_new_passphrase(directory, "in KEYPOOL_PASSPHRASE or by --passphrase-file")?)
        }
        given => given,
    };
    if is_in_the_clear(&server) {
        Output::warn_of_clear_text(&server);
    }
    let ciphersuites = ciphersuite.into_iter().filter_map(|number| Ciphersuite::try_from(number).ok()).collect();
    let new = NewDevice { server, user, device, user_token, ciphersuites };
    let (client, report) = output
        .with_progress(|progress| async move { MlsClient::init(directory, &new, settings, &progress).await })
        .await?;
    output.initialised(client.identity(), &report)
}

async fn with_device(command: Command, client: &MlsClient, output: &Output) -> Result<ExitCode> {
    match command {
        Command::Init(_)
        | Command::Chat(_)
        | Command::Completions { .. }
        | Command::Passphrase(_)
        | Command::Schema => {}
        Command::Refresh => {
            let report =
                output.with_progress(|progress| async move { client.refresh_key_packages(&progress).await }).await?;
            output.refreshed(&report)?;
        }
        Command::Rotate => {
            let report = output.with_progress(|progress| async move { client.rotate(&progress).await }).await?;
            output.refreshed(&report)?;
        }
        Command::Status => output.status(&client.status().await?)?,
        Command::Inventory => output.inventory(&client.inventory().await?)?,
        Command::Audit { verify: true, .. } => {
            let checks =
                output.with_progress(|progress| async move { client.log().verify_trail(&progress).await }).await?;
            output.trail_checked(&checks)?;
        }
        Command::Audit { limit, before, .. } => output.audit(client.audit(before, limit).await?)?,
        Command::Reserve(ReserveArgs { user, device, ciphersuite, ttl }) => {
            let ttl = ttl.map(Duration::from_secs);
            output.reserved(&client.reserve(&user, device.as_ref(), ciphersuite, ttl).await?)?;
        }
        Command::Spend { reservation_id, group } => {
            output.spent(&client.spend(reservation_id, group.as_bytes()).await?)?;
        }
        Command::Device(command) => devices::device(command, client, output).await?,
        Command::Group(command) => groups::group(command, client, output).await?,
        Command::Log(args) => log::log(args, client, output).await?,
        Command::Send(args) => groups::send(args, client, output).await?,
        Command::Receive(args) => groups::receive(&args, client, output).await?,
        Command::Verify { user } => output.safety_number(&client.membership().safety_number(&user).await?)?,
        Command::Release { reservation_id } => output.released(&client.release(reservation_id).await?)?,
        Command::Revoke { refs, all } => output.revoked(&client.revoke((!all).then_some(refs)).await?)?,
        Command::Token { .. } => {
            if let Some(token) = client.identity().token() {
                output.token(token.expose_secret())?;
            }
        }
        Command::Server { .. } => output.server(client.identity().server())?,
        Command::Doctor => {
            let checks = doctor::check(client).await;
            output.doctor(&checks)?;
            if checks.iter().any(|check| check.verdict == Verdict::Failure) {
                return Ok(ExitCode::FAILURE);
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Stores another token of this device.
async fn set_token(directory: &Path, settings: Settings, output: &Output) -> Result<()> {
    let settings = secrets::with_passphrase(directory, settings)?;
    MlsClient::set_token(directory, secrets::read_token()?, settings).await?;
    output.token_set()
}

/// Stores another address of the server.
async fn set_server(server: &str, directory: &Path, settings: Settings, output: &Output) -> Result<()> {
    if is_in_the_clear(server) {
        Output::warn_of_clear_text(server);
    }
    let settings = secrets::with_passphrase(directory, settings)?;
    output.server(&MlsClient::set_server(directory, server, settings).await?)
}

/// Opens the device in a directory. Does not create the directory.
fn open_device(directory: &Path, settings: Settings) -> Result<MlsClient> {
    Ok(MlsClient::open_with(directory, secrets::with_passphrase(directory, settings)?)?)
}

/// Parses a ciphersuite for which this client can generate KeyPackages.
fn ciphersuite(number: &str) -> std::result::Result<u16, String> {
    match number.parse() {
        Ok(number @ 1..=3) => Ok(number),
        _ => Err("it must be 1 (X25519, AES-128-GCM), 2 (P-256) or 3 (X25519, ChaCha20-Poly1305)".to_owned()),
    }
}

/// `keypool` in the platform's data directory.
fn default_data_dir() -> Result<PathBuf> {
    let base = etcetera::base_strategy::choose_native_strategy().map_err(|_| {
        Error::Usage("the default data directory is unknown on this machine: choose one with --data-dir".to_owned())
    })?;
    // On Windows the data directory follows the user to other machines, and a device belongs to one: use the local one.
    let data = if cfg!(windows) { base.cache_dir() } else { base.data_dir() };
    Ok(data.join("keypool"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_global_options_may_follow_every_subcommand() {
        let id = "1f-67e55044-10b1-426f-9247-bb680e5fe0c8";
        let hash = "a1".repeat(32);
        let subcommands: [&[&str]; 18] = [
            &["init", "--server", "http://localhost:8080", "--user", "alice"],
            &["refresh"],
            &["status"],
            &["reserve", "bob"],
            &["spend", id, "--group", "friends"],
            &["release", id],
            &["token"],
            &["inventory"],
            &["audit", "--limit", "3"],
            &["revoke", &hash],
            &["revoke", "--all"],
            &["rotate"],
            &["group", "create", "friends"],
            &["group", "invite", "friends", "bob", "carol"],
            &["send", "friends", "hello"],
            &["receive", "--wait", "30"],
            &["doctor"],
            &["completions", "bash"],
        ];
        for subcommand in subcommands {
            let args = [&["keypool"], subcommand, &["--data-dir", "somewhere", "--json"]].concat();
            let cli = Cli::try_parse_from(args).unwrap();
            assert!(cli.json);
            assert_eq!(cli.data_dir, Some("somewhere".into()));
        }
    }
}
