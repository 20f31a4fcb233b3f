//! `keypool-server`: serves unless it is told otherwise.

use std::{
    io::{self, IsTerminal, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, anyhow, ensure};
use clap::{Parser, Subcommand};
use keypool_openapi::UserName;
use keypool_server::{
    Server, app,
    auth::Token,
    clock::{Clock, SystemClock},
    config::{Config, ConfigFlags, LogFormat},
    store::Store,
};
use tracing_subscriber::EnvFilter;

/// How long a server may take to say that it is well.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(3);

/// The KeyPackage directory of an MLS messenger.
///
/// Without a subcommand it serves, on 127.0.0.1:8080 and from ./keypool.db where nothing else is configured. Settings
/// come from flags, from KEYPOOL_* variables, and from a TOML file, in that order.
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
    Migrate,
    /// Make an enrolment token: whoever has it can register a device of the user, once
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
    /// Print the OpenAPI document
    Openapi,
    /// Ask the server at the configured address whether it is ready: exit code 0 if it is
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
        Command::Migrate => migrate(&config()?),
        Command::Enrol { user, valid_for } => enrol(&config()?, &user, valid_for),
        Command::Openapi => say(&app::openapi_json(&config()?)?),
        Command::Healthcheck => healthcheck(config()?.listen),
    }
}

fn migrate(config: &Config) -> anyhow::Result<()> {
    start_log(config)?;
    Store::connect(config).with_context(|| format!("cannot migrate {}", config.database_url))?;
    say(&format!("{} is up to date\n", config.database_url))
}

fn enrol(config: &Config, user: &UserName, valid_for: Duration) -> anyhow::Result<()> {
    let (token, now) = (Token::enrolment().map_err(|failure| anyhow!("{failure}"))?, SystemClock.now());
    let expires_at =
        now.checked_add(valid_for).context("the token would outlast time itself: choose a shorter time")?;
    let store = Store::connect(config).with_context(|| format!("cannot open {}", config.database_url))?;
    store.enrol(user, &token.hash(), now, expires_at)?;
    say(&format!("{}\n", token.reveal()))
}

fn serve(config: Config) -> anyhow::Result<()> {
    start_log(&config)?;
    actix_web::rt::System::new().block_on(serve_until_stopped(config))
}

async fn serve_until_stopped(config: Config) -> anyhow::Result<()> {
    let server = Server::start(config, Arc::new(SystemClock)).await?;
    let (address, database) = (server.address(), server.database());
    say(&format!(
        "keypool-server listening on http://{address} (database: {database}; Swagger UI: http://{address}/swagger-ui/)\n"
    ))?;
    server.run_until_stopped().await
}

fn say(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).context("cannot write to standard output")
}

fn start_log(config: &Config) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&config.log).context("the setting log cannot be read")?;
    let subscriber =
        tracing_subscriber::fmt().with_env_filter(filter).with_ansi(io::stderr().is_terminal()).with_writer(io::stderr);
    match config.log_format {
        LogFormat::Text => subscriber.init(),
        LogFormat::Json => subscriber.json().init(),
    }
    Ok(())
}

fn healthcheck(listen: SocketAddr) -> anyhow::Result<()> {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    let address = SocketAddr::new(ip, listen.port());
    let answer = ask_ready(address).with_context(|| format!("no server answers at {address}"))?;
    let status = answer.lines().next().unwrap_or_default();
    ensure!(status.split(' ').nth(1) == Some("200"), "the server at {address} is not ready: it answers `{status}`");
    say(&format!("the server at {address} is ready\n"))
}

fn ask_ready(address: SocketAddr) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, HEALTH_TIMEOUT)?;
    stream.set_read_timeout(Some(HEALTH_TIMEOUT))?;
    stream.set_write_timeout(Some(HEALTH_TIMEOUT))?;
    write!(stream, "GET /readyz HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}
