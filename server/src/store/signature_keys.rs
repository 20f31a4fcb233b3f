//! Signature keys of devices: recorded at the first upload, changed only with a proof, closed with the registration.

use std::collections::HashMap;

use diesel::prelude::*;
use jiff::Timestamp;
use keypool_openapi::{Action, State};
use keypool_validation::signature_key::{HEAD, signature_key_in};

use super::{
    as_of::{AsOf, is_live},
    audit::{self, Withdrawn, withdrawn},
    database::{
        Conn, Store, StoreError,
        rows::{DeviceId, Ended, suite, timestamp},
        schema::{audit_events, devices, key_packages, signature_keys, users},
        sql::statements,
    },
    locks, notify, steps,
    tokens::{ShownToken, valid},
};

/// The number of devices that one transaction handles when the server starts.
const BATCH: i64 = 100;

/// The number of bytes read from the start of a KeyPackage.
const HEAD_LENGTH: i32 = 1024;
const _: () = assert!(HEAD == 1024, "HEAD_LENGTH is HEAD");

#[diesel::declare_sql_function]
extern "SQL" {
    /// Substring of a binary: start (from 1) and length, in bytes.
    fn substr(
        bytes: diesel::sql_types::Binary,
        from: diesel::sql_types::Integer,
        length: diesel::sql_types::Integer,
    ) -> diesel::sql_types::Binary;
}

/// One registration of a device. A device that is removed and registered again gets a new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Registration {
    /// The device.
    pub device: DeviceId,
    /// The time of registration, in seconds since the Unix epoch.
    pub at: i64,
}

/// A change of a signature key. The service has verified that the old key signed it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyChange {
    /// The ciphersuite of both keys.
    pub ciphersuite: u16,
    /// The current key, which signed the change.
    pub old_key: Vec<u8>,
    /// The key that replaces it.
    pub new_key: Vec<u8>,
}

/// A signature key that a device has or had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptKey {
    /// The registration that the key belongs to.
    pub registration: Registration,
    /// The ciphersuite.
    pub ciphersuite: u16,
    /// The public key.
    pub signature_key: Vec<u8>,
    /// The time since which the server has bound the device to the key.
    pub since: Timestamp,
    /// The time at which the key was closed; `None` for the registration's current key.
    pub until: Option<Timestamp>,
}

/// Device, registration, ciphersuite, key, since, until.
type KeyColumns = (i64, i64, i32, Vec<u8>, i64, Option<i64>);

/// Device with ciphersuite, and key.
type CurrentColumns = ((i64, i32), Vec<u8>);

/// Device, registration, ciphersuite, ref, first bytes.
type HeadColumns = (i64, i64, i32, Vec<u8>, Vec<u8>);

/// A key to record.
#[derive(Clone, Debug, Insertable)]
#[diesel(table_name = signature_keys, treat_none_as_default_value = false)]
pub(super) struct NewKey {
    pub device_id: i64,
    pub registered_at: i64,
    pub ciphersuite: i32,
    pub signature_key: Vec<u8>,
    pub since: i64,
}

