//! The changes of groups' members, as this device saw them.

use rusqlite::params;

use super::store::LocalStore;
use crate::error::{Error, Result};

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
}
