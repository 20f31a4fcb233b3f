//! The inbox: processed messages that the application has not marked as done.

use rusqlite::{OptionalExtension, params};

use super::store::LocalStore;
use crate::error::{Error, Result};

/// The first id of what happened on this device. JSON readers keep it exactly: it is below 2^53.
const FIRST_LOCAL_ID: u64 = (1 << 52) + (1 << 51);

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

    /// An id for something that happened on this device, and that no message of the queue tells. It is above the ids of
    /// the queue and of changes of devices.
    pub(crate) fn next_local_id(&self) -> Result<u64> {
        self.connection()
            .query_row("SELECT max(?1, coalesce(max(id), 0) + 1) FROM inbox", [FIRST_LOCAL_ID.cast_signed()], |row| {
                row.get(0).map(i64::cast_unsigned)
            })
            .map_err(Error::storage("read the inbox"))
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
