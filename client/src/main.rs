//! The `keypool` command.

use std::process::ExitCode;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    keypool_client::cli::main(std::env::args_os()).await
}
