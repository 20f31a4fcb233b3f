//! `cargo test-all`: runs every test of the workspace, and says how many ran on which database.
//!
//! Arguments go to `cargo test`. Without any, a database that ran no test is a failure. With `KEYPOOL_TEST_TARGET=compose`
//! those tests run that can run against the containers of docker-compose.yml, and those that need them.

use std::{
    env,
    ffi::OsString,
    io::{self, BufRead, BufReader, Write},
    num::NonZero,
    process::{Command, ExitCode, Stdio},
    thread,
};

use anyhow::Context;
use keypool_tests::as_from_a_shell;

/// The tests that need nothing but HTTP, which are so named by the type of their argument, and those of containers alone. Out
/// of the whole workspace, so that they are those that were built for all tests.
const CONTAINERS: &[&str] = &["--workspace", "--test", "it", "--", "--include-ignored", "Anywhere__", "containers::"];

/// How many tests run at once for each core: with one, the processors idle a fifth of the time.
const TESTS_A_CORE: usize = 2;

/// Tests that ran, by what became of them.
#[derive(Default)]
struct Tally {
    passed: usize,
    failed: usize,
}

impl Tally {
    fn count(&mut self, passed: bool) {
        if passed {
            self.passed += 1;
        } else {
            self.failed += 1;
        }
    }

    fn ran(&self) -> usize {
        self.passed + self.failed
    }
}

fn main() -> anyhow::Result<ExitCode> {
    let arguments: Vec<_> = env::args_os().skip(1).collect();
    let everything = arguments.is_empty();
    let mut tests = cargo_test(&arguments).spawn().context("cannot run cargo: is it in PATH?")?;
    let output = tests.stdout.take().context("cargo has no output")?;
    let (mut sqlite, mut postgres, mut all) = (Tally::default(), Tally::default(), Tally::default());
    let mut out = io::stdout().lock();
    for line in BufReader::new(output).lines() {
        let line = line.context("cargo's output cannot be read")?;
        writeln!(out, "{line}")?;
        let Some((name, passed)) = outcome(&line) else { continue };
        all.count(passed);
        if name.contains("__Sqlite") {
            sqlite.count(passed);
        }
        if name.contains("__Postgres") {
            postgres.count(passed);
        }
    }
    let success = tests.wait().context("cargo did not end")?.success();
    writeln!(out, "\nOn SQLite: {} tests passed, {} failed", sqlite.passed, sqlite.failed)?;
    writeln!(out, "On PostgreSQL: {} tests passed, {} failed", postgres.passed, postgres.failed)?;
    writeln!(out, "{} passed, {} failed", all.passed, all.failed)?;
    let complete = !everything || (sqlite.ran() > 0 && postgres.ran() > 0);
    if !complete {
        writeln!(out, "error: a database ran no test at all")?;
    }
    Ok(if success && complete { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn cargo_test(arguments: &[OsString]) -> Command {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    let of_containers = arguments.is_empty() && env::var_os("KEYPOOL_TEST_TARGET").is_some();
    cargo.args(["test", "--locked", "--no-fail-fast"]);
    cargo.args(if of_containers { CONTAINERS } else { &["--workspace"] }).args(arguments).stdout(Stdio::piped());
    if env::var_os("RUST_TEST_THREADS").is_none() {
        let cores = thread::available_parallelism().map_or(1, NonZero::get);
        cargo.env("RUST_TEST_THREADS", (TESTS_A_CORE * cores).to_string());
    }
    as_from_a_shell(&mut cargo);
    cargo
}

/// The name of a test and whether it passed, from a line of libtest.
fn outcome(line: &str) -> Option<(&str, bool)> {
    let (name, outcome) = line.strip_prefix("test ")?.rsplit_once(" ... ")?;
    match outcome {
        "ok" => Some((name, true)),
        "FAILED" => Some((name, false)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_tests_that_ran_are_counted() {
        assert_eq!(outcome("test a::db_1_Database__Sqlite ... ok"), Some(("a::db_1_Database__Sqlite", true)));
        assert_eq!(outcome("test a ... FAILED"), Some(("a", false)));
        assert_eq!(outcome("test a ... ignored"), None);
        assert_eq!(outcome("test result: ok. 3 passed; 0 failed"), None);
    }
}
