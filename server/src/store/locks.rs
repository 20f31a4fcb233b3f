//! Row locks: a locked row stays unchanged until the transaction ends, since other transactions wait.
//!
//! SQLite has one writer, so a writing transaction needs no further lock.

use diesel::{prelude::*, sql_types::Text};

use super::database::{
    Conn,
    schema::{devices, key_packages, users},
};

/// Class of the advisory locks for the limits on a user's reservations. The second key is the hash of the user's name.
pub(super) const HOLDS: i32 = 1_802_072_432;

/// Locks a device's row, so that uploads and the removal of one device run one after the other. Returns the SHA-256 of
/// its token; `None` if the device is no longer registered.
pub(super) fn hold_device(conn: &mut Conn<'_>, device: i64) -> QueryResult<Option<Vec<u8>>> {
    let found = devices::table.find(device).filter(devices::removed_at.is_null()).select(devices::token_hash);
    match conn {
        Conn::Postgres(conn) => found.for_no_key_update().first(*conn),
        Conn::Sqlite(conn) => found.first(*conn),
    }
    .optional()
}

/// Locks the rows of those devices that are still registered and that no other transaction has locked. Returns each
/// with the SHA-256 of its token.
pub(super) fn hold_idle(conn: &mut Conn<'_>, devices: &[i64]) -> QueryResult<Vec<(i64, Vec<u8>)>> {
    let found = devices::table.filter(devices::id.eq_any(devices).and(devices::removed_at.is_null()));
    let found = found.select((devices::id, devices::token_hash));
    match conn {
        Conn::Postgres(conn) => found.for_no_key_update().skip_locked().load(*conn),
        Conn::Sqlite(conn) => found.load(*conn),
    }
}

/// Locks a user's row: other transactions can neither register nor remove a device of the user.
pub(super) fn hold_user(conn: &mut Conn<'_>, user: &str) -> QueryResult<()> {
    let Conn::Postgres(conn) = conn else { return Ok(()) };
    users::table.find(user).select(users::name).for_no_key_update().first::<String>(*conn).map(drop)
}

/// Makes other limited reservations of this user wait until the transaction ends.
pub(super) fn hold_adders(conn: &mut Conn<'_>, user: &str) -> QueryResult<()> {
    let Conn::Postgres(conn) = conn else { return Ok(()) };
    let lock = diesel::sql_query(format!("SELECT pg_advisory_xact_lock({HOLDS}, hashtext($1))"));
    lock.bind::<Text, _>(user).execute(*conn).map(drop)
}

/// Locks the row of a KeyPackage, and returns its name in the log.
pub(super) fn hold_package(conn: &mut Conn<'_>, keypackage_ref: &[u8]) -> QueryResult<Option<Vec<u8>>> {
    let found = key_packages::table.find(keypackage_ref).select(key_packages::package_id);
    match conn {
        Conn::Postgres(conn) => found.for_no_key_update().first(*conn),
        Conn::Sqlite(conn) => found.first(*conn),
    }
    .optional()
    .map(Option::flatten)
}

/// Locks the KeyPackages of a device and ciphersuite: no other transaction can reserve, spend or release one of them.
pub(super) fn hold_pool(conn: &mut Conn<'_>, owner: i64, suite: i32) -> QueryResult<()> {
    let Conn::Postgres(conn) = conn else { return Ok(()) };
    let theirs = key_packages::device_id.eq(owner).and(key_packages::ciphersuite.eq(suite)).and(key_packages::live);
    let held = key_packages::table.filter(theirs).order(key_packages::keypackage_ref.asc());
    held.select(key_packages::keypackage_ref).for_update().load::<Vec<u8>>(*conn).map(drop)
}
