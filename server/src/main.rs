//! `keypool-server`: serves unless it is told otherwise.

use std::{
    io::{self, IsTerminal, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use clap::{Parser, Subcommand};
use keypool_openapi::UserName;
use keypool_server::{
    Opening, app,
    capacity::raise_descriptors,
    clock::{Clock, SystemClock},
    config::{Config, ConfigFlags, LogFormat},
    metrics::Metrics,
    stop::{Signals, in_a_thread},
    store::{ServerLock, Store},
    tls,
};
use keypool_validation::token::Token;
use reqwest::StatusCode;
use tracing_subscriber::EnvFilter;

/// How long a server may take to say that it is well.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(3);

/// The KeyPackage directory of an MLS messenger.
///
/// Without a subcommand it serves, on 127.0.0.1:8080 and from ./keypool.db where nothing else is configured. Settings
/// come from flags, from KEYPOOL_* variables, and from a TOML file, in that order; `keypool-server config` prints them
/// all. SIGTERM and SIGINT stop it when what runs is finished, a second one at once.
#[derive(Parser)]
#[command(name = "keypool-server", version)]
struct Cli {
    #[command(flatten)]
    flags: ConfigFlags,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Serve (what it does without a subcommand)
    Serve,
    /// Bring the database's schema up to date, and end
    ///
    /// The server does so itself when it starts. Use this to do it beforehand, or with an account that may change the
    /// schema where the server's own may not.
    Migrate,
    /// Make an enrolment token, which registers a device of the user, once
    ///
    /// In the registration mode `token` a new user needs one. In every mode it lets a user back in who has lost all
    /// devices. The token is printed, and kept nowhere else.
    #[command(after_help = "Example: keypool-server enrol --user alice --valid-for 2days")]
    Enrol {
        /// The user
        #[arg(long, value_name = "NAME")]
        user: UserName,
        /// How long the token can be used
        #[arg(long, value_name = "DURATION", default_value = "1day", value_parser = humantime::parse_duration)]
        valid_for: Duration,
    },
    /// Withdraw all that may have been handed out, because the database was restored from a backup
    ///
    /// A backup has as available what was reserved and spent after it was made. A server does this by itself when it finds
    /// its PostgreSQL restored from a dump, recovered to a point in time or promoted, or its SQLite file behind the
    /// generation file beside it. Use it after every other kind of restore, before you start the servers: a snapshot of a
    /// volume or a machine does not look restored. Last resorts stay; each device fills its pool anew at its next refresh.
    Fence,
    /// Print every setting as it results from flags, KEYPOOL_* variables, file and defaults
    ///
    /// The output is a TOML file that --config reads, but for secrets, which stand as ***. What is wrong with a setting
    /// is said here as it would be when serving, so this checks a configuration before it is used.
    #[command(after_help = "Example: keypool-server --config keypool.toml config")]
    Config,
    /// Print the OpenAPI document
    Openapi,
    /// Ask the server at the configured address whether it is ready: exit code 0 if it is
    ///
    /// Asks GET /readyz over HTTP, or over HTTPS where a certificate is configured, and gives it 3 seconds: for a
    /// container's health check, with the settings that the server has.
    Healthcheck,
}

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<()> {
    let config = || Config::load(&cli.flags);
    match cli.command.unwrap_or(Command::Serve) {
        Command::Serve => serve(config()?),
        Command::Migrate => on_the_database(config()?, migrate),
        Command::Enrol { user, valid_for } => on_the_database(config()?, move |config| enrol(config, &user, valid_for)),
        Command::Fence => on_the_database(config()?, fence),
        Command::Config => say(&settings(&config()?)?),
        Command::Openapi => say(&app::openapi_json(&config()?)?),
        Command::Healthcheck => actix_web::rt::System::new().block_on(healthcheck(config()?)),
    }
}

/// Runs a command that needs the database. A signal ends it at once: without a handler, the first process of a container
/// ignores signals.
fn on_the_database(
    config: Config,
    command: impl FnOnce(&Config) -> anyhow::Result<()> + Send + 'static,
) -> anyhow::Result<()> {
    start_log(&config)?;
    actix_web::rt::System::new().block_on(async {
        let mut signals = Signals::take()?;
        tokio::select! {
            done = in_a_thread(move || command(&config)) => done,
            signal = signals.next() => bail!("stopped by {signal} before it was done"),
        }
    })
}

fn migrate(config: &Config) -> anyhow::Result<()> {
    open(config)?;
    say(&format!("{} is up to date\n", config.database_url))
}

/// The database, with its schema up to date.
fn open(config: &Config) -> anyhow::Result<Store> {
    let store = Store::connect(config, Arc::new(Metrics::new()?), Arc::new(SystemClock));
    store.with_context(|| format!("cannot open {}", config.database_url))
}

fn enrol(config: &Config, user: &UserName, valid_for: Duration) -> anyhow::Result<()> {
    let (token, now) = (Token::enrolment().context("the operating system gives no random bytes")?, SystemClock.now());
    let expires_at = now.checked_add(valid_for).context("`--valid-for` is too long")?;
    open(config)?.enrol(user, &token.hash(), now, expires_at)?;
    say(&format!("{}\n", token.reveal()))
}

fn fence(config: &Config) -> anyhow::Result<()> {
    let withdrawn = open(config)?.fence()?;
    say(&format!(
        "{} is fenced: {withdrawn} KeyPackages are withdrawn; each device fills its pool anew at its next refresh\n",
        config.database_url
    ))
}

fn serve(config: Config) -> anyhow::Result<()> {
    start_log(&config)?;
    for variable in Config::unknown_variables() {
        tracing::warn!(variable, "a variable of the environment is not a setting: is its name right?");
    }
    raise_descriptors();
    actix_web::rt::System::new().block_on(serve_until_stopped(config))
}

async fn serve_until_stopped(config: Config) -> anyhow::Result<()> {
    let mut signals = Signals::take()?;
    let opening = Opening::begin(&config)?;
    let _lock = ServerLock::take(&config.database_url)?;
    let server = tokio::select! {
        opened = opening.finish(config, Arc::new(SystemClock)) => opened?,
        signal = signals.next() => {
            tracing::info!(signal, "stopped before the database was open");
            return Ok(());
        }
    };
    let (url, database) = (server.url(), server.database());
    say(&format!("keypool-server listening on {url} (database: {database}; Swagger UI: {url}/swagger-ui/)\n"))?;
    server.run_until_stopped(signals).await
}

/// The settings in TOML; what is not set, TOML has no value for. Fails if the server could not use their files.
fn settings(config: &Config) -> anyhow::Result<String> {
    tls::server_config(config)?;
    let set = toml::Table::try_from(config).context("the settings cannot be written as TOML")?;
    let mut settings = toml::to_string(config).context("the settings cannot be written as TOML")?;
    let keys = Config::variables().into_iter().map(|name| name.trim_start_matches("KEYPOOL_").to_lowercase());
    settings.extend(keys.filter(|key| !set.contains_key(key)).map(|key| format!("# {key} is not set\n")));
    let unknown = Config::unknown_variables().into_iter();
    settings.extend(unknown.map(|name| format!("# the variable {name} is not a setting\n")));
    Ok(settings)
}

fn say(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).context("cannot write to standard output")
}

fn start_log(config: &Config) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&config.log).context("the setting log cannot be read")?;
    // What is not HTTP is no error of this server's: `connections::http_stream` says what it was answered.
    let filter = filter.add_directive("actix_http::h1::dispatcher=off".parse()?);
    let subscriber =
        tracing_subscriber::fmt().with_env_filter(filter).with_ansi(io::stderr().is_terminal()).with_writer(io::stderr);
    match config.log_format {
        LogFormat::Text => subscriber.init(),
        LogFormat::Json => subscriber.json().init(),
    }
    Ok(())
}

async fn healthcheck(config: Config) -> anyhow::Result<()> {
    let url = readiness(&config);
    let answer = async { Ok::<_, anyhow::Error>(own_client()?.get(&url).send().await?.status()) };
    let status = answer.await.with_context(|| format!("no server answers at {url}"))?;
    ensure!(status == StatusCode::OK, "the server is not ready: {url} answers {status}");
    say(&format!("the server is ready: {url} answers {status}\n"))
}

/// Where the server that has this configuration says whether it is ready.
fn readiness(config: &Config) -> String {
    let ip = match config.listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    let scheme = if config.tls_certificate.is_some() { "https" } else { "http" };
    format!("{scheme}://{}/readyz", SocketAddr::new(ip, config.listen.port()))
}

/// A client for the server on this very machine, and for nothing else.
fn own_client() -> reqwest::Result<reqwest::Client> {
    tls::use_ring();
    reqwest::Client::builder()
        .no_proxy()
        .timeout(HEALTH_TIMEOUT)
        // The certificate names the host that clients ask for, which is not the address that is asked here; and nothing
        // secret is sent.
        .danger_accept_invalid_certs(true)
        .build()
}
