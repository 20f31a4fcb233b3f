//! The rows of the groups that this device is in.

use jiff::{SignedDuration, Timestamp};
use keypool_openapi::{DeviceOf, RefusalReason};
use rusqlite::{OptionalExtension, Row, params};

use super::{column::Sql, store::LocalStore};
use crate::error::{Error, Result};

/// The most notices in a day that this device is not in a group. Strangers could have it send many.
const MOST_STRANGERS: u32 = 1_000;

/// A group that this device is in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct GroupRow {
    pub(crate) group_id: Vec<u8>,
    /// Its name; `None` until it has arrived.
    pub(crate) name: Option<String>,
    pub(crate) joined_at: Timestamp,
    /// The Commit that this device refused, if any.
    pub(crate) refused_commit: Option<RefusedCommit>,
    /// The group that replaced this one.
    pub(crate) replaced_by: Option<Vec<u8>>,
    /// Whether members bring new devices of the group's users in by themselves.
    pub(crate) admits_devices: bool,
    /// The epoch in which that was said; `None` if nobody has said it.
    pub(crate) admits_since: Option<u64>,
    /// Whether the stored state is that after an external Commit that the server has not accepted.
    pub(crate) is_provisional: bool,
    /// Whether a message claimed to be of a later epoch.
    pub(crate) may_be_behind: bool,
}

/// A Commit that the server accepted and this device refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RefusedCommit {
    /// Its sender; empty if the Commit never arrived.
    pub(crate) by: String,
    pub(crate) reason: RefusalReason,
}

/// Reads the refused Commit of a row. Older versions stored no reason.
fn refused_commit(row: &Row<'_>) -> rusqlite::Result<Option<RefusedCommit>> {
    let by: Option<String> = row.get("refused_commit_by")?;
    let reason: Option<Sql<RefusalReason>> = row.get("refused_commit_reason")?;
    let reason = reason.map_or(RefusalReason::NotTrusted, |Sql(reason)| reason);
    Ok(by.map(|by| RefusedCommit { by, reason }))
}

impl LocalStore {
    /// Adds a group, or updates the name of a known one.
    pub(crate) fn put_group(&self, group_id: &[u8], name: Option<&str>, now: Timestamp) -> Result<()> {
        self.connection()
            .execute(
                "INSERT INTO device_groups (group_id, name, joined_at) VALUES (?1, ?2, ?3)
                 ON CONFLICT (group_id) DO UPDATE SET name = coalesce(excluded.name, name)",
                params![group_id, name, Sql(&now)],
            )
            .map_err(Error::storage("write a group"))?;
        Ok(())
    }

