//! Uploads through HTTP, validation on all cores, and reservations beside uploads.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use base64::{Engine, prelude::BASE64_STANDARD};
use clap::Args;
use keypool_bench::Validator;
use serde::Serialize;

use crate::{
    compare, cores, load,
    pace::Pace,
    packages, people,
    postgres::Postgres,
    progress,
    report::{Rounds, as_f64, rounds},
    requests::{Cast, Kind, Mix, Upload},
    stage::Stage,
};

/// KeyPackages in an upload into an empty pool.
const BATCH: usize = 32;

/// The sizes of the measurement.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct Plan {
    #[command(flatten)]
    of: compare::Plan,
    /// Real KeyPackages, which are uploaded: each once
    #[arg(long, value_name = "NUMBER", default_value_t = 400_000, value_parser = clap::value_parser!(u32).range(1..))]
    real: u32,
}

/// The findings.
#[derive(Debug, Serialize)]
pub(crate) struct Findings {
    /// KeyPackages a second: uploaded, and validated on all `cores` of this machine.
    uploads: Rounds,
    /// The 99th percentile of reservations in milliseconds: beside uploads at half of their highest rate, and alone.
    reserve_p99_ms: Rounds,
    /// Requests that got another status than 200.
    refused: u64,
    /// The server's memory at the end, in megabytes.
    server_memory_mb: f64,
}

/// A device that uploads a single time.
#[derive(Debug)]
struct Uploader {
    user: String,
    packages: Vec<String>,
    upload: Upload,
}

pub(crate) async fn measure(plan: Plan) -> Result<Findings> {
    let count = usize::try_from(plan.real)?.div_ceil(BATCH);
    let names: Vec<_> = (1..=count).map(|number| format!("uploader-{number}")).collect();
    let packages = packages::kept(&names.iter().map(|name| (name.clone(), BATCH)).collect::<Vec<_>>())?;
    let postgres = Postgres::start()?;
    let amounts = (plan.of.users, plan.of.packages);
    let stage = Stage::set(&postgres, "keypool", amounts, plan.of.connections).await?;
    let tokens = people::register(&stage.server.address, &names).await?;
    let uploaders = names.into_iter().zip(packages).zip(tokens).map(|((user, packages), token)| {
        let upload = Upload::new(&token, &packages)?;
        Ok(Uploader { user, packages, upload })
    });
    let uploaders = uploaders.collect::<Result<Vec<_>>>()?;
    stage.warm_up().await?;
    let mut findings = Findings {
        uploads: Rounds::between(["keypool", "cores"]),
        reserve_p99_ms: Rounds::between(["beside_uploads", "alone"]),
        refused: 0,
        server_memory_mb: f64::NAN,
    };
    let bar = progress::bar(u64::from(plan.of.rounds) * 4, "")?;
    for part in uploaders.chunks(count.div_ceil(usize::try_from(plan.of.rounds)?)) {
        round(&mut findings, &stage, part, Duration::from_secs(plan.of.seconds), |message| {
            bar.set_message(message);
            bar.inc(1);
        })
        .await?;
    }
    bar.finish_and_clear();
    findings.server_memory_mb = stage.server.memory_mb();
    Ok(findings)
}

async fn round(
    findings: &mut Findings,
    stage: &Stage<'_>,
    uploaders: &[Uploader],
    span: Duration,
    step: impl Fn(&'static str),
) -> Result<()> {
    // The measurement of the highest rate may end early; the one at half of it must not.
    let (fast, steady) = uploaders.split_at(uploaders.len() / 2);
    step("validate on all cores");
    let validated = validate(uploaders)?;
    step("uploads");
    let peak = load::run(Mix::UPLOAD, &cast(stage, fast), stage.connections, Pace::Full(span)).await?;
    findings.uploads.add(peak.rate() * as_f64(BATCH as u64), validated);
    step("reserve");
    let alone = stage.run(Mix::RESERVE, Pace::Full(span)).await?;
    step("reserve beside uploads");
    let (steady, rate) = (cast(stage, steady), peak.rate() / 2.0);
    let (beside, uploads) = tokio::try_join!(
        stage.run(Mix::RESERVE, Pace::Full(span)),
        load::run(Mix::UPLOAD, &steady, stage.connections, Pace::Fixed(rate, span))
    )?;
    ensure!(!uploads.used_up, "the KeyPackages were used up before the time was: give more of them with --real");
    findings.reserve_p99_ms.add(beside.percentile(Kind::Reserve, 99.0), alone.percentile(Kind::Reserve, 99.0));
    findings.refused += [peak, alone, beside, uploads].iter().map(load::Measured::refused).sum::<u64>();
    Ok(())
}

/// The uploading devices, on the stage's server.
fn cast(stage: &Stage<'_>, uploaders: &[Uploader]) -> Arc<Cast> {
    let uploads = uploaders.iter().map(|uploader| uploader.upload.clone()).collect();
    Cast::new(stage.server.address.clone(), Vec::new(), ("", 0)).with_uploads(uploads).into()
}

/// How many KeyPackages all cores validate a second, without HTTP and database.
fn validate(uploaders: &[Uploader]) -> Result<f64> {
    let decode = |package: &String| BASE64_STANDARD.decode(package).context("a KeyPackage is not in base64");
    let bytes: Vec<Vec<_>> =
        uploaders.iter().map(|one| one.packages.iter().map(decode).collect()).collect::<Result<_>>()?;
    let validator = Validator::new()?;
    let begun = Instant::now();
    cores::on_all(uploaders.len(), |number| {
        for package in &bytes[number] {
            std::hint::black_box(validator.validate(package.clone(), &uploaders[number].user)?);
        }
        Ok(())
    })?;
    Ok(as_f64(u64::try_from(uploaders.len() * BATCH)?) / begun.elapsed().as_secs_f64())
}

pub(crate) fn text(findings: &Findings) -> String {
    let table = rounds([
        ("KeyPackages uploaded, a second; validated on all cores", &findings.uploads),
        ("99 of 100 reservations beside uploads, ms at most; alone", &findings.reserve_p99_ms),
    ]);
    format!("{table}\n{} were refused; the server has {:.0} MB", findings.refused, findings.server_memory_mb)
}
