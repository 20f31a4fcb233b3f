//! What is known of the groups that this device is in, of Commits whose fate is open, and of what came and was not dealt
//! with yet.

use jiff::Timestamp;
use rusqlite::{OptionalExtension, Row, params};

use super::LocalStore;
use crate::error::{Error, Result};

/// A group that this device is in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct GroupRow {
    pub(crate) group_id: Vec<u8>,
    /// The name that its members gave it; `None` until it came.
    pub(crate) name: Option<String>,
    pub(crate) joined_at: Timestamp,
    /// Who sent a Commit that was refused here.
    pub(crate) refused_commit_by: Option<String>,
    /// The group that has taken the place of this one.
    pub(crate) replaced_by: Option<Vec<u8>>,
}

impl LocalStore {
    /// Notes a group, or, where it is known, its new name.
    pub(crate) fn put_group(&self, group_id: &[u8], name: Option<&str>, now: Timestamp) -> Result<()> {
        self.connection
            .execute(
                "INSERT INTO device_groups (group_id, name, joined_at) VALUES (?1, ?2, ?3)
                 ON CONFLICT (group_id) DO UPDATE SET name = coalesce(excluded.name, name)",
                params![group_id, name, now.as_second()],
            )
            .map_err(Error::storage("note a group"))?;
        Ok(())
    }

