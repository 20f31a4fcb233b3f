//! The directory: lists users' devices with their signature keys.

use std::collections::{BTreeSet, HashMap};

use diesel::prelude::*;
use jiff::Timestamp;
use keypool_openapi::UserName;

use super::{
    database::{
        Store, StoreError,
        rows::{DeviceColumns, DeviceId, DeviceRow, timestamp},
        schema::devices,
        sql::statements,
    },
    devices::known_users,
    signature_keys::{self, KeptKey, kept},
};

/// The most devices in one query of keys: SQLite allows 32,766 values in a statement.
const AT_ONCE: usize = 10_000;

/// Options of a listing.
#[derive(Clone, Copy, Debug)]
pub struct Listing {
    /// Whether to list removed devices as well.
    pub removed: bool,
    /// Whether to list keys.
    pub keys: bool,
}

/// A device with its current and previous signature keys.
#[derive(Clone, Debug)]
pub struct Listed {
    /// The device.
    pub device: DeviceRow,
    /// The time of removal, if the device was removed.
    pub removed_at: Option<Timestamp>,
    /// The keys of this registration and of earlier ones, newest first.
    pub keys: Vec<KeptKey>,
}

/// The devices of several users.
#[derive(Clone, Debug, Default)]
pub struct Directory {
    /// The known users, each with the devices in the order of their names.
    pub users: Vec<(UserName, Vec<Listed>)>,
    /// The unknown users.
    pub unknown: Vec<UserName>,
}

statements! {
    pub(super) fn listed(conn, users: &[&str], removed: bool) -> QueryResult<Vec<(DeviceColumns, Option<i64>)>> {
        let columns = (
            (devices::id, devices::user_name, devices::device_name, devices::created_at),
            devices::removed_at,
        );
        let theirs = devices::table
            .filter(devices::user_name.eq_any(users))
            .order((devices::user_name.asc(), devices::device_name.asc()))
            .select(columns);
        if removed { theirs.load(conn) } else { theirs.filter(devices::removed_at.is_null()).load(conn) }
    }
}

impl Listed {
    /// Splits the keys into current ones and previous ones. Each previous key has the time at which it was closed.
    pub(crate) fn split(self) -> (Vec<KeptKey>, Vec<(KeptKey, Timestamp)>) {
        let Self { device, removed_at, keys } = self;
        let (mut current, mut previous) = (Vec::new(), Vec::new());
        for key in keys {
            let is_of_now = key.registration.at == device.registered_at.as_second();
            // A server of the previous version removes and registers devices without closing their keys.
            match (key.until, removed_at) {
                (Some(until), _) => previous.push((key, until)),
                (None, None) if is_of_now => current.push(key),
                (None, removed_at) => previous.push((key, removed_at.unwrap_or(device.registered_at))),
            }
        }
        current.sort_by_key(|key| key.ciphersuite);
        (current, previous)
    }
}

impl Store {
    /// Lists the devices of users, in the order of their names.
    ///
    /// # Errors
    /// When the database fails.
    pub fn directory(&self, users: &BTreeSet<UserName>, listing: Listing) -> Result<Directory, StoreError> {
        let names: Vec<_> = users.iter().map(UserName::as_str).collect();
        let rows = self.read(|conn| listed(conn, &names, listing.removed))?;
        let ids: Vec<_> = rows.iter().map(|((id, ..), _)| *id).collect();
        let mut keys: HashMap<DeviceId, Vec<KeptKey>> = HashMap::new();
        for some in ids.chunks(AT_ONCE).filter(|_| listing.keys) {
            for columns in self.read(|conn| signature_keys::keys_of(conn, some))? {
                let key = kept(columns)?;
                keys.entry(key.registration.device).or_default().push(key);
            }
        }
        let mut directory = Directory::default();
        for (columns, removed_at) in rows {
            let device = DeviceRow::from_columns(columns)?;
            let listed = Listed {
                removed_at: removed_at.map(timestamp).transpose()?,
                keys: keys.remove(&device.id).unwrap_or_default(),
                device,
            };
            match directory.users.last_mut() {
                Some((user, devices)) if *user == listed.device.user => devices.push(listed),
                _ => directory.users.push((listed.device.user.clone(), vec![listed])),
            }
        }
        let found: BTreeSet<_> = directory.users.iter().map(|(user, _)| user).collect();
        let missing: Vec<_> = users.iter().filter(|user| !found.contains(user)).collect();
        if !missing.is_empty() {
            let names: Vec<_> = missing.iter().map(|user| user.as_str()).collect();
            let known: BTreeSet<_> = self.read(|conn| known_users(conn, &names))?.into_iter().collect();
            let (without_device, unknown): (Vec<_>, Vec<_>) =
                missing.into_iter().cloned().partition(|user| known.contains(user.as_str()));
            directory.users.extend(without_device.into_iter().map(|user| (user, Vec::new())));
            directory.unknown = unknown;
        }
        directory.users.sort_by(|(one, _), (other, _)| one.cmp(other));
        Ok(directory)
    }
}
