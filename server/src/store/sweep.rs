//! Sweep: records lapses and expiries, and deletes rows whose retention is over.
//!
//! Each function changes one small batch and skips KeyPackages that another transaction has locked. So any number of
//! servers may sweep, and no request waits for them for long.

use std::collections::BTreeSet;

use diesel::{prelude::*, query_builder::SqlQuery};
use jiff::Timestamp;
use keypool_openapi::{Action, State};

use super::{
    audit::{self, Event, LastReservation},
    database::{
        Conn, Store, StoreError,
        rows::{DeviceId, Ended, timestamp},
        schema::key_packages,
        sql::statements,
    },
    group_infos, log, messages, steps,
};

/// How long the GroupInfo of a group without a new Commit is kept, in seconds: 180 days.
const GROUP_INFO_RETENTION: i64 = 180 * 24 * 60 * 60;

/// The result of one batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// The number of changed rows.
    pub rows: usize,
    /// The time at which the first of these rows was due.
    pub due: Option<Timestamp>,
}

/// Ref, owner, `not_after`, and whether it is a last resort.
type ExpiredColumns = (Vec<u8>, i64, i64, bool);

/// Condition: the KeyPackage is live (or has ended), and expired by this time. It is written as a comparison: SQLite
/// uses an index for nothing else.
#[diesel::dsl::auto_type(no_type_alias)]
fn aged(live: bool, by: i64) -> _ {
    key_packages::live.eq(live).and(key_packages::not_after.le(by))
}

/// Returns reservations that lapsed before their KeyPackage expired, ordered by holder, starting with device `from`. As
/// in every batch, the rows stay locked until the transaction ends, and rows that another transaction has locked are
/// skipped.
fn lapsed_batch(conn: &mut Conn<'_>, from: DeviceId, now: i64, limit: i64) -> QueryResult<Vec<LastReservation>> {
    use key_packages as k;
    let lapsed = k::table
        .filter(k::held.and(k::reserved_by.ge(from.0)).and(k::reserved_until.le(now)))
        .filter(k::reserved_until.lt(k::not_after.nullable()))
        .order((k::reserved_by.asc(), k::reserved_until.asc()))
        .limit(limit);
    match conn {
        Conn::Postgres(conn) => lapsed.for_update().skip_locked().select(LastReservation::as_select()).load(*conn),
        Conn::Sqlite(conn) => lapsed.select(LastReservation::as_select()).load(*conn),
    }
}

fn expired_batch(conn: &mut Conn<'_>, now: i64, limit: i64) -> QueryResult<Vec<ExpiredColumns>> {
    use key_packages as k;
    let expired = k::table.filter(aged(true, now)).order(k::not_after.asc()).limit(limit);
    let expired = expired.select((k::keypackage_ref, k::device_id, k::not_after, k::last_resort));
    match conn {
        Conn::Postgres(conn) => expired.for_update().skip_locked().load(*conn),
        Conn::Sqlite(conn) => expired.load(*conn),
    }
}

fn ended_batch(conn: &mut Conn<'_>, before: i64, limit: i64) -> QueryResult<Vec<Vec<u8>>> {
    use key_packages as k;
    let ended = k::table.filter(aged(false, before)).order(k::not_after.asc()).limit(limit).select(k::keypackage_ref);
    match conn {
        Conn::Postgres(conn) => ended.for_update().skip_locked().load(*conn),
        Conn::Sqlite(conn) => ended.load(*conn),
    }
}

/// Deletes a batch of rows of a table. Raw SQL, since some keys have two columns and Diesel has no comparison for such
/// a pair.
fn delete_some(table: &str, key: &str, which: &str, limit: i64) -> SqlQuery {
    diesel::sql_query(format!(
        "DELETE FROM {table} WHERE ({key}) IN (SELECT {key} FROM {table} WHERE {which} LIMIT {limit})"
    ))
}

