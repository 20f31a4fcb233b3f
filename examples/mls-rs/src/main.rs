//! Two devices on mls-rs meet on a Keypool server, and talk:
//!
//! ```sh
//! cargo run --package keypool-example-mls-rs -- http://127.0.0.1:8080
//! ```

#![expect(clippy::print_stdout, reason = "that is the output")]

use anyhow::{Context, Result};
use keypool_example_mls_rs::{Received, register};

#[tokio::main]
async fn main() -> Result<()> {
    let server = std::env::args().nth(1).context("usage: keypool-example-mls-rs SERVER")?;
    let http = reqwest::Client::new();
    let mut carol = register(http.clone(), &server, ("carol", "mls-rs"), false).await?;
    let mut dave = register(http, &server, ("dave", "mls-rs"), false).await?;
    dave.upload(8).await?;
    carol.found()?;
    carol.invite("dave").await?;
    anyhow::ensure!(dave.receive().await? == [Received::Joined]);
    carol.send("hello").await?;
    println!("dave received {:?}", dave.receive().await?);
    Ok(())
}
