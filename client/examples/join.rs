//! Joins a group from a Welcome in a file, and says who is in it: `cargo run --example join -- DATA_DIR WELCOME_FILE`.

#![expect(clippy::print_stdout, reason = "an example says what it does")]

use std::{env, error::Error, fs, path::Path};

use keypool_client::MlsClient;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let [data_dir, welcome] =
        env::args().skip(1).collect::<Vec<_>>().try_into().map_err(|_| "give DATA_DIR WELCOME_FILE")?;
    let client = MlsClient::open(Path::new(&data_dir))?;
    let group = client.join(&fs::read(welcome)?).await?;
    println!("{} members in epoch {}", group.members().count(), group.epoch());
    Ok(())
}
