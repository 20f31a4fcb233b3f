//! Registration: adds a device to a user.

use diesel::prelude::*;
use jiff::Timestamp;
use keypool_openapi::{DeviceName, UserName};

use super::{
    database::{
        Conn, Failure, Store, StoreError,
        rows::DeviceId,
        schema::{devices, enrolments, users},
        sql::statements,
    },
    devices::{devices_of, find_device},
    links, locks, queues,
    signature_keys::{self, tell_siblings},
    tokens::{ShownToken, TokenRevoked, hold_caller},
};

/// A device to register.
#[derive(Clone, Debug)]
pub struct NewDevice {
    /// The device's user.
    pub user: UserName,
    /// The device's name.
    pub device: DeviceName,
    /// The caller's permission to register it.
    pub grant: Grant,
    /// The SHA-256 of the request's `Idempotency-Key`.
    pub repeat_key: Option<[u8; 32]>,
    /// An earlier registration with the same key counts as the same request if it was made after this time.
    pub repeats_since: Timestamp,
    /// The most devices that the user may have.
    pub most: u32,
}

/// The SHA-256 of a device's bearer token, by the time of its registration.
pub type TokenHash<'t> = &'t dyn Fn(Timestamp) -> [u8; 32];

/// A registered device.
#[derive(Clone, Debug)]
pub struct Registered {
    /// The time of its registration. The request may be a repetition of an earlier one.
    pub at: Timestamp,
    /// The user's other devices, if the device is new, so that they can be notified.
    pub told: Vec<DeviceId>,
}

/// The permission by which a caller registers a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Grant {
    /// No permission: valid only if the user is new.
    FirstCome,
    /// A bearer token of another device of the same user.
    SameUser(ShownToken),
    /// The SHA-256 of an enrolment token, which is valid once.
    Enrolment([u8; 32]),
    /// The SHA-256 of a code that another device of the user made, which is valid once.
    Link([u8; 32]),
}

/// The reason why a device was not registered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RegisterError {
    /// The user has a device of this name already.
    #[error("the user has a device of this name already")]
    AlreadyRegistered,
    /// The user exists, and the request has no token of that user.
    #[error("the user is known, and the call has no token of that user")]
    NotThatUser,
    /// The enrolment token is not valid for the user.
    #[error("the enrolment token is not valid for the user")]
    NotEnrolled,
    /// The code of another device is not valid for the user.
    #[error("the code is not valid for the user")]
    NotLinked,
    /// The caller's token has been revoked.
    #[error("the token has ended")]
    TokenRevoked,
    /// The user has reached the limit of devices.
    #[error("the user has as many devices as may be")]
    TooManyDevices,
}

impl From<TokenRevoked> for RegisterError {
    fn from(TokenRevoked: TokenRevoked) -> Self {
        Self::TokenRevoked
    }
}

