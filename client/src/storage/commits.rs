//! Commits that the server has not answered, and the proofs of the last epochs.

use rusqlite::{OptionalExtension, Row, params};

use super::store::LocalStore;
use crate::error::{Error, Result};

/// A Commit that the server has not answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PendingCommit {
    pub(crate) group_id: Vec<u8>,
    /// The request that carries it, as JSON.
    pub(crate) request: String,
    /// Whether this device comes back into the group by it. OpenMLS has merged it already.
    pub(crate) is_external: bool,
}

impl LocalStore {
    /// Stores the request with the pending Commit of a group before it is sent. Until the answer arrives, it is unknown
    /// whether the server accepted the Commit.
    pub(crate) fn put_pending_commit(&self, group_id: &[u8], request: &str, is_external: bool) -> Result<()> {
        self.connection()
            .execute(
                "INSERT INTO pending_commits (group_id, request, is_external) VALUES (?1, ?2, ?3)",
                params![group_id, request, is_external],
            )
            .map_err(Error::storage("write a pending Commit"))?;
        Ok(())
    }

    /// The Commits that the server has not answered.
    pub(crate) fn pending_commits(&self) -> Result<Vec<PendingCommit>> {
        let pending =
            |row: &Row<'_>| Ok(PendingCommit { group_id: row.get(0)?, request: row.get(1)?, is_external: row.get(2)? });
        self.connection()
            .prepare_cached("SELECT group_id, request, is_external FROM pending_commits ORDER BY group_id")
            .and_then(|mut select| select.query_map([], pending)?.collect())
            .map_err(Error::storage("read the pending Commits"))
    }

    pub(crate) fn delete_pending_commit(&self, group_id: &[u8]) -> Result<()> {
        self.connection()
            .execute("DELETE FROM pending_commits WHERE group_id = ?1", [group_id])
            .map_err(Error::storage("delete a pending Commit"))?;
        Ok(())
    }

    /// Stores the proof of an epoch, and deletes those before the last `kept` epochs.
    pub(crate) fn put_commit_proof(&self, group_id: &[u8], epoch: u64, proof: &[u8], kept: u64) -> Result<()> {
        let first = epoch.saturating_sub(kept - 1).cast_signed();
        self.connection()
            .execute(
                "INSERT INTO commit_proofs (group_id, epoch, proof) VALUES (?1, ?2, ?3)
                 ON CONFLICT (group_id, epoch) DO UPDATE SET proof = excluded.proof",
                params![group_id, epoch.cast_signed(), proof],
            )
            .and_then(|_| {
                self.connection()
                    .execute("DELETE FROM commit_proofs WHERE group_id = ?1 AND epoch < ?2", params![group_id, first])
            })
            .map_err(Error::storage("write the proof of an epoch"))?;
        Ok(())
    }

    /// The proof of an epoch, if it is still stored.
    pub(crate) fn commit_proof(&self, group_id: &[u8], epoch: u64) -> Result<Option<Vec<u8>>> {
        self.connection()
            .query_row(
                "SELECT proof FROM commit_proofs WHERE group_id = ?1 AND epoch = ?2",
                params![group_id, epoch.cast_signed()],
                |row| row.get(0),
            )
            .optional()
            .map_err(Error::storage("read the proof of an epoch"))
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
