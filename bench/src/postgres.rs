//! A temporary PostgreSQL server with the databases of a measurement.

use std::{
    fs,
    io::Write,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

use crate::server;

mod database;

pub(crate) use database::Database;

/// A PostgreSQL server, stopped and deleted when dropped.
#[derive(Debug)]
pub(crate) struct Postgres {
    programs: PathBuf,
    directory: TempDir,
    port: u16,
}

impl Postgres {
    /// Starts a server with PostgreSQL's default durability.
    pub(crate) fn start() -> Result<Self> {
        let programs = programs()?;
        let directory = tempfile::Builder::new().prefix("keypool-bench-").tempdir().context("no directory")?;
        if is_root() {
            run(Command::new("chown").arg("postgres").arg(directory.path()))?;
        }
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let server = Self { programs, directory, port };
        run(server.as_postgres("initdb").args(["--auth=trust", "--username=postgres", "-D"]).arg(server.data()))?;
        let settings = format!(
            "listen_addresses = '127.0.0.1'\nport = {port}\nunix_socket_directories = ''\nmax_connections = 200\n\
             shared_buffers = 1GB\nmax_wal_size = 4GB\n"
        );
        fs::OpenOptions::new()
            .append(true)
            .open(server.data().join("postgresql.conf"))?
            .write_all(settings.as_bytes())?;
        let log = server.directory.path().join("log");
        run(server.as_postgres("pg_ctl").arg("-D").arg(server.data()).arg("-l").arg(log).args(["-w", "start"]))?;
        Ok(server)
    }

    fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    /// PostgreSQL refuses to run as root.
    fn as_postgres(&self, program: &str) -> Command {
        let program = self.programs.join(program);
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

    /// A new database with Keypool's tables.
    pub(crate) fn database(&self, name: &str) -> Result<Database<'_>> {
        let database = Database { postgres: self, url: format!("postgres://postgres@127.0.0.1:{}/{name}", self.port) };
        let maintenance = format!("postgres://postgres@127.0.0.1:{}/postgres", self.port);
        run(self.psql(&maintenance).args(["-c", &format!("CREATE DATABASE {name}")]))?;
        server::migrate(&database.url)?;
        Ok(database)
    }

    fn psql(&self, url: &str) -> Command {
        let mut psql = Command::new(self.programs.join("psql"));
        psql.args(["-qAt", "-v", "ON_ERROR_STOP=1", url]);
        psql
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        let _ = run(self.as_postgres("pg_ctl").arg("-D").arg(self.data()).args(["-m", "immediate", "stop"]));
    }
}

fn run(command: &mut Command) -> Result<String> {
    // To a file, since the server that pg_ctl starts would hold a pipe open.
    let said = tempfile::NamedTempFile::new()?;
    let (out, err) = (said.reopen()?, said.reopen()?);
    let status = command.stdin(Stdio::null()).stdout(out).stderr(err).status();
    let status = status.with_context(|| format!("cannot run {}", command.get_program().display()))?;
    let text = fs::read_to_string(said.path())?;
    ensure!(status.success(), "{}: {status}\n{text}", command.get_program().display());
    Ok(text)
}

fn is_root() -> bool {
    Command::new("id").arg("-u").output().is_ok_and(|id| id.stdout == b"0\n")
}

/// The directory of PostgreSQL's programs, with pgbench.
fn programs() -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let debian = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()));
    let mut found: Vec<_> = std::env::split_paths(&path).collect();
    found.extend(debian.map(|version| version.join("bin")));
    for directory in found {
        if let Ok(initdb) = directory.join("initdb").canonicalize()
            && let Some(directory) = initdb.parent().filter(|home| home.join("pgbench").is_file())
        {
            return Ok(Path::to_owned(directory));
        }
    }
    bail!("found no initdb and pgbench, in PATH or in /usr/lib/postgresql: sudo apt-get install postgresql")
}
