//! The changes of groups' members, as this device saw them.

use rusqlite::params;

use super::store::LocalStore;
use crate::error::{Error, Result};

/// The number of removed devices that are known of each group.
const REMOVED: u32 = 1_000;

impl LocalStore {
    /// Adds a change of a group's members, and deletes the oldest beyond the last `kept` of the group.
    pub(crate) fn add_membership_change(&self, group_id: &[u8], change: &str, kept: u32) -> Result<()> {
        self.connection()
            .execute("INSERT INTO membership_changes (group_id, change) VALUES (?1, ?2)", params![group_id, change])
            .and_then(|_| {
                self.connection().execute(
                    "DELETE FROM membership_changes WHERE group_id = ?1 AND id <=
                     (SELECT id FROM membership_changes WHERE group_id = ?1 ORDER BY id DESC LIMIT 1 OFFSET ?2)",
                    params![group_id, kept],
                )
            })
            .map_err(Error::storage("record a change of members"))?;
        Ok(())
    }

    /// The changes of a group's members, oldest first.
    pub(crate) fn membership_changes(&self, group_id: &[u8]) -> Result<Vec<String>> {
        self.connection()
            .prepare_cached("SELECT change FROM membership_changes WHERE group_id = ?1 ORDER BY id")
            .and_then(|mut select| select.query_map([group_id], |row| row.get(0))?.collect())
            .map_err(Error::storage("read the changes of members"))
    }

    /// Records that a device was removed from a group. Keeps the last [`REMOVED`] of the group.
    pub(crate) fn put_removed_device(&self, group_id: &[u8], device: &str) -> Result<()> {
        self.delete_removed_device(group_id, device)?;
        self.connection()
            .execute("INSERT INTO removed_devices (group_id, device) VALUES (?1, ?2)", params![group_id, device])
            .and_then(|_| {
                self.connection().execute(
                    "DELETE FROM removed_devices WHERE group_id = ?1 AND id <=
                     (SELECT id FROM removed_devices WHERE group_id = ?1 ORDER BY id DESC LIMIT 1 OFFSET ?2)",
                    params![group_id, REMOVED],
                )
            })
            .map_err(Error::storage("record a removed device"))?;
        Ok(())
    }

    /// Records that a device is in a group.
    pub(crate) fn delete_removed_device(&self, group_id: &[u8], device: &str) -> Result<()> {
        self.connection()
            .execute("DELETE FROM removed_devices WHERE group_id = ?1 AND device = ?2", params![group_id, device])
            .map_err(Error::storage("record that a device is in a group"))?;
        Ok(())
    }

    /// The devices that were removed from a group and that nobody has added since, by name, newest first.
    pub(crate) fn removed_devices(&self, group_id: &[u8]) -> Result<Vec<String>> {
        self.connection()
            .prepare_cached("SELECT device FROM removed_devices WHERE group_id = ?1 ORDER BY id DESC")
            .and_then(|mut select| select.query_map([group_id], |row| row.get(0))?.collect())
            .map_err(Error::storage("read the removed devices"))
    }

    /// The groups whose changes are stored.
    pub(crate) fn groups_with_changes(&self) -> Result<Vec<Vec<u8>>> {
        self.connection()
            .prepare_cached("SELECT DISTINCT group_id FROM membership_changes")
            .and_then(|mut select| select.query_map([], |row| row.get(0))?.collect())
            .map_err(Error::storage("read the changes of members"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_changes_of_each_group_are_kept() {
        let directory = tempfile::tempdir().unwrap();
        let store = LocalStore::open(directory.path()).unwrap();
        for number in 0..10 {
            store.add_membership_change(b"friends", &number.to_string(), 3).unwrap();
            store.add_membership_change(b"others", &number.to_string(), 1).unwrap();
        }
        assert_eq!(store.membership_changes(b"friends").unwrap(), ["7", "8", "9"]);
        assert_eq!(store.membership_changes(b"others").unwrap(), ["9"]);
        assert_eq!(store.groups_with_changes().unwrap(), [b"friends".to_vec(), b"others".to_vec()]);
    }

    #[test]
    fn the_last_removed_devices_of_each_group_are_known() {
        let directory = tempfile::tempdir().unwrap();
        let store = LocalStore::open(directory.path()).unwrap();
        for number in 0..=REMOVED {
            store.put_removed_device(b"friends", &number.to_string()).unwrap();
        }
        store.put_removed_device(b"others", "7").unwrap();
        store.put_removed_device(b"friends", "7").unwrap();
        store.delete_removed_device(b"friends", "8").unwrap();
        let removed = store.removed_devices(b"friends").unwrap();
        assert_eq!((removed.len(), removed[0].as_str()), (999, "7"), "without 0 and 8");
        assert_eq!(store.removed_devices(b"others").unwrap(), ["7"]);
    }
}
