//! The signature keys with which members of groups were accepted.

use jiff::Timestamp;
use rusqlite::params;

use super::{column::Sql, store::LocalStore};
use crate::error::{Error, Result};

impl LocalStore {
    /// The signature keys with which an identity was accepted in a ciphersuite, newest first.
    pub(crate) fn signature_keys_of(&self, identity: &[u8], ciphersuite: u16) -> Result<Vec<Vec<u8>>> {
        self.connection()
            .prepare_cached(
                "SELECT signature_key FROM seen_signature_keys WHERE identity = ?1 AND ciphersuite = ?2
                 ORDER BY seen_at DESC, signature_key",
            )
            .and_then(|mut select| select.query_map(params![identity, ciphersuite], |row| row.get(0))?.collect())
            .map_err(Error::storage("read the signature keys of a member"))
    }

    /// Records that an identity was accepted with a signature key.
    pub(crate) fn record_signature_key(
        &self,
        (identity, ciphersuite, signature_key): (&[u8], u16, &[u8]),
        now: Timestamp,
    ) -> Result<()> {
        self.connection()
            .prepare_cached(
                "INSERT INTO seen_signature_keys (identity, ciphersuite, signature_key, seen_at) VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT DO NOTHING",
            )
            .and_then(|mut insert| insert.execute(params![identity, ciphersuite, signature_key, Sql(&now)]))
            .map_err(Error::storage("write the signature key of a member"))?;
        Ok(())
    }
}
