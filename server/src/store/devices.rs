//! Users, devices and their tokens.

use std::collections::{BTreeSet, HashMap};

use diesel::prelude::*;
use jiff::Timestamp;
use keypool_openapi::{DeviceName, UserName};

use super::{
    Store, StoreError,
    as_of::AsOf,
    audit::AuditSql,
    connection::{Retry, with_conn},
    delivery::{Announce, DeliverySql},
    key_packages::HoldDevice,
    revocation::{RevocationSql, revoke_all},
    rows::{DeviceColumns, DeviceId, DeviceRow, statements},
    schema::{devices, enrolments, users},
    signature_keys::{SignatureKeySql, tell_siblings},
    tokens::{ShownToken, TokenRevoked, hold_caller},
};

/// A device to be registered.
#[derive(Clone, Debug)]
pub struct NewDevice {
    /// Its user.
    pub user: UserName,
    /// Its name.
    pub device: DeviceName,
    /// The SHA-256 of its bearer token.
    pub token_hash: [u8; 32],
    /// What the caller shows for it.
    pub grant: Grant,
    /// The SHA-256 of the request's `Idempotency-Key`.
    pub repeat_key: Option<[u8; 32]>,
    /// A registration with the same key that was made after this is a repetition.
    pub repeats_since: Timestamp,
    /// Devices that the user may have.
    pub most: u32,
}

/// What lets a caller register a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Grant {
    /// Nothing: only where the user is new.
    FirstCome,
    /// A bearer token of the user's own.
    SameUser(ShownToken),
    /// An enrolment token, by its SHA-256: once.
    Enrolment([u8; 32]),
}

