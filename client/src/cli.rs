//! The command line.

use std::{
    ffi::OsString,
    fs,
    io::{self, IsTerminal as _},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use clap::{Args, CommandFactory as _, Parser, Subcommand};
use clap_complete::Shell;
use keypool_openapi::{DeviceName, KeyPackageRef, ReservationId, UserName};
use openmls::prelude::Ciphersuite;
use secrecy::{ExposeSecret, SecretString};

use crate::{
    api::{DEFAULT_TIMEOUT, is_in_the_clear},
    client::{MlsClient, NewDevice, Settings},
    doctor::Verdict,
    error::{Error, Result},
    mls::CIPHERSUITE,
    storage::LocalStore,
};
use chat::ChatArgs;
use groups::{GroupCommand, ReceiveArgs, SendArgs};
use output::Output;

mod chat;
mod groups;
mod incoming;
mod output;
mod tables;

const EXAMPLES: &str = "\
Example: alice makes a device, and bob reserves one of her KeyPackages and spends it.

  keypool --data-dir alice init --server http://localhost:8080 --user alice
  keypool --data-dir bob init --server http://localhost:8080 --user bob
  keypool --data-dir bob reserve alice
  keypool --data-dir bob spend RESERVATION_ID --group friends
  keypool --data-dir alice status

Example: alice makes a group and invites bob, who reads what she says.

  keypool --data-dir alice group create friends
  keypool --data-dir alice group invite friends bob
  keypool --data-dir alice send friends 'hello, bob'
  keypool --data-dir bob receive

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 failed for now: the same command may succeed later.
Colours are for terminals, unless NO_COLOR is set.";

/// The exit code of what may succeed later.
const LATER: u8 = 3;

/// Keeps this device's KeyPackages on a Keypool server, and reserves those of others.
#[expect(clippy::doc_markdown, reason = "clap prints these lines as they stand")]
#[derive(Debug, Parser)]
#[command(name = "keypool", version, after_help = EXAMPLES, max_term_width = 100)]
struct Cli {
    /// Where this device's keys and metadata are kept [default: keypool in the platform's data directory]
    #[arg(long, global = true, value_name = "DIR", env = "KEYPOOL_DATA_DIR")]
    data_dir: Option<PathBuf>,
    /// A file with the passphrase of an encrypted data directory; KEYPOOL_PASSPHRASE holds the passphrase itself
    #[arg(long, global = true, value_name = "FILE", env = "KEYPOOL_PASSPHRASE_FILE")]
    passphrase_file: Option<PathBuf>,
    /// How long to try while the server is away or busy, before it exits with 3
    #[arg(long, global = true, value_name = "SECONDS", env = "KEYPOOL_TIMEOUT", default_value_t = DEFAULT_TIMEOUT.as_secs(),
        value_parser = clap::value_parser!(u64).range(1..=86_400))]
    timeout: u64,
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
    /// Bring the pool in order: reconcile with the server, remove what expired, upload what is missing
    #[command(
        after_help = "Example: keypool refresh\n\nRun it as often as you like: where all is in order, it changes nothing."
    )]
    Refresh,
    /// Show how this device's pool on the server is doing
    #[command(
        after_help = "Example: keypool status --json\n\nThe JSON is the server's answer to GET /keypackages/status."
    )]
    Status,
    /// List all that the server knows of this device's KeyPackages
    #[command(after_help = "Example: keypool inventory --json | jq '.[] | select(.state == \"reserved\")'")]
    Inventory,
    /// Show who reserved and spent this device's KeyPackages, the newest first
    #[command(after_help = "Example: keypool audit --limit 20")]
    Audit {
        /// How many events
        #[arg(long, value_name = "NUMBER", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=1000))]
        limit: u32,
        /// Only what came before this event, by its number
        #[arg(long, value_name = "NUMBER")]
        before: Option<i64>,
    },
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
    /// Show the number that you and another user compare, to know that the server names the right keys to both
    ///
    /// Compare it in person or by telephone. It is another one whenever one of you changes a key, or adds or removes a
    /// device.
    #[command(after_help = "Example: keypool verify bob")]
    Verify {
        /// The other user
        user: UserName,
    },
    /// Give a reserved KeyPackage back
    #[command(after_help = "Example: keypool release 1f-67e55044-10b1-426f-9247-bb680e5fe0c8")]
    Release {
        /// The reservation, as `keypool reserve` printed it
        reservation_id: ReservationId,
    },
    /// Make, change and list groups
    #[command(subcommand)]
    Group(GroupCommand),
    /// Talk in a group, with a pool that is looked after meanwhile
    ///
    /// What comes is shown as it comes. /help lists what else can be done.
    #[command(after_help = "Example: keypool chat friends")]
    Chat(ChatArgs),
    /// Send a message to a group
    #[command(after_help = "Example: keypool send friends 'hello, everybody'")]
    Send(SendArgs),
    /// Fetch what came: messages, invitations, changes of groups
    #[command(after_help = "Example: keypool receive --wait 30 --json\n\nWhat was printed is not printed again.")]
    Receive(ReceiveArgs),
    /// Withdraw KeyPackages of this device from the server
    ///
    /// Invitations that use one of them fail. `keypool refresh` makes new ones.
    #[command(after_help = "Example: keypool revoke --all")]
    Revoke {
        /// Which, by their refs, as `keypool inventory` prints them
        #[arg(value_name = "REF", required_unless_present = "all", conflicts_with = "all")]
        refs: Vec<KeyPackageRef>,
        /// All that are available or reserved
        #[arg(long)]
        all: bool,
    },
    /// Change the signature key, and with it all KeyPackages
    ///
    /// Fills the pool anew and withdraws the old KeyPackages; their private keys stay for a day, for invitations that are
    /// under way. Run it when somebody may have seen this device's keys, or when two clients share its data.
    #[command(after_help = "Example: keypool rotate")]
    Rotate,
    /// Print this device's bearer token, which is a secret
    ///
    /// In Swagger UI, at /swagger-ui/ of the server, paste it under \"Authorize\".
    #[command(
        after_help = "Example: curl -H \"Authorization: Bearer $(keypool token)\" http://localhost:8080/keypackages/status"
    )]
    Token,
    /// Find out what is wrong, and say what to do
    ///
    /// Looks at the files, the keys, the server, the clocks, and whether this device and the server agree. Changes nothing.
    #[command(after_help = "Example: keypool doctor\n\nExits with 1 if something does not work.")]
    Doctor,
    /// Print the completions of a shell
    #[command(after_help = "Example: keypool completions bash > ~/.local/share/bash-completion/completions/keypool")]
    Completions {
        /// Which shell
        shell: Shell,
    },
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
    /// The token of another device of the user; for the first, what the server wants: an enrolment token, or one of its
    /// identity provider
    #[arg(long, value_name = "TOKEN", env = "KEYPOOL_USER_TOKEN", hide_env_values = true)]
    user_token: Option<SecretString>,
    /// A ciphersuite to have a pool of, by its number in RFC 9420; may be given several times
    #[arg(long, value_name = "NUMBER", value_parser = ciphersuite, default_values_t = [u16::from(CIPHERSUITE)])]
    ciphersuite: Vec<u16>,
    /// Encrypt the data directory, with a passphrase that is asked for if it is not given
    #[arg(long)]
    encrypt: bool,
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

