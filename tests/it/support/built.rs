//! Programs that cargo builds.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{LazyLock, OnceLock},
};

use super::{as_from_a_shell, repository, without_settings};

/// The cargo that runs the tests.
pub fn cargo() -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    as_from_a_shell(&mut cargo);
    cargo
}

/// Builds programs of the workspace in this directory, for the tests. Answers where they are.
pub fn build(workspace: &Path, programs: &[&str], arguments: &[&str]) -> PathBuf {
    let mut command = cargo();
    // With the examples, since only then the dependencies have the features that they were built with for the tests.
    command.args(["build", "--quiet", "--locked", "--workspace", "--examples"]);
    for program in programs {
        command.args(["--bin", program]);
    }
    command.args(arguments);
    let status =
        command.current_dir(workspace).env("CARGO_TARGET_DIR", target()).stdin(Stdio::null()).status().unwrap();
    assert!(status.success(), "{programs:?} cannot be built in {}: {status}", workspace.display());
    target().join("debug")
}

/// The path of a program of this workspace, built when it is first asked for.
pub fn binary(name: &str) -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    let directory = BUILT.get_or_init(|| build(&repository(), &["keypool", "keypool-server", "keypool-verify"], &[]));
    directory.join(name)
}

/// A program of this workspace, which has the settings alone that a test gives it.
pub fn command(name: &str) -> Command {
    let mut command = Command::new(binary(name));
    // No test has it speak HTTPS, and reading all the machine's certificates takes longer than most of what it does.
    without_settings(&mut command).env("SSL_CERT_FILE", &*CERTIFICATE);
    command
}

/// A file with one certificate: without any, a program that can speak HTTPS does not start.
static CERTIFICATE: LazyLock<PathBuf> = LazyLock::new(|| {
    let (file, made) =
        (target().join("one-certificate.pem"), rcgen::generate_simple_self_signed(["localhost".to_owned()]));
    // Renamed into place: other test processes read it.
    let new = file.with_extension(std::process::id().to_string());
    fs::write(&new, made.unwrap().cert.pem()).unwrap();
    fs::rename(new, &file).unwrap();
    file
});

/// The path of one of the client library's examples.
pub fn example(name: &str) -> PathBuf {
    binary("examples").join(name)
}

/// The target directory that this test was built into.
pub fn target() -> PathBuf {
    // target/debug/deps/it-…
    std::env::current_exe().unwrap().ancestors().nth(3).unwrap().to_owned()
}
