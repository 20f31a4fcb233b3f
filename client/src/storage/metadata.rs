//! What is known of each KeyPackage: a row beside the keys that OpenMLS's tables hold.

use std::collections::BTreeMap;

use jiff::Timestamp;
use keypool_openapi::{Base64Bytes, DeviceOf, KeyPackageRef, ReservationId};
use rusqlite::{OptionalExtension, Row, params};
use strum::{Display, EnumIter, EnumString, IntoEnumIterator, IntoStaticStr};

use super::LocalStore;
use crate::error::{Error, Result};

/// Where one of this device's KeyPackages is in its life, as far as this device knows.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Display,
    EnumIter,
    EnumString,
    IntoStaticStr,
    serde::Serialize,
)]
#[strum(serialize_all = "lowercase")]
#[serde(rename_all = "lowercase")]
pub enum KeyPackageStatus {
    /// Generated; the server has not confirmed it.
    Created,
    /// The server has confirmed it.
    Uploaded,
    /// The server's inventory shows that it can be reserved.
    Available,
    /// The server says that somebody holds it.
    Reserved,
    /// The server says that it is used up; a Welcome for it may be under way.
    Spent,
    /// Past its `not_after`; kept for a day, since a Welcome for it may be under way.
    Expired,
    /// The server refused it, or it was withdrawn there. Removed at the next refresh, or, where somebody may have it, a
    /// day later.
    Failed,
}

impl KeyPackageStatus {
    /// Whether a KeyPackage of this status may become one of that.
    #[must_use]
    pub fn may_become(self, next: Self) -> bool {
        use KeyPackageStatus::{Available, Created, Expired, Failed, Reserved, Spent, Uploaded};
        match self {
            Created => matches!(next, Uploaded | Expired | Failed),
            // Back to `Created`: the server has lost it, and it is uploaded anew.
            Uploaded => matches!(next, Created | Available | Reserved | Spent | Expired | Failed),
            Available => matches!(next, Created | Reserved | Spent | Expired | Failed),
            Reserved => matches!(next, Available | Spent | Expired | Failed),
            // A spend that came before the end, and was learnt of after it.
            Expired | Failed => matches!(next, Spent),
            Spent => false,
        }
    }

    /// Whether the server can still hand it out, or has it handed out now.
    #[must_use]
    pub fn is_live(self) -> bool {
        matches!(self, Self::Created | Self::Uploaded | Self::Available | Self::Reserved)
    }
}

/// Who holds a KeyPackage, or held it last, as the server says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReservationInfo {
    /// The reservation.
    pub reservation_id: Option<ReservationId>,
    /// Whose it is.
    pub reserved_by: Option<DeviceOf>,
    /// When it lapses.
    pub expires_at: Option<Timestamp>,
}

/// Who used a KeyPackage up, as the server says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Spending {
    /// Who put it into a Commit.
    pub by: Option<DeviceOf>,
    /// For which group.
    pub group_id: Option<Base64Bytes>,
    /// When; `None`: now.
    pub at: Option<Timestamp>,
}

/// One row: what is known of a KeyPackage, and no key material.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyPackageMetadata {
    /// Its ref.
    pub keypackage_ref: KeyPackageRef,
    /// Where it is in its life.
    pub status: KeyPackageStatus,
    /// When it was generated.
    pub created_at: Timestamp,
    /// When the server confirmed it.
    pub uploaded_at: Option<Timestamp>,
    /// When this device learnt that it was reserved.
    pub reserved_at: Option<Timestamp>,
    /// When it was spent.
    pub spent_at: Option<Timestamp>,
    /// When it expires.
    pub not_after: Timestamp,
    /// Its last reservation.
    pub reservation_id: Option<ReservationId>,
    /// When that lapses or lapsed.
    pub reservation_expires_at: Option<Timestamp>,
    /// Who reserved it last, `user/device`.
    pub reserved_by: Option<String>,
    /// The group that it was spent for.
    pub spent_group_id: Option<Vec<u8>>,
    /// Who spent it, `user/device`.
    pub spent_by: Option<String>,
    /// Its ciphersuite (RFC 9420, section 17.1).
    pub ciphersuite: u16,
    /// Whether it is a last resort.
    pub last_resort: bool,
    /// Of a failed one, until when its keys are kept; `None`: nobody can have it.
    pub keep_until: Option<Timestamp>,
    /// Whether its signature key was rotated away, so that it is to be withdrawn from the server.
    pub superseded: bool,
}