/// Runs the `keypool` command with the program's arguments, and answers its exit code: 0 done, 1 failed, 2 wrong usage, 3 failed for now.
pub async fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args: Vec<OsString> = args.into_iter().collect();
    match Cli::try_parse_from(&args) {
        Ok(cli) => {
            let output = Output::new(cli.json);
            match run(cli, &output).await {
                Ok(code) => code,
                Err(error) => {
                    output.error(&error);
                    if error.is_retryable() { ExitCode::from(LATER) } else { ExitCode::FAILURE }
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

async fn run(cli: Cli, output: &Output) -> Result<ExitCode> {
    let Cli { data_dir, passphrase_file, timeout, command, .. } = cli;
    if let Command::Completions { shell } = command {
        clap_complete::generate(shell, &mut Cli::command(), "keypool", &mut io::stdout());
        return Ok(ExitCode::SUCCESS);
    }
    let directory = data_dir.map_or_else(default_data_dir, Ok)?;
    let passphrase = given_passphrase(passphrase_file.as_deref())?;
    let settings = Settings { passphrase, timeout: Duration::from_secs(timeout), ..Settings::default() };
    match command {
        Command::Init(args) => init(args, &directory, settings, output).await?,
        command => {
            let mut client = existing(&directory, settings)?;
            return with_device(command, &mut client, output).await;
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn init(args: InitArgs, directory: &Path, mut settings: Settings, output: &Output) -> Result<()> {
    let InitArgs { server, user, device, user_token, ciphersuite, encrypt } = args;
    settings.passphrase = match settings.passphrase {
        None if LocalStore::is_encrypted(directory)? => Some(asked_passphrase(directory, false)?),
        None if encrypt => Some(asked_passphrase(directory, true)?),
        given => given,
    };
    if is_in_the_clear(&server) {
        Output::is_in_the_clear(&server);
    }
    let ciphersuites = ciphersuite.into_iter().filter_map(|number| Ciphersuite::try_from(number).ok()).collect();
    let new = NewDevice { server, user, device, user_token, ciphersuites };
    let (client, report) = output
        .with_progress(|progress| async move { MlsClient::init(directory, &new, settings, &progress).await })
        .await?;
    output.initialised(client.identity(), &report);
    Ok(())
}

async fn with_device(command: Command, client: &mut MlsClient, output: &Output) -> Result<ExitCode> {
    match command {
        Command::Init(_) | Command::Completions { .. } => {}
        Command::Refresh => {
            let client = &*client;
            let report =
                output.with_progress(|progress| async move { client.refresh_key_packages(&progress).await }).await?;
            output.refreshed(&report);
        }
        Command::Rotate => {
            let client = &mut *client;
            let report = output.with_progress(|progress| async move { client.rotate(&progress).await }).await?;
            output.refreshed(&report);
        }
        Command::Status => output.status(&client.status().await?),
        Command::Inventory => output.inventory(&client.inventory().await?),
        Command::Audit { limit, before } => output.audit(&client.audit(before, limit).await?),
        Command::Reserve(ReserveArgs { user, device, ciphersuite, ttl }) => {
            let ttl = ttl.map(Duration::from_secs);
            output.reserved(&client.reserve(&user, device.as_ref(), ciphersuite, ttl).await?);
        }
        Command::Spend { reservation_id, group } => {
            output.spent(&client.spend(reservation_id, group.as_bytes()).await?);
        }
        Command::Group(command) => groups::group(command, client, output).await?,
        Command::Chat(args) => chat::run_client_loop(args, client, output).await?,
        Command::Send(args) => groups::send(args, client, output).await?,
        Command::Receive(args) => groups::receive(&args, client, output).await?,
        Command::Verify { user } => output.safety_number(&client.membership().safety_number(&user).await?),
        Command::Release { reservation_id } => output.released(&client.release(reservation_id).await?),
        Command::Revoke { refs, all } => output.revoked(&client.revoke((!all).then_some(refs)).await?),
        Command::Token => {
            if let Some(token) = client.identity().token() {
                output.token(token.expose_secret());
            }
        }
        Command::Doctor => {
            let checks = client.doctor().await;
            output.doctor(&checks);
            if checks.iter().any(|check| check.verdict == Verdict::Failure) {
                return Ok(ExitCode::FAILURE);
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Opens the device of a directory, and makes no directory where there is none.
fn existing(directory: &Path, mut settings: Settings) -> Result<MlsClient> {
    if !directory.is_dir() {
        return Err(Error::NotInitialised(directory.to_owned()));
    }
    settings.passphrase = match settings.passphrase {
        None if LocalStore::is_encrypted(directory)? => Some(asked_passphrase(directory, false)?),
        given => given,
    };
    MlsClient::open_with(directory, settings)
}

/// The passphrase of the file, or of the environment. A line's end is no part of it.
fn given_passphrase(file: Option<&Path>) -> Result<Option<SecretString>> {
    let Some(path) = file else {
        let passphrase = std::env::var("KEYPOOL_PASSPHRASE").ok().filter(|passphrase| !passphrase.is_empty());
        return Ok(passphrase.map(SecretString::from));
    };
    let text =
        fs::read_to_string(path).map_err(|source| Error::File { doing: "read", path: path.to_owned(), source })?;
    match text.trim_end_matches(['\r', '\n']) {
        "" => Err(Error::Usage(format!("{} holds no passphrase", path.display()))),
        passphrase => Ok(Some(passphrase.into())),
    }
}

/// Asks for the passphrase on a terminal; twice, if it is new.
fn asked_passphrase(directory: &Path, is_new: bool) -> Result<SecretString> {
    if !io::stdin().is_terminal() {
        return Err(if is_new {
            let how = "give it in KEYPOOL_PASSPHRASE or by --passphrase-file";
            Error::Usage(format!("there is no terminal to ask for a passphrase on: {how}"))
        } else {
            Error::Encrypted(directory.to_owned())
        });
    }
    let ask = |prompt: &str| {
        rpassword::prompt_password(prompt).map_err(|source| Error::File {
            doing: "ask for the passphrase of",
            path: directory.to_owned(),
            source,
        })
    };
    let passphrase = ask("Passphrase: ")?;
    if passphrase.is_empty() || is_new && ask("The same again: ")? != passphrase {
        return Err(Error::Usage("the passphrase is empty, or was not the same twice: nothing was made".to_owned()));
    }
    Ok(passphrase.into())
}

/// A ciphersuite that this client can generate KeyPackages of.
fn ciphersuite(number: &str) -> std::result::Result<u16, String> {
    match number.parse() {
        Ok(number @ 1..=3) => Ok(number),
        _ => Err("this client knows 1 (X25519, AES-128-GCM), 2 (P-256) and 3 (X25519, ChaCha20-Poly1305)".to_owned()),
    }
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
        .ok_or_else(|| Error::Usage("this machine names no data directory: choose one with --data-dir".to_owned()))
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
