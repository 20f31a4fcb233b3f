//! Devices that are to be brought into groups: others, and this one.

use keypool_openapi::DeviceOf;
use rusqlite::{OptionalExtension as _, params};

use super::store::LocalStore;
use crate::error::{Error, Result};

impl LocalStore {
    /// Records that a device is to be brought into a group. `has_asked`: the device said itself that it is not in the group.
    pub(crate) fn put_arriving_device(&self, group_id: &[u8], device: &DeviceOf, has_asked: bool) -> Result<()> {
        self.connection()
            .execute(
                "INSERT INTO arriving_devices (group_id, device, has_asked) VALUES (?1, ?2, ?3)
                 ON CONFLICT DO UPDATE SET has_asked = max(has_asked, excluded.has_asked)",
                params![group_id, device.to_string(), has_asked],
            )
            .map_err(Error::storage("record an arriving device"))?;
        Ok(())
    }

    /// The devices that are to be brought into groups: group id, name of the device, and whether it has asked.
    pub(crate) fn arriving_devices(&self) -> Result<Vec<(Vec<u8>, String, bool)>> {
        self.connection()
            .prepare_cached("SELECT group_id, device, has_asked FROM arriving_devices")
            .and_then(|mut select| select.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?.collect())
            .map_err(Error::storage("read the arriving devices"))
    }

    /// Whether a device asked to be brought into a group, and nobody has done that yet.
    pub(crate) fn has_asked(&self, group_id: &[u8], device: &DeviceOf) -> Result<bool> {
        self.connection()
            .query_row(
                "SELECT has_asked FROM arriving_devices WHERE group_id = ?1 AND device = ?2",
                params![group_id, device.to_string()],
                |row| row.get(0),
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