statements! {
    /// Returns the registration's current keys, by device and ciphersuite.
    pub(super) fn current_keys(conn, registration: Registration) -> QueryResult<Vec<CurrentColumns>> {
        signature_keys::table
            .filter(signature_keys::device_id.eq(registration.device.0))
            .filter(signature_keys::registered_at.eq(registration.at).and(signature_keys::until.is_null()))
            .select(((signature_keys::device_id, signature_keys::ciphersuite), signature_keys::signature_key))
            .load(conn)
    }

    /// Returns all keys that the devices have or had, newest first.
    pub(super) fn keys_of(conn, devices: &[i64]) -> QueryResult<Vec<KeyColumns>> {
        signature_keys::table
            .filter(signature_keys::device_id.eq_any(devices))
            .order((signature_keys::since.desc(), signature_keys::ciphersuite.asc()))
            .select((
                signature_keys::device_id,
                signature_keys::registered_at,
                signature_keys::ciphersuite,
                signature_keys::signature_key,
                signature_keys::since,
                signature_keys::until,
            ))
            .load(conn)
    }

    /// Makes a key the current one. A device that is registered again within the same second may have the same key
    /// again.
    pub(super) fn open_key(conn, key: &NewKey) -> QueryResult<usize> {
        diesel::insert_into(signature_keys::table)
            .values(key.clone())
            .on_conflict((
                signature_keys::device_id,
                signature_keys::registered_at,
                signature_keys::ciphersuite,
                signature_keys::signature_key,
            ))
            .do_update()
            .set((signature_keys::since.eq(key.since), signature_keys::until.eq(None::<i64>)))
            .execute(conn)
    }

    pub(super) fn close_key(conn, registration: Registration, suite: i32, now: i64) -> QueryResult<usize> {
        diesel::update(signature_keys::table)
            .filter(signature_keys::device_id.eq(registration.device.0))
            .filter(signature_keys::registered_at.eq(registration.at).and(signature_keys::ciphersuite.eq(suite)))
            .filter(signature_keys::until.is_null())
            .set(signature_keys::until.eq(now))
            .execute(conn)
    }

    pub(super) fn close_keys(conn, device: i64, now: i64) -> QueryResult<usize> {
        diesel::update(signature_keys::table)
            .filter(signature_keys::device_id.eq(device).and(signature_keys::until.is_null()))
            .set(signature_keys::until.eq(now))
            .execute(conn)
    }

    /// Returns devices that have uploaded KeyPackages but have no signature key, in the order of ids, starting after
    /// this one.
    pub(super) fn without_keys(conn, after: i64) -> QueryResult<Vec<i64>> {
        let keys = signature_keys::table.filter(signature_keys::device_id.eq(devices::id));
        devices::table
            .filter(devices::id.gt(after).and(devices::removed_at.is_null()).and(devices::last_upload.is_not_null()))
            .filter(diesel::dsl::not(diesel::dsl::exists(keys)))
            .order(devices::id.asc())
            .limit(BATCH)
            .select(devices::id)
            .load(conn)
    }

    pub(super) fn live_heads(conn, devices: &[i64]) -> QueryResult<Vec<HeadColumns>> {
        key_packages::table
            .inner_join(devices::table.on(devices::id.eq(key_packages::device_id)))
            .filter(key_packages::device_id.eq_any(devices).and(key_packages::live))
            .order((key_packages::device_id.asc(), key_packages::ciphersuite.asc(), key_packages::not_after.asc()))
            .select((
                key_packages::device_id,
                devices::created_at,
                key_packages::ciphersuite,
                key_packages::keypackage_ref,
                substr(key_packages::key_package, 1, HEAD_LENGTH),
            ))
            .load(conn)
    }

    /// Returns the refs that a device has uploaded, oldest first.
    pub(super) fn upload_order(conn, device: i64) -> QueryResult<Vec<Vec<u8>>> {
        audit_events::table
            .filter(audit_events::device_id.eq(device).and(audit_events::action.eq(<&str>::from(Action::Upload))))
            .order(audit_events::id.asc())
            .select(audit_events::keypackage_ref)
            .load(conn)
    }

    /// Counts the reserved KeyPackages, without last resorts.
    pub(super) fn count_held(conn, device: i64, suite: i32, now: i64) -> QueryResult<i64> {
        key_packages::table
            .filter(key_packages::device_id.eq(device).and(key_packages::ciphersuite.eq(suite)))
            .filter(key_packages::held.and(key_packages::reserved_until.gt(now)).and(key_packages::not_after.gt(now)))
            .count()
            .get_result(conn)
    }

    pub(super) fn revoke_available(conn, device: i64, suite: i32, but: &[&[u8]], as_of: AsOf) -> QueryResult<Vec<Withdrawn>> {
        let now = as_of.now.as_second();
        diesel::update(key_packages::table)
            .filter(key_packages::device_id.eq(device).and(key_packages::ciphersuite.eq(suite)))
            .filter(key_packages::keypackage_ref.ne_all(but))
            .filter(is_live(now, as_of.retired_by()))
            .filter(key_packages::reserved_until.is_null().or(key_packages::reserved_until.le(now)))
            .set((Ended::new(State::Revoked, now), key_packages::step.eq(steps::revoked_in_row())))
            .returning(withdrawn())
            .get_results(conn)
    }

    /// Makes each reserved KeyPackage expire with its reservation: its adder can still spend it, and no other adder
    /// gets it.
    pub(super) fn end_with_reservation(conn, device: i64, suite: i32, but: &[&[u8]], now: i64) -> QueryResult<usize> {
        diesel::update(key_packages::table)
            .filter(key_packages::device_id.eq(device).and(key_packages::ciphersuite.eq(suite)))
            .filter(key_packages::keypackage_ref.ne_all(but))
            .filter(key_packages::held.and(key_packages::reserved_until.gt(now)))
            .filter(key_packages::reserved_until.lt(key_packages::not_after.nullable()))
            .set(key_packages::not_after.eq(key_packages::reserved_until.assume_not_null()))
            .execute(conn)
    }

    /// Raises the version of the devices of this device's user.
    pub(super) fn raise_devices_version(conn, device: i64) -> QueryResult<usize> {
        let user = devices::table.find(device).select(devices::user_name).single_value();
        diesel::update(users::table)
            .filter(users::name.nullable().eq(user))
            .set(users::devices_version.eq(users::devices_version + 1))
            .execute(conn)
    }

    /// Returns the version of the devices of the caller's user; `None` if the token has been revoked.
    pub(super) fn devices_version(conn, caller: &ShownToken) -> QueryResult<Option<i64>> {
        let user = valid(caller).select(devices::user_name).single_value();
        let version = users::table.filter(users::name.nullable().eq(user)).select(users::devices_version);
        version.first(conn).optional()
    }

    /// Returns the other registered devices of a device's user.
    pub(super) fn siblings(conn, device: i64) -> QueryResult<Vec<i64>> {
        let own = diesel::alias!(devices as own);
        let user = own.filter(own.field(devices::id).eq(device)).select(own.field(devices::user_name)).single_value();
        devices::table
            .filter(devices::user_name.nullable().eq(user))
            .filter(devices::removed_at.is_null().and(devices::id.ne(device)))
            .select(devices::id)
            .load(conn)
    }
}

