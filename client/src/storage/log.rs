//! The server's logs as this device knows them, and what it has found the server to have done.

use jiff::Timestamp;
use rusqlite::{OptionalExtension as _, Row, params};

use super::{column::Sql, store::LocalStore};
use crate::{
    error::{Error, Result},
    finding::Finding,
};

/// A log of the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LogRow {
    pub(crate) origin: String,
    /// Its key, as a vkey.
    pub(crate) key: String,
    /// The note by which the key of the log before names this key; `None` for a key that the device first saw or was given.
    pub(crate) key_note: Option<String>,
    /// The largest checkpoint that was verified, a signed note.
    pub(crate) checkpoint: Option<String>,
    pub(crate) seen_at: Timestamp,
}

fn log_row(row: &Row<'_>) -> rusqlite::Result<LogRow> {
    Ok(LogRow {
        origin: row.get(0)?,
        key: row.get(1)?,
        key_note: row.get(2)?,
        checkpoint: row.get(3)?,
        seen_at: row.get::<_, Sql<_>>(4)?.0,
    })
}

impl LocalStore {
    /// The logs, the oldest first.
    pub(crate) fn logs(&self) -> Result<Vec<LogRow>> {
        self.connection()
            .prepare_cached("SELECT origin, key, key_note, checkpoint, seen_at FROM logs ORDER BY id")
            .and_then(|mut select| select.query_map([], log_row)?.collect())
            .map_err(Error::storage("read the server's logs"))
    }

    /// Adds a log, whose key is believed from now on. One that is known stays as it is.
    pub(crate) fn put_log(&self, row: &LogRow) -> Result<()> {
        let LogRow { origin, key, key_note, checkpoint, seen_at } = row;
        self.connection()
            .execute(
                "INSERT INTO logs (origin, key, key_note, checkpoint, seen_at) VALUES (?1, ?2, ?3, ?4, ?5)
                 ON CONFLICT DO NOTHING",
                params![origin, key, key_note, checkpoint, Sql(seen_at)],
            )
            .map_err(Error::storage("write a log of the server"))?;
        Ok(())
    }

    pub(crate) fn set_checkpoint(&self, origin: &str, checkpoint: &str) -> Result<()> {
        self.connection()
            .execute("UPDATE logs SET checkpoint = ?2 WHERE origin = ?1", [origin, checkpoint])
            .map_err(Error::storage("write a checkpoint"))?;
        Ok(())
    }

    pub(crate) fn put_finding(&self, finding: &Finding) -> Result<()> {
        let Finding { found_at, problem, is_proven, file, .. } = finding;
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        self.connection()
            .execute(
                "INSERT INTO findings (found_at, problem, is_proven, file) VALUES (?1, ?2, ?3, ?4)",
                params![Sql(found_at), problem, is_proven, name],
            )
            .map_err(Error::storage("record what was found"))?;
        Ok(())
    }

    /// What was found, the oldest first.
    pub(crate) fn findings(&self) -> Result<Vec<Finding>> {
        let finding = |row: &Row<'_>| {
            Ok(Finding {
                found_at: row.get::<_, Sql<_>>(0)?.0,
                problem: row.get(1)?,
                is_proven: row.get(2)?,
                file: self.directory().join(row.get::<_, String>(3)?),
                is_dismissed: row.get(4)?,
            })
        };
        self.connection()
            .prepare_cached("SELECT found_at, problem, is_proven, file, is_dismissed FROM findings ORDER BY id")
            .and_then(|mut select| select.query_map([], finding)?.collect())
            .map_err(Error::storage("read what was found"))
    }

    /// The last thing that was found, and that the user has not dismissed.
    pub(crate) fn open_finding(&self) -> Result<Option<Finding>> {
        Ok(self.findings()?.into_iter().rev().find(|finding| !finding.is_dismissed))
    }

    pub(crate) fn dismiss_findings(&self) -> Result<()> {
        self.connection()
            .execute("UPDATE findings SET is_dismissed = 1", [])
            .map_err(Error::storage("dismiss what was found"))?;
        Ok(())
    }

    /// When the server's log was last compared with what this device knows.
    pub(crate) fn log_checked_at(&self) -> Result<Option<Timestamp>> {
        self.connection()
            .query_row("SELECT log_checked_at FROM device_identity", [], |row| row.get::<_, Sql<Option<Timestamp>>>(0))
            .optional()
            .map(|at| at.and_then(|Sql(at)| at))
            .map_err(Error::storage("read when the log was checked"))
    }

    pub(crate) fn set_log_checked_at(&self, at: Timestamp) -> Result<()> {
        self.connection()
            .execute("UPDATE device_identity SET log_checked_at = ?1", params![Sql(&at)])
            .map_err(Error::storage("record that the log was checked"))?;
        Ok(())
    }
}
