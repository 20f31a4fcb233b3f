//! `docker compose up` and then the README, to the letter.

use std::{fs, os::unix::fs::symlink, process::Stdio};

use serde_json::Value;

use crate::{
    readme::{Clone, blocks, blocks_of},
    support::{compose::understand_compose, repository},
};

/// The files that `docker compose` needs of a clone.
pub fn prepare(clone: &Clone) {
    for name in ["docker-compose.yml", "deploy", ".env.example"] {
        symlink(repository().join(name), clone.directory().join(name)).unwrap();
    }
    understand_compose(&clone.directory().join("shims"));
}

/// Takes the deployment down again.
pub struct Down<'a>(pub &'a Clone);

impl Drop for Down<'_> {
    fn drop(&mut self) {
        let _ = self.0.shell("docker compose down --volumes --timeout 1").status();
    }
}

/// Runs what the README's or the page's reader runs, after the README's own `export PATH`.
fn run(clone: &Clone, script: &str) -> String {
    let script = format!("export PATH=\"$PWD/target/debug:$PATH\"\n{script}");
    let output = clone.shell(&script).stdin(Stdio::null()).output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}\n{err}");
    out.into_owned()
}

#[test]
#[ignore = "needs containers"]
fn the_quick_start_works_against_containers_as_it_is_written() {
    let clone = Clone::new();
    prepare(&clone);
    let _down = Down(&clone);
    let said = run(&clone, &blocks("```sh compose"));
    assert!(said.contains("zoe/main"), "the command in the image shows no pool of Zoe's: {said}");
    let said = run(&clone, &blocks("```sh quickstart"));
    assert!(said.contains(r#""state":"spent""#), "{said}");
    assert!(clone.directory().join("alice").exists());

    // The operator's page: a KeyPackage that was spent after the backup is not handed out after the restore.
    let page = fs::read_to_string(repository().join("docs/operations.md")).unwrap();
    run(&clone, &blocks_of(&page, "```sh backup"));
    let spend = "RESERVATION=$(keypool --data-dir bob --json reserve alice | sed -n 's/.*\"reservation_id\": \"\\(.*\\)\",/\\1/p')\n\
                 keypool --data-dir bob spend \"$RESERVATION\" --group friends";
    run(&clone, spend);
    run(&clone, &blocks_of(&page, "```sh restore"));
    // Where the proxy does not see a server yet, the command waits and asks again.
    let refreshed: Value = serde_json::from_str(&run(&clone, "keypool --data-dir alice --json refresh")).unwrap();
    assert_eq!(refreshed["warnings"][0]["type"], "server-restored", "{refreshed}");
    assert_eq!(refreshed["pool"]["fresh"], 32, "{refreshed}");
}