/// Raises the version of the user's devices. Returns the user's other devices, so that the caller can wake their long
/// polls.
pub(super) fn tell_siblings(conn: &mut Conn<'_>, device: i64) -> QueryResult<Vec<DeviceId>> {
    let siblings = siblings(conn, device)?;
    raise_devices_version(conn, device)?;
    notify::announce(conn, &siblings)?;
    Ok(siblings.into_iter().map(DeviceId).collect())
}

/// Withdraws a device's KeyPackages of a ciphersuite but these, on behalf of the device. Reserved ones can still be spent, and are
/// not handed out again. Returns how many were revoked.
pub(super) fn withdraw(
    conn: &mut Conn<'_>,
    (device, suite): (i64, i32),
    but: &[&[u8]],
    as_of: AsOf,
) -> Result<usize, StoreError> {
    let now = as_of.now.as_second();
    let revoked = revoke_available(conn, device, suite, but, as_of)?;
    let events: Vec<_> = revoked.iter().map(|row| row.revoke(device, Some(device), now)).collect();
    audit::record(conn, &events)?;
    end_with_reservation(conn, device, suite, but, now)?;
    Ok(events.len())
}

/// Replaces the current key, and revokes the available KeyPackages under it. Returns the user's other devices.
pub(super) fn change_key(
    conn: &mut Conn<'_>,
    registration: Registration,
    change: &KeyChange,
    as_of: AsOf,
) -> Result<Vec<DeviceId>, StoreError> {
    let (device, suite, now) = (registration.device.0, i32::from(change.ciphersuite), as_of.now.as_second());
    withdraw(conn, (device, suite), &[], as_of)?;
    close_key(conn, registration, suite, now)?;
    open_key(
        conn,
        &NewKey {
            device_id: device,
            registered_at: registration.at,
            ciphersuite: suite,
            signature_key: change.new_key.clone(),
            since: now,
        },
    )?;
    Ok(tell_siblings(conn, device)?)
}