/// Why a device was not registered.
#[derive(Debug, thiserror::Error)]
pub enum RegisterError {
    /// The user has a device of this name.
    #[error("the user has a device of this name already")]
    AlreadyRegistered,
    /// The user is known, and the call came with no token of theirs.
    #[error("the user is known, and the call has no token of that user")]
    NotThatUser,
    /// No such enrolment token is valid for the user.
    #[error("the enrolment token is not valid for the user")]
    NotEnrolled,
    /// The caller's token has ended.
    #[error(transparent)]
    TokenRevoked(#[from] TokenRevoked),
    /// The user has as many devices as may be.
    #[error("the user has as many devices as may be")]
    TooManyDevices,
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
    fn store_error(&self) -> Option<&StoreError> {
        if let Self::Store(error) = self { Some(error) } else { None }
    }
}

/// Why a device was not changed.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The caller's token has ended.
    #[error(transparent)]
    TokenRevoked(#[from] TokenRevoked),
    /// The user has no such device.
    #[error("the user has no such device")]
    Unknown,
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<diesel::result::Error> for DeviceError {
    fn from(error: diesel::result::Error) -> Self {
        Self::Store(error.into())
    }
}

impl Retry for DeviceError {
    fn store_error(&self) -> Option<&StoreError> {
        if let Self::Store(error) = self { Some(error) } else { None }
    }
}

/// A device that was removed.
#[derive(Clone, Debug)]
pub struct Removed {
    /// The SHA-256 of the token that is no longer valid.
    pub token_hash: [u8; 32],
    /// How many KeyPackages were revoked with it.
    pub revoked: u64,
    /// The user's other devices.
    pub told: Vec<DeviceId>,
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

        fn known_users(conn, names: &[&str]) -> QueryResult<Vec<String>> {
            users::table.filter(users::name.eq_any(names)).select(users::name).load(conn)
        }

        /// Whether the device is new, or was removed before. Its row stays the same: its tombstones go on.
        fn add_device(conn, new: &NewDevice, now: i64) -> QueryResult<bool> {
            let token = devices::token_hash.eq(new.token_hash.as_slice());
            let key = devices::registration_key.eq(new.repeat_key.as_ref().map(<[u8; 32]>::as_slice));
            let upsert = diesel::insert_into(devices::table)
                .values((
                    devices::user_name.eq(new.user.as_str()),
                    devices::device_name.eq(new.device.as_str()),
                    devices::created_at.eq(now),
                    token,
                    key,
                ))
                .on_conflict((devices::user_name, devices::device_name))
                .do_update()
                .set((devices::created_at.eq(now), devices::removed_at.eq(None::<i64>), token, key));
            diesel::query_dsl::methods::FilterDsl::filter(upsert, devices::removed_at.is_not_null()).execute(conn).map(|rows| rows == 1)
        }

        /// Gives the device another token, if this very registration made it.
        fn repeat_registration(conn, new: &NewDevice, key: &[u8]) -> QueryResult<bool> {
            diesel::update(devices::table)
                .filter(devices::user_name.eq(new.user.as_str()).and(devices::device_name.eq(new.device.as_str())))
                .filter(devices::registration_key.eq(key).and(devices::removed_at.is_null()))
                .filter(devices::created_at.gt(new.repeats_since.as_second()))
                .set(devices::token_hash.eq(new.token_hash.as_slice()))
                .execute(conn)
                .map(|rows| rows == 1)
        }

        fn use_enrolment(conn, token_hash: &[u8], user: &str, now: i64) -> QueryResult<bool> {
            diesel::delete(enrolments::table)
                .filter(enrolments::token_hash.eq(token_hash).and(enrolments::user_name.eq(user)))
                .filter(enrolments::expires_at.gt(now))
                .execute(conn)
                .map(|rows| rows == 1)
        }

        fn devices_of(conn, users: &[&str]) -> QueryResult<Vec<DeviceColumns>> {
            let present = devices::table
                .filter(devices::removed_at.is_null())
                .order((devices::user_name.asc(), devices::device_name.asc()))
                .select(COLUMNS);
            match users {
                // By far the most frequent, and what SQLite keeps prepared: it has no lists.
                [user] => present.filter(devices::user_name.eq(user)).load(conn),
                users => present.filter(devices::user_name.eq_any(users)).load(conn),
            }
        }

        /// Removed ones included.
        fn all_devices_of(conn, user: &str) -> QueryResult<Vec<i64>> {
            devices::table.filter(devices::user_name.eq(user)).select(devices::id).load(conn)
        }

        fn removed_among(conn, ids: &[i64]) -> QueryResult<Vec<i64>> {
            let removed = devices::table.filter(devices::id.eq_any(ids).and(devices::removed_at.is_not_null()));
            removed.select(devices::id).load(conn)
        }

        /// Removed ones included.
        fn devices_by_id(conn, ids: &[i64]) -> QueryResult<Vec<DeviceColumns>> {
            devices::table.filter(devices::id.eq_any(ids)).select(COLUMNS).load(conn)
        }

        fn find_device(conn, user: &str, device: &str) -> QueryResult<Option<i64>> {
            devices::table
                .filter(devices::user_name.eq(user).and(devices::device_name.eq(device)))
                .filter(devices::removed_at.is_null())
                .select(devices::id)
                .first(conn)
                .optional()
        }

        fn end_device(conn, id: i64, now: i64) -> QueryResult<usize> {
            diesel::update(devices::table.find(id)).set(devices::removed_at.eq(now)).execute(conn)
        }

        /// The devices of these tokens, and whether the registration of each can still be repeated.
        fn devices_of_tokens(conn, hashes: &[&[u8]]) -> QueryResult<Vec<(Vec<u8>, DeviceColumns, bool)>> {
            let columns = (devices::token_hash, COLUMNS, devices::registration_key.is_not_null());
            let present = devices::table.filter(devices::removed_at.is_null()).select(columns);
            match hashes {
                // What SQLite keeps prepared: it has no lists.
                [hash] => present.filter(devices::token_hash.eq(hash)).load(conn),
                hashes => present.filter(devices::token_hash.eq_any(hashes)).load(conn),
            }
        }

        /// The devices' tokens have come back to us, so their owners have them: the registrations are not repeated any more.
        fn end_registrations(conn, ids: &[i64]) -> QueryResult<usize> {
            let used = devices::table.filter(devices::id.eq_any(ids));
            diesel::update(used).set(devices::registration_key.eq(None::<Vec<u8>>)).execute(conn)
        }

        fn change_token(conn, id: i64, token_hash: &[u8]) -> QueryResult<usize> {
            diesel::update(devices::table.find(id)).set(devices::token_hash.eq(token_hash)).execute(conn)
        }
    }
}

/// Registers a device, or answers again where the same request did so before. It is looked for when the registration was
/// refused: one that ran at the same time has been waited for by then.
fn register<C: DeviceSql + DeliverySql + HoldDevice + SignatureKeySql + Announce>(
    conn: &mut C,
    new: &NewDevice,
    now: Timestamp,
) -> Result<Vec<DeviceId>, RegisterError> {
    match (register_anew(conn, new, now), &new.repeat_key) {
        (Err(RegisterError::Store(error)), _) => Err(error.into()),
        (Err(_), Some(key)) if conn.repeat_registration(new, key)? => Ok(Vec::new()),
        (outcome, _) => outcome,
    }
}

fn register_anew<C: DeviceSql + DeliverySql + HoldDevice + SignatureKeySql + Announce>(
    conn: &mut C,
    new: &NewDevice,
    now: Timestamp,
) -> Result<Vec<DeviceId>, RegisterError> {
    let second = now.as_second();
    let is_new = conn.add_user(new.user.as_str(), second)?;
    match &new.grant {
        Grant::FirstCome if !is_new => return Err(RegisterError::NotThatUser),
        Grant::Enrolment(hash) if !conn.use_enrolment(hash, new.user.as_str(), second)? => {
            return Err(RegisterError::NotEnrolled);
        }
        Grant::SameUser(caller) => hold_caller::<_, RegisterError>(conn, caller)?,
        _ => {}
    }
    // What is counted stays true.
    conn.hold_user(new.user.as_str())?;
    if conn.devices_of(&[new.user.as_str()])?.len() >= new.most as usize {
        return Err(RegisterError::TooManyDevices);
    }
    if !conn.add_device(new, second)? {
        return Err(RegisterError::AlreadyRegistered);
    }
    // What was under way to a device that had the name before may have come after it was removed.
    let Some(id) = conn.find_device(new.user.as_str(), new.device.as_str())? else { return Ok(Vec::new()) };
    conn.remove_queue(id)?;
    conn.close_keys(id, second)?;
    Ok(tell_siblings(conn, id)?)
}

/// A device and its token's hash, where the caller may change it. Both rows are held, in the order of their numbers, as
/// everybody does it.
fn changeable<C: DeviceSql + HoldDevice>(
    conn: &mut C,
    by: Option<ShownToken>,
    (user, device): (&UserName, &DeviceName),
) -> Result<(i64, [u8; 32]), DeviceError> {
    let id = conn.find_device(user.as_str(), device.as_str())?.ok_or(DeviceError::Unknown)?;
    let both: BTreeSet<_> = by.map(|by| by.device.0).into_iter().chain([id]).collect();
    let mut tokens = HashMap::new();
    for device in both {
        if let Some(token_hash) = conn.hold_device(device)? {
            tokens.insert(device, token_hash);
        }
    }
    if let Some(by) = by
        && tokens.get(&by.device.0).is_none_or(|token_hash| *token_hash != by.token_hash)
    {
        return Err(TokenRevoked.into());
    }
    // The transaction that held the row before may have removed the device.
    let token_hash = tokens.remove(&id).ok_or(DeviceError::Unknown)?;
    Ok((id, hash(token_hash)?))
}

fn remove<C: DeviceSql + RevocationSql + AuditSql + DeliverySql + HoldDevice + SignatureKeySql + Announce>(
    conn: &mut C,
    device: (&UserName, &DeviceName),
    by: Option<ShownToken>,
    as_of: AsOf,
) -> Result<Removed, DeviceError> {
    // An upload under way ends before this, or finds the device gone.
    let (id, token_hash) = changeable(conn, by, device)?;
    let revoked = revoke_all(conn, DeviceId(id), by.map(|by| by.device), as_of)?;
    // The next device of this name must not get the messages of this one.
    conn.remove_queue(id)?;
    conn.close_keys(id, as_of.now.as_second())?;
    conn.end_device(id, as_of.now.as_second())?;
    let told = tell_siblings(conn, id)?;
    let revoked = u64::try_from(revoked.len()).map_err(StoreError::fatal)?;
    Ok(Removed { token_hash, revoked, told })
}

fn hash(bytes: Vec<u8>) -> Result<[u8; 32], StoreError> {
    bytes.try_into().map_err(|_| StoreError::fatal(anyhow::anyhow!("a token's hash has not 32 bytes")))
}

impl Store {
    /// Registers a device, and answers the user's other devices, which are told.
    ///
    /// # Errors
    /// See [`RegisterError`]. Nothing is changed then.
    pub fn register(&self, new: &NewDevice, now: Timestamp) -> Result<Vec<DeviceId>, RegisterError> {
        with_conn!(self, write "register", |conn| register(conn, new, now))
    }

