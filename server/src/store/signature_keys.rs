//! The signature keys of devices: recorded with the first upload, changed only by a proof, closed with the registration.

use std::collections::HashMap;

use diesel::prelude::*;
use jiff::Timestamp;
use keypool_openapi::{Action, State};
use keypool_validation::signature_key::{HEAD, signature_key_in};

use super::{
    Store, StoreError,
    as_of::{AsOf, is_live},
    audit::{AuditSql, Event},
    connection::with_conn,
    key_packages::HoldDevice,
    revocation::RevokedColumns,
    rows::{DeviceId, Ended, statements, timestamp},
    schema::{audit_events, devices, key_packages, signature_keys, users},
    tokens::{ShownToken, valid},
};

/// Devices that are looked at together when the server starts.
const BATCH: i64 = 100;

/// The first bytes of a KeyPackage.
const HEAD_LENGTH: i32 = 1024;
const _: () = assert!(HEAD == 1024, "HEAD_LENGTH is HEAD");

#[diesel::declare_sql_function]
extern "SQL" {
    /// So many bytes of a binary, from the first one on, which is 1.
    fn substr(
        bytes: diesel::sql_types::Binary,
        from: diesel::sql_types::Integer,
        length: diesel::sql_types::Integer,
    ) -> diesel::sql_types::Binary;
}

/// One registration of a device. A device that is removed and registered anew has another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Registration {
    /// The device.
    pub device: DeviceId,
    /// When it was registered, in seconds since the Unix epoch.
    pub at: i64,
}

/// A change of a signature key. The caller has verified that the old key signed it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyChange {
    /// The ciphersuite.
    pub ciphersuite: u16,
    /// The key that has signed it.
    pub old_key: Vec<u8>,
    /// The key that is to take its place.
    pub new_key: Vec<u8>,
}

/// A signature key that a device has or had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptKey {
    /// The registration that it belongs to.
    pub registration: Registration,
    /// The ciphersuite.
    pub ciphersuite: u16,
    /// The public key.
    pub signature_key: Vec<u8>,
    /// Since when the server has held the device to it.
    pub since: Timestamp,
    /// When it was closed; `None` for the current one of the registration.
    pub until: Option<Timestamp>,
}

/// Device, registration, ciphersuite, key, since, until.
type KeyColumns = (i64, i64, i32, Vec<u8>, i64, Option<i64>);

/// Device and ciphersuite, key.
type CurrentColumns = ((i64, i32), Vec<u8>);

/// Device, registration, ciphersuite, ref, first bytes.
type HeadColumns = (i64, i64, i32, Vec<u8>, Vec<u8>);

