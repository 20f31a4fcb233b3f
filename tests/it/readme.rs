//! Runs the README's commands exactly as they are written.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{BufRead, BufReader},
    os::unix::{fs::PermissionsExt, fs::symlink, process::CommandExt},
    path::Path,
    process::{Child, Command, Stdio},
};

use keypool_server::config::{Config, ConfigFlags};

use crate::support::{as_from_a_shell, output, repository, without_settings};

fn readme() -> String {
    fs::read_to_string(repository().join("README.md")).unwrap()
}

/// The README's code blocks whose fence carries this line, joined in order.
pub fn blocks(fence: &str) -> String {
    blocks_of(&readme(), fence)
}

/// The same of another text.
pub fn blocks_of(text: &str, fence: &str) -> String {
    let mut found = String::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if line == fence {
            lines.by_ref().take_while(|line| *line != "```").for_each(|line| found.extend([line, "\n"]));
        }
    }
    assert!(!found.is_empty(), "there is no block {fence}");
    found
}

/// A directory that looks like a clone to the README's commands, and is deleted afterwards: cargo works on this
/// repository, and all that the commands write stays in here.
pub struct Clone {
    directory: tempfile::TempDir,
    path: String,
}

impl Clone {
    pub fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let executable = std::env::current_exe().unwrap();
        let target = executable.ancestors().nth(3).unwrap();
        symlink(target, directory.path().join("target")).unwrap();
        // Cargo looks for its configuration, the profile among it, where it is called.
        symlink(repository().join(".cargo"), directory.path().join(".cargo")).unwrap();
        let shims = directory.path().join("shims");
        fs::create_dir(&shims).unwrap();
        let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
        let manifest = repository().join("Cargo.toml");
        let shim = format!(
            "#!/bin/sh\ncommand=$1\nshift\nexec '{cargo}' \"$command\" --locked --quiet --target-dir '{}' --manifest-path '{}' \"$@\"\n",
            target.display(),
            manifest.display()
        );
        fs::write(shims.join("cargo"), shim).unwrap();
        fs::set_permissions(shims.join("cargo"), fs::Permissions::from_mode(0o755)).unwrap();
        let path = format!("{}:{}", shims.display(), std::env::var("PATH").unwrap());
        Self { directory, path }
    }

    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    pub fn shell(&self, script: &str) -> Command {
        let mut command = Command::new("bash");
        command.args(["-euo", "pipefail", "-c", script]).current_dir(self.directory.path()).env("PATH", &self.path);
        without_settings(as_from_a_shell(&mut command));
        command
    }
}

/// Ends a process and all that it started.
struct Background(Child);

impl Drop for Background {
    fn drop(&mut self) {
        let group = format!("-{}", self.0.id());
        let _ = Command::new("kill").args(["-KILL", "--", &group]).status();
        let _ = self.0.wait();
    }
}

#[test]
fn the_quick_start_works_as_it_is_written() {
    let clone = Clone::new();
    let mut server = clone
        .shell(&blocks("```sh server"))
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let said = server.stdout.take().unwrap();
    let _server = Background(server);
    let first = BufReader::new(said).lines().next().expect("the server ended without a word").unwrap();
    assert!(first.starts_with("keypool-server listening on http://127.0.0.1:8080 "), "{first}");
    let done = clone.shell(&blocks("```sh quickstart")).stdin(Stdio::null()).output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    assert!(done.status.success(), "{out}\n{err}");
    assert!(out.contains(r#""state":"spent""#), "{out}");
    // One spent by the command, one by curl; the first reservation of the command is still held.
    let status = out.lines().last().unwrap();
    for part in [r#""spent":2"#, r#""reserved":1"#, r#""fresh":29"#, r#""total":32"#, r#""health":"good""#] {
        assert!(status.contains(part), "no {part} in {status}");
    }
    let guide = fs::read_to_string(repository().join("docs/writing-a-client.md")).unwrap();
    fs::write(clone.directory().join("reconcile.py"), blocks_of(&guide, "```python reconcile")).unwrap();
    let script = "TOKEN=$(target/debug/keypool --data-dir alice token) python3 reconcile.py";
    assert_eq!(output(&mut clone.shell(script)), "the same\n");
}

#[test]
fn the_configuration_table_is_the_configuration() {
    let readme = readme();
    let cell = |cell: &str| cell.trim().trim_matches('`').to_owned();
    let rows: BTreeMap<String, String> = readme
        .lines()
        .filter(|line| line.starts_with("| `KEYPOOL_"))
        .map(|line| line.split('|').skip(1).map(cell).collect::<Vec<_>>())
        .map(|cells| (cells[0].clone(), cells[1].clone()))
        .collect();
    assert_eq!(rows.keys().cloned().collect::<BTreeSet<_>>(), Config::variables().into_iter().collect());
    let json = |config: Config| serde_json::to_value(config).unwrap();
    for (variable, default) in rows {
        let set = Config::load_from(&ConfigFlags::default(), [(variable.clone(), default)].into()).unwrap();
        assert_eq!(json(set), json(Config::default()), "the default of {variable}");
    }
}