    /// The groups, those that were joined first at the front.
    pub(crate) fn groups(&self) -> Result<Vec<GroupRow>> {
        let columns = |row: &Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?));
        let rows: Vec<_> = self
            .connection
            .prepare_cached(
                "SELECT group_id, name, joined_at, refused_commit_by, replaced_by FROM device_groups
                 ORDER BY joined_at, group_id",
            )
            .and_then(|mut select| select.query_map([], columns)?.collect())
            .map_err(Error::storage("read the groups"))?;
        let row = |(group_id, name, joined_at, refused_commit_by, replaced_by)| {
            let joined_at = Timestamp::from_second(joined_at)
                .map_err(|_| Error::Damaged(format!("a group was joined at {joined_at}")))?;
            Ok(GroupRow { group_id, name, joined_at, refused_commit_by, replaced_by })
        };
        rows.into_iter().map(row).collect()
    }

    /// Forgets a group and what was to become of it.
    pub(crate) fn delete_group(&self, group_id: &[u8]) -> Result<()> {
        self.connection
            .execute("DELETE FROM device_groups WHERE group_id = ?1", [group_id])
            .and_then(|_| self.connection.execute("DELETE FROM pending_commits WHERE group_id = ?1", [group_id]))
            .and_then(|_| self.connection.execute("DELETE FROM commit_proofs WHERE group_id = ?1", [group_id]))
            .map_err(Error::storage("forget a group"))?;
        Ok(())
    }

    /// Notes that a Commit by somebody was refused here: the group's epoch on the server has gone on without this device.
    pub(crate) fn note_refused_commit(&self, group_id: &[u8], by: &str) -> Result<()> {
        self.connection
            .execute("UPDATE device_groups SET refused_commit_by = ?2 WHERE group_id = ?1", params![group_id, by])
            .map_err(Error::storage("note a Commit that was refused"))?;
        Ok(())
    }

    /// Notes that the group is in its newest epoch again.
    pub(crate) fn forget_refused_commit(&self, group_id: &[u8]) -> Result<()> {
        self.connection
            .execute("UPDATE device_groups SET refused_commit_by = NULL WHERE group_id = ?1", [group_id])
            .map_err(Error::storage("note that a group goes on"))?;
        Ok(())
    }

    /// Who sent the Commit that was refused here, if one was.
    pub(crate) fn refused_commit(&self, group_id: &[u8]) -> Result<Option<String>> {
        self.connection
            .query_row("SELECT refused_commit_by FROM device_groups WHERE group_id = ?1", [group_id], |row| row.get(0))
            .optional()
            .map(Option::flatten)
            .map_err(Error::storage("look for a Commit that was refused"))
    }

    /// Notes that another group has taken the place of this one.
    pub(crate) fn note_replacement(&self, group_id: &[u8], new_group: &[u8]) -> Result<()> {
        self.connection
            .execute("UPDATE device_groups SET replaced_by = ?2 WHERE group_id = ?1", params![group_id, new_group])
            .map_err(Error::storage("note that a group was renewed"))?;
        Ok(())
    }

    /// Keeps the request with the pending Commit of a group, before it is sent: until its answer is here, nobody knows
    /// whether it counts.
    pub(crate) fn put_pending_commit(&self, group_id: &[u8], request: &str) -> Result<()> {
        self.connection
            .execute("INSERT INTO pending_commits (group_id, request) VALUES (?1, ?2)", params![group_id, request])
            .map_err(Error::storage("keep a pending Commit"))?;
        Ok(())
    }

    /// Keeps what a Commit of this epoch shows, and forgets that of the epochs before the last `kept`.
    pub(crate) fn put_commit_proof(&self, group_id: &[u8], epoch: u64, proof: &[u8], kept: u64) -> Result<()> {
        let first = epoch.saturating_sub(kept - 1).cast_signed();
        self.connection
            .execute(
                "INSERT INTO commit_proofs (group_id, epoch, proof) VALUES (?1, ?2, ?3)
                 ON CONFLICT (group_id, epoch) DO UPDATE SET proof = excluded.proof",
                params![group_id, epoch.cast_signed(), proof],
            )
            .and_then(|_| {
                self.connection
                    .execute("DELETE FROM commit_proofs WHERE group_id = ?1 AND epoch < ?2", params![group_id, first])
            })
            .map_err(Error::storage("keep the proof of an epoch"))?;
        Ok(())
    }

    /// What a Commit of this epoch shows, if this device was in the group then.
    pub(crate) fn commit_proof(&self, group_id: &[u8], epoch: u64) -> Result<Option<Vec<u8>>> {
        self.connection
            .query_row(
                "SELECT proof FROM commit_proofs WHERE group_id = ?1 AND epoch = ?2",
                params![group_id, epoch.cast_signed()],
                |row| row.get(0),
            )
            .optional()
            .map_err(Error::storage("look for the proof of an epoch"))
    }

    /// The groups whose pending Commit was sent and not answered, each with its request.
    pub(crate) fn pending_commits(&self) -> Result<Vec<(Vec<u8>, String)>> {
        self.connection
            .prepare_cached("SELECT group_id, request FROM pending_commits ORDER BY group_id")
            .and_then(|mut select| select.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect())
            .map_err(Error::storage("read the pending Commits"))
    }

    pub(crate) fn delete_pending_commit(&self, group_id: &[u8]) -> Result<()> {
        self.connection
            .execute("DELETE FROM pending_commits WHERE group_id = ?1", [group_id])
            .map_err(Error::storage("settle a pending Commit"))?;
        Ok(())
    }

    /// Whether something from the queue was taken in already.
    pub(crate) fn is_in_inbox(&self, id: u64) -> Result<bool> {
        self.connection
            .query_row("SELECT 1 FROM inbox WHERE id = ?1", [id.cast_signed()], |_| Ok(()))
            .optional()
            .map(|found| found.is_some())
            .map_err(Error::storage("look into the inbox"))
    }

    /// Keeps what something from the queue came to.
    pub(crate) fn put_in_inbox(&self, id: u64, incoming: &str) -> Result<()> {
        self.connection
            .execute("INSERT INTO inbox (id, incoming) VALUES (?1, ?2)", params![id.cast_signed(), incoming])
            .map_err(Error::storage("write into the inbox"))?;
        Ok(())
    }

    /// What has come and was not dealt with yet, the oldest first.
    pub(crate) fn inbox(&self) -> Result<Vec<String>> {
        self.connection
            .prepare_cached("SELECT incoming FROM inbox ORDER BY id")
            .and_then(|mut select| select.query_map([], |row| row.get(0))?.collect())
            .map_err(Error::storage("read the inbox"))
    }

    pub(crate) fn delete_from_inbox(&self, id: u64) -> Result<()> {
        self.connection
            .execute("DELETE FROM inbox WHERE id = ?1", [id.cast_signed()])
            .map_err(Error::storage("take something out of the inbox"))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_proofs_of_the_last_epochs_are_kept_and_go_with_their_group() {
        let directory = tempfile::tempdir().unwrap();
        let store = LocalStore::open(directory.path()).unwrap();
        for epoch in 0..100 {
            store.put_commit_proof(b"friends", epoch, &epoch.to_be_bytes(), 64).unwrap();
            store.put_commit_proof(b"others", epoch, b"", 64).unwrap();
        }
        assert_eq!(store.count("commit_proofs"), 128);
        assert_eq!(store.commit_proof(b"friends", 35).unwrap(), None);
        for epoch in 36..100_u64 {
            assert_eq!(store.commit_proof(b"friends", epoch).unwrap().unwrap(), epoch.to_be_bytes());
        }
        store.delete_group(b"friends").unwrap();
        assert_eq!(store.count("commit_proofs"), 64);
        assert_eq!(store.commit_proof(b"others", 99).unwrap().unwrap(), b"");
    }
}