statements! {
    pub(super) fn give_back(conn, refs: &[&[u8]]) -> QueryResult<usize> {
        diesel::update(key_packages::table.filter(key_packages::keypackage_ref.eq_any(refs)))
            .set((key_packages::state.eq(State::Available.as_ref()), key_packages::step.eq(steps::ended_in_row())))
            .execute(conn)
    }

    pub(super) fn retire_lapsed(conn, refs: &[&[u8]], now: i64) -> QueryResult<usize> {
        diesel::update(key_packages::table.filter(key_packages::keypackage_ref.eq_any(refs)))
            .set((Ended::new(State::Retired, now), key_packages::step.eq(steps::ended_in_row())))
            .execute(conn)
    }

    pub(super) fn end(conn, refs: &[&[u8]], state: State, now: i64) -> QueryResult<usize> {
        diesel::update(key_packages::table.filter(key_packages::keypackage_ref.eq_any(refs)))
            .set(Ended::new(state, now))
            .execute(conn)
    }

    pub(super) fn forget_key_packages(conn, refs: &[Vec<u8>]) -> QueryResult<usize> {
        diesel::delete(key_packages::table.filter(key_packages::keypackage_ref.eq_any(refs))).execute(conn)
    }

    pub(super) fn forget_keys(conn, before: i64, limit: i64) -> QueryResult<usize> {
        let old = format!("not_after <= {before} ORDER BY not_after");
        delete_some("hpke_keys", "device_id, public_key", &old, limit).execute(conn)
    }

    /// If a request uses the key again while this statement waits for its row, the row is checked again and stays.
    pub(super) fn forget_answers(conn, now: i64, limit: i64) -> QueryResult<usize> {
        let old = format!("expires_at <= {now} ORDER BY expires_at");
        delete_some("idempotency_keys", "device_id, key", &old, limit).sql(format!(" AND expires_at <= {now}")).execute(conn)
    }

    /// Deletes old Commits, but keeps the newest of each group.
    pub(super) fn forget_commits(conn, before: i64, limit: i64) -> QueryResult<usize> {
        let old = format!("superseded AND at <= {before} ORDER BY at");
        delete_some("commits", "group_id, epoch", &old, limit).execute(conn)
    }

    pub(super) fn forget_enrolments(conn, now: i64, limit: i64) -> QueryResult<usize> {
        delete_some("enrolments", "token_hash", &format!("expires_at <= {now}"), limit).execute(conn)
    }

    pub(super) fn forget_links(conn, now: i64, limit: i64) -> QueryResult<usize> {
        delete_some("device_links", "device_id", &format!("expires_at <= {now}"), limit).execute(conn)
    }
}

fn lapse(
    conn: &mut Conn<'_>,
    retire: bool,
    (from, limit): (DeviceId, i64),
    now: i64,
) -> Result<(Swept, DeviceId), StoreError> {
    let rows = lapsed_batch(conn, from, now, limit)?;
    let events: Vec<_> = rows.iter().map(|row| row.lapse(now)).collect();
    let Some(due) = events.iter().map(|event| event.at).min() else { return Ok((Swept::default(), from)) };
    let last = rows.last().and_then(|row| row.reserved_by).map_or(from, DeviceId);
    let refs: Vec<_> = rows.iter().map(|row| row.keypackage_ref.as_slice()).collect();
    if retire {
        retire_lapsed(conn, &refs, now)?
    } else {
        give_back(conn, &refs)?
    };
    audit::record(conn, &events)?;
    Ok((Swept { rows: rows.len(), due: Some(timestamp(due)?) }, last))
}

fn expire(conn: &mut Conn<'_>, limit: i64, now: i64) -> Result<Swept, StoreError> {
    let rows = expired_batch(conn, now, limit)?;
    let Some((_, _, due, _)) = rows.first() else { return Ok(Swept::default()) };
    let refs: Vec<_> = rows.iter().map(|row| row.0.as_slice()).collect();
    end(conn, &refs, State::Expired, now)?;
    let events: Vec<_> = rows
        .iter()
        .map(|(keypackage_ref, owner, not_after, last_resort)| {
            Event::plain((*owner, keypackage_ref), Action::Expire, None, *last_resort, *not_after)
        })
        .collect();
    audit::record(conn, &events)?;
    Ok(Swept { rows: rows.len(), due: Some(timestamp(*due)?) })
}

fn forget(conn: &mut Conn<'_>, before: i64, limit: i64, now: i64) -> Result<usize, StoreError> {
    let refs = ended_batch(conn, before, limit)?;
    let rows = if refs.is_empty() { 0 } else { forget_key_packages(conn, &refs)? };
    Ok(rows
        + forget_keys(conn, before, limit)?
        + forget_answers(conn, now, limit)?
        + forget_enrolments(conn, now, limit)?
        + forget_links(conn, now, limit)?)
}

