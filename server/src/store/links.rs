//! Codes by which a device lets a further device of its user in. The database has their SHA-256 alone.

use diesel::prelude::*;
use jiff::Timestamp;
use keypool_openapi::UserName;

use super::{
    database::{
        Conn, Failure, Store, StoreError,
        rows::{DeviceId, timestamp},
        schema::{device_links, devices},
        sql::statements,
    },
    tokens::{ShownToken, TokenRevoked, hold_caller},
};

/// The wrong codes after which the codes of a user end. A code has 60 bits, so a stranger who sends so many finds it with a
/// probability of 1 to 10^16.
pub const MOST_GUESSES: i32 = 100;

/// A code to store, which replaces the earlier one of its device.
#[derive(Clone, Debug)]
pub struct NewLink {
    /// The device that made it.
    pub by: ShownToken,
    /// The device's user.
    pub user: UserName,
    /// The code's SHA-256.
    pub code_hash: [u8; 32],
    /// When it ends.
    pub expires_at: Timestamp,
}

/// A code of a user, which is not forgotten yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkRow {
    /// The name of the device that made it.
    pub made_by: String,
    /// When it ends.
    pub expires_at: Timestamp,
    /// Whether the device has the token still with which it made the code, and nobody guessed too often.
    pub is_valid: bool,
    /// The name of the device that used it.
    pub used_by: Option<String>,
}

/// The device that made the link, its end, the wrong guesses, whether its maker's token is the same, and the device that came.
type LinkColumns = (String, i64, i32, bool, Option<String>);

statements! {
    fn put_link(conn, link: &NewLink) -> QueryResult<usize> {
        let values = (
            device_links::user_name.eq(link.user.as_str()),
            device_links::code_hash.eq(link.code_hash.as_slice()),
            device_links::made_with.eq(link.by.token_hash.as_slice()),
            device_links::expires_at.eq(link.expires_at.as_second()),
            device_links::guesses.eq(0),
            device_links::used_by.eq(None::<&str>),
        );
        diesel::insert_into(device_links::table)
            .values((device_links::device_id.eq(link.by.device.0), values))
            .on_conflict(device_links::device_id)
            .do_update()
            .set(values)
            .execute(conn)
    }

    /// Returns the device that made the code, and its token then, if the code can be used.
    fn find_link(conn, code_hash: &[u8], user: &str, now: i64) -> QueryResult<Option<(i64, Vec<u8>)>> {
        device_links::table
            .filter(device_links::code_hash.eq(code_hash).and(device_links::user_name.eq(user)))
            .filter(device_links::expires_at.gt(now).and(device_links::guesses.lt(MOST_GUESSES)))
            .filter(device_links::used_by.is_null())
            .select((device_links::device_id, device_links::made_with))
            .first(conn)
            .optional()
    }

    /// Returns whether the code was not used before.
    fn mark_used(conn, code_hash: &[u8], device: &str) -> QueryResult<bool> {
        let unused = device_links::code_hash.eq(code_hash).and(device_links::used_by.is_null());
        diesel::update(device_links::table.filter(unused))
            .set(device_links::used_by.eq(device))
            .execute(conn)
            .map(|rows| rows == 1)
    }

    fn count_guess(conn, user: &str, now: i64) -> QueryResult<usize> {
        let open = device_links::user_name.eq(user).and(device_links::expires_at.gt(now));
        let open = device_links::table.filter(open).filter(device_links::guesses.lt(MOST_GUESSES));
        diesel::update(open).set(device_links::guesses.eq(device_links::guesses + 1)).execute(conn)
    }

    fn links_of(conn, user: &str) -> QueryResult<Vec<LinkColumns>> {
        device_links::table
            .inner_join(devices::table.on(devices::id.eq(device_links::device_id)))
            .filter(device_links::user_name.eq(user))
            .order(devices::device_name.asc())
            .select((
                devices::device_name,
                device_links::expires_at,
                device_links::guesses,
                devices::removed_at.is_null().and(devices::token_hash.eq(device_links::made_with)),
                device_links::used_by,
            ))
            .load(conn)
    }
}

/// Spends a code for a device, within the caller's transaction. Returns whether it could be used: its maker's token stays
/// valid until the transaction ends.
pub(super) fn use_link(
    conn: &mut Conn<'_>,
    code_hash: &[u8],
    (user, device): (&str, &str),
    now: i64,
) -> Result<bool, StoreError> {
    let Some((maker, made_with)) = find_link(conn, code_hash, user, now)? else { return Ok(false) };
    let Ok(token_hash) = <[u8; 32]>::try_from(made_with) else { return Ok(false) };
    match hold_caller::<TokenRevoked>(conn, &ShownToken { device: DeviceId(maker), token_hash }) {
        Ok(()) => Ok(mark_used(conn, code_hash, device)?),
        Err(Failure::Refused(TokenRevoked)) => Ok(false),
        Err(Failure::Store(error)) => Err(error),
    }
}

impl Store {
    /// Stores the code of a device.
    ///
    /// # Errors
    /// If the device's token has ended. Nothing is stored then.
    pub fn put_link(&self, link: &NewLink) -> Result<(), Failure<TokenRevoked>> {
        self.write("put_link", |conn| {
            hold_caller::<TokenRevoked>(conn, &link.by)?;
            put_link(conn, link)?;
            Ok(())
        })
    }

    /// Counts a wrong code against the codes of a user.
    ///
    /// # Errors
    /// When the database fails.
    pub fn count_link_guess(&self, user: &UserName, now: Timestamp) -> Result<(), StoreError> {
        self.write("count_link_guess", |conn| {
            count_guess(conn, user.as_str(), now.as_second()).map(drop).map_err(StoreError::from)
        })
    }

    /// Returns the codes of a user's devices, by the names of these.
    ///
    /// # Errors
    /// When the database fails.
    pub fn links(&self, user: &UserName) -> Result<Vec<LinkRow>, StoreError> {
        let rows = self.read(|conn| links_of(conn, user.as_str()))?;
        let link = |(made_by, expires_at, guesses, has_maker, used_by): (_, _, _, bool, _)| {
            let is_valid = has_maker && guesses < MOST_GUESSES;
            Ok(LinkRow { made_by, expires_at: timestamp(expires_at)?, is_valid, used_by })
        };
        rows.into_iter().map(link).collect()
    }
}
