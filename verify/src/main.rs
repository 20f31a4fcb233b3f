//! Checks proofs, hand-outs, evidence and whole logs of Keypool servers.

mod audit;
mod command_line;
mod commands;
mod http;
mod output;
mod source;
mod state;
mod tags;

use std::process::ExitCode;

use clap::Parser;

use crate::{
    command_line::{Command, CommandLine},
    output::{Found, Report},
};

fn main() -> ExitCode {
    let CommandLine { json, command } = CommandLine::parse();
    let result = match &command {
        Command::Proof(args) => commands::proof(args),
        Command::Handouts(args) => commands::handouts(args),
        Command::Audit(args) => commands::audit(args, &|report| report.print(json)),
        Command::Evidence(args) => commands::evidence(args),
    };
    let (report, exit_code) = match result {
        Ok(report) => {
            let exit_code = report.result.exit_code();
            (report, exit_code)
        }
        Err(error) => {
            let report = Report::new(Found::CannotTell, &error);
            let exit_code = if error.is_usage() { ExitCode::from(2) } else { report.result.exit_code() };
            (report, exit_code)
        }
    };
    report.print(json);
    exit_code
}
