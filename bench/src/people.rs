//! Registering users and filling their pools, through HTTP.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use indicatif::ProgressBar;
use keypool_bench::DEVICE;
use keypool_openapi::{RegisterRequest, RegisterResponse};

use crate::{
    http::Connection,
    load,
    pace::Pace,
    progress,
    requests::{Cast, Mix, Upload},
};

/// Connections for the registration: few, since it is not measured.
const CONNECTIONS: usize = 16;

/// Registers a device for each user, and returns their tokens in the same order.
pub(crate) async fn register(address: &str, users: &[String]) -> Result<Vec<String>> {
    let bar = progress::bar(u64::try_from(users.len())?, "users are registered")?;
    let parts = users.chunks(users.len().div_ceil(CONNECTIONS).max(1));
    let tasks: Vec<_> =
        parts.map(|part| tokio::spawn(register_in_turn(address.to_owned(), part.to_vec(), bar.clone()))).collect();
    let mut tokens = Vec::new();
    for task in tasks {
        tokens.extend(task.await.context("a connection's task ended")??);
    }
    bar.finish_and_clear();
    Ok(tokens)
}

async fn register_in_turn(address: String, users: Vec<String>, bar: ProgressBar) -> Result<Vec<String>> {
    let mut connection = Connection::open(&address).await?;
    let mut tokens = Vec::new();
    for user in users {
        let request = RegisterRequest { user: user.parse()?, device: DEVICE.parse()? };
        let answer: RegisterResponse = connection
            .post("/devices", None, &request)
            .await
            .context("cannot register: the server has to run with KEYPOOL_REGISTRATION=open and KEYPOOL_LIMITS=off")?;
        tokens.push(answer.token);
        bar.inc(1);
    }
    Ok(tokens)
}

/// Sends uploads that are not measured.
pub(crate) async fn fill(address: &str, uploads: Vec<Upload>) -> Result<()> {
    let count = uploads.len();
    if count == 0 {
        return Ok(());
    }
    let bar = progress::bar(u64::try_from(count)?, "uploads fill the pools")?;
    let cast = Cast::new(address.to_owned(), Vec::new(), ("", 0)).with_uploads(uploads);
    let cast = Arc::new(cast);
    let sent = || u64::try_from(count - cast.uploads_left()).unwrap_or(u64::MAX);
    let filled = load::run(Mix::UPLOAD, &cast, CONNECTIONS, Pace::Count(u64::try_from(count)?));
    let filled = progress::follow(bar, sent, filled).await?;
    ensure!(filled.refused() == 0, "the server refused {} of {count} uploads that fill the pools", filled.refused());
    Ok(())
}
