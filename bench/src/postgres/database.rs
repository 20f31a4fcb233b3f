//! One database: its KeyPackages, and pgbench on it.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use hdrhistogram::Histogram;

use super::{Postgres, run};
use crate::{progress, report::as_f64, seed};

/// The baseline: a hand-written reservation in one statement, without an audit row.
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

/// A database of a [`Postgres`].
#[derive(Debug)]
pub(crate) struct Database<'a> {
    pub(super) postgres: &'a Postgres,
    pub url: String,
}

impl Database<'_> {
    fn psql(&self) -> Command {
        self.postgres.psql(&self.url)
    }

    /// Runs SQL.
    pub(crate) fn sql(&self, sql: &str) -> Result<String> {
        run(self.psql().args(["-c", sql]))
    }

    /// Writes users `user-1` to `users` with one device each, and so many KeyPackages in all. The bytes are of a
    /// KeyPackage's size only, since nothing parses them.
    pub(crate) fn fill(&self, users: u64, packages: u64) -> Result<()> {
        self.sql(&format!(
            "INSERT INTO users (name, created_at) SELECT 'user-' || u, 0 FROM generate_series(1, {users}) u;
             INSERT INTO devices (user_name, device_name, token_hash, created_at)
               SELECT 'user-' || u, 'main', sha256(u::text::bytea), 0 FROM generate_series(1, {users}) u ORDER BY u"
        ))?;
        self.fill_pools(users, packages)
    }

    /// Resets the pools of a filled database.
    pub(crate) fn refill(&self, users: u64, packages: u64) -> Result<()> {
        self.sql("TRUNCATE key_packages, audit_events")?;
        self.fill_pools(users, packages)
    }

    fn fill_pools(&self, users: u64, packages: u64) -> Result<()> {
        let bar = progress::bar(packages / users, "KeyPackages of each user are written")?;
        for (first, last) in seed::steps(users, packages) {
            self.sql(&format!(
                "INSERT INTO key_packages (keypackage_ref, device_id, ciphersuite, key_package, not_after, last_resort, state)
                   SELECT sha256((u || '/' || n)::bytea), u, 1, decode(repeat(md5(u || '/' || n), 18), 'hex'),
                     extract(epoch FROM now())::bigint + 1209600, false, 'available'
                   FROM generate_series({first}, {last}) n, generate_series(1, {users}) u"
            ))?;
            bar.set_position(last);
        }
        bar.finish_and_clear();
        // Not while another transaction is open, which keeps VACUUM from removing dead rows.
        self.sql("VACUUM ANALYZE")?;
        self.sql("CHECKPOINT").map(drop)
    }

    /// Gives each KeyPackage the name in the transparency log that an upload would give it, and all of them these bytes.
    pub(crate) fn name(&self, bytes: &[u8]) -> Result<()> {
        let bytes = hex::encode(bytes);
        self.sql(&format!(
            "UPDATE key_packages SET package_id = sha256(keypackage_ref), key_package = decode('{bytes}', 'hex')
             WHERE device_id IN (SELECT id FROM devices WHERE user_name LIKE 'user-%')"
        ))?;
        self.sql("VACUUM FULL ANALYZE key_packages")?;
        self.sql("CHECKPOINT").map(drop)
    }

    /// Registers the adders' devices, each with a full pool. Returns their tokens.
    pub(crate) fn add_adders(&self, count: usize) -> Result<Vec<String>> {
        let adders = seed::adders(count)?;
        let values: Vec<_> = adders.iter().map(|(name, _, hash)| format!("('{name}', '\\x{hash}'::bytea)")).collect();
        let (values, each) = (values.join(", "), seed::ADDERS_POOL);
        self.sql(&format!(
            "CREATE TEMP TABLE adders (name, hash) AS VALUES {values};
             INSERT INTO users (name, created_at) SELECT name, 0 FROM adders;
             INSERT INTO devices (user_name, device_name, token_hash, created_at) SELECT name, 'main', hash, 0 FROM adders;
             INSERT INTO key_packages (keypackage_ref, device_id, ciphersuite, key_package, not_after, last_resort, state)
               SELECT sha256((d.user_name || '/' || n)::bytea), d.id, 1, decode(repeat(md5(n::text), 18), 'hex'),
                 extract(epoch FROM now())::bigint + 1209600, false, 'available'
               FROM generate_series(1, {each}) n, devices d JOIN adders ON name = d.user_name
               ORDER BY d.id"
        ))?;
        Ok(adders.into_iter().map(|(_, token, _)| token).collect())
    }

    /// Bytes of a table with its indexes.
    pub(crate) fn size_of(&self, table: &str) -> Result<u64> {
        let bytes = self.sql(&format!("SELECT pg_total_relation_size('{table}')"))?;
        bytes.trim().parse().with_context(|| format!("the size of {table} is no number: {bytes}"))
    }

    /// Begins a transaction, and leaves it open until it is dropped.
    pub(crate) fn hold_transaction(&self) -> Result<Transaction> {
        let mut psql = self.psql();
        let mut psql = psql.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("cannot run psql")?;
        let (stdin, stdout) = (psql.stdin.as_mut(), psql.stdout.take());
        stdin.context("psql has no input")?.write_all(b"BEGIN; SELECT txid_current();\n")?;
        let mut number = String::new();
        BufReader::new(stdout.context("psql has no output")?).read_line(&mut number)?;
        ensure!(number.trim().parse::<u64>().is_ok(), "psql began no transaction: it said {number:?}");
        Ok(Transaction(psql))
    }

    /// Has pgbench reserve for so long. Returns its transactions a second and their mean latency in milliseconds.
    pub(crate) fn pgbench(&self, users: u64, clients: usize, seconds: u64) -> Result<(f64, f64)> {
        let said = self.run_pgbench(users, clients, seconds, &[])?;
        let number = |before: &str| -> Result<f64> {
            let line = said.lines().find_map(|line| line.strip_prefix(before)).context("pgbench says no such thing")?;
            line.trim().split(' ').next().unwrap_or_default().parse().context("pgbench says no number")
        };
        Ok((number("tps =")?, number("latency average =")?))
    }

    /// Has pgbench reserve at a fixed rate. Returns the 99th percentile in milliseconds, from the time when each was
    /// due.
    pub(crate) fn pgbench_p99(&self, users: u64, clients: usize, seconds: u64, rate: f64) -> Result<f64> {
        let directory = tempfile::tempdir().context("no directory")?;
        let (rate, log) = (format!("--rate={rate:.0}"), directory.path().join("log").display().to_string());
        self.run_pgbench(users, clients, seconds, &[&rate, "--log", "--log-prefix", &log])?;
        let mut latency: Histogram<u64> = Histogram::new(3).context("no histogram")?;
        for file in fs::read_dir(directory.path())? {
            for line in fs::read_to_string(file?.path())?.lines() {
                let micros = line.split(' ').nth(2).context("pgbench logs no times")?;
                latency.record(micros.parse().with_context(|| format!("pgbench logs no time, but {line}"))?)?;
            }
        }
        ensure!(!latency.is_empty(), "pgbench logged nothing");
        Ok(as_f64(latency.value_at_quantile(0.99)) / 1e3)
    }

    fn run_pgbench(&self, users: u64, clients: usize, seconds: u64, more: &[&str]) -> Result<String> {
        let script = self.postgres.directory.path().join("reserve.sql");
        fs::write(&script, STATEMENT)?;
        let (users, clients, seconds) = (format!("users={users}"), clients.to_string(), seconds.to_string());
        run(Command::new(self.postgres.programs.join("pgbench"))
            .args(["-n", "-M", "prepared", "-D", &users, "-c", &clients, "-j", "2", "-T", &seconds])
            .args(more)
            .arg("-f")
            .arg(script)
            .arg(&self.url))
    }
}

/// An open transaction, which ends when it is dropped.
#[derive(Debug)]
pub(crate) struct Transaction(Child);

impl Drop for Transaction {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
