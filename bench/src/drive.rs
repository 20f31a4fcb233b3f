//! The load driver: one kind of request or a mix of them, on real KeyPackages, against any server.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};
use keypool_client::{Clock, SystemClock};
use keypool_openapi::MAX_UPLOAD_BATCH;

use crate::{
    latency::Latencies,
    load,
    pace::Pace,
    packages, people, plot,
    postgres::Postgres,
    progress,
    requests::{Cast, Mix, Upload},
    seed::ADDERS_POOL,
    server::Server,
    sqlite,
};

/// The load and its target.
#[derive(Args, Clone, Debug)]
#[expect(clippy::doc_markdown, reason = "clap prints these lines as they stand")]
pub(crate) struct Plan {
    /// A running server, with KEYPOOL_REGISTRATION=open and KEYPOOL_LIMITS=off [default: start one]
    #[arg(long, value_name = "URL")]
    server: Option<String>,
    /// The database of the server that this program starts
    #[arg(long, value_enum, default_value_t = Backend::Postgres, conflicts_with = "server")]
    database: Backend,
    /// Connections to the server, each with its own device
    #[arg(long, value_name = "NUMBER", default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..))]
    connections: u16,
    /// Duration in seconds
    #[arg(long, value_name = "NUMBER", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..))]
    seconds: u64,
    /// Requests a second over all connections, at fixed times; a latency counts from the time when the request was due
    /// [default: each connection sends its next request after the answer]
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    rate: Option<u32>,
    /// Users whose KeyPackages are reserved or uploaded
    #[arg(long, value_name = "NUMBER", default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..))]
    users: u32,
    /// Real KeyPackages of all users: in their pools; to be uploaded with `upload`; one half each with `mixed`
    #[arg(long, value_name = "NUMBER", default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1..))]
    packages: u32,
    /// Draw the latencies by percentile into this file
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
}

/// The kind of database.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Backend {
    /// A PostgreSQL that this program starts
    Postgres,
    /// An SQLite file
    Sqlite,
}

/// The measured requests, and the split of the KeyPackages.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    mix: Mix,
    /// The share of each user's KeyPackages that is uploaded during the measurement.
    uploaded: Share,
    /// The KeyPackages in each upload.
    batch: usize,
}

#[derive(Clone, Copy, Debug)]
enum Share {
    None,
    Half,
    All,
}

impl Load {
    pub(crate) const RESERVE: Self = Self { mix: Mix::RESERVE, uploaded: Share::None, batch: 1 };
    pub(crate) const SPEND: Self = Self { mix: Mix::SPEND, uploaded: Share::None, batch: 1 };
    pub(crate) const STATUS: Self = Self { mix: Mix::STATUS, uploaded: Share::None, batch: 1 };
    /// The size of an upload into an empty pool.
    pub(crate) const UPLOAD: Self = Self { mix: Mix::UPLOAD, uploaded: Share::All, batch: 32 };
    /// There are four reservations for each upload, which replaces them.
    pub(crate) const MIXED: Self = Self { mix: Mix::MIXED, uploaded: Share::Half, batch: 4 };

    /// How many of a user's KeyPackages are in the pool before the measurement.
    fn at_first(self, each: usize) -> usize {
        match self.uploaded {
            Share::None => each,
            Share::Half => each / 2,
            Share::All => 0,
        }
    }
}

/// Measures a load on a running server, or on a new one.
pub(crate) async fn measure(load: Load, plan: &Plan) -> Result<Latencies> {
    if let Some(url) = &plan.server {
        // A server may know the users of an earlier run, with other keys.
        let run = format!("load-{}-", SystemClock.now().as_second());
        return drive(load, plan, address(url)?, &run, packages::make).await;
    }
    let on_own = async |url: &str| {
        let server = Server::start(url).await?;
        let found = drive(load, plan, server.address.clone(), "", packages::kept).await?;
        Ok(found.with_memory(server.memory_mb()))
    };
    match plan.database {
        Backend::Postgres => {
            let postgres = Postgres::start()?;
            on_own(&postgres.database("keypool")?.url).await
        }
        Backend::Sqlite => on_own(&sqlite::File::create()?.url()).await,
    }
}

