//! The row of this device: its identity, its token, its signature keys, and the user's other devices.

use rusqlite::{OptionalExtension, params};
use secrecy::{ExposeSecret, SecretString};

use super::store::LocalStore;
use crate::error::{Error, Result};

/// The row of this device. Its private keys are in OpenMLS's tables.
#[derive(Clone, Debug)]
pub(crate) struct IdentityRow {
    pub(crate) server: String,
    pub(crate) user: String,
    pub(crate) device: String,
    pub(crate) token: Option<SecretString>,
    /// The Idempotency-Key of the registration, until the token is stored.
    pub(crate) registration_key: Option<String>,
    /// Each ciphersuite with its current public signature key.
    pub(crate) signature_keys: Vec<(u16, Vec<u8>)>,
    /// The ciphersuites whose signature key is being changed, each with the next key, which the server has not accepted
    /// yet.
    pub(crate) next_signature_keys: Vec<(u16, Vec<u8>)>,
}

impl LocalStore {
    pub(crate) fn identity(&self) -> Result<Option<IdentityRow>> {
        let keys = |sql| {
            self.connection()
                .prepare_cached(sql)
                .and_then(|mut select| select.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect())
                .map_err(Error::storage("read the ciphersuites"))
        };
        let signature_keys = keys("SELECT ciphersuite, signature_key FROM device_ciphersuites ORDER BY ciphersuite")?;
        let next_signature_keys = keys(
            "SELECT ciphersuite, next_signature_key FROM device_ciphersuites
             WHERE next_signature_key IS NOT NULL ORDER BY ciphersuite",
        )?;
        self.connection()
            .query_row("SELECT server, user, device, token, registration_key FROM device_identity", [], |row| {
                Ok(IdentityRow {
                    server: row.get(0)?,
                    user: row.get(1)?,
                    device: row.get(2)?,
                    token: row.get::<_, Option<String>>(3)?.map(SecretString::from),
                    registration_key: row.get(4)?,
                    signature_keys,
                    next_signature_keys,
                })
            })
            .optional()
            .map_err(Error::storage("read the identity"))
    }

    /// Deletes the identity of a device that was never registered, with its keys and KeyPackages: nobody has seen them.
    pub(crate) fn delete_identity(&self) -> Result<()> {
        self.connection()
            .execute_batch(
                "DELETE FROM device_identity; DELETE FROM device_ciphersuites; DELETE FROM openmls_signature_keys;
                 DELETE FROM keypackage_pool_metadata; DELETE FROM openmls_key_packages",
            )
            .map_err(Error::storage("delete an identity that was never registered"))
    }

    /// Writes the identity of a new device, without its ciphersuites.
    pub(crate) fn insert_identity(&self, identity: &IdentityRow) -> Result<()> {
        let IdentityRow { server, user, device, token, registration_key, .. } = identity;
        let token = token.as_ref().map(ExposeSecret::expose_secret);
        self.connection()
            .execute(
                "INSERT INTO device_identity (id, server, user, device, token, registration_key)
                 VALUES (1, ?1, ?2, ?3, ?4, ?5)",
                params![server, user, device, token, registration_key],
            )
            .map_err(Error::storage("write the identity"))?;
        Ok(())
    }

    pub(crate) fn set_server(&self, server: &str) -> Result<()> {
        self.connection()
            .execute("UPDATE device_identity SET server = ?1", [server])
            .map_err(Error::storage("write the server's address"))?;
        Ok(())
    }

    pub(crate) fn set_token(&self, token: &SecretString) -> Result<()> {
        self.connection()
            .execute("UPDATE device_identity SET token = ?1, registration_key = NULL", [token.expose_secret()])
            .map_err(Error::storage("write the token"))?;
        Ok(())
    }

    /// Sets the Idempotency-Key of a further registration, until its token is stored.
    pub(crate) fn set_registration_key(&self, key: &str) -> Result<()> {
        self.connection()
            .execute("UPDATE device_identity SET registration_key = ?1", [key])
            .map_err(Error::storage("write the key of the registration"))?;
        Ok(())
    }

    /// Drops changes of signature keys that the server has not accepted.
    pub(crate) fn forget_next_signature_keys(&self) -> Result<()> {
        self.connection()
            .execute("UPDATE device_ciphersuites SET next_signature_key = NULL", [])
            .map_err(Error::storage("drop the next signature keys"))?;
        Ok(())
    }

    /// Sets the current public signature key of a ciphersuite.
    pub(crate) fn set_signature_key(&self, ciphersuite: u16, signature_key: &[u8]) -> Result<()> {
        self.connection()
            .execute(
                "INSERT INTO device_ciphersuites (ciphersuite, signature_key) VALUES (?1, ?2)
                 ON CONFLICT (ciphersuite) DO UPDATE SET signature_key = excluded.signature_key",
                params![ciphersuite, signature_key],
            )
            .map_err(Error::storage("write the signature key of a ciphersuite"))?;
        Ok(())
    }

    /// Sets the next public signature key of a ciphersuite.
    pub(crate) fn set_next_signature_key(&self, ciphersuite: u16, signature_key: &[u8]) -> Result<()> {
        self.connection()
            .execute(
                "UPDATE device_ciphersuites SET next_signature_key = ?2 WHERE ciphersuite = ?1",
                params![ciphersuite, signature_key],
            )
            .map_err(Error::storage("write the next signature key of a ciphersuite"))?;
        Ok(())
    }

    /// Makes the next signature key of a ciphersuite the current one, because the server accepted it.
    pub(crate) fn use_next_signature_key(&self, ciphersuite: u16) -> Result<()> {
        self.connection()
            .execute(
                "UPDATE device_ciphersuites SET signature_key = next_signature_key, next_signature_key = NULL
                 WHERE ciphersuite = ?1 AND next_signature_key IS NOT NULL",
                [ciphersuite],
            )
            .map_err(Error::storage("change the signature key of a ciphersuite"))?;
        Ok(())
    }

    /// The user's devices as the server last listed them, in JSON, with the version of the list.
    pub(crate) fn own_devices(&self) -> Result<Option<(u64, String)>> {
        let columns: Option<(Option<i64>, Option<String>)> = self
            .connection()
            .query_row("SELECT own_devices_version, own_devices FROM device_identity", [], |row| {
                Ok((row.get(0)?, row.get(1)?))
            })
            .optional()
            .map_err(Error::storage("read the devices of the user"))?;
        let Some((Some(version), Some(devices))) = columns else { return Ok(None) };
        Ok(Some((version.cast_unsigned(), devices)))
    }

    pub(crate) fn set_own_devices(&self, version: u64, devices: &str) -> Result<()> {
        self.connection()
            .execute(
                "UPDATE device_identity SET own_devices_version = ?1, own_devices = ?2",
                params![version.cast_signed(), devices],
            )
            .map_err(Error::storage("write the devices of the user"))?;
        Ok(())
    }
}