statements! {
    /// Returns whether the user is new.
    fn add_user(conn, user: &str, now: i64) -> QueryResult<bool> {
        diesel::insert_into(users::table)
            .values((users::name.eq(user), users::created_at.eq(now)))
            .on_conflict_do_nothing()
            .execute(conn)
            .map(|rows| rows == 1)
    }

    /// Returns whether the device is new, or was removed before. A removed device keeps its row and its tombstones.
    fn add_device(conn, new: &NewDevice, token_hash: &[u8], now: i64) -> QueryResult<bool> {
        let token = devices::token_hash.eq(token_hash);
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

    /// Returns the time of the registration that a request with this key made.
    fn earlier_registration(conn, new: &NewDevice, key: &[u8]) -> QueryResult<Option<i64>> {
        devices::table
            .filter(devices::user_name.eq(new.user.as_str()).and(devices::device_name.eq(new.device.as_str())))
            .filter(devices::registration_key.eq(key).and(devices::removed_at.is_null()))
            .filter(devices::created_at.gt(new.repeats_since.as_second()))
            .select(devices::created_at)
            .first(conn)
            .optional()
    }

    /// Sets the token of a registration that is repeated. It has that token already, unless an older server made the
    /// registration. Returns whether the registration can still be repeated.
    fn repeat_registration(conn, new: &NewDevice, key: &[u8], token_hash: &[u8]) -> QueryResult<bool> {
        diesel::update(devices::table)
            .filter(devices::user_name.eq(new.user.as_str()).and(devices::device_name.eq(new.device.as_str())))
            .filter(devices::registration_key.eq(key).and(devices::removed_at.is_null()))
            .set(devices::token_hash.eq(token_hash))
            .execute(conn)
            .map(|rows| rows == 1)
    }

    fn add_enrolment(
        conn,
        token_hash: &[u8],
        user: &str,
        times: (i64, i64),
    ) -> QueryResult<usize> {
        diesel::insert_into(enrolments::table)
            .values((
                enrolments::token_hash.eq(token_hash),
                enrolments::user_name.eq(user),
                enrolments::created_at.eq(times.0),
                enrolments::expires_at.eq(times.1),
            ))
            .execute(conn)
    }

    fn use_enrolment(conn, token_hash: &[u8], user: &str, now: i64) -> QueryResult<bool> {
        diesel::delete(enrolments::table)
            .filter(enrolments::token_hash.eq(token_hash).and(enrolments::user_name.eq(user)))
            .filter(enrolments::expires_at.gt(now))
            .execute(conn)
            .map(|rows| rows == 1)
    }
}

/// Registers a device, or returns the earlier answer if the same request registered it before. The earlier registration
/// is looked up after a refusal: by then, any concurrent registration has committed.
fn register(
    conn: &mut Conn<'_>,
    new: &NewDevice,
    token_hash: TokenHash<'_>,
    now: Timestamp,
) -> Result<Registered, Failure<RegisterError>> {
    let refusal = match register_anew(conn, new, &token_hash(now), now) {
        Err(Failure::Refused(refusal)) => refusal,
        outcome => return outcome.map(|told| Registered { at: now, told }),
    };
    if let Some(key) = &new.repeat_key
        && let Some(second) = earlier_registration(conn, new, key)?
    {
        let at = Timestamp::from_second(second).map_err(StoreError::fatal)?;
        if repeat_registration(conn, new, key, &token_hash(at))? {
            return Ok(Registered { at, told: Vec::new() });
        }
    }
    Err(Failure::Refused(refusal))
}

fn register_anew(
    conn: &mut Conn<'_>,
    new: &NewDevice,
    token_hash: &[u8],
    now: Timestamp,
) -> Result<Vec<DeviceId>, Failure<RegisterError>> {
    let second = now.as_second();
    let is_new = add_user(conn, new.user.as_str(), second)?;
    match &new.grant {
        Grant::FirstCome if !is_new => return Err(Failure::Refused(RegisterError::NotThatUser)),
        Grant::Enrolment(hash) if !use_enrolment(conn, hash, new.user.as_str(), second)? => {
            return Err(Failure::Refused(RegisterError::NotEnrolled));
        }
        Grant::Link(hash) if !links::use_link(conn, hash, (new.user.as_str(), new.device.as_str()), second)? => {
            return Err(Failure::Refused(RegisterError::NotLinked));
        }
        Grant::SameUser(caller) => hold_caller::<RegisterError>(conn, caller)?,
        _ => {}
    }
    // The lock keeps the count valid until the transaction ends.
    locks::hold_user(conn, new.user.as_str())?;
    if devices_of(conn, &[new.user.as_str()])?.len() >= new.most as usize {
        return Err(Failure::Refused(RegisterError::TooManyDevices));
    }
    if !add_device(conn, new, token_hash, second)? {
        return Err(Failure::Refused(RegisterError::AlreadyRegistered));
    }
    // A message to an earlier device of this name may have arrived after that device was removed.
    let Some(id) = find_device(conn, new.user.as_str(), new.device.as_str())? else { return Ok(Vec::new()) };
    queues::remove_queue(conn, id)?;
    signature_keys::close_keys(conn, id, second)?;
    Ok(tell_siblings(conn, id)?)
}

impl Store {
    /// Registers a device, or finds the registration that the same request made before.
    ///
    /// # Errors
    /// See [`RegisterError`]. Nothing is changed then.
    pub fn register(
        &self,
        new: &NewDevice,
        token_hash: TokenHash<'_>,
        now: Timestamp,
    ) -> Result<Registered, Failure<RegisterError>> {
        self.write("register", |conn| register(conn, new, token_hash, now))
    }

    /// Stores the SHA-256 of an enrolment token.
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
        self.write("enrol", |conn| {
            add_enrolment(conn, token_hash, user.as_str(), (now.as_second(), expires_at.as_second()))
                .map(drop)
                .map_err(StoreError::from)
        })
    }
}
