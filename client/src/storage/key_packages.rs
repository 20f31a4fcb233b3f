//! The metadata of KeyPackages: one row each. Their keys are in OpenMLS's tables.

use std::collections::BTreeMap;

use jiff::Timestamp;
use keypool_openapi::{Base64Bytes, DeviceOf, KeyPackageRef, ReservationId};
use rusqlite::{OptionalExtension, Row, Statement, params};
use strum::IntoEnumIterator as _;

use super::{column::Sql, store::LocalStore};
use crate::{
    error::{Error, Result},
    key_package_status::KeyPackageStatus,
};

/// The last reservation of a KeyPackage, as the server says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReservationInfo {
    /// The reservation.
    pub reservation_id: Option<ReservationId>,
    /// The device that reserved it.
    pub reserved_by: Option<DeviceOf>,
    /// The end of its TTL.
    pub expires_at: Option<Timestamp>,
}

/// The spend of a KeyPackage, as the server says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Spending {
    /// The device that spent it.
    pub by: Option<DeviceOf>,
    /// The group that it was spent for.
    pub group_id: Option<Base64Bytes>,
    /// The time of the spend; `None` means now.
    pub at: Option<Timestamp>,
}

/// The metadata of a KeyPackage. It contains no key material.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyPackageMetadata {
    /// Its ref.
    pub keypackage_ref: KeyPackageRef,
    /// Its status.
    pub status: KeyPackageStatus,
    /// The time of its generation.
    pub created_at: Timestamp,
    /// The time at which the server confirmed it.
    pub uploaded_at: Option<Timestamp>,
    /// The time at which this device learnt of its first reservation.
    pub reserved_at: Option<Timestamp>,
    /// The time of its spend.
    pub spent_at: Option<Timestamp>,
    /// The end of its lifetime.
    pub not_after: Timestamp,
    /// Its last reservation.
    pub reservation_id: Option<ReservationId>,
    /// The end of the TTL of its last reservation.
    pub reservation_expires_at: Option<Timestamp>,
    /// The device that reserved it last, `user/device`.
    pub reserved_by: Option<String>,
    /// The group that it was spent for.
    pub spent_group_id: Option<Vec<u8>>,
    /// The device that spent it, `user/device`.
    pub spent_by: Option<String>,
    /// Its ciphersuite (RFC 9420, section 17.1).
    pub ciphersuite: u16,
    /// Whether it is a last resort.
    pub last_resort: bool,
    /// For a failed one, the time until which its keys are kept; `None` if no adder can have it.
    pub keep_until: Option<Timestamp>,
    /// Whether its signature key was rotated away, so that it has to be revoked on the server.
    pub superseded: bool,
}

impl KeyPackageMetadata {
    /// The row of a newly generated KeyPackage.
    #[must_use]
    pub fn created(
        keypackage_ref: KeyPackageRef,
        (created_at, not_after): (Timestamp, Timestamp),
        ciphersuite: u16,
        last_resort: bool,
    ) -> Self {
        Self {
            keypackage_ref,
            status: KeyPackageStatus::Created,
            created_at,
            uploaded_at: None,
            reserved_at: None,
            spent_at: None,
            not_after,
            reservation_id: None,
            reservation_expires_at: None,
            reserved_by: None,
            spent_group_id: None,
            spent_by: None,
            ciphersuite,
            last_resort,
            keep_until: None,
            superseded: false,
        }
    }

    /// Whether the server can hand it out for the first time.
    #[must_use]
    pub fn is_fresh(&self, now: Timestamp) -> bool {
        self.is_available(now) && self.reserved_at.is_none()
    }

    /// Whether the server can hand it out now, or could after its upload.
    #[must_use]
    pub fn is_available(&self, now: Timestamp) -> bool {
        self.is_live(now) && self.status != KeyPackageStatus::Reserved
    }

    /// Whether the server can hand it out, now or after its reservation lapses.
    #[must_use]
    pub fn is_live(&self, now: Timestamp) -> bool {
        self.status.is_live() && self.not_after > now
    }
}

/// Lists each column of the table once, with the field that it holds, for the functions that write and read rows.
macro_rules! columns {
    ($($field:ident: $column:literal),+ $(,)?) => {
        const COLUMNS: &[&str] = &[$($column),+];

        fn insert(statement: &mut Statement<'_>, row: &KeyPackageMetadata) -> rusqlite::Result<usize> {
            statement.execute(params![$(Sql(&row.$field)),+])
        }

        fn read(row: &Row<'_>) -> rusqlite::Result<KeyPackageMetadata> {
            Ok(KeyPackageMetadata { $($field: row.get::<_, Sql<_>>($column)?.0),+ })
        }
    };
}