impl KeyPackageMetadata {
    /// A KeyPackage that was just generated.
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

    /// Whether the server can hand it out now, or could if it had it.
    #[must_use]
    pub fn is_available(&self, now: Timestamp) -> bool {
        self.is_live(now) && self.status != KeyPackageStatus::Reserved
    }

    /// Whether the server can hand it out, or has it handed out now.
    #[must_use]
    pub fn is_live(&self, now: Timestamp) -> bool {
        self.status.is_live() && self.not_after > now
    }
}

const COLUMNS: &str = "ref, status, created_at, uploaded_at, reserved_at, spent_at, not_after, reservation_id, \
    reservation_expires_at, reserved_by, spent_group_id, spent_by, ciphersuite, last_resort, keep_until, superseded";

impl LocalStore {
    /// Adds the row of a KeyPackage.
    pub fn create_pool_metadata(&self, row: &KeyPackageMetadata) -> Result<()> {
        let sql = format!(
            "INSERT INTO keypackage_pool_metadata ({COLUMNS})
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16)"
        );
        let second = |time: Option<Timestamp>| time.map(Timestamp::as_second);
        self.connection
            .prepare_cached(&sql)
            .and_then(|mut insert| {
                insert.execute(params![
                    row.keypackage_ref.as_bytes(),
                    <&str>::from(row.status),
                    row.created_at.as_second(),
                    second(row.uploaded_at),
                    second(row.reserved_at),
                    second(row.spent_at),
                    row.not_after.as_second(),
                    row.reservation_id.map(|id| id.to_string()),
                    second(row.reservation_expires_at),
                    row.reserved_by,
                    row.spent_group_id,
                    row.spent_by,
                    row.ciphersuite,
                    row.last_resort,
                    second(row.keep_until),
                    row.superseded,
                ])
            })
            .map_err(Error::storage("write a KeyPackage's metadata"))?;
        Ok(())
    }

    /// All rows, those that expire first at the front.
    pub fn metadata(&self) -> Result<Vec<KeyPackageMetadata>> {
        self.select("ORDER BY not_after, ref", [])
    }

    /// The rows of a status, those that expire first at the front.
    pub fn get_metadata_by_status(&self, status: KeyPackageStatus) -> Result<Vec<KeyPackageMetadata>> {
        self.select("WHERE status = ?1 ORDER BY not_after, ref", [<&str>::from(status)])
    }

    /// The row of a KeyPackage; `None` where there is none.
    pub fn find_metadata(&self, keypackage_ref: &KeyPackageRef) -> Result<Option<KeyPackageMetadata>> {
        Ok(self.select("WHERE ref = ?1", [keypackage_ref.as_bytes()])?.pop())
    }

    /// How many rows there are of each status, those without any included.
    pub fn count_by_status(&self) -> Result<BTreeMap<KeyPackageStatus, usize>> {
        let rows: Vec<(String, usize)> = self
            .connection
            .prepare_cached("SELECT status, count(*) FROM keypackage_pool_metadata GROUP BY status")
            .and_then(|mut select| select.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect())
            .map_err(Error::storage("count the KeyPackages"))?;
        let mut counts: BTreeMap<_, _> = KeyPackageStatus::iter().map(|status| (status, 0)).collect();
        for (status, count) in rows {
            counts.insert(parsed(&status)?, count);
        }
        Ok(counts)
    }

    /// The refs of what has expired by then.
    pub fn get_expired_refs(&self, now: Timestamp) -> Result<Vec<KeyPackageRef>> {
        let refs: Vec<Vec<u8>> = self
            .connection
            .prepare_cached("SELECT ref FROM keypackage_pool_metadata WHERE not_after <= ?1 ORDER BY not_after, ref")
            .and_then(|mut select| select.query_map([now.as_second()], |row| row.get(0))?.collect())
            .map_err(Error::storage("look for expired KeyPackages"))?;
        Ok(refs.into_iter().map(KeyPackageRef::from).collect())
    }

    /// Moves a KeyPackage on along its life; see [`KeyPackageStatus::may_become`]. Any other step is
    /// [`Error::InvalidTransition`], and changes nothing.
    pub fn update_pool_metadata_status(
        &self,
        keypackage_ref: &KeyPackageRef,
        next: KeyPackageStatus,
        now: Timestamp,
    ) -> Result<()> {
        let status: Option<String> = self
            .connection
            .prepare_cached("SELECT status FROM keypackage_pool_metadata WHERE ref = ?1")
            .and_then(|mut select| select.query_row([keypackage_ref.as_bytes()], |row| row.get(0)).optional())
            .map_err(Error::storage("read a KeyPackage's status"))?;
        let status = parsed(&status.ok_or_else(|| Error::UnknownKeyPackage(keypackage_ref.clone()))?)?;
        if !status.may_become(next) {
            return Err(Error::InvalidTransition { keypackage_ref: keypackage_ref.clone(), status, next });
        }
        self.update(
            "status = ?2,
             uploaded_at = CASE WHEN ?2 = 'uploaded' THEN ?3 WHEN ?2 = 'created' THEN NULL ELSE uploaded_at END,
             reserved_at = CASE WHEN ?2 = 'reserved' THEN ?3 WHEN ?2 = 'created' THEN NULL ELSE reserved_at END,
             spent_at = CASE WHEN ?2 = 'spent' THEN ?3 ELSE spent_at END",
            params![keypackage_ref.as_bytes(), <&str>::from(next), now.as_second()],
        )
    }

    /// Notes who holds a KeyPackage, or held it last.
    pub fn update_reservation_info(
        &self,
        keypackage_ref: &KeyPackageRef,
        info: &ReservationInfo,
        now: Timestamp,
    ) -> Result<()> {
        self.update(
            "reservation_id = ?2, reserved_by = ?3, reservation_expires_at = ?4, reserved_at = coalesce(reserved_at, ?5)",
            params![
                keypackage_ref.as_bytes(),
                info.reservation_id.map(|id| id.to_string()),
                info.reserved_by.as_ref().map(name),
                info.expires_at.map(Timestamp::as_second),
                now.as_second(),
            ],
        )
    }

    /// Notes that a KeyPackage is used up, by whom and for which group.
    pub fn mark_spent(&self, keypackage_ref: &KeyPackageRef, spending: &Spending, now: Timestamp) -> Result<()> {
        self.update_pool_metadata_status(keypackage_ref, KeyPackageStatus::Spent, spending.at.unwrap_or(now))?;
        self.update(
            "spent_by = ?2, spent_group_id = ?3",
            params![
                keypackage_ref.as_bytes(),
                spending.by.as_ref().map(name),
                spending.group_id.as_ref().map(|group_id| &group_id.0),
            ],
        )
    }

    /// Removes a row. Its keys are the business of [`crate::KeyPackagePool`].
    pub fn delete_pool_metadata(&self, keypackage_ref: &KeyPackageRef) -> Result<()> {
        self.connection
            .prepare_cached("DELETE FROM keypackage_pool_metadata WHERE ref = ?1")
            .and_then(|mut delete| delete.execute([keypackage_ref.as_bytes()]))
            .map_err(Error::storage("delete a KeyPackage's metadata"))?;
        Ok(())
    }

    /// Notes that a KeyPackage failed, and until when its keys are kept: `None` where nobody can have it.
    pub(crate) fn mark_failed(
        &self,
        keypackage_ref: &KeyPackageRef,
        keep_until: Option<Timestamp>,
        now: Timestamp,
    ) -> Result<()> {
        self.update_pool_metadata_status(keypackage_ref, KeyPackageStatus::Failed, now)?;
        self.update("keep_until = ?2", params![keypackage_ref.as_bytes(), keep_until.map(Timestamp::as_second)])
    }

    /// Notes that all that was uploaded is in the server's inventory.
    pub(crate) fn confirm_uploaded(&self) -> Result<()> {
        self.connection
            .prepare_cached("UPDATE keypackage_pool_metadata SET status = 'available' WHERE status = 'uploaded'")
            .and_then(|mut update| update.execute([]))
            .map_err(Error::storage("change the KeyPackages' status"))?;
        Ok(())
    }

    /// Marks every KeyPackage as of a signature key that is rotated away, whatever its status: one that was spent must not
    /// be taken for one of the next key that the server has accepted.
    pub(crate) fn supersede_all(&self) -> Result<()> {
        self.connection
            .execute("UPDATE keypackage_pool_metadata SET superseded = 1", [])
            .map_err(Error::storage("mark the KeyPackages of the old signature key"))?;
        Ok(())
    }

    fn update(&self, set: &str, params: impl rusqlite::Params) -> Result<()> {
        self.connection
            .prepare_cached(&format!("UPDATE keypackage_pool_metadata SET {set} WHERE ref = ?1"))
            .and_then(|mut update| update.execute(params))
            .map_err(Error::storage("change a KeyPackage's metadata"))?;
        Ok(())
    }

    fn select(&self, which: &str, params: impl rusqlite::Params) -> Result<Vec<KeyPackageMetadata>> {
        let columns: Vec<Columns> = self
            .connection
            .prepare_cached(&format!("SELECT {COLUMNS} FROM keypackage_pool_metadata {which}"))
            .and_then(|mut select| select.query_map(params, Columns::read)?.collect())
            .map_err(Error::storage("read the KeyPackages' metadata"))?;
        columns.into_iter().map(TryFrom::try_from).collect()
    }
}