/// The live KeyPackages of a device in one ciphersuite, and the key to record for them.
struct Found {
    new: NewKey,
    /// The signature key of each KeyPackage, by ref.
    by_ref: HashMap<Vec<u8>, Vec<u8>>,
}

/// Records the signature keys of devices that have none: in each ciphersuite the key of the oldest live KeyPackage. The caller
/// holds the devices.
///
/// Such a device has uploaded before keys were kept, while `credential_binding` was off, or to a server of the version before.
/// The server does this and not the migration, because the database does not know whether the server binds credentials, and
/// because one place decodes KeyPackages.
pub(super) fn adopt(conn: &mut Conn<'_>, devices: &[i64], now: i64) -> Result<Vec<NewKey>, StoreError> {
    let mut found: Vec<Found> = Vec::new();
    for (device_id, registered_at, ciphersuite, keypackage_ref, head) in live_heads(conn, devices)? {
        let Some(key) = signature_key_in(&head).map(<[u8]>::to_vec) else {
            tracing::warn!(device_id, "a stored KeyPackage cannot be decoded: its signature key is not recorded");
            continue;
        };
        match found.last_mut() {
            Some(Found { new, by_ref }) if (new.device_id, new.ciphersuite) == (device_id, ciphersuite) => {
                by_ref.insert(keypackage_ref, key);
            }
            _ => {
                let new = NewKey { device_id, registered_at, ciphersuite, signature_key: key.clone(), since: now };
                found.push(Found { new, by_ref: HashMap::from([(keypackage_ref, key)]) });
            }
        }
    }
    let mut adopted = Vec::new();
    for Found { mut new, by_ref } in found {
        // Only the audit trail has the order of uploads. It is read only if the keys differ, which is rare.
        if by_ref.values().any(|key| *key != new.signature_key) {
            let order = upload_order(conn, new.device_id)?;
            if let Some(oldest) = order.iter().find_map(|keypackage_ref| by_ref.get(keypackage_ref)) {
                new.signature_key.clone_from(oldest);
            }
        }
        open_key(conn, &new)?;
        adopted.push(new);
    }
    Ok(adopted)
}

pub(super) fn kept(
    (device, registered_at, ciphersuite, signature_key, since, until): KeyColumns,
) -> Result<KeptKey, StoreError> {
    Ok(KeptKey {
        registration: Registration { device: DeviceId(device), at: registered_at },
        ciphersuite: suite(ciphersuite)?,
        signature_key,
        since: timestamp(since)?,
        until: until.map(timestamp).transpose()?,
    })
}

impl Store {
    /// Returns all signature keys that a device has or had, newest first.
    ///
    /// # Errors
    /// When the database fails.
    pub fn signature_keys(&self, device: DeviceId) -> Result<Vec<KeptKey>, StoreError> {
        let rows = self.read(|conn| keys_of(conn, &[device.0]))?;
        rows.into_iter().map(kept).collect()
    }

    /// Records the signature keys of all devices that have KeyPackages but no key: their pools are older than the table
    /// of keys. Returns the number of recorded keys. Skips devices that another transaction has locked: their next
    /// upload records the key.
    ///
    /// # Errors
    /// When the database fails.
    pub fn adopt_signature_keys(&self, now: Timestamp) -> Result<usize, StoreError> {
        let (mut after, mut adopted) = (0, 0);
        loop {
            let devices = self.read(|conn| without_keys(conn, after))?;
            let Some(last) = devices.last() else { return Ok(adopted) };
            after = *last;
            adopted += self.write("adopt_signature_keys", |conn| {
                let held: Vec<_> = locks::hold_idle(conn, &devices)?.into_iter().map(|(device, _)| device).collect();
                adopt(conn, &held, now.as_second()).map(|keys| keys.len())
            })?;
        }
    }
}