    /// The groups, in the order of joining.
    pub(crate) fn groups(&self) -> Result<Vec<GroupRow>> {
        let group = |row: &Row<'_>| {
            Ok(GroupRow {
                group_id: row.get("group_id")?,
                name: row.get("name")?,
                joined_at: row.get::<_, Sql<_>>("joined_at")?.0,
                refused_commit: refused_commit(row)?,
                replaced_by: row.get("replaced_by")?,
                admits_devices: row.get("admits_devices")?,
                admits_since: row.get::<_, Option<i64>>("admits_since")?.map(i64::cast_unsigned),
                is_provisional: row.get("is_provisional")?,
                may_be_behind: row.get("may_be_behind")?,
            })
        };
        self.connection()
            .prepare_cached("SELECT * FROM device_groups ORDER BY joined_at, group_id")
            .and_then(|mut select| select.query_map([], group)?.collect())
            .map_err(Error::storage("read the groups"))
    }

    /// Deletes a group with its pending Commit and its proofs.
    pub(crate) fn delete_group(&self, group_id: &[u8]) -> Result<()> {
        self.connection()
            .execute("DELETE FROM device_groups WHERE group_id = ?1", [group_id])
            .and_then(|_| self.connection().execute("DELETE FROM pending_commits WHERE group_id = ?1", [group_id]))
            .and_then(|_| self.connection().execute("DELETE FROM commit_proofs WHERE group_id = ?1", [group_id]))
            .and_then(|_| self.connection().execute("DELETE FROM arriving_devices WHERE group_id = ?1", [group_id]))
            .map_err(Error::storage("delete a group"))?;
        Ok(())
    }

    /// Records that this device refused a Commit that the server accepted: its sender, and the reason.
    pub(crate) fn record_refused_commit(&self, group_id: &[u8], (by, reason): (&str, RefusalReason)) -> Result<()> {
        self.connection()
            .execute(
                "UPDATE device_groups SET refused_commit_by = ?2, refused_commit_reason = ?3 WHERE group_id = ?1",
                params![group_id, by, Sql(&reason)],
            )
            .map_err(Error::storage("record a refused Commit"))?;
        Ok(())
    }

    /// Records whether members bring new devices of the group's users in by themselves, as it was said in an epoch. What was
    /// said in a later epoch stands.
    pub(crate) fn set_admits_devices(&self, group_id: &[u8], admits: bool, since: u64) -> Result<()> {
        self.connection()
            .execute(
                "UPDATE device_groups SET admits_devices = ?2, admits_since = ?3
                 WHERE group_id = ?1 AND coalesce(admits_since, 0) <= ?3",
                params![group_id, admits, since.cast_signed()],
            )
            .map_err(Error::storage("record a setting of a group"))?;
        Ok(())
    }

    /// Records whether a message claimed to be of a later epoch.
    pub(crate) fn set_may_be_behind(&self, group_id: &[u8], may_be: bool) -> Result<()> {
        self.connection()
            .execute("UPDATE device_groups SET may_be_behind = ?2 WHERE group_id = ?1", params![group_id, may_be])
            .map_err(Error::storage("record a doubt about a group"))?;
        Ok(())
    }

    /// Records that the stored state is that after an external Commit that the server has not accepted.
    pub(crate) fn set_provisional(&self, group_id: &[u8]) -> Result<()> {
        self.connection()
            .execute("UPDATE device_groups SET is_provisional = 1 WHERE group_id = ?1", [group_id])
            .map_err(Error::storage("record an external Commit"))?;
        Ok(())
    }

    /// Records that a Commit did not arrive, unless this device refused one before.
    pub(crate) fn record_missed_commit(&self, group_id: &[u8]) -> Result<()> {
        self.connection()
            .execute(
                "UPDATE device_groups SET refused_commit_by = '', refused_commit_reason = ?2
                 WHERE group_id = ?1 AND refused_commit_by IS NULL",
                params![group_id, Sql(&RefusalReason::Invalid)],
            )
            .map_err(Error::storage("record a missed Commit"))?;
        Ok(())
    }

    /// Whether a device is to be told that this device is not in a group: once in a day, and so for
    /// [`MOST_STRANGERS`] devices and groups. Records that it was.
    pub(crate) fn tell_stranger(&self, group_id: &[u8], device: &DeviceOf, now: Timestamp) -> Result<bool> {
        let day_ago = now.saturating_sub(SignedDuration::from_hours(24)).unwrap_or(Timestamp::MIN);
        self.connection()
            .execute("DELETE FROM told_strangers WHERE told_at <= ?1", [Sql(&day_ago)])
            .and_then(|_| {
                self.connection().execute(
                    "INSERT INTO told_strangers (group_id, device, told_at)
                     SELECT ?1, ?2, ?3 WHERE (SELECT count(*) FROM told_strangers) < ?4 ON CONFLICT DO NOTHING",
                    params![group_id, device.to_string(), Sql(&now), MOST_STRANGERS],
                )
            })
            .map(|rows| rows == 1)
            .map_err(Error::storage("record who was told"))
    }

    /// Records that this device refused a proposal of an epoch because of a leaf in it.
    pub(crate) fn record_refused_proposal(&self, group_id: &[u8], epoch: u64) -> Result<()> {
        self.connection()
            .execute(
                "UPDATE device_groups SET refused_proposal_epoch = ?2 WHERE group_id = ?1",
                params![group_id, epoch.cast_signed()],
            )
            .map_err(Error::storage("record a refused proposal"))?;
        Ok(())
    }

    /// Whether this device refused a proposal of an epoch because of a leaf in it.
    pub(crate) fn has_refused_proposal(&self, group_id: &[u8], epoch: u64) -> Result<bool> {
        self.connection()
            .query_row(
                "SELECT count(*) FROM device_groups WHERE group_id = ?1 AND refused_proposal_epoch = ?2",
                params![group_id, epoch.cast_signed()],
                |row| row.get(0).map(|rows: i64| rows > 0),
            )
            .map_err(Error::storage("read whether a proposal was refused"))
    }

    /// Records that this device is in the group's newest epoch again.
    pub(crate) fn forget_refused_commit(&self, group_id: &[u8]) -> Result<()> {
        self.connection()
            .execute(
                "UPDATE device_groups SET refused_commit_by = NULL, refused_commit_reason = NULL, is_provisional = 0,
                 may_be_behind = 0 WHERE group_id = ?1",
                [group_id],
            )
            .map_err(Error::storage("record that a group continues"))?;
        Ok(())
    }

    /// The Commit that this device refused, if any.
    pub(crate) fn refused_commit(&self, group_id: &[u8]) -> Result<Option<RefusedCommit>> {
        self.connection()
            .query_row("SELECT * FROM device_groups WHERE group_id = ?1", [group_id], refused_commit)
            .optional()
            .map(Option::flatten)
            .map_err(Error::storage("read whether a Commit was refused"))
    }

    /// Records that another group replaced this one.
    pub(crate) fn record_replacement(&self, group_id: &[u8], new_group: &[u8]) -> Result<()> {
        self.connection()
            .execute("UPDATE device_groups SET replaced_by = ?2 WHERE group_id = ?1", params![group_id, new_group])
            .map_err(Error::storage("record that a group was renewed"))?;
        Ok(())
    }
}
