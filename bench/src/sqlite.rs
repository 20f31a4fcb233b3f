//! A temporary SQLite file, and a bare thread that reserves in it.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use rand::RngExt;
use rusqlite::{Connection, Statement, params};
use tempfile::TempDir;

use crate::{progress, report::as_f64, seed, server};

/// The settings of the server's writer: the same durability and memory.
const SESSION: &str = "PRAGMA busy_timeout = 5000; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; \
                       PRAGMA foreign_keys = ON; PRAGMA wal_autocheckpoint = 16000; PRAGMA cache_size = -16000";

/// A hand-written reservation in one statement.
const STATEMENT: &str = "\
UPDATE key_packages SET state = 'reserved', reservation = ?1, reserved_by = 1, reserved_until = 4000000000
WHERE keypackage_ref = (SELECT keypackage_ref FROM key_packages WHERE device_id = ?2 AND fresh
  AND ciphersuite BETWEEN 0 AND 65535 AND not_after >= 1 AND keypackage_ref >= ?1 ORDER BY keypackage_ref LIMIT 1)
RETURNING keypackage_ref, key_package, ciphersuite, not_after";

/// Its row in the audit trail.
const EVENT: &str = "\
INSERT INTO audit_events (device_id, keypackage_ref, action, actor, reservation, last_resort, at, until)
VALUES (?1, ?2, 'reserve', 1, ?3, 0, 2000000000, 4000000000)";

/// The mode of the bare thread.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bare {
    /// Reservations in each transaction.
    pub batch: u32,
    /// Whether to write the row of the audit trail, like the server.
    pub trail: bool,
}

/// A file with Keypool's tables, which is deleted when it is dropped.
#[derive(Debug)]
pub(crate) struct File {
    path: PathBuf,
    _directory: TempDir,
}

impl File {
    pub(crate) fn create() -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("keypool-bench-").tempdir().context("no directory")?;
        let file = Self { path: directory.path().join("keypool.db"), _directory: directory };
        server::migrate(&file.url())?;
        Ok(file)
    }

    /// The server's `KEYPOOL_DATABASE_URL`.
    pub(crate) fn url(&self) -> String {
        format!("sqlite://{}", self.path.display())
    }

    /// Writes users `user-1` to `users` with one device each, and so many KeyPackages in all, while no server has the
    /// file open. The bytes are of a KeyPackage's size only, since nothing parses them.
    pub(crate) fn fill(&self, users: u64, packages: u64) -> Result<()> {
        let db = open(&self.path)?;
        // The fill need not be durable.
        db.execute_batch("PRAGMA synchronous = OFF; PRAGMA cache_size = -1000000")?;
        db.execute_batch(&format!(
            "WITH RECURSIVE u (u) AS (SELECT 1 UNION ALL SELECT u + 1 FROM u WHERE u < {users})
               INSERT INTO users (name, created_at) SELECT 'user-' || u, 0 FROM u;
             INSERT INTO devices (user_name, device_name, token_hash, created_at)
               SELECT name, 'main', randomblob(32), 0 FROM users WHERE name <> '' ORDER BY CAST(substr(name, 6) AS INTEGER)"
        ))?;
        let bar = progress::bar(packages / users, "KeyPackages of each user are written")?;
        for (first, last) in seed::steps(users, packages) {
            insert(&db, (first, last), &format!("id BETWEEN 1 AND {users}"))?;
            bar.set_position(last);
        }
        bar.finish_and_clear();
        settle(&db)
    }

    /// Registers the adders' devices, each with a full pool. Returns their tokens.
    pub(crate) fn add_adders(&self, count: usize) -> Result<Vec<String>> {
        let db = open(&self.path)?;
        let adders = seed::adders(count)?;
        for (name, _, hash) in &adders {
            db.execute("INSERT INTO users (name, created_at) VALUES (?1, 0)", [name])?;
            db.execute(
                "INSERT INTO devices (user_name, device_name, token_hash, created_at) VALUES (?1, 'main', ?2, 0)",
                params![name, hex::decode(hash)?],
            )?;
        }
        insert(&db, (1, u64::try_from(seed::ADDERS_POOL)?), "user_name LIKE 'adder-%'")?;
        settle(&db)?;
        Ok(adders.into_iter().map(|(_, token, _)| token).collect())
    }

    /// Gives each KeyPackage the name in the transparency log that an upload would give it, and all of them these bytes.
    pub(crate) fn name(&self, bytes: &[u8]) -> Result<()> {
        let db = open(&self.path)?;
        db.execute(
            "UPDATE key_packages SET package_id = randomblob(32), key_package = ?1
             WHERE device_id IN (SELECT id FROM devices WHERE user_name LIKE 'user-%')",
            [bytes],
        )?;
        settle(&db)
    }

    /// Copies the file, while no server has it open.
    pub(crate) fn copy(&self) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("keypool-bench-").tempdir().context("no directory")?;
        let path = directory.path().join("keypool.db");
        fs::copy(&self.path, &path).with_context(|| format!("cannot copy {}", self.path.display()))?;
        Ok(Self { path, _directory: directory })
    }

    /// Reserves for so long, and returns the reservations a second.
    pub(crate) fn reserve(&self, users: u64, bare: Bare, span: Duration) -> Result<f64> {
        let db = open(&self.path)?;
        let mut writer =
            Writer { claim: db.prepare(STATEMENT)?, event: bare.trail.then(|| db.prepare(EVENT)).transpose()? };
        let (begun, mut reserved) = (Instant::now(), 0);
        while begun.elapsed() < span {
            db.execute_batch("BEGIN IMMEDIATE")?;
            for _ in 0..bare.batch {
                reserved += u64::from(writer.reserve_one(users)?);
            }
            db.execute_batch("COMMIT")?;
        }
        ensure!(reserved > 0, "the bare thread found nothing to reserve: fill with more --packages");
        Ok(as_f64(reserved) / begun.elapsed().as_secs_f64())
    }
}