    /// The device that each token belongs to, by the token's SHA-256. The first use of a token ends the time in which the
    /// registration can be repeated.
    ///
    /// # Errors
    /// When the database fails.
    pub fn authenticate(&self, hashes: &[[u8; 32]]) -> Result<Vec<Option<DeviceRow>>, StoreError> {
        let wanted: Vec<_> = hashes.iter().map(<[u8; 32]>::as_slice).collect();
        let found = with_conn!(self, read, |conn| conn.devices_of_tokens(&wanted))?;
        let first_used: Vec<_> = found.iter().filter(|(.., is_first_use)| *is_first_use).map(|row| row.1.0).collect();
        if !first_used.is_empty() {
            with_conn!(self, write "end_registrations", |conn| {
                conn.end_registrations(&first_used).map(drop).map_err(StoreError::from)
            })?;
        }
        let device = |(token_hash, columns, _)| Ok((token_hash, DeviceRow::from_columns(columns)?));
        let devices = found.into_iter().map(device).collect::<Result<HashMap<Vec<u8>, _>, StoreError>>()?;
        Ok(wanted.iter().map(|hash| devices.get(*hash).cloned()).collect())
    }

    /// Removes a device with all that is in its pool. Without `by`, the operator does it.
    ///
    /// # Errors
    /// See [`DeviceError`]. Nothing is changed then.
    pub fn remove(
        &self,
        device: (&UserName, &DeviceName),
        by: Option<ShownToken>,
        as_of: AsOf,
    ) -> Result<Removed, DeviceError> {
        with_conn!(self, write "remove", |conn| remove(conn, device, by, as_of))
    }