fn forget_events(conn: &mut Conn<'_>, before: i64, limit: i64) -> Result<usize, StoreError> {
    // The log is read after the events: one that commits in between is not among them.
    let old: Vec<_> = audit::oldest_events(conn, limit)?.into_iter().filter(|(_, at, _)| *at <= before).collect();
    if old.is_empty() {
        return Ok(0);
    }
    let waiting = log::first_waiting(conn)?;
    let (ids, owners): (Vec<_>, BTreeSet<_>) =
        old.into_iter().filter(|(id, ..)| *id < waiting).map(|(id, _, owner)| (id, owner)).unzip();
    let forgotten = if ids.is_empty() { 0 } else { audit::forget_events(conn, &ids)? };
    log::forget_secrets(conn, &owners.into_iter().collect::<Vec<_>>())?;
    Ok(forgotten)
}

impl Store {
    /// Records reservations that have lapsed: their KeyPackages become available again, or retired. Starts with holder
    /// `from`, and returns the last holder reached: the next batch can start there, since earlier holders have no
    /// lapsed reservation left.
    ///
    /// # Errors
    /// When the database fails. Nothing is changed then.
    pub fn sweep_lapsed(
        &self,
        retire: bool,
        (from, limit): (DeviceId, u32),
        now: Timestamp,
    ) -> Result<(Swept, DeviceId), StoreError> {
        let batch = (from, i64::from(limit));
        self.write("sweep_lapsed", |conn| lapse(conn, retire, batch, now.as_second()))
    }

    /// Records KeyPackages that have expired.
    ///
    /// # Errors
    /// When the database fails. Nothing is changed then.
    pub fn sweep_expired(&self, limit: u32, now: Timestamp) -> Result<Swept, StoreError> {
        self.write("sweep_expired", |conn| expire(conn, i64::from(limit), now.as_second()))
    }

    /// Deletes KeyPackages and keys that expired before `before`, kept answers whose retention is over, and enrolments
    /// and codes of devices that have ended. Returns the number of rows.
    ///
    /// # Errors
    /// When the database fails. Nothing is forgotten then.
    pub fn forget(&self, before: Timestamp, limit: u32, now: Timestamp) -> Result<usize, StoreError> {
        let (before, limit, now) = (before.as_second(), i64::from(limit), now.as_second());
        self.write("forget", |conn| forget(conn, before, limit, now))
    }

    /// Deletes audit events that are older than `before` and in the log, and the log's secrets of removed devices that have no
    /// other events. Returns the number of events.
    ///
    /// # Errors
    /// When the database fails. Nothing is forgotten then.
    pub fn forget_events(&self, before: Timestamp, limit: u32) -> Result<usize, StoreError> {
        self.write("forget_events", |conn| forget_events(conn, before.as_second(), i64::from(limit)))
    }

    /// Deletes messages and GroupInfos whose retention is over, and Commits that are older than `before`, except the newest
    /// of each group. Returns the number of rows.
    ///
    /// # Errors
    /// When the database fails. Nothing is forgotten then.
    pub fn forget_messages(&self, before: Timestamp, limit: u32, now: Timestamp) -> Result<usize, StoreError> {
        let (before, limit, now) = (before.as_second(), i64::from(limit), now.as_second());
        self.write("forget_messages", |conn| {
            let ids = messages::expired_envelopes(conn, now, limit)?;
            let rows = if ids.is_empty() { 0 } else { messages::remove_envelopes(conn, &ids)? };
            let infos = group_infos::forget_aged(conn, now.saturating_sub(GROUP_INFO_RETENTION), limit)?;
            Ok::<_, StoreError>(rows + infos + forget_commits(conn, before, limit)?)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::database::plans::plan;

    #[test]
    fn sqlite_finds_what_is_due_by_the_index_that_is_for_it() {
        for live in [true, false] {
            let due = key_packages::table.filter(aged(live, 7)).order(key_packages::not_after.asc());
            let plan = plan(&due.select(key_packages::keypackage_ref));
            assert!(plan[0].contains("INDEX key_packages_ageing (live=? AND not_after<?)"), "{plan:?}");
            assert_eq!(plan.len(), 1, "it sorts what it found: {plan:?}");
        }
    }
}