struct Writer<'c> {
    claim: Statement<'c>,
    event: Option<Statement<'c>>,
}

impl Writer<'_> {
    /// Reads all columns of the row, as the server does for its answer.
    fn reserve_one(&mut self, users: u64) -> Result<bool> {
        let mut rng = rand::rng();
        let (nonce, owner): ([u8; 16], _) = (rng.random(), rng.random_range(1..=users));
        let owner = i64::try_from(owner)?;
        let mut rows = self.claim.query(params![nonce, owner])?;
        let Some(row) = rows.next()? else { return Ok(false) };
        let taken: (Vec<u8>, Vec<u8>, i32, i64) = (row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?);
        // A statement has ended when it returns no more rows.
        ensure!(rows.next()?.is_none(), "one reservation took two KeyPackages");
        if let Some(event) = &mut self.event {
            event.execute(params![owner, taken.0, nonce])?;
        }
        std::hint::black_box(taken);
        Ok(true)
    }
}

fn open(path: &Path) -> Result<Connection> {
    let db = Connection::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    db.execute_batch(SESSION)?;
    Ok(db)
}

/// Writes KeyPackages with these numbers for the devices that meet a condition.
fn insert(db: &Connection, (first, last): (u64, u64), devices: &str) -> Result<()> {
    db.execute_batch(&format!(
        "WITH RECURSIVE n (n) AS (SELECT {first} UNION ALL SELECT n + 1 FROM n WHERE n < {last})
           INSERT INTO key_packages (keypackage_ref, device_id, ciphersuite, key_package, not_after, last_resort, state)
           SELECT randomblob(32), id, 1, randomblob(288), unixepoch() + 1209600, 0, 'available'
           FROM n, devices WHERE {devices}"
    ))?;
    Ok(())
}

/// Moves the write-ahead log into the file.
fn settle(db: &Connection) -> Result<()> {
    db.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").context("cannot write the log back")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bare_thread_reserves_what_it_counts() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("keypool.db");
        let db = open(&path).unwrap();
        db.execute_batch(
            "CREATE TABLE key_packages (keypackage_ref BLOB PRIMARY KEY, device_id, ciphersuite, key_package, not_after,
               last_resort, state, reservation, reserved_by, reserved_until,
               fresh GENERATED ALWAYS AS (state = 'available'));
             CREATE TABLE audit_events (device_id, keypackage_ref, action, actor, reservation, last_resort, at, until);
             CREATE TABLE devices (id);
             INSERT INTO devices VALUES (1), (2)",
        )
        .unwrap();
        insert(&db, (1, 8_000), "id = 1").unwrap();
        let file = File { path, _directory: directory };
        let count = |sql| db.query_row::<u64, _, _>(sql, [], |row| row.get(0)).unwrap();
        let reserved = || count("SELECT count(*) FROM key_packages WHERE state = 'reserved' AND reserved_by = 1");
        let told = || {
            count(
                "SELECT count(*) FROM audit_events JOIN key_packages USING (keypackage_ref, device_id, reservation)
                 WHERE state = 'reserved' AND action = 'reserve'",
            )
        };
        let bare = |trail| file.reserve(1, Bare { batch: 8, trail }, Duration::from_millis(1));
        let rate = bare(false).unwrap();
        let without = reserved();
        assert!(without > 0 && without.is_multiple_of(8) && rate > 0.0, "{without}");
        assert_eq!(told(), 0);
        bare(true).unwrap();
        assert!(reserved() > without);
        assert_eq!(told(), reserved() - without);
        // An empty batch counts as no reservation.
        db.execute_batch("DELETE FROM key_packages").unwrap();
        assert!(bare(false).is_err());
    }
}