columns! {
    keypackage_ref: "ref",
    status: "status",
    created_at: "created_at",
    uploaded_at: "uploaded_at",
    reserved_at: "reserved_at",
    spent_at: "spent_at",
    not_after: "not_after",
    reservation_id: "reservation_id",
    reservation_expires_at: "reservation_expires_at",
    reserved_by: "reserved_by",
    spent_group_id: "spent_group_id",
    spent_by: "spent_by",
    ciphersuite: "ciphersuite",
    last_resort: "last_resort",
    keep_until: "keep_until",
    superseded: "superseded",
}

impl LocalStore {
    /// Adds the row of a KeyPackage.
    pub fn create_pool_metadata(&self, row: &KeyPackageMetadata) -> Result<()> {
        let values: Vec<_> = (1..=COLUMNS.len()).map(|number| format!("?{number}")).collect();
        let sql =
            format!("INSERT INTO keypackage_pool_metadata ({}) VALUES ({})", COLUMNS.join(", "), values.join(", "));
        self.connection()
            .prepare_cached(&sql)
            .and_then(|mut statement| insert(&mut statement, row))
            .map_err(Error::storage("write a KeyPackage's metadata"))?;
        Ok(())
    }

    /// All rows, in the order of expiry.
    pub fn metadata(&self) -> Result<Vec<KeyPackageMetadata>> {
        self.select("ORDER BY not_after, ref", [])
    }

    /// The rows of a status, in the order of expiry.
    pub fn get_metadata_by_status(&self, status: KeyPackageStatus) -> Result<Vec<KeyPackageMetadata>> {
        self.select("WHERE status = ?1 ORDER BY not_after, ref", [Sql(&status)])
    }

    /// The row of a KeyPackage, if there is one.
    pub fn find_metadata(&self, keypackage_ref: &KeyPackageRef) -> Result<Option<KeyPackageMetadata>> {
        Ok(self.select("WHERE ref = ?1", [Sql(keypackage_ref)])?.pop())
    }

    /// The number of rows of each status, including statuses without rows.
    pub fn count_by_status(&self) -> Result<BTreeMap<KeyPackageStatus, usize>> {
        let rows: Vec<(Sql<KeyPackageStatus>, usize)> = self
            .connection()
            .prepare_cached("SELECT status, count(*) FROM keypackage_pool_metadata GROUP BY status")
            .and_then(|mut select| select.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect())
            .map_err(Error::storage("count the KeyPackages"))?;
        let mut counts: BTreeMap<_, _> = KeyPackageStatus::iter().map(|status| (status, 0)).collect();
        counts.extend(rows.into_iter().map(|(Sql(status), count)| (status, count)));
        Ok(counts)
    }

    /// The refs of KeyPackages that have expired at `now`.
    pub fn get_expired_refs(&self, now: Timestamp) -> Result<Vec<KeyPackageRef>> {
        self.connection()
            .prepare_cached("SELECT ref FROM keypackage_pool_metadata WHERE not_after <= ?1 ORDER BY not_after, ref")
            .and_then(|mut select| select.query_map([Sql(&now)], |row| Ok(row.get::<_, Sql<_>>(0)?.0))?.collect())
            .map_err(Error::storage("read the expired KeyPackages"))
    }

    /// Changes the status of a KeyPackage. A change that [`KeyPackageStatus::may_become`] does not allow fails with
    /// [`Error::InvalidTransition`], and changes nothing.
    pub fn update_pool_metadata_status(
        &self,
        keypackage_ref: &KeyPackageRef,
        next: KeyPackageStatus,
        now: Timestamp,
    ) -> Result<()> {
        let status: Option<Sql<KeyPackageStatus>> = self
            .connection()
            .prepare_cached("SELECT status FROM keypackage_pool_metadata WHERE ref = ?1")
            .and_then(|mut select| select.query_row([Sql(keypackage_ref)], |row| row.get(0)).optional())
            .map_err(Error::storage("read a KeyPackage's status"))?;
        let Sql(status) = status.ok_or_else(|| Error::UnknownKeyPackage(keypackage_ref.clone()))?;
        if !status.may_become(next) {
            return Err(Error::InvalidTransition { keypackage_ref: keypackage_ref.clone(), status, next });
        }
        self.update(
            "status = ?2,
             uploaded_at = CASE WHEN ?2 = 'uploaded' THEN ?3 WHEN ?2 = 'created' THEN NULL ELSE uploaded_at END,
             reserved_at = CASE WHEN ?2 = 'reserved' THEN ?3 WHEN ?2 = 'created' THEN NULL ELSE reserved_at END,
             spent_at = CASE WHEN ?2 = 'spent' THEN ?3 ELSE spent_at END",
            params![Sql(keypackage_ref), Sql(&next), Sql(&now)],
        )
    }

