//! The KeyPackages that the server has handed out to this device, and this device's own, until the log shows them.

use jiff::Timestamp;
use keypool_openapi::{KeyPackageRef, ReservationId};
use keypool_transparency::{adder::HandOut, owner::Welcome, package::PackageId};
use rusqlite::{OptionalExtension as _, Row, params};

use super::{column::Sql, store::LocalStore};
use crate::error::{Error, Result};

/// How far a check against the log has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::Display, strum::EnumString)]
#[strum(serialize_all = "lowercase")]
pub(crate) enum CheckState {
    /// There is nothing to check yet.
    Idle,
    /// To be checked at the next refresh.
    Due,
    /// The log has what it has to have.
    Fine,
    /// The server can no longer prove it, and that proves nothing.
    Unknown,
}

/// A KeyPackage that the server has handed out to this device.
#[derive(Clone, Debug)]
pub(crate) struct HandOutRow {
    pub(crate) reservation_id: ReservationId,
    pub(crate) package: PackageId,
    /// The `MLSMessage`.
    pub(crate) key_package: Vec<u8>,
    pub(crate) hand_out: HandOut,
    pub(crate) state: CheckState,
    /// The number of the last row when the device asked for this one.
    pub(crate) asked_after: i64,
    /// Until when the row is kept.
    pub(crate) keep_until: Timestamp,
}

/// A KeyPackage of this device that is to be compared with the log.
#[derive(Clone, Debug)]
pub(crate) struct OwnPackageRow {
    pub(crate) keypackage_ref: KeyPackageRef,
    pub(crate) package: PackageId,
    /// The device that spent it and the group, as the server says.
    pub(crate) spent: Option<Welcome>,
    /// The sender and the group of the Welcome that used it.
    pub(crate) welcome: Option<Welcome>,
}

/// The number of rows in each state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct CheckCounts {
    pub(crate) due: u64,
    pub(crate) fine: u64,
    pub(crate) unknown: u64,
}

const HAND_OUT: &str = "reservation_id, package, key_package, hand_out, state, asked_after, keep_until";

/// A value that this program has not written like this.
fn unreadable(column: usize, error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, error.into())
}

fn hand_out_row(row: &Row<'_>) -> rusqlite::Result<HandOutRow> {
    Ok(HandOutRow {
        reservation_id: row.get::<_, Sql<_>>(0)?.0,
        package: PackageId(row.get(1)?),
        key_package: row.get(2)?,
        hand_out: serde_json::from_str(&row.get::<_, String>(3)?).map_err(|error| unreadable(3, error))?,
        state: row.get::<_, String>(4)?.parse().map_err(|error: strum::ParseError| unreadable(4, error))?,
        asked_after: row.get(5)?,
        keep_until: row.get::<_, Sql<_>>(6)?.0,
    })
}

fn own_row(row: &Row<'_>) -> rusqlite::Result<OwnPackageRow> {
    let welcome = |by: Option<String>, group: Option<Vec<u8>>| {
        by.zip(group).map(|(sender, group_id)| Welcome { sender, group_id })
    };
    Ok(OwnPackageRow {
        keypackage_ref: row.get::<_, Sql<_>>(0)?.0,
        package: PackageId(row.get(1)?),
        spent: welcome(row.get(2)?, row.get(3)?),
        welcome: welcome(row.get(4)?, row.get(5)?),
    })
}

impl LocalStore {
    /// Writes a hand-out, or replaces it.
    pub(crate) fn put_hand_out(&self, row: &HandOutRow) -> Result<()> {
        let HandOutRow { reservation_id, package, key_package, hand_out, state, asked_after, keep_until } = row;
        let hand_out = serde_json::to_string(hand_out)
            .map_err(|error| Error::Damaged(format!("a hand-out cannot be written: {error}")))?;
        self.connection()
            .prepare_cached(
                "INSERT INTO hand_outs (reservation_id, package, key_package, hand_out, state, asked_after, keep_until)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
                 ON CONFLICT (reservation_id) DO UPDATE
                 SET hand_out = excluded.hand_out, state = excluded.state",
            )
            .and_then(|mut insert| {
                insert.execute(params![
                    Sql(reservation_id),
                    package.0,
                    key_package,
                    hand_out,
                    state.to_string(),
                    asked_after,
                    Sql(keep_until)
                ])
            })
            .map_err(Error::storage("write a hand-out"))?;
        Ok(())
    }

