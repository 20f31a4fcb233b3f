//! Removal of a device, and replacement of its token.

use std::collections::{BTreeSet, HashMap};

use diesel::prelude::*;
use keypool_openapi::{DeviceName, UserName};

use super::{
    as_of::AsOf,
    database::{Conn, Failure, Store, StoreError, rows::DeviceId, schema::devices, sql::statements},
    devices::find_device,
    locks, log, queues,
    revoke::revoke_all,
    signature_keys::{self, tell_siblings},
    tokens::{ShownToken, TokenRevoked},
};

/// The reason why a device was not changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// The caller's token has been revoked.
    #[error("the token has ended")]
    TokenRevoked,
    /// The user has no such device.
    #[error("the user has no such device")]
    Unknown,
}

impl From<TokenRevoked> for DeviceError {
    fn from(TokenRevoked: TokenRevoked) -> Self {
        Self::TokenRevoked
    }
}

/// The result of removing a device.
#[derive(Clone, Debug)]
pub struct Removed {
    /// The SHA-256 of the token, which is no longer valid.
    pub token_hash: [u8; 32],
    /// The number of KeyPackages that were revoked with the device.
    pub revoked: u64,
    /// The user's other devices, to be notified.
    pub told: Vec<DeviceId>,
}

statements! {
    fn end_device(conn, id: i64, now: i64) -> QueryResult<usize> {
        diesel::update(devices::table.find(id)).set(devices::removed_at.eq(now)).execute(conn)
    }

    fn change_token(conn, id: i64, token_hash: &[u8]) -> QueryResult<usize> {
        diesel::update(devices::table.find(id)).set(devices::token_hash.eq(token_hash)).execute(conn)
    }
}

/// Returns a device and the hash of its token if the caller may change it. Locks both rows in ascending order of id, as
/// every transaction does.
fn changeable(
    conn: &mut Conn<'_>,
    by: Option<ShownToken>,
    (user, device): (&UserName, &DeviceName),
) -> Result<(i64, [u8; 32]), Failure<DeviceError>> {
    let id = find_device(conn, user.as_str(), device.as_str())?.ok_or(Failure::Refused(DeviceError::Unknown))?;
    let both: BTreeSet<_> = by.map(|by| by.device.0).into_iter().chain([id]).collect();
    let mut tokens = HashMap::new();
    for device in both {
        if let Some(token_hash) = locks::hold_device(conn, device)? {
            tokens.insert(device, token_hash);
        }
    }
    if let Some(by) = by
        && tokens.get(&by.device.0).is_none_or(|token_hash| *token_hash != by.token_hash)
    {
        return Err(TokenRevoked.into());
    }
    // The transaction that held the lock before may have removed the device.
    let token_hash = tokens.remove(&id).ok_or(Failure::Refused(DeviceError::Unknown))?;
    Ok((id, hash(token_hash)?))
}

fn remove(
    conn: &mut Conn<'_>,
    device: (&UserName, &DeviceName),
    by: Option<ShownToken>,
    as_of: AsOf,
) -> Result<Removed, Failure<DeviceError>> {
    // An upload in progress ends before this, or finds the device removed.
    let (id, token_hash) = changeable(conn, by, device)?;
    let revoked = revoke_all(conn, DeviceId(id), by.map(|by| by.device), as_of)?;
    // A later device of the same name must not get this device's messages.
    queues::remove_queue(conn, id)?;
    signature_keys::close_keys(conn, id, as_of.now.as_second())?;
    end_device(conn, id, as_of.now.as_second())?;
    log::forget_secrets(conn, &[id])?;
    let told = tell_siblings(conn, id)?;
    let revoked = u64::try_from(revoked.len()).map_err(StoreError::fatal)?;
    Ok(Removed { token_hash, revoked, told })
}

fn hash(bytes: Vec<u8>) -> Result<[u8; 32], StoreError> {
    bytes.try_into().map_err(|_| StoreError::fatal(anyhow::anyhow!("a token's hash has not 32 bytes")))
}

impl Store {
    /// Removes a device and revokes all its KeyPackages. Without `by`, the operator removes it.
    ///
    /// # Errors
    /// See [`DeviceError`]. Nothing is changed then.
    pub fn remove(
        &self,
        device: (&UserName, &DeviceName),
        by: Option<ShownToken>,
        as_of: AsOf,
    ) -> Result<Removed, Failure<DeviceError>> {
        self.write("remove", |conn| remove(conn, device, by, as_of))
    }

    /// Replaces a device's token, and returns the hash of the old token.
    ///
    /// # Errors
    /// See [`DeviceError`]. The old token stays valid then.
    pub fn change_token(
        &self,
        by: ShownToken,
        device: (&UserName, &DeviceName),
        token_hash: &[u8; 32],
    ) -> Result<[u8; 32], Failure<DeviceError>> {
        self.write("change_token", |conn| {
            let (id, old) = changeable(conn, Some(by), device)?;
            change_token(conn, id, token_hash)?;
            Ok::<_, Failure<DeviceError>>(old)
        })
    }
}
