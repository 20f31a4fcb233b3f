//! Requests with a transparency log and without, in turns; and the time from a hand-out until a checkpoint has it.

use std::{
    fs,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use clap::Args;
use keypool_openapi::{FoundStep, ProofOf, ProofsRequest, ProofsResponse, ReserveRequest, ReserveResponse};
use serde::Serialize;
use tempfile::TempDir;

use crate::{
    drive::Backend,
    http::Connection,
    load::{self, Measured},
    pace::Pace,
    packages,
    postgres::Postgres,
    progress,
    report::{self, Rounds, Waits},
    requests::{Cast, Mix},
    server::Server,
    sqlite,
};

/// How often the time until a checkpoint is looked for.
const LOOK: Duration = Duration::from_millis(20);

/// The sizes of the measurement.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct Plan {
    /// The database; on SQLite a server always has a log, so only receipts are measured in turns
    #[arg(long, value_enum, default_value_t = Backend::Postgres)]
    database: Backend,
    /// Number of rounds
    #[arg(long, value_name = "NUMBER", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Duration of each measurement, in seconds
    #[arg(long, value_name = "NUMBER", default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..))]
    seconds: u64,
    /// Users of the KeyPackages
    #[arg(long, value_name = "NUMBER", default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..))]
    users: u64,
    /// Number of KeyPackages, all with the bytes of one real KeyPackage
    #[arg(long, value_name = "NUMBER", default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..))]
    packages: u64,
    /// Connections to Keypool
    #[arg(long, value_name = "NUMBER", default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..))]
    connections: u16,
}

/// Requests a second of one kind: with the log over without, and with receipts over the log without.
#[derive(Debug, Serialize)]
pub(crate) struct Turns {
    #[serde(skip)]
    what: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    log: Option<Rounds>,
    #[serde(skip_serializing_if = "Option::is_none")]
    receipts: Option<Rounds>,
}

/// The findings.
#[derive(Debug, Serialize)]
pub(crate) struct Findings {
    reserve: Turns,
    spend: Turns,
    mixed: Turns,
    /// The time from a hand-out until a checkpoint has it, while the server reserves as fast as it can.
    lag: Waits,
    /// The time that 99 of 100 hand-outs need at most, in milliseconds.
    lag_p99_ms: f64,
    /// Requests that got another status than 200.
    refused: u64,
}

/// A server with its callers.
struct Side {
    plain: Arc<Cast>,
    with_receipts: Arc<Cast>,
    _server: Server,
}

impl Side {
    fn new(plan: Plan, server: Server, adders: Vec<String>) -> Self {
        let cast = Cast::new(server.address.clone(), adders, ("user-", plan.users));
        Self { with_receipts: cast.with_receipts().into(), plain: cast.into(), _server: server }
    }
}

/// Both servers, with what they stand on.
struct Sides<'a> {
    logging: Side,
    without: Option<Side>,
    plan: Plan,
    _files: (TempDir, Option<sqlite::File>, Option<&'a Postgres>),
}

impl<'a> Sides<'a> {
    async fn set(plan: Plan, postgres: Option<&'a Postgres>) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("keypool-bench-").tempdir().context("no directory")?;
        let key = directory.path().join("log-key");
        fs::write(&key, "07".repeat(32)).context("cannot write the key of a log")?;
        let bytes = packages::one()?;
        if let Some(postgres) = postgres {
            let (one, other) = (postgres.database("logging")?, postgres.database("without")?);
            let mut adders = Vec::new();
            for database in [&one, &other] {
                database.fill(plan.users, plan.packages)?;
                database.name(&bytes)?;
                adders.push(database.add_adders(plan.connections.into())?);
            }
            let of_other = adders.pop().unwrap_or_default();
            let logging = Side::new(plan, Server::start_with_log(&one.url, &key).await?, adders.concat());
            let without = Some(Side::new(plan, Server::start(&other.url).await?, of_other));
            return Ok(Self { logging, without, plan, _files: (directory, None, Some(postgres)) });
        }
        let file = sqlite::File::create()?;
        file.fill(plan.users, plan.packages)?;
        file.name(&bytes)?;
        let adders = file.add_adders(plan.connections.into())?;
        let logging = Side::new(plan, Server::start_with_log(&file.url(), &key).await?, adders);
        Ok(Self { logging, without: None, plan, _files: (directory, Some(file), None) })
    }

    async fn run(&self, mix: Mix, cast: &Arc<Cast>) -> Result<Measured> {
        let span = Duration::from_secs(self.plan.seconds);
        load::run(mix, cast, self.plan.connections.into(), Pace::Full(span)).await
    }