    /// Gives a device another token, and answers the hash of the one before.
    ///
    /// # Errors
    /// See [`DeviceError`]. The old token stays valid then.
    pub fn change_token(
        &self,
        by: ShownToken,
        device: (&UserName, &DeviceName),
        token_hash: &[u8; 32],
    ) -> Result<[u8; 32], DeviceError> {
        with_conn!(self, write "change_token", |conn| {
            let (id, old) = changeable(conn, Some(by), device)?;
            conn.change_token(id, token_hash)?;
            Ok::<_, DeviceError>(old)
        })
    }

    /// Notes an enrolment token by its SHA-256.
    ///
    /// # Errors
    /// When the database fails.
    pub fn enrol(
        &self,
        user: &UserName,
        token_hash: &[u8; 32],
        now: Timestamp,
        expires_at: Timestamp,
    ) -> Result<(), StoreError> {
        let row = (
            enrolments::token_hash.eq(token_hash.as_slice()),
            enrolments::user_name.eq(user.as_str()),
            enrolments::created_at.eq(now.as_second()),
            enrolments::expires_at.eq(expires_at.as_second()),
        );
        with_conn!(self, write "enrol", |conn| {
            diesel::insert_into(enrolments::table).values(row).execute(conn).map(drop).map_err(StoreError::from)
        })
    }
}
