//! The transparency log as a checker reads it that shares no code with it: `examples/python-log-checker`.

use std::{fs, process::Command};

use rstest::rstest;

use crate::support::{example, repository, tools};

/// Writes a log of so many leaves, and answers its directory and key.
fn log(leaves: usize) -> (tempfile::TempDir, String) {
    let directory = tempfile::tempdir().unwrap();
    let output = Command::new(example("small_log")).arg(directory.path()).arg(leaves.to_string()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    (directory, String::from_utf8(output.stdout).unwrap().trim().to_owned())
}

fn check(directory: &std::path::Path, key: &str, more: &[&str]) -> std::process::Output {
    let mut checker = tools::python("python");
    checker.arg(repository().join("examples/python-log-checker/check_log.py")).arg(directory).args(["--vkey", key]);
    checker.args(more).output().unwrap()
}

/// Sizes around a full tile, and with a second level of tiles.
#[rstest]
fn a_checker_written_from_the_standards_verifies_a_log(#[values(2, 255, 256, 257, 1_000, 66_000)] leaves: usize) {
    let (directory, key) = log(leaves);
    let older = directory.path().join("checkpoint.old");
    for entry in [0, leaves / 2, leaves] {
        let arguments = ["--entry", &entry.to_string(), "--older", older.to_str().unwrap()];
        let output = check(directory.path(), &key, &arguments);
        assert!(output.status.success(), "{entry} of {leaves}: {output:?}");
    }
}

/// The checker is no rubber stamp: a changed tile, an older checkpoint of another log and another key are refused.
#[test]
fn a_checker_written_from_the_standards_refuses_what_was_changed() {
    let ((directory, key), (other, _)) = (log(1_000), log(2_000));
    // It is larger than this log.
    let foreign = other.path().join("checkpoint");
    assert!(!check(directory.path(), &key, &["--older", foreign.to_str().unwrap()]).status.success());
    let unknown = key.replace('+', "-");
    assert!(!check(directory.path(), &unknown, &[]).status.success());
    let tile = directory.path().join("tile/0/000");
    let mut bytes = fs::read(&tile).unwrap();
    bytes[40] ^= 1;
    fs::write(&tile, bytes).unwrap();
    // The path of the first entry has the hash of the second.
    assert!(!check(directory.path(), &key, &["--entry", "0"]).status.success());
}
