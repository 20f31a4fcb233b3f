//! Users, devices and their tokens.

use diesel::prelude::*;
use jiff::Timestamp;
use keypool_openapi::{DeviceName, UserName};

use super::{
    Store, StoreError,
    connection::{Retry, with_conn},
    rows::{DeviceColumns, DeviceRow, statements},
    schema::{devices, users},
};

/// Why a device was not registered.
#[derive(Debug, thiserror::Error)]
pub enum RegisterError {
    /// The user has a device of this name.
    #[error("the user has a device of this name already")]
    AlreadyRegistered,
    /// The user is known, and the call came with no token of theirs.
    #[error("the user is known, and the call has no token of that user")]
    NotThatUser,
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<diesel::result::Error> for RegisterError {
    fn from(error: diesel::result::Error) -> Self {
        Self::Store(error.into())
    }
}

impl Retry for RegisterError {
    fn lost_to_another(&self) -> bool {
        matches!(self, Self::Store(error) if error.lost_to_another())
    }
}

const COLUMNS: (devices::id, devices::user_name, devices::device_name, devices::created_at) =
    (devices::id, devices::user_name, devices::device_name, devices::created_at);

statements! {
    pub(super) trait DeviceSql {
        /// Whether the user is new.
        fn add_user(conn, user: &str, now: i64) -> QueryResult<bool> {
            diesel::insert_into(users::table)
                .values((users::name.eq(user), users::created_at.eq(now)))
                .on_conflict_do_nothing()
                .execute(conn)
                .map(|rows| rows == 1)
        }

        /// Whether the device is new.
        fn add_device(conn, user: &str, device: &str, token_hash: &[u8], now: i64) -> QueryResult<bool> {
            diesel::insert_into(devices::table)
                .values((
                    devices::user_name.eq(user),
                    devices::device_name.eq(device),
                    devices::token_hash.eq(token_hash),
                    devices::created_at.eq(now),
                ))
                .on_conflict((devices::user_name, devices::device_name))
                .do_nothing()
                .execute(conn)
                .map(|rows| rows == 1)
        }

        fn devices_of(conn, user: &str) -> QueryResult<Vec<DeviceColumns>> {
            devices::table
                .filter(devices::user_name.eq(user))
                .order(devices::device_name.asc())
                .select(COLUMNS)
                .load(conn)
        }
    }
}

fn register<C: DeviceSql>(
    conn: &mut C,
    user: &UserName,
    device: &DeviceName,
    token_hash: &[u8],
    caller: Option<&UserName>,
    now: Timestamp,
) -> Result<(), RegisterError> {
    let is_new = conn.add_user(user.as_str(), now.as_second())?;
    if !is_new && caller != Some(user) {
        let known = conn.devices_of(user.as_str())?.iter().any(|columns| columns.2 == device.as_str());
        return Err(if known { RegisterError::AlreadyRegistered } else { RegisterError::NotThatUser });
    }
    if conn.add_device(user.as_str(), device.as_str(), token_hash, now.as_second())? {
        Ok(())
    } else {
        Err(RegisterError::AlreadyRegistered)
    }
}

impl Store {
    /// Registers a device: of a new user, or of the caller's own.
    ///
    /// # Errors
    /// See [`RegisterError`].
    pub fn register(
        &self,
        user: &UserName,
        device: &DeviceName,
        token_hash: &[u8; 32],
        caller: Option<&UserName>,
        now: Timestamp,
    ) -> Result<(), RegisterError> {
        with_conn!(self, write "register", |conn| register(conn, user, device, token_hash, caller, now))
    }

    /// The device that the token belongs to.
    ///
    /// # Errors
    /// When the database fails.
    pub fn authenticate(&self, hash: &[u8; 32]) -> Result<Option<DeviceRow>, StoreError> {
        let columns: Option<DeviceColumns> = with_conn!(self, read, |conn| devices::table
            .filter(devices::token_hash.eq(hash.as_slice()))
            .select(COLUMNS)
            .first(conn)
            .optional())?;
        columns.map(DeviceRow::from_columns).transpose()
    }

    /// The devices of a user by name; `None` where the user is unknown.
    ///
    /// # Errors
    /// When the database fails.
    pub fn devices(&self, user: &UserName) -> Result<Option<Vec<DeviceRow>>, StoreError> {
        let rows = with_conn!(self, read, |conn| conn.devices_of(user.as_str()))?;
        if !rows.is_empty() {
            return rows.into_iter().map(DeviceRow::from_columns).collect::<Result<_, _>>().map(Some);
        }
        let known: i64 =
            with_conn!(self, read, |conn| users::table.filter(users::name.eq(user.as_str())).count().get_result(conn))?;
        Ok((known > 0).then(Vec::new))
    }
}