/// The address in a server's URL.
fn address(url: &str) -> Result<String> {
    match url.trim_end_matches('/').split_once("://") {
        Some(("http", address)) if address.contains(':') => Ok(address.to_owned()),
        Some(("http", host)) => Ok(format!("{host}:80")),
        _ => bail!("{url} is no http:// URL: TLS would be measured with the server, so name a server without it"),
    }
}

async fn drive(
    load: Load,
    plan: &Plan,
    address: String,
    run: &str,
    make: fn(&[packages::Wanted]) -> Result<Vec<Vec<String>>>,
) -> Result<Latencies> {
    let cast = cast(load, plan, address, run, make).await?.into();
    let span = Duration::from_secs(plan.seconds);
    let pace = plan.rate.map_or(Pace::Full(span), |rate| Pace::Fixed(rate.into(), span));
    let begun = Instant::now();
    let bar = progress::bar(plan.seconds, "seconds are measured")?;
    let measured = load::run(load.mix, &cast, plan.connections.into(), pace);
    let measured = progress::follow(bar, || begun.elapsed().as_secs(), measured).await?;
    if let Some(file) = &plan.plot {
        plot::draw(file, &measured).with_context(|| format!("cannot draw {}", file.display()))?;
    }
    Ok(Latencies::of(&measured))
}

/// Registers all users and fills their pools.
async fn cast(
    load: Load,
    plan: &Plan,
    address: String,
    run: &str,
    make: fn(&[packages::Wanted]) -> Result<Vec<Vec<String>>>,
) -> Result<Cast> {
    let (users, each) = (plan.users.try_into()?, (plan.packages / plan.users).try_into()?);
    ensure!(each > 0, "{} --packages are too few for {users} users: each needs one", plan.packages);
    let adders = usize::from(plan.connections);
    let prefix = format!("{run}user-");
    let wanted: Vec<_> = (1..=adders)
        .map(|number| (format!("{run}adder-{number}"), ADDERS_POOL))
        .chain((1..=users).map(|number: usize| (format!("{prefix}{number}"), each)))
        .collect();
    let packages = make(&wanted)?;
    let names: Vec<_> = wanted.into_iter().map(|(name, _)| name).collect();
    let tokens = people::register(&address, &names).await?;
    let (mut at_first, mut measured) = (Vec::new(), Vec::new());
    for (number, (token, packages)) in tokens.iter().zip(&packages).enumerate() {
        let of_adder = number < adders;
        let first = if of_adder { packages.len() } else { load.at_first(packages.len()) };
        let (first, later) = packages.split_at(first);
        for part in first.chunks(MAX_UPLOAD_BATCH) {
            at_first.push(Upload::new(token, part)?);
        }
        measured.push(later.chunks(load.batch).map(|part| Upload::new(token, part)).collect::<Result<Vec<_>>>()?);
    }
    people::fill(&address, at_first).await?;
    let adders = tokens.into_iter().take(adders).collect();
    Ok(Cast::new(address, adders, (&prefix, plan.users.into())).with_uploads(in_turns(measured)))
}

/// The first upload of each device, then the second of each, and so on, so that devices upload at the same time.
fn in_turns<T>(lists: Vec<Vec<T>>) -> Vec<T> {
    let mut lists: Vec<_> = lists.into_iter().map(Vec::into_iter).collect();
    let mut all = Vec::new();
    while !lists.is_empty() {
        lists.retain_mut(|list| list.next().map(|one| all.push(one)).is_some());
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_that_of_plain_http() {
        assert_eq!(address("http://127.0.0.1:8080/").unwrap(), "127.0.0.1:8080");
        assert_eq!(address("http://keypool").unwrap(), "keypool:80");
        assert!(address("https://keypool").is_err() && address("keypool:8080").is_err());
    }

    #[test]
    fn devices_upload_in_turns() {
        assert_eq!(in_turns(vec![vec![1, 2, 3], vec![], vec![4, 5]]), [1, 4, 2, 5, 3]);
    }
}