    /// Records how far the check of a hand-out has come.
    pub(crate) fn set_hand_out_state(&self, reservation_id: &ReservationId, state: CheckState) -> Result<()> {
        self.connection()
            .prepare_cached("UPDATE hand_outs SET state = ?2 WHERE reservation_id = ?1")
            .and_then(|mut update| update.execute(params![Sql(reservation_id), state.to_string()]))
            .map_err(Error::storage("record the check of a hand-out"))?;
        Ok(())
    }

    pub(crate) fn hand_out(&self, reservation_id: &ReservationId) -> Result<Option<HandOutRow>> {
        self.connection()
            .prepare_cached(&format!("SELECT {HAND_OUT} FROM hand_outs WHERE reservation_id = ?1"))
            .and_then(|mut select| select.query_row(params![Sql(reservation_id)], hand_out_row).optional())
            .map_err(Error::storage("read a hand-out"))
    }

    /// The hand-outs of one KeyPackage to this device, up to the row with this number.
    pub(crate) fn hand_outs_of(&self, package: &PackageId, last: i64) -> Result<Vec<HandOutRow>> {
        self.connection()
            .prepare_cached(&format!("SELECT {HAND_OUT} FROM hand_outs WHERE package = ?1 AND id <= ?2"))
            .and_then(|mut select| select.query_map(params![package.0, last], hand_out_row)?.collect())
            .map_err(Error::storage("read the hand-outs of a KeyPackage"))
    }

    /// The number of the last hand-out.
    pub(crate) fn last_hand_out(&self) -> Result<i64> {
        self.connection()
            .query_row("SELECT coalesce(max(id), 0) FROM hand_outs", [], |row| row.get(0))
            .map_err(Error::storage("read the last hand-out"))
    }

    /// Hand-outs that are to be checked, the oldest first, after the row with this number. With each, its number.
    pub(crate) fn due_hand_outs(&self, after: i64, limit: usize) -> Result<Vec<(i64, HandOutRow)>> {
        self.connection()
            .prepare_cached(&format!(
                "SELECT {HAND_OUT}, id FROM hand_outs WHERE state = 'due' AND id > ?1 ORDER BY id LIMIT ?2"
            ))
            .and_then(|mut select| {
                select
                    .query_map(params![after, limit.cast_signed()], |row| Ok((row.get(7)?, hand_out_row(row)?)))?
                    .collect()
            })
            .map_err(Error::storage("read the hand-outs to check"))
    }

    /// Records the KeyPackages of the pool that are not recorded yet. `package` names a KeyPackage.
    pub(crate) fn record_own_packages(
        &self,
        package: impl Fn(&KeyPackageRef) -> Result<Option<PackageId>>,
    ) -> Result<()> {
        let new: Vec<(KeyPackageRef, Timestamp)> = self
            .connection()
            .prepare_cached(
                "SELECT ref, not_after FROM keypackage_pool_metadata WHERE ref NOT IN (SELECT ref FROM own_packages)",
            )
            .and_then(|mut select| {
                select.query_map([], |row| Ok((row.get::<_, Sql<_>>(0)?.0, row.get::<_, Sql<_>>(1)?.0)))?.collect()
            })
            .map_err(Error::storage("read the KeyPackages that are not recorded"))?;
        for (keypackage_ref, not_after) in new {
            let Some(package) = package(&keypackage_ref)? else { continue };
            self.connection()
                .prepare_cached("INSERT INTO own_packages (ref, package, not_after) VALUES (?1, ?2, ?3)")
                .and_then(|mut insert| insert.execute(params![Sql(&keypackage_ref), package.0, Sql(&not_after)]))
                .map_err(Error::storage("record a KeyPackage"))?;
        }
        Ok(())
    }

