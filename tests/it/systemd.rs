//! The systemd unit, as far as it can be checked without systemd: what it says, and a server with what it gives.

use std::{
    collections::BTreeSet,
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use rstest::rstest;
use serde_json::Value;

use crate::{
    readme::blocks_of,
    support::{ADMIN_TOKEN, Database, Http, ServerProcess, binary, output, repository, tools::run},
};

const UNIT: &str = "deploy/systemd/keypool-server.service";

fn read(path: &str) -> String {
    fs::read_to_string(repository().join(path)).unwrap()
}

/// The values of a setting of the unit, which may stand there more than once.
fn values<'a>(unit: &'a str, setting: &str) -> Vec<&'a str> {
    unit.lines().filter_map(|line| line.strip_prefix(setting)?.strip_prefix('=')).collect()
}

/// The value of a setting that the unit has once.
fn value<'a>(unit: &'a str, setting: &str) -> &'a str {
    let [value] = values(unit, setting)[..] else { panic!("{setting} is in {UNIT} once") };
    value
}

/// The unit in a directory, with the program that the tests have.
fn installed(directory: &Path) -> PathBuf {
    let unit = read(UNIT);
    let program = value(&unit, "ExecStart");
    assert_eq!(program, "/usr/local/bin/keypool-server");
    let file = directory.join("keypool-server.service");
    fs::write(&file, unit.replace(program, binary("keypool-server").to_str().unwrap())).unwrap();
    file
}

const REMEDY: &str = "install systemd with `sudo apt-get install systemd`";

#[test]
fn systemd_understands_the_unit() {
    let directory = tempfile::tempdir().unwrap();
    let unit = installed(directory.path());
    // It also speaks of faults in the machine's own units.
    let said = run(Command::new("systemd-analyze").arg("verify").arg(&unit), REMEDY);
    assert!(!said.contains("keypool"), "{said}");
}

/// The needs of a server, by the names that `systemd-analyze security` gives its checks.
const NEEDED: [&str; 8] = [
    "RootDirectory=/RootImage=",
    "PrivateNetwork=",
    "IPAddressDeny=",
    "RestrictAddressFamilies=~AF_(INET|INET6)",
    // PostgreSQL's socket.
    "RestrictAddressFamilies=~AF_UNIX",
    // It lowers the priority of validation.
    "SystemCallFilter=~@resources",
    // It reads the machine's memory.
    "ProcSubset=",
    // ProtectClock lets a service read the clock's device.
    "DeviceAllow=",
];

#[test]
fn the_unit_forbids_all_that_a_server_does_not_need() {
    let directory = tempfile::tempdir().unwrap();
    let unit = installed(directory.path());
    let security = ["security", "--no-pager", "--offline=true", "--json=short"];
    let checks = output(Command::new("systemd-analyze").args(security).arg(&unit));
    let checks: Vec<Value> = serde_json::from_str(&checks).unwrap();
    assert!(checks.len() > 50, "{checks:?}");
    let allowed = checks.iter().filter(|check| check["set"] == false).map(|check| check["name"].as_str().unwrap());
    let allowed: Vec<_> = allowed.filter(|name| !NEEDED.contains(name)).collect();
    assert!(allowed.is_empty(), "{UNIT} does not forbid {allowed:?}");
}

/// The page for operators installs what the unit needs.
#[test]
fn the_installation_makes_what_the_unit_reads() {
    let (unit, page) = (read(UNIT), read("docs/operations.md"));
    let commands = blocks_of(&page, "```sh systemd");
    let (directory, _) = value(&unit, "ExecStart").rsplit_once('/').unwrap();
    let sources = values(&unit, "LoadCredential").into_iter().map(|credential| credential.split_once(':').unwrap().1);
    let configuration = values(&unit, "Environment").into_iter().find_map(|line| line.strip_prefix("KEYPOOL_CONFIG="));
    let state = format!("/var/lib/{}/", value(&unit, "StateDirectory"));
    let user = format!(" {}\n", value(&unit, "User"));
    for made in sources.chain([directory, &state, &user, configuration.unwrap().rsplit_once('/').unwrap().0, UNIT]) {
        assert!(commands.contains(made), "{made} is not in the commands that install the unit:\n{commands}");
    }
}

#[test]
fn the_unit_limits_a_server_as_compose_and_the_image_do() {
    let (unit, compose, dockerfile) = (read(UNIT), read("docker-compose.yml"), read("Dockerfile"));
    let server = compose.split_once("x-server: &server\n").unwrap().1.split_once("\nservices:").unwrap().0;
    for line in [
        format!("mem_limit: {}", value(&unit, "MemoryMax").to_lowercase()),
        format!("nofile: {{soft: {0}, hard: {0}}}", value(&unit, "LimitNOFILE")),
        format!("stop_grace_period: {}", value(&unit, "TimeoutStopSec")),
    ] {
        assert!(server.contains(&line), "docker-compose.yml has no `{line}`");
    }
    let of_malloc = |text: &str| -> BTreeSet<_> {
        text.split_whitespace().filter_map(|word| Some(word.get(word.find("MALLOC_")?..)?.to_owned())).collect()
    };
    assert_eq!(of_malloc(&unit), of_malloc(&dockerfile));
    assert_eq!(of_malloc(&unit).len(), 3);
}

#[rstest]
#[tokio::test]
async fn a_server_runs_with_what_the_unit_gives_it(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let (unit, place, credentials) = (read(UNIT), db.fresh(), tempfile::tempdir().unwrap());
    for credential in values(&unit, "LoadCredential") {
        let (name, source) = credential.split_once(':').unwrap();
        let secret = match source {
            "/etc/keypool/database-url" => &place.url,
            "/etc/keypool/admin-token" => ADMIN_TOKEN,
            other => panic!("this test has no {other}"),
        };
        // A shell's `echo` ends the line.
        fs::write(credentials.path().join(name), format!("{secret}\n")).unwrap();
        // systemd lets the service read it, and nothing more.
        fs::set_permissions(credentials.path().join(name), Permissions::from_mode(0o400)).unwrap();
    }
    let installed = |text: &str| {
        let configuration = repository().join("deploy/keypool.toml");
        text.replace("%d", credentials.path().to_str().unwrap())
            .replace("/etc/keypool/keypool.toml", configuration.to_str().unwrap())
    };
    let environment: Vec<_> = values(&unit, "Environment")
        .into_iter()
        .flat_map(str::split_whitespace)
        .map(|variable| variable.split_once('=').unwrap())
        .collect();
    let mut server = ServerProcess::spawn_with(&place, |command| {
        command.env_remove("KEYPOOL_DATABASE_URL");
        command.envs(environment.iter().map(|(name, value)| (name, installed(value))));
    });
    server.ready().await;
    let operator = Http::new(&server.base).with_token(ADMIN_TOKEN);
    operator.get("/admin/pools").await.ok();
    let file = place.url.strip_prefix("sqlite://");
    assert!(file.is_none_or(|file| Path::new(file).exists()), "the database is elsewhere");
    server.signal("TERM");
    assert!(server.ended().await.success());
}
