//! The `keypool` command: one device, on the library `keypool-client`.

mod answers;
mod chat;
mod colour;
mod command;
mod devices;
mod doctor;
mod error;
mod groups;
mod incoming;
mod link;
mod log;
mod log_text;
mod output;
mod passphrase;
mod retries;
mod schema;
mod secrets;
mod sentences;
mod tables;
mod text;

use std::process::ExitCode;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    command::main(std::env::args_os()).await
}
