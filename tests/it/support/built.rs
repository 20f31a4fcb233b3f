//! What cargo builds.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
};

/// The cargo that runs the tests.
pub fn cargo() -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    as_from_a_shell(&mut cargo);
    cargo
}

/// Takes out of its environment what cargo says there of the package under test: build scripts go by it, and would build anew
/// what is built already.
pub fn as_from_a_shell(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_MANIFEST_") || text.starts_with("CARGO_PKG_") {
            command.env_remove(name);
        }
    }
}

/// Builds programs of the workspace in this directory, for the tests.
pub fn build(workspace: &Path, programs: &[&str]) {
    let mut command = cargo();
    // With the examples, since only then the dependencies have the features that they were built with for the tests.
    command.args(["build", "--quiet", "--locked", "--workspace", "--examples"]);
    for program in programs {
        command.args(["--bin", program]);
    }
    let status =
        command.current_dir(workspace).env("CARGO_TARGET_DIR", target()).stdin(Stdio::null()).status().unwrap();
    assert!(status.success(), "{programs:?} cannot be built in {}: {status}", workspace.display());
}

/// The path of a program of this workspace, built when it is first asked for.
pub fn binary(name: &str) -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    let directory = BUILT.get_or_init(|| {
        build(Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap(), &["keypool", "keypool-server"]);
        target().join("debug")
    });
    directory.join(name)
}

/// The path of one of the client library's examples.
pub fn example(name: &str) -> PathBuf {
    binary("examples").join(name)
}

/// The target directory that this test was built into.
pub fn target() -> PathBuf {
    // target/debug/deps/it-…
    std::env::current_exe().unwrap().ancestors().nth(3).unwrap().to_owned()
}
