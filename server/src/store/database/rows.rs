//! Row types of the database, and conversions to the ids of the domain.

use std::collections::HashMap;

use diesel::prelude::*;
use jiff::Timestamp;
use keypool_openapi::{DeviceName, DeviceOf, ReservationId, State, UserName};
use uuid::Uuid;

use super::{error::StoreError, schema};

/// The server's id of a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct DeviceId(pub i64);

/// A registered device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceRow {
    /// The server's id of the device.
    pub id: DeviceId,
    /// The device's user.
    pub user: UserName,
    /// The device's name.
    pub device: DeviceName,
    /// The time of registration.
    pub registered_at: Timestamp,
}

pub(crate) type DeviceColumns = (i64, String, String, i64);

impl DeviceRow {
    pub(crate) fn from_columns((id, user, device, created_at): DeviceColumns) -> Result<Self, StoreError> {
        Ok(Self {
            id: DeviceId(id),
            user: user.try_into().map_err(StoreError::fatal)?,
            device: device.try_into().map_err(StoreError::fatal)?,
            registered_at: timestamp(created_at)?,
        })
    }

    /// The device's user and name.
    #[must_use]
    pub fn named(&self) -> DeviceOf {
        DeviceOf { user: self.user.clone(), device: self.device.clone() }
    }
}

/// Device names by id.
pub(crate) struct Names(HashMap<i64, DeviceOf>);

impl Names {
    pub(crate) fn from_columns(rows: Vec<DeviceColumns>) -> Result<Self, StoreError> {
        let named = |columns| DeviceRow::from_columns(columns).map(|row| (row.id.0, row.named()));
        rows.into_iter().map(named).collect::<Result<_, _>>().map(Self)
    }

    pub(crate) fn of(&self, id: i64) -> Result<DeviceOf, StoreError> {
        self.0.get(&id).cloned().ok_or_else(|| StoreError::fatal(anyhow::anyhow!("there is no row of device {id}")))
    }
}

/// A KeyPackage to insert.
#[derive(Insertable)]
#[diesel(table_name = schema::key_packages, treat_none_as_default_value = false)]
pub(crate) struct NewKeyPackage<'a> {
    pub keypackage_ref: &'a [u8],
    pub device_id: i64,
    pub ciphersuite: i32,
    pub key_package: &'a [u8],
    pub not_after: i64,
    pub last_resort: bool,
    pub state: &'static str,
    pub package_id: &'a [u8],
}

/// The end of a KeyPackage's life. It is never handed out again, and only its ref is kept.
#[derive(AsChangeset)]
#[diesel(table_name = schema::key_packages)]
#[expect(clippy::struct_field_names, reason = "they are the columns")]
pub(crate) struct Ended {
    state: &'static str,
    ended_at: i64,
    key_package: &'static [u8],
}

impl Ended {
    pub(crate) fn new(state: State, ended_at: i64) -> Self {
        Self { state: state.into(), ended_at, key_package: &[] }
    }
}

/// A public key that may never be used again.
#[derive(Insertable)]
#[diesel(table_name = schema::hpke_keys, treat_none_as_default_value = false)]
pub(crate) struct NewHpkeKey<'a> {
    pub device_id: i64,
    pub public_key: &'a [u8],
    pub keypackage_ref: &'a [u8],
    pub not_after: i64,
}

/// A KeyPackage that is handed out.
#[derive(Clone, Debug, Queryable)]
pub(crate) struct HandedOut {
    pub keypackage_ref: Vec<u8>,
    pub bytes: Vec<u8>,
    pub ciphersuite: i32,
    pub not_after: i64,
    /// Its name in the log.
    pub package_id: Option<Vec<u8>>,
}

pub(crate) fn nonce_of(reservation: &ReservationId) -> &[u8] {
    Uuid::as_bytes(&reservation.nonce).as_slice()
}

/// Builds a reservation id from the columns.
pub(crate) fn reservation_id(owner: i64, nonce: &[u8]) -> Result<ReservationId, StoreError> {
    Ok(ReservationId { owner, nonce: Uuid::from_slice(nonce).map_err(StoreError::fatal)? })
}

pub(crate) fn count(rows: i64) -> Result<u64, StoreError> {
    u64::try_from(rows).map_err(StoreError::fatal)
}

pub(crate) fn timestamp(seconds: i64) -> Result<Timestamp, StoreError> {
    Timestamp::from_second(seconds).map_err(StoreError::fatal)
}

pub(crate) fn suite(number: i32) -> Result<u16, StoreError> {
    u16::try_from(number).map_err(StoreError::fatal)
}
