//! The inbox: processed messages that the application has not marked as done.

use rusqlite::{OptionalExtension, params};

use super::store::LocalStore;
use crate::error::{Error, Result};

impl LocalStore {
    /// Whether the message with this id was processed already.
    pub(crate) fn is_in_inbox(&self, id: u64) -> Result<bool> {
        self.connection()
            .query_row("SELECT 1 FROM inbox WHERE id = ?1", [id.cast_signed()], |_| Ok(()))
            .optional()
            .map(|found| found.is_some())
            .map_err(Error::storage("read the inbox"))
    }

    /// Adds the outcome of a message.
    pub(crate) fn put_in_inbox(&self, id: u64, incoming: &str) -> Result<()> {
        self.connection()
            .execute("INSERT INTO inbox (id, incoming) VALUES (?1, ?2)", params![id.cast_signed(), incoming])
            .map_err(Error::storage("write into the inbox"))?;
        Ok(())
    }

    /// The outcomes that are not marked as done, oldest first.
    pub(crate) fn inbox(&self) -> Result<Vec<String>> {
        self.connection()
            .prepare_cached("SELECT incoming FROM inbox ORDER BY id")
            .and_then(|mut select| select.query_map([], |row| row.get(0))?.collect())
            .map_err(Error::storage("read the inbox"))
    }

    pub(crate) fn delete_from_inbox(&self, id: u64) -> Result<()> {
        self.connection()
            .execute("DELETE FROM inbox WHERE id = ?1", [id.cast_signed()])
            .map_err(Error::storage("delete from the inbox"))?;
        Ok(())
    }
}