/// A device as the rows name it.
fn name(DeviceOf { user, device }: &DeviceOf) -> String {
    format!("{user}/{device}")
}

fn parsed(status: &str) -> Result<KeyPackageStatus> {
    status.parse().map_err(|_| Error::Damaged(format!("a KeyPackage has the status {status:?}")))
}

/// A row as SQLite has it.
struct Columns {
    keypackage_ref: Vec<u8>,
    status: String,
    created_at: i64,
    not_after: i64,
    times: [Option<i64>; 5],
    reservation_id: Option<String>,
    reserved_by: Option<String>,
    spent_group_id: Option<Vec<u8>>,
    spent_by: Option<String>,
    ciphersuite: u16,
    last_resort: bool,
    superseded: bool,
}

impl Columns {
    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        let time = |column| row.get(column);
        Ok(Self {
            keypackage_ref: row.get("ref")?,
            status: row.get("status")?,
            created_at: row.get("created_at")?,
            not_after: row.get("not_after")?,
            times: [
                time("uploaded_at")?,
                time("reserved_at")?,
                time("spent_at")?,
                time("reservation_expires_at")?,
                time("keep_until")?,
            ],
            reservation_id: row.get("reservation_id")?,
            reserved_by: row.get("reserved_by")?,
            spent_group_id: row.get("spent_group_id")?,
            spent_by: row.get("spent_by")?,
            ciphersuite: row.get("ciphersuite")?,
            last_resort: row.get("last_resort")?,
            superseded: row.get("superseded")?,
        })
    }
}