    /// Marks this device's KeyPackages that were spent or withdrawn since the last refresh: they are to be checked.
    pub(crate) fn note_ended_packages(&self) -> Result<()> {
        self.connection()
            .prepare_cached(
                "UPDATE own_packages SET state = 'due', ended = pool.status, spent_by = pool.spent_by,
                     spent_for = pool.spent_group_id
                 FROM keypackage_pool_metadata AS pool
                 WHERE pool.ref = own_packages.ref AND pool.status IN ('spent', 'failed') AND pool.uploaded_at IS NOT NULL
                     AND own_packages.ended IS NOT pool.status",
            )
            .and_then(|mut update| update.execute([]))
            .map_err(Error::storage("note the KeyPackages that have ended"))?;
        Ok(())
    }

    /// Records the Welcome that used one of these KeyPackages. It is to be checked.
    pub(crate) fn record_welcome(&self, refs: &[KeyPackageRef], welcome: &Welcome) -> Result<()> {
        for keypackage_ref in refs {
            self.connection()
                .prepare_cached(
                    "UPDATE own_packages SET state = 'due', welcome_from = ?2, welcome_group = ?3 WHERE ref = ?1",
                )
                .and_then(|mut update| update.execute(params![Sql(keypackage_ref), welcome.sender, welcome.group_id]))
                .map_err(Error::storage("record a Welcome"))?;
        }
        Ok(())
    }

    /// This device's KeyPackages that are to be checked, after the row with this number. With each, its number.
    pub(crate) fn due_own_packages(&self, after: i64, limit: usize) -> Result<Vec<(i64, OwnPackageRow)>> {
        self.connection()
            .prepare_cached(
                "SELECT ref, package, spent_by, spent_for, welcome_from, welcome_group, id FROM own_packages
                 WHERE state = 'due' AND id > ?1 ORDER BY id LIMIT ?2",
            )
            .and_then(|mut select| {
                select.query_map(params![after, limit.cast_signed()], |row| Ok((row.get(6)?, own_row(row)?)))?.collect()
            })
            .map_err(Error::storage("read the KeyPackages to check"))
    }

    /// The names of this device's KeyPackages, by ref, as far as they are known.
    pub(crate) fn own_packages(&self) -> Result<Vec<OwnPackageRow>> {
        self.connection()
            .prepare_cached(
                "SELECT ref, package, spent_by, spent_for, welcome_from, welcome_group FROM own_packages ORDER BY id",
            )
            .and_then(|mut select| select.query_map([], own_row)?.collect())
            .map_err(Error::storage("read the recorded KeyPackages"))
    }

    pub(crate) fn set_own_state(&self, keypackage_ref: &KeyPackageRef, state: CheckState) -> Result<()> {
        self.connection()
            .prepare_cached("UPDATE own_packages SET state = ?2 WHERE ref = ?1")
            .and_then(|mut update| update.execute(params![Sql(keypackage_ref), state.to_string()]))
            .map_err(Error::storage("record the check of a KeyPackage"))?;
        Ok(())
    }

    /// Forgets what can no longer be proven: hand-outs and own KeyPackages whose time is over.
    pub(crate) fn forget_old_checks(&self, now: Timestamp, own_before: Timestamp) -> Result<()> {
        let connection = self.connection();
        connection
            .execute("DELETE FROM hand_outs WHERE keep_until < ?1", params![Sql(&now)])
            .and_then(|_| {
                connection.execute("DELETE FROM own_packages WHERE not_after < ?1", params![Sql(&own_before)])
            })
            .map_err(Error::storage("forget old checks"))?;
        Ok(())
    }

    /// How many hand-outs to this device are in each state, and how many of this device's own KeyPackages.
    pub(crate) fn check_counts(&self) -> Result<(CheckCounts, CheckCounts)> {
        let count = |table: &str| {
            self.connection()
                .query_row(
                    &format!(
                        "SELECT count(*) FILTER (WHERE state = 'due'), count(*) FILTER (WHERE state = 'fine'),
                             count(*) FILTER (WHERE state = 'unknown') FROM {table}"
                    ),
                    [],
                    |row| {
                        let number = |column| row.get::<_, i64>(column).map(i64::cast_unsigned);
                        Ok(CheckCounts { due: number(0)?, fine: number(1)?, unknown: number(2)? })
                    },
                )
                .map_err(Error::storage("count the checks"))
        };
        Ok((count("hand_outs")?, count("own_packages")?))
    }
}