    /// One round of one kind of request. Returns how many were refused.
    async fn round(&self, mix: Mix, turns: &mut Turns) -> Result<u64> {
        let logging = self.run(mix, &self.logging.plain).await?;
        let mut refused = logging.refused();
        if let (Some(without), Some(rounds)) = (&self.without, &mut turns.log) {
            let without = self.run(mix, &without.plain).await?;
            rounds.add(logging.rate(), without.rate());
            refused += without.refused();
        }
        if let Some(rounds) = &mut turns.receipts {
            let receipts = self.run(mix, &self.logging.with_receipts).await?;
            rounds.add(receipts.rate(), logging.rate());
            refused += receipts.refused();
        }
        Ok(refused)
    }

    fn turns(&self, what: &'static str, has_receipts: bool) -> Turns {
        let log = self.without.as_ref().map(|_| Rounds::between(["log", "without"]));
        Turns { what, log, receipts: has_receipts.then(|| Rounds::between(["receipts", "log"])) }
    }
}

pub(crate) async fn measure(plan: Plan) -> Result<Findings> {
    let postgres = (plan.database == Backend::Postgres).then(Postgres::start).transpose()?;
    let sides = Sides::set(plan, postgres.as_ref()).await?;
    let mut kinds = [
        (Mix::RESERVE, sides.turns("reserve", true)),
        (Mix::SPEND, sides.turns("reserve and spend", true)),
        (Mix::WITHOUT_UPLOADS, sides.turns("status, reserve and spend", false)),
    ];
    let bar = progress::bar(u64::from(plan.rounds) * 4, "")?;
    // Warm-up, so that no round includes the first plans and cold caches.
    for side in [Some(&sides.logging), sides.without.as_ref()].into_iter().flatten() {
        load::run(Mix::SPEND, &side.plain, plan.connections.into(), Pace::Full(Duration::from_secs(1))).await?;
    }
    let (mut refused, mut lags) = (0, Vec::new());
    for _ in 0..plan.rounds {
        for (mix, turns) in &mut kinds {
            bar.set_message(turns.what);
            refused += sides.round(*mix, turns).await?;
            bar.inc(1);
        }
        bar.set_message("the time until a checkpoint");
        let (cast, span) = (Arc::clone(&sides.logging.plain), Duration::from_secs(plan.seconds));
        let looking = tokio::spawn(async move { lags_of(&cast, span).await });
        sides.run(Mix::RESERVE, &sides.logging.plain).await?;
        lags.extend(looking.await.context("the look for checkpoints ended")??);
        bar.inc(1);
    }
    bar.finish_and_clear();
    let [(_, reserve), (_, spend), (_, mixed)] = kinds;
    lags.sort_unstable();
    let p99 = lags.get((lags.len() * 99).div_ceil(100).saturating_sub(1)).copied().unwrap_or_default();
    let lag_p99_ms = p99.as_secs_f64() * 1e3;
    Ok(Findings { reserve, spend, mixed, lag: Waits::of(&lags), lag_p99_ms, refused })
}

/// Reserves one KeyPackage after the other, and waits until a checkpoint has each.
async fn lags_of(cast: &Cast, span: Duration) -> Result<Vec<Duration>> {
    let mut connection = Connection::open(&cast.address).await?;
    let token = cast.adders.first().map(String::as_str);
    let (begun, mut lags, mut user) = (Instant::now(), Vec::new(), 0);
    while begun.elapsed() < span {
        user = user % cast.users + 1;
        let request = ReserveRequest::of(format!("{}{user}", cast.prefix).parse()?);
        // The load may have emptied this pool.
        let Ok(answer) = connection.post::<ReserveResponse>("/keypackages/reserve", token, &request).await else {
            continue;
        };
        let Some(reservation) = answer.reservations.first() else { continue };
        let reserved = Instant::now();
        let of = ProofOf { reservation_id: Some(reservation.reservation_id), ..ProofOf::default() };
        let request = ProofsRequest { of: vec![of], receipt: false, since: None };
        loop {
            let answer: ProofsResponse = connection.post("/log/proofs", token, &request).await?;
            if !answer.proofs.iter().any(|proof| proof.found == FoundStep::Pending) {
                break;
            }
            tokio::time::sleep(LOOK).await;
        }
        lags.push(reserved.elapsed());
    }
    Ok(lags)
}

pub(crate) fn text(findings: &Findings) -> String {
    let all = [&findings.reserve, &findings.spend, &findings.mixed];
    let rows: Vec<_> = all
        .iter()
        .flat_map(|turns| {
            let log = turns.log.as_ref().map(|rounds| (format!("{}, a second; without the log", turns.what), rounds));
            let with = format!("{} with receipts, a second; with the log alone", turns.what);
            log.into_iter().chain(turns.receipts.as_ref().map(|rounds| (with, rounds)))
        })
        .collect();
    let table = report::rounds(rows.iter().map(|(text, rounds)| (text.as_str(), *rounds)));
    let Waits { median_ms, longest_ms, rounds } = &findings.lag;
    format!(
        "{table}\na checkpoint has a hand-out after {median_ms:.0} ms (median of {rounds}), 99 of 100 after {:.0} ms, all after \
         {longest_ms:.0} ms; {} requests were refused",
        findings.lag_p99_ms, findings.refused
    )
}
