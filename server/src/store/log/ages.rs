//! How old the entries of the logs are, and the end of the oldest ones. Hashes are never forgotten, so every path and every
//! older checkpoint can still be proven.

use diesel::{
    dsl::{max, min},
    prelude::*,
};
use jiff::Timestamp;
use keypool_transparency::tile::FULL;

use super::{positions, tiles};
use crate::store::database::{
    Conn, Store, StoreError,
    schema::{audit_events, log_ages, log_origins},
    sql::statements,
};

const DAY: i64 = 24 * 60 * 60;

statements! {
    fn add(conn, k: i32, at: i64, size: i64) -> QueryResult<usize> {
        diesel::insert_into(log_ages::table)
            .values((log_ages::k.eq(k), log_ages::at.eq(at), log_ages::size.eq(size)))
            .on_conflict_do_nothing()
            .execute(conn)
    }

    /// How much of each log came before, and its first entry.
    fn aged(conn, before: i64) -> QueryResult<Vec<(i32, i64, Option<i64>)>> {
        let ages = log_ages::table.inner_join(log_origins::table.on(log_origins::k.eq(log_ages::k)));
        ages.filter(log_ages::at.lt(before))
            .group_by((log_origins::k, log_origins::first_entry))
            .select((log_origins::k, log_origins::first_entry, max(log_ages::size)))
            .load(conn)
    }

    fn begin_at(conn, k: i32, first_entry: i64) -> QueryResult<usize> {
        let log = log_origins::table.filter(log_origins::k.eq(k).and(log_origins::first_entry.lt(first_entry)));
        diesel::update(log).set(log_origins::first_entry.eq(first_entry)).execute(conn)
    }

    fn oldest_event(conn) -> QueryResult<Option<i64>> {
        audit_events::table.select(min(audit_events::id)).first(conn)
    }
}

/// Notes how large a log was on an earlier day than today. To be called before it grows, or ends.
pub(super) fn note(conn: &mut Conn<'_>, k: i32, (size, at): (u64, i64), now: i64) -> QueryResult<()> {
    if size == 0 || at.div_euclid(DAY) >= now.div_euclid(DAY) {
        return Ok(());
    }
    end(conn, k, (size, at))
}

/// Notes how large a log was when it ended.
pub(super) fn end(conn: &mut Conn<'_>, k: i32, (size, at): (u64, i64)) -> QueryResult<()> {
    add(conn, k, at, i64::try_from(size).unwrap_or(i64::MAX)).map(drop)
}

/// A log that has bundles to forget: the first one that it has, and the first one to keep.
struct Old {
    k: i32,
    first: i64,
    keep: i64,
}

/// The logs with old bundles, at most so many of each.
fn old(conn: &mut Conn<'_>, before: i64, most: i64) -> QueryResult<Vec<Old>> {
    let width = i64::try_from(FULL).unwrap_or(i64::MAX);
    let bundles = |(k, first_entry, size): (i32, i64, Option<i64>)| {
        let first = first_entry / width;
        let keep = (size.unwrap_or_default() / width).min(first.saturating_add(most));
        (keep > first).then_some(Old { k, first, keep })
    };
    Ok(aged(conn, before)?.into_iter().filter_map(bundles).collect())
}

fn prune(conn: &mut Conn<'_>, before: i64, most: i64) -> Result<usize, StoreError> {
    let mut pruned = 0;
    for Old { k, first, keep } in old(conn, before, most)? {
        pruned += tiles::forget_bundles(conn, k, (first, keep))?;
        begin_at(conn, k, keep.saturating_mul(i64::try_from(FULL).map_err(StoreError::fatal)?))?;
    }
    // What is not in the trail any more is not looked up.
    match oldest_event(conn)? {
        Some(oldest) => Ok(pruned + positions::forget(conn, oldest, most)?),
        None => Ok(pruned),
    }
}

impl Store {
    /// Forgets entries that came into a log before `before`, and where the leaves of forgotten events are. Returns the number
    /// of rows, of which each has 256 entries or events.
    ///
    /// # Errors
    /// When the database fails. Nothing is forgotten then.
    pub fn prune_log(&self, before: Timestamp, limit: u32) -> Result<usize, StoreError> {
        self.write("prune_log", |conn| prune(conn, before.as_second(), i64::from(limit)))
    }
}
