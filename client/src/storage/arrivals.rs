//! Devices that are to be brought into groups: others, and this one.

use keypool_openapi::DeviceOf;
use rusqlite::{OptionalExtension as _, Row, params};

use super::store::LocalStore;
use crate::error::{Error, Result};

/// How a device became known that is to be brought into a group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ask {
    /// The device said itself that it is not in the group.
    pub(crate) has_asked: bool,
    /// The device has shown that it has the signature key of its leaf.
    pub(crate) has_key: bool,
}

/// A device that is to be brought into a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Arrival {
    pub(crate) group_id: Vec<u8>,
    /// The name of the device.
    pub(crate) device: String,
    pub(crate) ask: Ask,
}

fn ask(row: &Row<'_>) -> rusqlite::Result<Ask> {
    Ok(Ask { has_asked: row.get("has_asked")?, has_key: row.get("has_key")? })
}

impl LocalStore {
    /// Records that a device is to be brought into a group.
    pub(crate) fn put_arriving_device(&self, group_id: &[u8], device: &DeviceOf, ask: Ask) -> Result<()> {
        self.connection()
            .execute(
                "INSERT INTO arriving_devices (group_id, device, has_asked, has_key) VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT DO UPDATE SET has_asked = max(has_asked, excluded.has_asked),
                 has_key = max(has_key, excluded.has_key)",
                params![group_id, device.to_string(), ask.has_asked, ask.has_key],
            )
            .map_err(Error::storage("record an arriving device"))?;
        Ok(())
    }

    /// The devices that are to be brought into groups.
    pub(crate) fn arriving_devices(&self) -> Result<Vec<Arrival>> {
        let arrival =
            |row: &Row<'_>| Ok(Arrival { group_id: row.get("group_id")?, device: row.get("device")?, ask: ask(row)? });
        self.connection()
            .prepare_cached("SELECT * FROM arriving_devices")
            .and_then(|mut select| select.query_map([], arrival)?.collect())
            .map_err(Error::storage("read the arriving devices"))
    }

    /// How a device asked to be brought into a group, if nobody has done that yet.
    pub(crate) fn ask_of(&self, group_id: &[u8], device: &DeviceOf) -> Result<Ask> {
        self.connection()
            .query_row(
                "SELECT * FROM arriving_devices WHERE group_id = ?1 AND device = ?2",
                params![group_id, device.to_string()],
                ask,
            )
            .optional()
            .map(Option::unwrap_or_default)
            .map_err(Error::storage("read whether a device has asked"))
    }

    /// Records that a device was brought into a group, or cannot be.
    pub(crate) fn delete_arriving_device(&self, group_id: &[u8], device: &str) -> Result<()> {
        self.connection()
            .execute("DELETE FROM arriving_devices WHERE group_id = ?1 AND device = ?2", params![group_id, device])
            .map_err(Error::storage("record that a device arrived"))?;
        Ok(())
    }

    /// Records whether this device is to look for groups of its user that it is not in.
    pub(crate) fn set_looks_for_groups(&self, looks: bool) -> Result<()> {
        self.connection()
            .execute("UPDATE device_identity SET looks_for_groups = ?1", [looks])
            .map_err(Error::storage("record that groups are looked for"))?;
        Ok(())
    }

    /// Whether this device is to look for groups of its user that it is not in.
    pub(crate) fn looks_for_groups(&self) -> Result<bool> {
        self.connection()
            .query_row("SELECT looks_for_groups FROM device_identity", [], |row| row.get(0))
            .map_err(Error::storage("read whether groups are looked for"))
    }

    /// Records that this device asks to be brought into a group, unless it has deleted the group. `if_listed`: only if the
    /// server lists it among the members. `is_late`: only after a refresh of the pool.
    pub(crate) fn want_group(&self, group_id: &[u8], (if_listed, is_late): (bool, bool)) -> Result<()> {
        self.connection()
            .execute(
                "INSERT INTO wanted_groups (group_id, if_listed, is_late)
                 SELECT ?1, ?2, ?3 WHERE NOT EXISTS (SELECT 1 FROM left_groups WHERE group_id = ?1) ON CONFLICT DO NOTHING",
                params![group_id, if_listed, is_late],
            )
            .map_err(Error::storage("record a wanted group"))?;
        Ok(())
    }

    /// Whether this device is to ask the members of a group to be brought back: once in each epoch of the group. Records that
    /// it does.
    pub(crate) fn asks_in_epoch(&self, group_id: &[u8], epoch: u64) -> Result<bool> {
        self.connection()
            .execute(
                "UPDATE device_groups SET asked_epoch = ?2 WHERE group_id = ?1 AND asked_epoch IS NOT ?2",
                params![group_id, epoch.cast_signed()],
            )
            .map(|rows| rows == 1)
            .map_err(Error::storage("record that members are asked"))
    }

    /// The groups whose members this device is about to ask, and whether it does so only if it is listed.
    pub(crate) fn wanted_groups(&self) -> Result<Vec<(Vec<u8>, bool)>> {
        self.connection()
            .prepare_cached("SELECT group_id, if_listed FROM wanted_groups WHERE NOT is_late")
            .and_then(|mut select| select.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect())
            .map_err(Error::storage("read the wanted groups"))
    }

    /// Records that the pool was refreshed, so that invitations can be used again.
    pub(crate) fn want_late_groups(&self) -> Result<()> {
        self.connection()
            .execute("UPDATE wanted_groups SET is_late = 0 WHERE is_late", [])
            .map_err(Error::storage("record that groups are wanted"))?;
        Ok(())
    }

    /// Records that the members of a group were asked.
    pub(crate) fn delete_wanted_group(&self, group_id: &[u8]) -> Result<()> {
        self.connection()
            .execute("DELETE FROM wanted_groups WHERE group_id = ?1", [group_id])
            .map_err(Error::storage("record that a group was asked"))?;
        Ok(())
    }

    /// Records whether this device has deleted a group while it was a member.
    pub(crate) fn set_left(&self, group_id: &[u8], has_left: bool) -> Result<()> {
        let statement = if has_left {
            "INSERT INTO left_groups (group_id) VALUES (?1) ON CONFLICT DO NOTHING"
        } else {
            "DELETE FROM left_groups WHERE group_id = ?1"
        };
        self.connection().execute(statement, [group_id]).map_err(Error::storage("record that a group was deleted"))?;
        Ok(())
    }
}
