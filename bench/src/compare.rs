//! Keypool through HTTP, and pgbench with one statement a reservation, in turns on the same PostgreSQL.

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use comfy_table::{Table, presets::UTF8_FULL_CONDENSED};
use indicatif::{ProgressBar, ProgressStyle};
use keypool_server::auth::Token;
use serde::Serialize;

use crate::{
    load::{self, Cast, Measured, What},
    postgres::Postgres,
    report::median,
};

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub rounds: u32,
    pub seconds: u64,
    pub users: u64,
    pub packages: u64,
    pub connections: usize,
}

/// One thing that was done both ways, round by round.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Rounds {
    /// Keypool's figure over the other's, of each round.
    pub ratios: Vec<f64>,
    /// Their median.
    pub ratio_median: f64,
    /// The other's figures.
    pub pgbench: Vec<f64>,
    /// Keypool's.
    pub keypool: Vec<f64>,
}

impl Rounds {
    fn add(&mut self, keypool: f64, other: f64) {
        self.ratios.push(keypool / other);
        self.keypool.push(keypool);
        self.pgbench.push(other);
        self.ratio_median = median(self.ratios.iter().copied());
    }
}

/// What the comparison found.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Findings {
    /// Reservations a second: `pgbench` has 16 clients, Keypool as many connections as were asked for.
    pub reserve: Rounds,
    /// Reserve and spend a second, over pgbench's reservations.
    pub invite: Rounds,
    /// Milliseconds of a reservation when nobody else asks: Keypool's median, pgbench's mean.
    pub alone: Rounds,
    /// Requests for a pool's status a second; `pgbench` is `/healthz` on the same connections.
    pub status: Rounds,
    /// Milliseconds that 99 of 100 reservations took at most, of each round.
    pub reserve_p99_ms: Vec<f64>,
    /// The server's memory after all of it, in megabytes.
    pub server_memory_mb: f64,
}

/// A server on a database, which ends when it is dropped.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The server that was built with this program.
fn program() -> Result<PathBuf> {
    let own = std::env::current_exe().context("this program is nowhere")?;
    let server = own.parent().unwrap_or(Path::new(".")).join("keypool-server");
    ensure!(server.is_file(), "there is no {}: cargo build --release --package keypool-server", server.display());
    Ok(server)
}

async fn serve(postgres: &Postgres) -> Result<(Server, String)> {
    let address = format!("127.0.0.1:{}", std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port());
    let mut command = Command::new(program()?);
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("KEYPOOL_")) {
        command.env_remove(name);
    }
    let child = command
        .env("KEYPOOL_DATABASE_URL", postgres.url())
        .env("KEYPOOL_LISTEN", &address)
        .env("KEYPOOL_LIMITS", "off")
        .env("KEYPOOL_LOG", "warn")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .context("cannot start keypool-server")?;
    let server = Server(child);
    for _ in 0..600 {
        if tokio::net::TcpStream::connect(&address).await.is_ok() {
            return Ok((server, address));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    anyhow::bail!("keypool-server does not listen on {address} after 30 s")
}

fn memory_mb(server: &Server) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.0.id())).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes = line.and_then(|line| line.trim().split(' ').next()?.parse::<f64>().ok());
    kilobytes.unwrap_or(f64::NAN) / 1e3
}

pub(crate) async fn measure(plan: Plan) -> Result<Findings> {
    let bar = ProgressBar::new(u64::from(plan.rounds) * 6 + 2);
    bar.set_style(ProgressStyle::with_template("[{bar:32}] {pos}/{len} {msg}")?.progress_chars("=> "));
    let step = |message: &str| {
        bar.set_message(message.to_owned());
        bar.inc(1);
    };
    step("PostgreSQL starts");
    let postgres = Postgres::start()?;
    let (server, address) = serve(&postgres).await?;
    step("the pools are filled");
    postgres.fill(plan.users, plan.packages)?;
    let mut tokens = Vec::new();
    for number in 0..plan.connections {
        let token = Token::generate().map_err(|failure| anyhow::anyhow!("{failure}"))?;
        postgres.add_adder(&format!("adder-{number}"), &token.hash())?;
        tokens.push(token.reveal().to_owned());
    }
    let cast = Arc::new(Cast { address, tokens, users: plan.users });
    let span = Duration::from_secs(plan.seconds);
    let keypool = async |what, connections| -> Result<Measured> { load::run(what, &cast, connections, span).await };
    // So that no round pays for the first plans and the cold caches.
    load::run(What::Reserve, &cast, plan.connections, Duration::from_secs(1)).await?;
    let mut findings = Findings::default();
    for _ in 0..plan.rounds {
        step("pgbench, 16 clients");
        let (reserved, _) = postgres.pgbench(plan.users, 16, plan.seconds)?;
        step("Keypool: reserve");
        let through_http = keypool(What::Reserve, plan.connections).await?;
        findings.reserve.add(through_http.rate(), reserved);
        findings.reserve_p99_ms.push(through_http.percentile(99.0));
        step("Keypool: reserve and spend");
        findings.invite.add(keypool(What::Invite, plan.connections).await?.rate(), reserved);
        step("one at a time");
        let (_, alone) = postgres.pgbench(plan.users, 1, plan.seconds.min(2))?;
        let through_http = load::run(What::Reserve, &cast, 1, Duration::from_secs(plan.seconds.min(2))).await?;
        findings.alone.add(through_http.percentile(50.0), alone);
        step("Keypool: status");
        let status = keypool(What::Status, plan.connections).await?;
        step("Keypool: healthz");
        findings.status.add(status.rate(), keypool(What::Health, plan.connections).await?.rate());
    }
    findings.server_memory_mb = memory_mb(&server);
    bar.finish_and_clear();
    Ok(findings)
}

pub(crate) fn table(findings: &Findings) -> String {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED).set_header(["", "Keypool", "other", "ratio", "lowest", "highest"]);
    for (name, rounds) in [
        ("reserve, a second; pgbench, one a statement", &findings.reserve),
        ("reserve and spend, a second; the same pgbench", &findings.invite),
        ("one reserve alone, ms; pgbench with one client", &findings.alone),
        ("status, a second; /healthz", &findings.status),
    ] {
        let figure = |values: &[f64]| format!("{:.2}", median(values.iter().copied()));
        let bound = |fold: fn(f64, f64) -> f64| rounds.ratios.iter().copied().reduce(fold).unwrap_or(f64::NAN);
        table.add_row([
            name.to_owned(),
            figure(&rounds.keypool),
            figure(&rounds.pgbench),
            format!("{:.2}", rounds.ratio_median),
            format!("{:.2}", bound(f64::min)),
            format!("{:.2}", bound(f64::max)),
        ]);
    }
    let p99 = median(findings.reserve_p99_ms.iter().copied());
    format!(
        "{table}\n99 of 100 reservations took {p99:.1} ms at most; the server has {:.0} MB",
        findings.server_memory_mb
    )
}
