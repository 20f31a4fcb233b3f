//! A PostgreSQL of the tests' own: started once, gone with the test process however that ends.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{LazyLock, Mutex},
};

use diesel::{Connection, PgConnection, RunQueryDsl};
use diesel_migrations::MigrationHarness as _;
use uuid::Uuid;

use super::{data_directory, database::migrations, server::free_port};

const REMEDY: &str = "the tests start a PostgreSQL of their own and found no initdb in PATH, by pg_config, or in \
                      /usr/lib/postgresql: install it with `sudo apt-get install postgresql`";

/// Stops the server and deletes its files when the pipe to it closes, which the end of the test process does.
const WATCHDOG: &str = r#"trap '' INT TERM HUP; cat >/dev/null; "$@" -m immediate stop; rm -rf "$DIRECTORY""#;

/// The role that needs a password, for a test to create.
pub const GUARDED: &str = "guarded";

/// A PostgreSQL server. It stops and is deleted when it is dropped, or the test process ends.
#[derive(Debug)]
pub struct Postgres {
    programs: PathBuf,
    directory: PathBuf,
    port: u16,
    /// The directory of its locales, if not the system's.
    locales: Option<PathBuf>,
    _watchdog: Child,
}

impl Postgres {
    /// Starts one.
    pub fn start() -> Self {
        Self::with_locales(None)
    }

    /// Starts one whose messages are in German.
    pub fn in_german() -> Self {
        let directory = data_directory().keep();
        let german = directory.join("de_DE.UTF-8");
        let remedy = "install the sources of locales with `sudo apt-get install locales`";
        let mut compiler = Command::new("localedef");
        let status = compiler.args(["--no-archive", "-i", "de_DE", "-f", "UTF-8"]).arg(&german).status();
        assert!(status.is_ok_and(|status| status.success()), "{remedy}");
        let server = Self::with_locales(Some(directory));
        let mut conn = PgConnection::establish(&server.url("postgres")).unwrap();
        let said = diesel::sql_query("SELECT 1 / 0").execute(&mut conn).unwrap_err().to_string();
        assert_eq!(said, "Division durch Null", "this PostgreSQL has no German messages");
        server
    }

    fn with_locales(locales: Option<PathBuf>) -> Self {
        let programs = programs();
        let directory = data_directory().keep();
        if is_root() {
            run(Command::new("chown").arg("postgres").arg(&directory));
        }
        let data = directory.join("data");
        run(as_postgres(&programs.join("initdb"))
            .args(["--auth=trust", "--username=postgres", "--no-sync"])
            .arg(&data));
        let port = free_port();
        // Not synchronous_commit: without it an immediate stop loses what was answered.
        let settings = format!(
            "listen_addresses = '127.0.0.1'\nport = {port}\nunix_socket_directories = ''\nmax_connections = 200\n\
             fsync = off\nfull_page_writes = off\nmax_wal_size = 128MB\n{}",
            if locales.is_some() { "lc_messages = 'de_DE.UTF-8'\n" } else { "" }
        );
        let file = data.join("postgresql.conf");
        fs::write(&file, fs::read_to_string(&file).unwrap() + &settings).unwrap();
        // Nobody else needs a password, which takes both sides milliseconds.
        let access = data.join("pg_hba.conf");
        let others = fs::read_to_string(&access).unwrap();
        fs::write(&access, format!("host all {GUARDED} all scram-sha-256\n{others}")).unwrap();
        let watchdog = watchdog(&programs, &directory);
        let server = Self { programs, directory, port, locales, _watchdog: watchdog };
        server.go_on();
        server
    }

    /// The URL of a database of it.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}", self.port)
    }

    /// Stops it: `fast` tells every connection, `immediate` is a crash.
    pub fn stop(&self, mode: &str) {
        run(control(&self.programs, &self.directory.join("data")).args(["-w", "-m", mode, "stop"]));
    }

    /// Has it begin a new timeline, as a standby does that takes over. It is stopped before, and goes on.
    pub fn promote(&self) {
        let data = self.directory.join("data");
        fs::write(data.join("standby.signal"), "").unwrap();
        self.go_on();
        self.open();
    }

    /// Starts it after a stop, so that it takes no connections until `open`: a standby without hot standby.
    pub fn go_on_closed(&self) {
        let data = self.directory.join("data");
        let file = data.join("postgresql.conf");
        fs::write(&file, fs::read_to_string(&file).unwrap() + "hot_standby = off\n").unwrap();
        fs::write(data.join("standby.signal"), "").unwrap();
        self.go_on();
    }

    /// Has it take connections.
    pub fn open(&self) {
        run(control(&self.programs, &self.directory.join("data")).args(["-w", "promote"]));
    }

    /// A copy of its files, as of a volume. It is stopped before.
    pub fn snapshot(&self) -> tempfile::TempDir {
        let copy = tempfile::tempdir().unwrap();
        run(Command::new("cp").arg("-a").arg(self.directory.join("data")).arg(copy.path()));
        copy
    }

    /// Puts a snapshot back. It is stopped before.
    pub fn put_back(&self, snapshot: &tempfile::TempDir) {
        let data = self.directory.join("data");
        fs::remove_dir_all(&data).unwrap();
        run(Command::new("cp").arg("-a").arg(snapshot.path().join("data")).arg(&data));
    }

    /// Starts it again after a stop, with the same data.
    pub fn go_on(&self) {
        let log = self.directory.join("log");
        let mut control = control(&self.programs, &self.directory.join("data"));
        if let Some(locales) = &self.locales {
            control.env("LOCPATH", locales);
        }
        run(control.arg("-l").arg(log).args(["-w", "start"]));
    }
}

