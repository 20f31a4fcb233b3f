//! The deployment of docker-compose.yml, for tests that run against containers: up once, gone with the test process
//! however that ends.

use std::{
    env, fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::OnceLock,
    time::{Duration, Instant},
};

use tokio::sync::{Mutex, MutexGuard};

use super::{ADMIN_TOKEN, Database, Http, PATIENCE, Place, postgres::output, repository, server::free_port};

/// A password that would break a URL.
const PASSWORD: &str = "p@ss/w:rd%41";

const REMEDY: &str = "these tests need Docker with docker-compose, and the images: `docker compose build`";

/// Takes the deployment down when the pipe to it closes, which the end of the test process does.
const WATCHDOG: &str =
    r#"trap '' INT TERM HUP; cat >/dev/null; "$@" down --volumes --timeout 1; rm -rf "$KEYPOOL_DATA""#;

/// The tables that are emptied between tests, in an order in which no row refers to a deleted one. The witness of a table, and its device and
/// user, stay: without them, a server takes the database for a restored one.
const TABLES: [&str; 12] = [
    "deliveries",
    "envelopes",
    "commits",
    "idempotency_keys",
    "audit_events",
    "signature_keys",
    "hpke_keys",
    "key_packages WHERE device_id <> 0",
    "enrolments",
    "device_links",
    "devices WHERE id <> 0",
    "users WHERE name <> ''",
];

/// Whether the tests are to run against containers.
pub fn is_asked_for() -> bool {
    match env::var("KEYPOOL_TEST_TARGET").as_deref() {
        Err(_) => false,
        Ok("compose") => true,
        Ok(other) => panic!("KEYPOOL_TEST_TARGET is {other}: unset it, or set it to `compose`"),
    }
}

/// Containers of docker-compose.yml, which nobody else knows of.
#[derive(Debug)]
pub struct Compose {
    pub base: String,
    project: String,
    port: u16,
    data: PathBuf,
    _watchdog: Child,
}

impl Compose {
    /// Starts services, and waits until they serve.
    pub fn up(name: &str, services: &[&str]) -> Self {
        let port = free_port();
        let project = format!("keypool-{name}-{}", std::process::id());
        let data = tempfile::Builder::new().prefix("keypool-data-").tempdir().unwrap().keep();
        // The server in the container is another user.
        fs::set_permissions(&data, fs::Permissions::from_mode(0o777)).unwrap();
        let watchdog = watchdog(&project, port, &data);
        let base = format!("http://127.0.0.1:{port}");
        let deployment = Self { base, project, port, data, _watchdog: watchdog };
        deployment.run(&[&["up", "--detach", "--no-build"], services].concat());
        deployment
    }

    /// Runs a command of docker-compose that has to succeed, and returns its output.
    pub fn run(&self, args: &[&str]) -> String {
        output(self.command().args(args))
    }

    fn command(&self) -> Command {
        compose(&self.project, self.port, &self.data)
    }

    /// Runs a command of this deployment's operator, and returns its output.
    pub fn script(&self, script: &str) -> String {
        let shims = tempfile::tempdir().unwrap();
        understand_compose(shims.path());
        let path =
            env::join_paths([shims.path().to_owned()].into_iter().chain(env::split_paths(&env::var("PATH").unwrap())));
        let compose = self.command();
        let mut shell = Command::new("bash");
        shell.envs(compose.get_envs().filter_map(|(name, value)| Some((name, value?))));
        shell.env("COMPOSE_PROJECT_NAME", &self.project).env("PATH", path.unwrap());
        output(shell.current_dir(compose.get_current_dir().unwrap()).args(["-euo", "pipefail", "-c", script]))
    }

    /// The containers of a service.
    pub fn containers(&self, service: &str) -> Vec<String> {
        self.run(&["ps", "--quiet", service]).lines().map(str::to_owned).collect()
    }

