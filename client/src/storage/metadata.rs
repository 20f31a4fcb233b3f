use jiff::Timestamp;
use keypool_openapi::KeyPackageRef;
use rusqlite::{Row, params};
use strum::{Display, EnumIter, EnumString, IntoStaticStr};

use super::LocalStore;
use crate::error::{Error, Result};

/// What this device knows of one of its KeyPackages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Display, EnumIter, EnumString, IntoStaticStr)]
#[strum(serialize_all = "lowercase")]
pub enum KeyPackageStatus {
    /// Generated; the server has not confirmed it.
    Created,
    /// The server has confirmed it. Where it is there, the server's status says.
    Uploaded,
    /// The server says that it can be reserved.
    Available,
    /// The server says that somebody holds it.
    Reserved,
    /// The server says that it is used up; a Welcome for it may be under way.
    Spent,
    /// Past its `not_after`; kept for a day, since a Welcome for it may be under way.
    Expired,
    /// The server refused it; the next refresh removes it.
    Failed,
}

/// How many KeyPackages the local store holds. The last resort is counted apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LocalCounts {
    /// All KeyPackages but last resorts.
    pub total: usize,
    /// Those that the server has not confirmed.
    pub unconfirmed: usize,
    /// Last resorts.
    pub last_resort: usize,
}

/// One row: what is known of a KeyPackage, and no key material.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Metadata {
    pub(crate) keypackage_ref: KeyPackageRef,
    pub(crate) status: KeyPackageStatus,
    pub(crate) not_after: i64,
    pub(crate) ciphersuite: u16,
    pub(crate) last_resort: bool,
}

impl LocalStore {
    pub(crate) fn insert_metadata(&self, row: &Metadata, now: Timestamp) -> Result<()> {
        self.connection
            .prepare_cached(
                "INSERT INTO keypackage_pool_metadata (ref, status, created_at, not_after, ciphersuite, last_resort)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            )
            .and_then(|mut insert| {
                insert.execute(params![
                    row.keypackage_ref.as_bytes(),
                    <&str>::from(row.status),
                    now.as_second(),
                    row.not_after,
                    row.ciphersuite,
                    row.last_resort
                ])
            })
            .map_err(Error::storage("write a KeyPackage's metadata"))?;
        Ok(())
    }

    /// All rows, those that expire first at the front.
    pub(crate) fn metadata(&self) -> Result<Vec<Metadata>> {
        let rows: Vec<(Vec<u8>, String, i64, u16, bool)> = self
            .connection
            .prepare_cached(
                "SELECT ref, status, not_after, ciphersuite, last_resort
                 FROM keypackage_pool_metadata ORDER BY not_after, ref",
            )
            .and_then(|mut select| select.query_map([], read)?.collect())
            .map_err(Error::storage("read the KeyPackages' metadata"))?;
        rows.into_iter()
            .map(|(keypackage_ref, status, not_after, ciphersuite, last_resort)| {
                let status =
                    status.parse().map_err(|_| Error::Damaged(format!("a KeyPackage has the status {status:?}")))?;
                Ok(Metadata { keypackage_ref: keypackage_ref.into(), status, not_after, ciphersuite, last_resort })
            })
            .collect()
    }

    pub(crate) fn set_status(&self, keypackage_ref: &KeyPackageRef, status: KeyPackageStatus) -> Result<()> {
        self.connection
            .prepare_cached("UPDATE keypackage_pool_metadata SET status = ?2 WHERE ref = ?1")
            .and_then(|mut update| update.execute(params![keypackage_ref.as_bytes(), <&str>::from(status)]))
            .map_err(Error::storage("change a KeyPackage's status"))?;
        Ok(())
    }

    pub(crate) fn set_uploaded(&self, keypackage_ref: &KeyPackageRef, now: Timestamp) -> Result<()> {
        self.connection
            .prepare_cached("UPDATE keypackage_pool_metadata SET status = 'uploaded', uploaded_at = ?2 WHERE ref = ?1")
            .and_then(|mut update| update.execute(params![keypackage_ref.as_bytes(), now.as_second()]))
            .map_err(Error::storage("change a KeyPackage's status"))?;
        Ok(())
    }

    pub(crate) fn delete_metadata(&self, keypackage_ref: &[u8]) -> Result<()> {
        self.connection
            .prepare_cached("DELETE FROM keypackage_pool_metadata WHERE ref = ?1")
            .and_then(|mut delete| delete.execute([keypackage_ref]))
            .map_err(Error::storage("delete a KeyPackage's metadata"))?;
        Ok(())
    }
}

fn read(row: &Row<'_>) -> rusqlite::Result<(Vec<u8>, String, i64, u16, bool)> {
    Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?))
}
