//! Looks devices and users up, by name, by number and by token.

use std::collections::HashMap;

use diesel::prelude::*;
use keypool_openapi::{DeviceName, UserName};

use super::database::{
    Store, StoreError,
    rows::{DeviceColumns, DeviceRow},
    schema::{devices, users},
    sql::statements,
};

const COLUMNS: (devices::id, devices::user_name, devices::device_name, devices::created_at) =
    (devices::id, devices::user_name, devices::device_name, devices::created_at);

statements! {
    pub(super) fn known_users(conn, names: &[&str]) -> QueryResult<Vec<String>> {
        users::table.filter(users::name.eq_any(names)).select(users::name).load(conn)
    }

    pub(super) fn devices_of(conn, users: &[&str]) -> QueryResult<Vec<DeviceColumns>> {
        let present = devices::table
            .filter(devices::removed_at.is_null())
            .order((devices::user_name.asc(), devices::device_name.asc()))
            .select(COLUMNS);
        match users {
            // The most frequent case. Without a list of values, SQLite keeps the statement prepared.
            [user] => present.filter(devices::user_name.eq(user)).load(conn),
            users => present.filter(devices::user_name.eq_any(users)).load(conn),
        }
    }

    /// Includes removed devices.
    pub(super) fn all_devices_of(conn, user: &str) -> QueryResult<Vec<i64>> {
        devices::table.filter(devices::user_name.eq(user)).select(devices::id).load(conn)
    }

    pub(super) fn removed_among(conn, ids: &[i64]) -> QueryResult<Vec<i64>> {
        let removed = devices::table.filter(devices::id.eq_any(ids).and(devices::removed_at.is_not_null()));
        removed.select(devices::id).load(conn)
    }

    /// Includes removed devices.
    pub(super) fn devices_by_id(conn, ids: &[i64]) -> QueryResult<Vec<DeviceColumns>> {
        devices::table.filter(devices::id.eq_any(ids)).select(COLUMNS).load(conn)
    }

    pub(super) fn find_device(conn, user: &str, device: &str) -> QueryResult<Option<i64>> {
        devices::table
            .filter(devices::user_name.eq(user).and(devices::device_name.eq(device)))
            .filter(devices::removed_at.is_null())
            .select(devices::id)
            .first(conn)
            .optional()
    }

    /// Returns the devices of these tokens, each with whether its registration can still be repeated.
    pub(super) fn devices_of_tokens(conn, hashes: &[&[u8]]) -> QueryResult<Vec<(Vec<u8>, DeviceColumns, bool)>> {
        let columns = (devices::token_hash, COLUMNS, devices::registration_key.is_not_null());
        let present = devices::table.filter(devices::removed_at.is_null()).select(columns);
        match hashes {
            // Without a list of values, SQLite keeps the statement prepared.
            [hash] => present.filter(devices::token_hash.eq(hash)).load(conn),
            hashes => present.filter(devices::token_hash.eq_any(hashes)).load(conn),
        }
    }

    /// Ends the time in which these registrations can be repeated. The owners have used their tokens, so they received
    /// the answers.
    pub(super) fn end_registrations(conn, ids: &[i64]) -> QueryResult<usize> {
        let used = devices::table.filter(devices::id.eq_any(ids));
        diesel::update(used).set(devices::registration_key.eq(None::<Vec<u8>>)).execute(conn)
    }
}

impl Store {
    /// Returns the user's device of this name.
    ///
    /// # Errors
    /// When the database fails.
    pub fn find(&self, user: &UserName, device: &DeviceName) -> Result<Option<DeviceRow>, StoreError> {
        let devices = self.read(|conn| devices_of(conn, &[user.as_str()]))?;
        let found = devices.into_iter().find(|columns| columns.2 == device.as_str());
        found.map(DeviceRow::from_columns).transpose()
    }

    /// Returns the device of each token, by the token's SHA-256. The first use of a token ends the time in which the
    /// registration can be repeated.
    ///
    /// # Errors
    /// When the database fails.
    pub fn authenticate(&self, hashes: &[[u8; 32]]) -> Result<Vec<Option<DeviceRow>>, StoreError> {
        let wanted: Vec<_> = hashes.iter().map(<[u8; 32]>::as_slice).collect();
        let found = self.read(|conn| devices_of_tokens(conn, &wanted))?;
        let first_used: Vec<_> = found.iter().filter(|(.., is_first_use)| *is_first_use).map(|row| row.1.0).collect();
        if !first_used.is_empty() {
            self.write("end_registrations", |conn| {
                end_registrations(conn, &first_used).map(drop).map_err(StoreError::from)
            })?;
        }
        let device = |(token_hash, columns, _)| Ok((token_hash, DeviceRow::from_columns(columns)?));
        let devices = found.into_iter().map(device).collect::<Result<HashMap<Vec<u8>, _>, StoreError>>()?;
        Ok(wanted.iter().map(|hash| devices.get(*hash).cloned()).collect())
    }
}