    pub async fn ready(&self) {
        let (anyone, patience) = (Http::new(&self.base), Instant::now() + PATIENCE);
        while !anyone.is_ready().await {
            assert!(Instant::now() < patience, "the deployment is not ready: {}", self.run(&["logs", "--tail", "50"]));
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Runs SQL in its PostgreSQL, and answers what that printed.
    pub fn sql(&self, sql: &str) -> String {
        let container = self.containers("postgres").remove(0);
        docker(&["exec", &container, "psql", "-U", "keypool", "-d", "keypool", "-qAt", "-c", sql])
    }

    /// Its SQLite, as it stands in the directory that is its volume.
    fn sqlite(&self) -> Place {
        Place::at(format!("sqlite://{}", self.data.join("keypool.db").display()))
    }
}

/// Runs a command of Docker that has to succeed.
pub fn docker(args: &[&str]) -> String {
    output(Command::new("docker").args(args))
}

/// The documents say `docker compose`; where only its older program is there, that is what it means.
const OLDER: &str =
    "#!/bin/sh\nif [ \"$1\" = compose ]; then shift; exec docker-compose \"$@\"; fi\nexec /usr/bin/docker \"$@\"\n";

/// Puts a program into a directory, where it is needed, that makes `docker compose` of what is there.
pub fn understand_compose(directory: &Path) {
    if !is_plugin() {
        let shim = directory.join("docker");
        fs::write(&shim, OLDER).unwrap();
        fs::set_permissions(shim, fs::Permissions::from_mode(0o755)).unwrap();
    }
}

/// Whether `docker compose` is there.
fn is_plugin() -> bool {
    static IS_PLUGIN: OnceLock<bool> = OnceLock::new();
    *IS_PLUGIN
        .get_or_init(|| Command::new("docker").args(["compose", "version"]).output().expect(REMEDY).status.success())
}

/// `docker compose`, or `docker-compose` where that is what is installed.
fn compose(project: &str, port: u16, data: &Path) -> Command {
    let mut command = Command::new(if is_plugin() { "docker" } else { "docker-compose" });
    command.args(is_plugin().then_some("compose"));
    command
        .args(["--project-name", project])
        .current_dir(repository())
        .env("KEYPOOL_PUBLISH", format!("127.0.0.1:{port}"))
        .env("KEYPOOL_DATA", data)
        .env("KEYPOOL_LIMITS", "off")
        .env("KEYPOOL_ADMIN_TOKEN", ADMIN_TOKEN)
        .env("POSTGRES_PASSWORD", PASSWORD)
        .env("GRAFANA_PASSWORD", PASSWORD);
    command
}

fn watchdog(project: &str, port: u16, data: &Path) -> Child {
    let command = compose(project, port, data);
    let mut watchdog = Command::new("sh");
    watchdog.args(["-c", WATCHDOG, "watchdog"]).arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        watchdog.env(name, value.unwrap_or_default());
    }
    watchdog
        .current_dir(command.get_current_dir().unwrap())
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// The deployment that has a database, empty, and one test's alone until it is dropped.
#[derive(Debug)]
pub struct Lent {
    pub base: String,
    /// The network of its containers.
    pub network: String,
    _alone: MutexGuard<'static, ()>,
}

/// Lends the deployment to a test.
pub async fn lend(database: Database) -> Lent {
    static POSTGRES: (OnceLock<Compose>, Mutex<()>) = (OnceLock::new(), Mutex::const_new(()));
    static SQLITE: (OnceLock<Compose>, Mutex<()>) = (OnceLock::new(), Mutex::const_new(()));
    let (deployment, alone) = if database == Database::Postgres { &POSTGRES } else { &SQLITE };
    let alone = alone.lock().await;
    let deployment = deployment.get_or_init(|| match database {
        Database::Postgres => Compose::up("postgres", &["proxy"]),
        Database::Sqlite => Compose::up("sqlite", &["sqlite"]),
    });
    deployment.ready().await;
    let deletes = TABLES.map(|table| format!("DELETE FROM {table};")).concat();
    match database {
        Database::Postgres => drop(deployment.sql(&format!("BEGIN; {deletes} COMMIT"))),
        Database::Sqlite => deployment.sqlite().open().run(&format!("BEGIN IMMEDIATE; {deletes} COMMIT")),
    }
    let network = format!("{}_default", deployment.project);
    Lent { base: deployment.base.clone(), network, _alone: alone }
}
