//! Rows as the database has them, and the ids of the domain.

use std::collections::HashMap;

use diesel::prelude::*;
use jiff::Timestamp;
use keypool_openapi::{DeviceName, DeviceOf, ReservationId, State, UserName};
use uuid::Uuid;

use super::{StoreError, schema};

/// The server's number of a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct DeviceId(pub i64);

/// A registered device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceRow {
    /// The server's number of it.
    pub id: DeviceId,
    /// Its user.
    pub user: UserName,
    /// Its name.
    pub device: DeviceName,
    /// When it was registered.
    pub registered_at: Timestamp,
}

pub(super) type DeviceColumns = (i64, String, String, i64);

impl DeviceRow {
    pub(super) fn from_columns((id, user, device, created_at): DeviceColumns) -> Result<Self, StoreError> {
        Ok(Self {
            id: DeviceId(id),
            user: user.try_into().map_err(StoreError::fatal)?,
            device: device.try_into().map_err(StoreError::fatal)?,
            registered_at: timestamp(created_at)?,
        })
    }

    /// Its name in full.
    #[must_use]
    pub fn named(&self) -> DeviceOf {
        DeviceOf { user: self.user.clone(), device: self.device.clone() }
    }
}

/// The names of devices by their numbers.
pub(super) struct Names(HashMap<i64, DeviceOf>);

impl Names {
    pub(super) fn from_columns(rows: Vec<DeviceColumns>) -> Result<Self, StoreError> {
        let named = |columns| DeviceRow::from_columns(columns).map(|row| (row.id.0, row.named()));
        rows.into_iter().map(named).collect::<Result<_, _>>().map(Self)
    }

    pub(super) fn of(&self, id: i64) -> Result<DeviceOf, StoreError> {
        self.0.get(&id).cloned().ok_or_else(|| StoreError::fatal(anyhow::anyhow!("there is no row of device {id}")))
    }
}

/// A KeyPackage that an upload adds.
#[derive(Insertable)]
#[diesel(table_name = schema::key_packages, treat_none_as_default_value = false)]
pub(super) struct NewKeyPackage<'a> {
    pub keypackage_ref: &'a [u8],
    pub device_id: i64,
    pub ciphersuite: i32,
    pub key_package: &'a [u8],
    pub not_after: i64,
    pub last_resort: bool,
    pub state: &'static str,
}

/// The end of a KeyPackage's life. It is never handed out again: only its ref stays known.
#[derive(AsChangeset)]
#[diesel(table_name = schema::key_packages)]
#[expect(clippy::struct_field_names, reason = "they are the columns")]
pub(super) struct Ended {
    state: &'static str,
    ended_at: i64,
    key_package: &'static [u8],
}

impl Ended {
    pub(super) fn new(state: State, ended_at: i64) -> Self {
        Self { state: state.into(), ended_at, key_package: &[] }
    }
}

/// A public key that may never come again.
#[derive(Insertable)]
#[diesel(table_name = schema::hpke_keys, treat_none_as_default_value = false)]
pub(super) struct NewHpkeKey<'a> {
    pub device_id: i64,
    pub public_key: &'a [u8],
    pub keypackage_ref: &'a [u8],
    pub not_after: i64,
}

/// What a reservation hands out.
pub(super) type HandedOut = (Vec<u8>, Vec<u8>, i32, i64);

pub(super) fn nonce_of(reservation: &ReservationId) -> &[u8] {
    Uuid::as_bytes(&reservation.nonce).as_slice()
}

/// A reservation, as the database has it.
pub(super) fn reservation_id(owner: i64, nonce: &[u8]) -> Result<ReservationId, StoreError> {
    Ok(ReservationId { owner, nonce: Uuid::from_slice(nonce).map_err(StoreError::fatal)? })
}

pub(super) fn count(rows: i64) -> Result<u64, StoreError> {
    u64::try_from(rows).map_err(StoreError::fatal)
}

pub(super) fn timestamp(seconds: i64) -> Result<Timestamp, StoreError> {
    Timestamp::from_second(seconds).map_err(StoreError::fatal)
}

pub(super) fn suite(number: i32) -> Result<u16, StoreError> {
    u16::try_from(number).map_err(StoreError::fatal)
}

/// Defines statements once, as a trait that either connection type implements.
macro_rules! statements {
    ($vis:vis trait $name:ident { $($(#[$meta:meta])* fn $f:ident($conn:ident $(, $arg:ident: $ty:ty)* $(,)?) -> $ret:ty $body:block)* }) => {
        $vis trait $name: Sized {
            $($(#[$meta])* fn $f(&mut self $(, $arg: $ty)*) -> $ret;)*
        }
        $crate::store::rows::statements!(@impl diesel::PgConnection, $name { $(fn $f($conn $(, $arg: $ty)*) -> $ret $body)* });
        $crate::store::rows::statements!(@impl diesel::SqliteConnection, $name { $(fn $f($conn $(, $arg: $ty)*) -> $ret $body)* });
    };
    (@impl $connection:ty, $name:ident { $(fn $f:ident($conn:ident $(, $arg:ident: $ty:ty)*) -> $ret:ty $body:block)* }) => {
        impl $name for $connection {
            $(fn $f(&mut self $(, $arg: $ty)*) -> $ret {
                let $conn = self;
                $body
            })*
        }
    };
}
pub(super) use statements;