/// A key that is recorded.
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
    pub(super) trait SignatureKeySql {
        /// By device and ciphersuite.
        fn current_keys(conn, registration: Registration) -> QueryResult<Vec<CurrentColumns>> {
            signature_keys::table
                .filter(signature_keys::device_id.eq(registration.device.0))
                .filter(signature_keys::registered_at.eq(registration.at).and(signature_keys::until.is_null()))
                .select(((signature_keys::device_id, signature_keys::ciphersuite), signature_keys::signature_key))
                .load(conn)
        }

        /// All keys that the devices have or had, the newest first.
        fn keys_of(conn, devices: &[i64]) -> QueryResult<Vec<KeyColumns>> {
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

        /// Makes a key the current one. A device that is registered anew within the same second may have the same key again.
        fn open_key(conn, key: &NewKey) -> QueryResult<usize> {
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

        fn close_key(conn, registration: Registration, suite: i32, now: i64) -> QueryResult<usize> {
            diesel::update(signature_keys::table)
                .filter(signature_keys::device_id.eq(registration.device.0))
                .filter(signature_keys::registered_at.eq(registration.at).and(signature_keys::ciphersuite.eq(suite)))
                .filter(signature_keys::until.is_null())
                .set(signature_keys::until.eq(now))
                .execute(conn)
        }

        fn close_keys(conn, device: i64, now: i64) -> QueryResult<usize> {
            diesel::update(signature_keys::table)
                .filter(signature_keys::device_id.eq(device).and(signature_keys::until.is_null()))
                .set(signature_keys::until.eq(now))
                .execute(conn)
        }

        /// Devices that have uploaded something and have no signature key, after this one.
        fn without_keys(conn, after: i64) -> QueryResult<Vec<i64>> {
            let keys = signature_keys::table.filter(signature_keys::device_id.eq(devices::id));
            devices::table
                .filter(devices::id.gt(after).and(devices::removed_at.is_null()).and(devices::last_upload.is_not_null()))
                .filter(diesel::dsl::not(diesel::dsl::exists(keys)))
                .order(devices::id.asc())
                .limit(BATCH)
                .select(devices::id)
                .load(conn)
        }

        fn live_heads(conn, devices: &[i64]) -> QueryResult<Vec<HeadColumns>> {
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

        /// The refs that a device has uploaded, the oldest first.
        fn upload_order(conn, device: i64) -> QueryResult<Vec<Vec<u8>>> {
            audit_events::table
                .filter(audit_events::device_id.eq(device).and(audit_events::action.eq(<&str>::from(Action::Upload))))
                .order(audit_events::id.asc())
                .select(audit_events::keypackage_ref)
                .load(conn)
        }

        /// How many are reserved, without last resorts.
        fn count_held(conn, device: i64, suite: i32, now: i64) -> QueryResult<i64> {
            key_packages::table
                .filter(key_packages::device_id.eq(device).and(key_packages::ciphersuite.eq(suite)))
                .filter(key_packages::held.and(key_packages::reserved_until.gt(now)).and(key_packages::not_after.gt(now)))
                .count()
                .get_result(conn)
        }

        fn revoke_available(conn, device: i64, suite: i32, as_of: AsOf) -> QueryResult<Vec<RevokedColumns>> {
            let now = as_of.now.as_second();
            diesel::update(key_packages::table)
                .filter(key_packages::device_id.eq(device).and(key_packages::ciphersuite.eq(suite)))
                .filter(is_live(now, as_of.retired_by()))
                .filter(key_packages::reserved_until.is_null().or(key_packages::reserved_until.le(now)))
                .set(Ended::new(State::Revoked, now))
                .returning((key_packages::keypackage_ref, key_packages::last_resort))
                .get_results(conn)
        }

        /// Lets each reserved KeyPackage expire with its reservation: its adder can spend it, and no other adder gets it.
        fn end_with_reservation(conn, device: i64, suite: i32, now: i64) -> QueryResult<usize> {
            diesel::update(key_packages::table)
                .filter(key_packages::device_id.eq(device).and(key_packages::ciphersuite.eq(suite)))
                .filter(key_packages::held.and(key_packages::reserved_until.gt(now)))
                .filter(key_packages::reserved_until.lt(key_packages::not_after.nullable()))
                .set(key_packages::not_after.eq(key_packages::reserved_until.assume_not_null()))
                .execute(conn)
        }

        /// Raises the version of a user's devices; the user is named by one of them.
        fn raise_devices_version(conn, device: i64) -> QueryResult<usize> {
            let user = devices::table.find(device).select(devices::user_name).single_value();
            diesel::update(users::table)
                .filter(users::name.nullable().eq(user))
                .set(users::devices_version.eq(users::devices_version + 1))
                .execute(conn)
        }

        /// The version of the devices of the caller's user; `None` if the token has ended.
        fn devices_version(conn, caller: &ShownToken) -> QueryResult<Option<i64>> {
            let user = valid(caller).select(devices::user_name).single_value();
            let version = users::table.filter(users::name.nullable().eq(user)).select(users::devices_version);
            version.first(conn).optional()
        }

        /// The other registered devices of a device's user.
        fn siblings(conn, device: i64) -> QueryResult<Vec<i64>> {
            let own = diesel::alias!(devices as own);
            let user = own.filter(own.field(devices::id).eq(device)).select(own.field(devices::user_name)).single_value();
            devices::table
                .filter(devices::user_name.nullable().eq(user))
                .filter(devices::removed_at.is_null().and(devices::id.ne(device)))
                .select(devices::id)
                .load(conn)
        }
    }
}

/// Raises the version of the user's devices. Answers the user's other devices: the caller wakes their long polls.
pub(super) fn tell_siblings<C: SignatureKeySql + super::delivery::Announce>(
    conn: &mut C,
    device: i64,
) -> QueryResult<Vec<DeviceId>> {
    let siblings = conn.siblings(device)?;
    conn.raise_devices_version(device)?;
    conn.announce(&siblings)?;
    Ok(siblings.into_iter().map(DeviceId).collect())
}

/// Replaces the current key, and revokes the KeyPackages that are available under it. Answers the user's other devices.
pub(super) fn change_key<C: SignatureKeySql + AuditSql + super::delivery::Announce>(
    conn: &mut C,
    registration: Registration,
    change: &KeyChange,
    as_of: AsOf,
) -> Result<Vec<DeviceId>, StoreError> {
    let (device, suite, now) = (registration.device.0, i32::from(change.ciphersuite), as_of.now.as_second());
    let revoked = conn.revoke_available(device, suite, as_of)?;
    let events: Vec<_> = revoked
        .iter()
        .map(|(name, last_resort)| Event::plain((device, name), Action::Revoke, Some(device), *last_resort, now))
        .collect();
    if !events.is_empty() {
        conn.record(&events)?;
    }
    conn.end_with_reservation(device, suite, now)?;
    conn.close_key(registration, suite, now)?;
    conn.open_key(&NewKey {
        device_id: device,
        registered_at: registration.at,
        ciphersuite: suite,
        signature_key: change.new_key.clone(),
        since: now,
    })?;
    Ok(tell_siblings(conn, device)?)
}

/// What a device has in its pool of a ciphersuite.
struct Found {
    new: NewKey,
    /// The keys of its KeyPackages.
    by_ref: HashMap<Vec<u8>, Vec<u8>>,
}

/// Records the signature keys of devices that have none: in each ciphersuite the key of the oldest live KeyPackage. The caller
/// holds the devices.
///
/// Such a device has uploaded before keys were kept, while `credential_binding` was off, or to a server of the version before.
/// The server does this and not the migration, because the database does not know whether the server binds credentials, and
/// because one place decodes KeyPackages.
pub(super) fn adopt<C: SignatureKeySql>(conn: &mut C, devices: &[i64], now: i64) -> Result<Vec<NewKey>, StoreError> {
    let mut found: Vec<Found> = Vec::new();
    for (device_id, registered_at, ciphersuite, keypackage_ref, head) in conn.live_heads(devices)? {
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
        // Only the trail has the order of uploads. It is read only where the keys differ, which is rare.
        if by_ref.values().any(|key| *key != new.signature_key) {
            let order = conn.upload_order(new.device_id)?;
            if let Some(oldest) = order.iter().find_map(|keypackage_ref| by_ref.get(keypackage_ref)) {
                new.signature_key.clone_from(oldest);
            }
        }
        conn.open_key(&new)?;
        adopted.push(new);
    }
    Ok(adopted)
}

pub(super) fn kept(
    (device, registered_at, ciphersuite, signature_key, since, until): KeyColumns,
) -> Result<KeptKey, StoreError> {
    Ok(KeptKey {
        registration: Registration { device: DeviceId(device), at: registered_at },
        ciphersuite: super::rows::suite(ciphersuite)?,
        signature_key,
        since: timestamp(since)?,
        until: until.map(timestamp).transpose()?,
    })
}

impl Store {
    /// All signature keys that a device has or had, the newest first.
    ///
    /// # Errors
    /// When the database fails.
    pub fn signature_keys(&self, device: DeviceId) -> Result<Vec<KeptKey>, StoreError> {
        let rows = with_conn!(self, read, |conn| conn.keys_of(&[device.0]))?;
        rows.into_iter().map(kept).collect()
    }

    /// Records the signature keys of all devices that have KeyPackages and no key: pools from before keys were kept. Answers
    /// the number of keys. Skips devices that another transaction holds: their next upload records the key.
    ///
    /// # Errors
    /// When the database fails.
    pub fn adopt_signature_keys(&self, now: Timestamp) -> Result<usize, StoreError> {
        let (mut after, mut adopted) = (0, 0);
        loop {
            let devices = with_conn!(self, read, |conn| conn.without_keys(after))?;
            let Some(last) = devices.last() else { return Ok(adopted) };
            after = *last;
            adopted += with_conn!(self, write "adopt_signature_keys", |conn| {
                let held: Vec<_> = conn.hold_idle(&devices)?.into_iter().map(|(device, _)| device).collect();
                adopt(conn, &held, now.as_second()).map(|keys| keys.len())
            })?;
        }
    }
}
