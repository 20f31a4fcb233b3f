//! What this device knows of restored backups: the server's, and its own.

use jiff::Timestamp;

use super::{column::Sql, store::LocalStore};
use crate::error::{Error, Result};

impl LocalStore {
    /// The last restore of the server's database that this device has handled, in seconds.
    pub(crate) fn last_restore(&self) -> Result<Option<i64>> {
        self.connection()
            .query_row("SELECT fenced_at FROM device_identity", [], |row| row.get(0))
            .map_err(Error::storage("read when the server was restored"))
    }

    pub(crate) fn record_restore(&self, fenced_at: Option<i64>) -> Result<()> {
        self.connection()
            .execute("UPDATE device_identity SET fenced_at = ?1", [fenced_at])
            .map_err(Error::storage("record when the server was restored"))?;
        Ok(())
    }

    /// Records that the pool on the server had KeyPackages that this device did not generate.
    pub(crate) fn record_foreign(&self, now: Timestamp) -> Result<()> {
        self.connection()
            .execute("INSERT INTO foreign_key_packages (seen_at) VALUES (?1)", [Sql(&now)])
            .map_err(Error::storage("record foreign KeyPackages"))?;
        Ok(())
    }

    /// Whether such KeyPackages were recorded after `since`.
    pub(crate) fn foreign_since(&self, since: Timestamp) -> Result<bool> {
        self.connection()
            .query_row("SELECT EXISTS (SELECT 1 FROM foreign_key_packages WHERE seen_at > ?1)", [Sql(&since)], |row| {
                row.get(0)
            })
            .map_err(Error::storage("read the record of foreign KeyPackages"))
    }

    pub(crate) fn forget_foreign(&self) -> Result<()> {
        self.connection()
            .execute("DELETE FROM foreign_key_packages", [])
            .map_err(Error::storage("delete the record of foreign KeyPackages"))?;
        Ok(())
    }
}
