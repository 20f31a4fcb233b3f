//! Whether the token of a request is still its device's.
//!
//! A server remembers a token for a few seconds. In that time the token may have been replaced, or its device removed, by way
//! of another server. So each verb that changes something checks the token in the statement that makes the change, in its
//! transaction, or while it holds the device's row: an ended token changes nothing.

use diesel::prelude::*;

use super::{
    StoreError,
    connection::Retry,
    key_packages::HoldDevice,
    rows::{DeviceId, statements},
    schema::devices,
};

/// The token of a request, and the device that it belonged to when it was looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShownToken {
    /// The device.
    pub device: DeviceId,
    /// The token's SHA-256.
    pub token_hash: [u8; 32],
}

/// The token was replaced, or its device removed, since it was looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the token was replaced, or its device removed")]
pub struct TokenRevoked;

/// Why a verb for whom only a valid token is needed was refused.
#[derive(Debug, thiserror::Error)]
pub enum CallerError {
    /// The token has ended.
    #[error(transparent)]
    TokenRevoked(#[from] TokenRevoked),
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<diesel::result::Error> for CallerError {
    fn from(error: diesel::result::Error) -> Self {
        Self::Store(error.into())
    }
}

impl Retry for CallerError {
    fn store_error(&self) -> Option<&StoreError> {
        if let Self::Store(error) = self { Some(error) } else { None }
    }
}

statements! {
    pub(super) trait TokenSql {
        fn has_token(conn, shown: &ShownToken) -> QueryResult<bool> {
            diesel::select(diesel::dsl::exists(valid(shown))).get_result(conn)
        }
    }
}

/// The row of the token's device, if the token is still valid.
#[diesel::dsl::auto_type(no_type_alias)]
pub(super) fn valid(shown: &ShownToken) -> _ {
    let (id, token_hash): (i64, &[u8]) = (shown.device.0, &shown.token_hash);
    devices::table
        .filter(devices::id.eq(id).and(devices::removed_at.is_null()))
        .filter(devices::token_hash.eq(token_hash))
}

/// Holds the caller's row until the transaction ends: its token is neither replaced nor its device removed meanwhile.
pub(super) fn hold_caller<C: HoldDevice, E>(conn: &mut C, caller: &ShownToken) -> Result<(), E>
where
    E: From<diesel::result::Error> + From<TokenRevoked>,
{
    if conn.hold_caller(caller)? { Ok(()) } else { Err(TokenRevoked.into()) }
}
