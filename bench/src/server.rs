//! A keypool-server for a measurement.

use std::{
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// A server on a database, stopped when dropped.
#[derive(Debug)]
pub(crate) struct Server {
    child: Child,
    /// Its address, such as `127.0.0.1:8080`.
    pub address: String,
    /// The time from its start until it was ready.
    pub start: Duration,
}

impl Server {
    /// Starts a server without limits, with pools of any size.
    pub(crate) async fn start(database_url: &str) -> Result<Self> {
        Self::start_with(database_url, None).await
    }

    /// The same, which may use so many MiB of memory.
    pub(crate) async fn start_within(database_url: &str, memory: u32) -> Result<Self> {
        Self::start_with(database_url, Some(("KEYPOOL_MEMORY", &memory.to_string()))).await
    }

    /// The same with a transparency log, whose key is in this file.
    pub(crate) async fn start_with_log(database_url: &str, key: &Path) -> Result<Self> {
        Self::start_with(database_url, Some(("KEYPOOL_LOG_KEY", &key.display().to_string()))).await
    }

    async fn start_with(database_url: &str, setting: Option<(&str, &str)>) -> Result<Self> {
        let address = format!("127.0.0.1:{}", TcpListener::bind("127.0.0.1:0")?.local_addr()?.port());
        let begun = Instant::now();
        let child = program()?
            .env("KEYPOOL_DATABASE_URL", database_url)
            .env("KEYPOOL_LISTEN", &address)
            .env("KEYPOOL_LIMITS", "off")
            .env("KEYPOOL_POOL_CAPACITY", "100000000")
            .env("KEYPOOL_LOG", "warn")
            .envs(setting)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .context("cannot start keypool-server")?;
        let mut server = Self { child, address, start: Duration::ZERO };
        while begun.elapsed() < Duration::from_secs(30) {
            if is_ready(&server.address).await.unwrap_or(false) {
                server.start = begun.elapsed();
                return Ok(server);
            }
            if let Some(status) = server.child.try_wait()? {
                bail!("keypool-server ended at its start, with {status}: see what it says above");
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        bail!("keypool-server is not ready on {} after 30 s", server.address)
    }

    /// The process's number.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Its resident memory, in megabytes.
    pub(crate) fn memory_mb(&self) -> f64 {
        self.status_mb("VmRSS:")
    }

    /// Its peak memory, in megabytes.
    pub(crate) fn peak_memory_mb(&self) -> f64 {
        self.status_mb("VmHWM:")
    }

    fn status_mb(&self, name: &str) -> f64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let kilobytes = line.and_then(|line| line.trim().split(' ').next()?.parse::<f64>().ok());
        kilobytes.unwrap_or(f64::NAN) / 1e3
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether the server at this address serves: it listens before its database is open.
async fn is_ready(address: &str) -> std::io::Result<bool> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n").await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer.starts_with("HTTP/1.1 200 "))
}

/// Creates the tables.
pub(crate) fn migrate(database_url: &str) -> Result<()> {
    let done = program()?.arg("migrate").env("KEYPOOL_DATABASE_URL", database_url).output();
    let done = done.context("cannot start keypool-server")?;
    ensure!(done.status.success(), "keypool-server migrate: {}", String::from_utf8_lossy(&done.stderr));
    Ok(())
}

/// The server beside this program, without the settings in this program's environment.
fn program() -> Result<Command> {
    let own = std::env::current_exe().context("this program is nowhere")?;
    let server: PathBuf = own.parent().unwrap_or(Path::new(".")).join("keypool-server");
    ensure!(server.is_file(), "there is no {}: cargo build --release --package keypool-server", server.display());
    let mut command = Command::new(server);
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("KEYPOOL_")) {
        command.env_remove(name);
    }
    Ok(command)
}