    /// Records the last reservation of a KeyPackage.
    pub fn update_reservation_info(
        &self,
        keypackage_ref: &KeyPackageRef,
        info: &ReservationInfo,
        now: Timestamp,
    ) -> Result<()> {
        self.update(
            "reservation_id = ?2, reserved_by = ?3, reservation_expires_at = ?4, reserved_at = coalesce(reserved_at, ?5)",
            params![
                Sql(keypackage_ref),
                Sql(&info.reservation_id),
                info.reserved_by.as_ref().map(ToString::to_string),
                Sql(&info.expires_at),
                Sql(&now),
            ],
        )
    }

    /// Records the spend of a KeyPackage.
    pub fn mark_spent(&self, keypackage_ref: &KeyPackageRef, spending: &Spending, now: Timestamp) -> Result<()> {
        self.update_pool_metadata_status(keypackage_ref, KeyPackageStatus::Spent, spending.at.unwrap_or(now))?;
        self.update(
            "spent_by = ?2, spent_group_id = ?3",
            params![
                Sql(keypackage_ref),
                spending.by.as_ref().map(ToString::to_string),
                spending.group_id.as_ref().map(|group_id| &group_id.0),
            ],
        )
    }

    /// Deletes a row. [`crate::KeyPackagePool`] deletes its keys.
    pub fn delete_pool_metadata(&self, keypackage_ref: &KeyPackageRef) -> Result<()> {
        self.connection()
            .prepare_cached("DELETE FROM keypackage_pool_metadata WHERE ref = ?1")
            .and_then(|mut delete| delete.execute([Sql(keypackage_ref)]))
            .map_err(Error::storage("delete a KeyPackage's metadata"))?;
        Ok(())
    }

    /// Records that a KeyPackage failed. Its keys are kept until `keep_until`; `None` if no adder can have it.
    pub(crate) fn mark_failed(
        &self,
        keypackage_ref: &KeyPackageRef,
        keep_until: Option<Timestamp>,
        now: Timestamp,
    ) -> Result<()> {
        self.update_pool_metadata_status(keypackage_ref, KeyPackageStatus::Failed, now)?;
        self.update("keep_until = ?2", params![Sql(keypackage_ref), Sql(&keep_until)])
    }

    /// Records that the server's inventory has every uploaded KeyPackage.
    pub(crate) fn confirm_uploaded(&self) -> Result<()> {
        self.connection()
            .prepare_cached("UPDATE keypackage_pool_metadata SET status = 'available' WHERE status = 'uploaded'")
            .and_then(|mut update| update.execute([]))
            .map_err(Error::storage("change the KeyPackages' status"))?;
        Ok(())
    }

    /// Marks every KeyPackage as superseded, because its signature key is rotated away. This includes spent ones: they
    /// must not be mistaken for accepted KeyPackages of the next key.
    pub(crate) fn supersede_all(&self) -> Result<()> {
        self.connection()
            .execute("UPDATE keypackage_pool_metadata SET superseded = 1", [])
            .map_err(Error::storage("mark the KeyPackages of the old signature key"))?;
        Ok(())
    }

    fn update(&self, set: &str, params: impl rusqlite::Params) -> Result<()> {
        self.connection()
            .prepare_cached(&format!("UPDATE keypackage_pool_metadata SET {set} WHERE ref = ?1"))
            .and_then(|mut update| update.execute(params))
            .map_err(Error::storage("change a KeyPackage's metadata"))?;
        Ok(())
    }

    fn select(&self, which: &str, params: impl rusqlite::Params) -> Result<Vec<KeyPackageMetadata>> {
        let columns = COLUMNS.join(", ");
        self.connection()
            .prepare_cached(&format!("SELECT {columns} FROM keypackage_pool_metadata {which}"))
            .and_then(|mut select| select.query_map(params, read)?.collect())
            .map_err(Error::storage("read the KeyPackages' metadata"))
    }
}

#[cfg(test)]
mod tests;