impl TryFrom<Columns> for KeyPackageMetadata {
    type Error = Error;

    fn try_from(row: Columns) -> Result<Self> {
        let time = |second| {
            Timestamp::from_second(second).map_err(|_| Error::Damaged(format!("a KeyPackage has the time {second}")))
        };
        let [uploaded_at, reserved_at, spent_at, reservation_expires_at, keep_until] =
            row.times.map(|second| second.map(time).transpose());
        let reservation_id = row
            .reservation_id
            .map(|id| id.parse().map_err(|_| Error::Damaged(format!("a KeyPackage has the reservation {id:?}"))));
        Ok(Self {
            keypackage_ref: row.keypackage_ref.into(),
            status: parsed(&row.status)?,
            created_at: time(row.created_at)?,
            uploaded_at: uploaded_at?,
            reserved_at: reserved_at?,
            spent_at: spent_at?,
            not_after: time(row.not_after)?,
            reservation_id: reservation_id.transpose()?,
            reservation_expires_at: reservation_expires_at?,
            reserved_by: row.reserved_by,
            spent_group_id: row.spent_group_id,
            spent_by: row.spent_by,
            ciphersuite: row.ciphersuite,
            last_resort: row.last_resort,
            keep_until: keep_until?,
            superseded: row.superseded,
        })
    }
}

#[cfg(test)]
mod tests;
