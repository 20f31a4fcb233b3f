//! Checks that a request's token is still valid.
//!
//! A server caches a token for a few seconds. Meanwhile the token may have been replaced, or its device removed,
//! through another server. So each verb that changes something checks the token again: in the statement that makes the
//! change, in its transaction, or while it holds the device's row. A revoked token changes nothing.

use diesel::prelude::*;

use super::database::{Conn, Failure, rows::DeviceId, schema::devices, sql::statements};

/// The token of a request, and its device at the time of the lookup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShownToken {
    /// The device.
    pub device: DeviceId,
    /// The token's SHA-256.
    pub token_hash: [u8; 32],
}

/// The token was replaced, or its device removed, after the lookup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenRevoked;

impl<R: From<TokenRevoked>> From<TokenRevoked> for Failure<R> {
    fn from(revoked: TokenRevoked) -> Self {
        Self::Refused(revoked.into())
    }
}

statements! {
    pub(super) fn has_token(conn, shown: &ShownToken) -> QueryResult<bool> {
        diesel::select(diesel::dsl::exists(valid(shown))).get_result(conn)
    }
}

/// Query for the row of the token's device, which is empty if the token is no longer valid.
#[diesel::dsl::auto_type(no_type_alias)]
pub(super) fn valid(shown: &ShownToken) -> _ {
    let (id, token_hash): (i64, &[u8]) = (shown.device.0, &shown.token_hash);
    devices::table
        .filter(devices::id.eq(id).and(devices::removed_at.is_null()))
        .filter(devices::token_hash.eq(token_hash))
}

/// Locks the caller's row until the transaction ends: meanwhile its token is not replaced and its device is not
/// removed. The lock is shared with other requests of the caller.
pub(super) fn hold_caller<R: From<TokenRevoked>>(conn: &mut Conn<'_>, caller: &ShownToken) -> Result<(), Failure<R>> {
    let holds = match conn {
        Conn::Postgres(conn) => valid(caller).select(devices::id).for_share().first::<i64>(*conn).optional()?.is_some(),
        Conn::Sqlite(_) => has_token(conn, caller)?,
    };
    if holds { Ok(()) } else { Err(TokenRevoked.into()) }
}
