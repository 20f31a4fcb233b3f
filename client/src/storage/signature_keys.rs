//! Signature keys: those that members of groups were accepted with, and the next ones of this device.

use jiff::Timestamp;
use rusqlite::{OptionalExtension, params};

use super::LocalStore;
use crate::error::{Error, Result};

impl LocalStore {
    /// The signature keys that an identity was accepted with in a ciphersuite, the newest first.
    pub(crate) fn signature_keys_of(&self, identity: &[u8], ciphersuite: u16) -> Result<Vec<Vec<u8>>> {
        self.connection
            .prepare_cached(
                "SELECT signature_key FROM seen_signature_keys WHERE identity = ?1 AND ciphersuite = ?2
                 ORDER BY seen_at DESC, signature_key",
            )
            .and_then(|mut select| select.query_map(params![identity, ciphersuite], |row| row.get(0))?.collect())
            .map_err(Error::storage("read the signature keys of a member"))
    }

    /// Remembers that an identity was accepted with a signature key.
    pub(crate) fn remember_signature_key(
        &self,
        (identity, ciphersuite, signature_key): (&[u8], u16, &[u8]),
        now: Timestamp,
    ) -> Result<()> {
        self.connection
            .prepare_cached(
                "INSERT INTO seen_signature_keys (identity, ciphersuite, signature_key, seen_at) VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT DO NOTHING",
            )
            .and_then(|mut insert| insert.execute(params![identity, ciphersuite, signature_key, now.as_second()]))
            .map_err(Error::storage("remember the signature key of a member"))?;
        Ok(())
    }

    /// The devices of the user, as the server last had them, in JSON, with the version of that.
    pub(crate) fn own_devices(&self) -> Result<Option<(u64, String)>> {
        let columns: Option<(Option<i64>, Option<String>)> = self
            .connection
            .query_row("SELECT own_devices_version, own_devices FROM device_identity", [], |row| {
                Ok((row.get(0)?, row.get(1)?))
            })
            .optional()
            .map_err(Error::storage("read the devices of the user"))?;
        let Some((Some(version), Some(devices))) = columns else { return Ok(None) };
        Ok(Some((version.cast_unsigned(), devices)))
    }

    pub(crate) fn set_own_devices(&self, version: u64, devices: &str) -> Result<()> {
        self.connection
            .execute(
                "UPDATE device_identity SET own_devices_version = ?1, own_devices = ?2",
                params![version.cast_signed(), devices],
            )
            .map_err(Error::storage("write the devices of the user"))?;
        Ok(())
    }

    /// Notes the public signature key that is used for a ciphersuite as soon as the server has accepted it.
    pub(crate) fn set_next_signature_key(&self, ciphersuite: u16, signature_key: &[u8]) -> Result<()> {
        self.connection
            .execute(
                "UPDATE device_ciphersuites SET next_signature_key = ?2 WHERE ciphersuite = ?1",
                params![ciphersuite, signature_key],
            )
            .map_err(Error::storage("write the next signature key of a ciphersuite"))?;
        Ok(())
    }

    /// The server has accepted the next signature key of a ciphersuite.
    pub(crate) fn use_next_signature_key(&self, ciphersuite: u16) -> Result<()> {
        self.connection
            .execute(
                "UPDATE device_ciphersuites SET signature_key = next_signature_key, next_signature_key = NULL
                 WHERE ciphersuite = ?1 AND next_signature_key IS NOT NULL",
                [ciphersuite],
            )
            .map_err(Error::storage("change the signature key of a ciphersuite"))?;
        Ok(())
    }
}
