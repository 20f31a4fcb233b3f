//! The settings in an operator's `.env` reach the servers.

use std::{fs, process::Stdio};

use super::quickstart::prepare;
use crate::readme::Clone;

/// Sets some settings in `.env`, one of them empty, as `.env.example` has it.
const LINES: &str = "POSTGRES_PASSWORD=secret\nGRAFANA_PASSWORD=secret\nKEYPOOL_REGISTRATION=token\n\
                     KEYPOOL_MIN_REMAINING=3h\nKEYPOOL_LIMITS=\n";

fn config_of(clone: &Clone, service: &str) -> String {
    let script = format!("docker compose run --rm --no-deps -T {service} keypool-server config");
    let output = clone.shell(&script).stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
#[ignore = "needs containers"]
fn what_is_in_the_env_file_takes_effect() {
    let clone = Clone::new();
    prepare(&clone);
    let _down = super::quickstart::Down(&clone);
    let lines = |config: &str, names: &[&str]| -> Vec<String> {
        let is_named = |line: &&str| names.iter().any(|name| line.starts_with(&format!("{name} = ")));
        config.lines().filter(is_named).map(str::to_owned).collect()
    };
    let names = ["registration", "min_remaining", "limits", "database_url", "listen"];
    let (postgres, sqlite) = ("postgres://keypool@postgres/keypool", "sqlite:///data/keypool.db");
    for (service, database) in [("server", postgres), ("sqlite", sqlite)] {
        fs::write(clone.directory().join(".env"), LINES).unwrap();
        let mut set = lines(&config_of(&clone, service), &names);
        set.sort();
        let url = format!("database_url = \"{database}\"");
        let expected = [
            &url,
            "limits = \"on\"",
            "listen = \"0.0.0.0:8080\"",
            "min_remaining = \"3h\"",
            "registration = \"token\"",
        ];
        assert_eq!(set, expected);
        fs::write(clone.directory().join(".env"), "POSTGRES_PASSWORD=secret\nGRAFANA_PASSWORD=secret\n").unwrap();
        let unset = lines(&config_of(&clone, service), &["registration", "min_remaining", "database_url"]);
        assert!(unset.contains(&"registration = \"open\"".to_owned()) && unset.contains(&url), "{unset:?}");
    }
}
