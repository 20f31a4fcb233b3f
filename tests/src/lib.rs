//! Shared by the tests and the program that runs them.

use std::{env, process::Command};

/// Takes out of a command's environment what cargo says there of the package that it runs: build scripts go by it, and would
/// build anew what is built already.
pub fn as_from_a_shell(command: &mut Command) -> &mut Command {
    without(command, &["CARGO_MANIFEST_", "CARGO_PKG_"])
}

/// Takes Keypool's settings out of a command's environment.
pub fn without_settings(command: &mut Command) -> &mut Command {
    without(command, &["KEYPOOL_"])
}

/// Takes the variables whose names begin so out of a command's environment.
fn without<'a>(command: &'a mut Command, prefixes: &[&str]) -> &'a mut Command {
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        if prefixes.iter().any(|prefix| text.starts_with(prefix)) {
            command.env_remove(name);
        }
    }
    command
}