/// A database of the PostgreSQL server that the tests share. It is dropped with this, so that it takes no room for longer.
#[derive(Debug)]
pub struct Shared(String);

static SERVER: LazyLock<Postgres> = LazyLock::new(Postgres::start);
static ADMIN: LazyLock<Mutex<PgConnection>> =
    LazyLock::new(|| Mutex::new(PgConnection::establish(&SERVER.url("postgres")).unwrap()));

impl Shared {
    /// An empty one.
    pub fn fresh() -> Self {
        Self::like("template1")
    }

    /// One with the tables of the newest version, which are made once and copied from then on.
    pub fn migrated() -> Self {
        static TEMPLATE: LazyLock<Shared> = LazyLock::new(|| {
            let template = Shared::fresh();
            let mut conn = PgConnection::establish(&template.url()).unwrap();
            conn.run_pending_migrations(migrations("postgres")).unwrap();
            template
        });
        Self::like(&TEMPLATE.0)
    }

    fn like(template: &str) -> Self {
        let name = format!("test_{}", Uuid::new_v4().simple());
        let create = diesel::sql_query(format!("CREATE DATABASE {name} TEMPLATE {template}"));
        create.execute(&mut *ADMIN.lock().unwrap()).unwrap();
        Self(name)
    }

    pub fn url(&self) -> String {
        SERVER.url(&self.0)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // A server may still be there, and a test may have ended the one connection that this goes by.
        if let Ok(mut admin) = ADMIN.lock() {
            let _ = diesel::sql_query(format!("DROP DATABASE {} WITH (FORCE)", self.0)).execute(&mut *admin);
        }
    }
}

/// One of PostgreSQL's programs.
pub fn program(name: &str) -> Command {
    Command::new(programs().join(name))
}

fn watchdog(programs: &Path, directory: &Path) -> Child {
    let control = control(programs, &directory.join("data"));
    Command::new("sh")
        .args(["-c", WATCHDOG, "watchdog"])
        .arg(control.get_program())
        .args(control.get_args())
        .env("DIRECTORY", directory)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .current_dir("/")
        .spawn()
        .unwrap()
}

fn control(programs: &Path, data: &Path) -> Command {
    let mut command = as_postgres(&programs.join("pg_ctl"));
    command.arg("-D").arg(data);
    command
}

/// PostgreSQL refuses to run as root.
fn as_postgres(program: &Path) -> Command {
    let mut command = if is_root() {
        let mut command = Command::new("runuser");
        command.args(["-u", "postgres", "--"]).arg(program);
        command
    } else {
        Command::new(program)
    };
    command.current_dir("/");
    command
}

fn is_root() -> bool {
    Command::new("id").arg("-u").output().is_ok_and(|id| id.stdout == b"0\n")
}

pub fn run(command: &mut Command) {
    output(command);
}

/// Runs a program that has to succeed, and returns its output.
pub fn output(command: &mut Command) -> String {
    // To files and not to pipes, which the server that pg_ctl starts would hold open.
    let (out, err) = (tempfile::NamedTempFile::new().unwrap(), tempfile::NamedTempFile::new().unwrap());
    let status = command.stdin(Stdio::null()).stdout(out.reopen().unwrap()).stderr(err.reopen().unwrap()).status();
    let ok = status.as_ref().is_ok_and(std::process::ExitStatus::success);
    let said = fs::read_to_string(out.path()).unwrap();
    assert!(ok, "{command:?}: {status:?}\n{said}\n{}", fs::read_to_string(err.path()).unwrap());
    said
}

/// The directory of `initdb` and PostgreSQL's other programs.
fn programs() -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let by_pg_config = Command::new("pg_config").arg("--bindir").output().ok();
    let by_pg_config = by_pg_config.map(|out| PathBuf::from(String::from_utf8_lossy(&out.stdout).trim()));
    let mut debian: Vec<_> = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path().join("bin")))
        .collect();
    debian.sort();
    std::env::split_paths(&path)
        .chain(by_pg_config)
        .chain(debian.into_iter().rev())
        // Behind a link, the others are where it leads to.
        .filter_map(|directory| Some(directory.join("initdb").canonicalize().ok()?.parent()?.to_owned()))
        .find(|directory| ["pg_ctl", "pg_dump", "pg_restore", "psql"].iter().all(|name| directory.join(name).is_file()))
        .expect(REMEDY)
}
