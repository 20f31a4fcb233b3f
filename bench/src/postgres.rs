//! A PostgreSQL of a measurement's own, with as many KeyPackages as are asked for, and what pgbench makes of it.

use std::{
    fs,
    io::Write,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

/// One reservation in one statement, as it can be written by hand: what Keypool is measured against. No audit row.
const STATEMENT: &str = "\
\\set owner random(1, :users)
WITH nonce AS MATERIALIZED (SELECT uuid_send(gen_random_uuid()) AS nonce)
UPDATE key_packages k SET state = 'reserved', reservation = (SELECT nonce FROM nonce), reserved_by = 1,
  reserved_until = 4000000000
WHERE keypackage_ref = (SELECT keypackage_ref FROM key_packages WHERE device_id = :owner AND fresh
  AND ciphersuite BETWEEN 0 AND 65535 AND not_after >= 1 AND keypackage_ref >= (SELECT nonce FROM nonce)
  ORDER BY keypackage_ref LIMIT 1 FOR UPDATE SKIP LOCKED)
RETURNING k.keypackage_ref, k.key_package, k.ciphersuite, k.not_after;
";

/// A PostgreSQL server, which is stopped and deleted when it is dropped.
#[derive(Debug)]
pub(crate) struct Postgres {
    programs: PathBuf,
    directory: TempDir,
    port: u16,
}

impl Postgres {
    /// Starts one, as durable as PostgreSQL is by default.
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

    /// The URL of its database.
    pub(crate) fn url(&self) -> String {
        format!("postgres://postgres@127.0.0.1:{}/postgres", self.port)
    }

    /// Runs SQL.
    pub(crate) fn sql(&self, sql: &str) -> Result<String> {
        run(Command::new(self.programs.join("psql")).args(["-qAt", "-v", "ON_ERROR_STOP=1", &self.url(), "-c", sql]))
    }

    /// Users `user-1` to `users` with one device each, and so many KeyPackages over all of them. What stands for a
    /// KeyPackage has its size; nobody parses it.
    pub(crate) fn fill(&self, users: u64, packages: u64) -> Result<()> {
        let each = packages / users;
        self.sql(&format!(
            "INSERT INTO users SELECT 'user-' || u, 0 FROM generate_series(1, {users}) u;
             INSERT INTO devices (user_name, device_name, token_hash, created_at)
               SELECT 'user-' || u, 'main', sha256(u::text::bytea), 0 FROM generate_series(1, {users}) u ORDER BY u;
             INSERT INTO key_packages (keypackage_ref, device_id, ciphersuite, key_package, not_after, last_resort, state)
               SELECT sha256((u || '/' || n)::bytea), u, 1, decode(repeat(md5(u || '/' || n), 18), 'hex'),
                 extract(epoch FROM now())::bigint + 1209600, false, 'available'
               FROM generate_series(1, {each}) n, generate_series(1, {users}) u"
        ))?;
        self.sql("VACUUM ANALYZE").map(drop)
    }

    /// A device of the load driver's own, by the hash of its token.
    pub(crate) fn add_adder(&self, name: &str, token_hash: &[u8]) -> Result<()> {
        let hash = hex::encode(token_hash);
        self.sql(&format!(
            "INSERT INTO users VALUES ('{name}', 0);
             INSERT INTO devices (user_name, device_name, token_hash, created_at) VALUES ('{name}', 'main', '\\x{hash}', 0)"
        ))
        .map(drop)
    }

    /// Has pgbench reserve for so long, and answers its transactions a second and their mean latency in milliseconds.
    pub(crate) fn pgbench(&self, users: u64, clients: usize, seconds: u64) -> Result<(f64, f64)> {
        let script = self.directory.path().join("reserve.sql");
        fs::write(&script, STATEMENT)?;
        let (users, clients, seconds) = (format!("users={users}"), clients.to_string(), seconds.to_string());
        let said = run(Command::new(self.programs.join("pgbench"))
            .args(["-n", "-M", "prepared", "-D", &users, "-c", &clients, "-j", "2", "-T", &seconds, "-f"])
            .arg(script)
            .arg(self.url()))?;
        let number = |before: &str| -> Result<f64> {
            let line = said.lines().find_map(|line| line.strip_prefix(before)).context("pgbench says no such thing")?;
            line.trim().split(' ').next().unwrap_or_default().parse().context("pgbench says no number")
        };
        Ok((number("tps =")?, number("latency average =")?))
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        let _ = run(self.as_postgres("pg_ctl").arg("-D").arg(self.data()).args(["-m", "immediate", "stop"]));
    }
}

fn run(command: &mut Command) -> Result<String> {
    // To a file and not to a pipe, which the server that pg_ctl starts would hold open.
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

/// Where PostgreSQL's programs are, pgbench among them.
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
