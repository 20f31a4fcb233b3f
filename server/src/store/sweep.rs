//! Tidying: what time has done is written down, and what may be forgotten is.
//!
//! Each verb changes one small batch, and passes over KeyPackages that another transaction holds, so that any number of
//! servers may sweep and nobody waits for them long.

use diesel::{prelude::*, query_builder::SqlQuery};
use jiff::Timestamp;
use keypool_openapi::{Action, State};

use super::{
    Store, StoreError,
    audit::{AuditSql, Event},
    connection::with_conn,
    rows::{DeviceId, Ended, count, statements, timestamp},
    schema::key_packages,
};

/// What one batch came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Rows that were changed.
    pub rows: usize,
    /// When the first of them was due.
    pub due: Option<Timestamp>,
}

/// A KeyPackage, and the reservation that it had last.
#[derive(Queryable, Selectable)]
#[diesel(table_name = key_packages)]
pub(super) struct LastReservation {
    pub keypackage_ref: Vec<u8>,
    device_id: i64,
    reservation: Option<Vec<u8>>,
    reserved_by: Option<i64>,
    reserved_until: Option<i64>,
}

impl LastReservation {
    /// That it has lapsed.
    pub fn lapse(&self, now: i64) -> Event<'_> {
        let at = self.reserved_until.unwrap_or(now);
        let plain = Event::plain((self.device_id, &self.keypackage_ref), Action::Lapse, self.reserved_by, false, at);
        Event { reservation: self.reservation.as_deref(), ..plain }
    }
}

/// How many KeyPackages there are in each state, about.
pub(super) trait Census {
    fn census(&mut self) -> QueryResult<Vec<(String, i64)>>;
}

/// Ref, owner, `not_after`, whether it is a last resort.
type ExpiredColumns = (Vec<u8>, i64, i64, bool);

/// What is live, or has ended, and expired by then. By a comparison: SQLite goes by an index for nothing else.
#[diesel::dsl::auto_type(no_type_alias)]
pub(super) fn aged(live: bool, by: i64) -> _ {
    key_packages::live.eq(live).and(key_packages::not_after.le(by))
}

/// Finds a batch and holds it until the transaction ends; what another transaction holds is not in it.
pub(super) trait BatchSql {
    /// Reservations that have lapsed before their KeyPackage expired, in the order of who had them, from this device on.
    fn lapsed_batch(&mut self, from: DeviceId, now: i64, limit: i64) -> QueryResult<Vec<LastReservation>>;
    fn expired_batch(&mut self, now: i64, limit: i64) -> QueryResult<Vec<ExpiredColumns>>;
    fn ended_batch(&mut self, before: i64, limit: i64) -> QueryResult<Vec<Vec<u8>>>;
}

/// [`BatchSql`] for a connection, with the row lock that its database needs.
macro_rules! batches {
    ($connection:ty, $($lock:tt)*) => {
        impl $crate::store::sweep::BatchSql for $connection {
            fn lapsed_batch(
                &mut self,
                from: $crate::store::DeviceId,
                now: i64,
                limit: i64,
            ) -> QueryResult<Vec<$crate::store::sweep::LastReservation>> {
                use $crate::store::schema::key_packages as k;
                k::table
                    .filter(k::held.and(k::reserved_by.ge(from.0)).and(k::reserved_until.le(now)))
                    .filter(k::reserved_until.lt(k::not_after.nullable()))
                    .order((k::reserved_by.asc(), k::reserved_until.asc()))
                    .limit(limit)
                    .select($crate::store::sweep::LastReservation::as_select())
                    $($lock)*
                    .load(self)
            }

            fn expired_batch(&mut self, now: i64, limit: i64) -> QueryResult<Vec<(Vec<u8>, i64, i64, bool)>> {
                use $crate::store::schema::key_packages as k;
                k::table
                    .filter($crate::store::sweep::aged(true, now))
                    .order(k::not_after.asc())
                    .limit(limit)
                    .select((k::keypackage_ref, k::device_id, k::not_after, k::last_resort))
                    $($lock)*
                    .load(self)
            }

            fn ended_batch(&mut self, before: i64, limit: i64) -> QueryResult<Vec<Vec<u8>>> {
                use $crate::store::schema::key_packages as k;
                k::table
                    .filter($crate::store::sweep::aged(false, before))
                    .order(k::not_after.asc())
                    .limit(limit)
                    .select(k::keypackage_ref)
                    $($lock)*
                    .load(self)
            }
        }
    };
}
pub(super) use batches;

/// Deletes a batch of the rows of a table. By hand, since some keys have two columns, which Diesel has no comparison for.
fn delete_some(table: &str, key: &str, which: &str, limit: i64) -> SqlQuery {
    diesel::sql_query(format!(
        "DELETE FROM {table} WHERE ({key}) IN (SELECT {key} FROM {table} WHERE {which} LIMIT {limit})"
    ))
}

statements! {
    pub(super) trait SweepSql {
        fn give_back(conn, refs: &[&[u8]]) -> QueryResult<usize> {
            diesel::update(key_packages::table.filter(key_packages::keypackage_ref.eq_any(refs)))
                .set(key_packages::state.eq(State::Available.as_ref()))
                .execute(conn)
        }

        fn end(conn, refs: &[&[u8]], state: State, now: i64) -> QueryResult<usize> {
            diesel::update(key_packages::table.filter(key_packages::keypackage_ref.eq_any(refs)))
                .set(Ended::new(state, now))
                .execute(conn)
        }

        fn forget_key_packages(conn, refs: &[Vec<u8>]) -> QueryResult<usize> {
            diesel::delete(key_packages::table.filter(key_packages::keypackage_ref.eq_any(refs))).execute(conn)
        }

        fn forget_keys(conn, before: i64, limit: i64) -> QueryResult<usize> {
            let old = format!("not_after <= {before} ORDER BY not_after");
            delete_some("hpke_keys", "device_id, public_key", &old, limit).execute(conn)
        }

        /// A key that is used anew while it is waited for is kept: its row is looked at again.
        fn forget_answers(conn, now: i64, limit: i64) -> QueryResult<usize> {
            let old = format!("expires_at <= {now} ORDER BY expires_at");
            delete_some("idempotency_keys", "device_id, key", &old, limit).sql(format!(" AND expires_at <= {now}")).execute(conn)
        }

        /// But for the newest of each group.
        fn forget_commits(conn, before: i64, limit: i64) -> QueryResult<usize> {
            let old = format!("superseded AND at <= {before} ORDER BY at");
            delete_some("commits", "group_id, epoch", &old, limit).execute(conn)
        }

        fn forget_enrolments(conn, now: i64, limit: i64) -> QueryResult<usize> {
            delete_some("enrolments", "token_hash", &format!("expires_at <= {now}"), limit).execute(conn)
        }
    }
}

fn lapse<C: BatchSql + SweepSql + AuditSql>(
    conn: &mut C,
    retire: bool,
    (from, limit): (DeviceId, i64),
    now: i64,
) -> Result<(Swept, DeviceId), StoreError> {
    let rows = conn.lapsed_batch(from, now, limit)?;
    let events: Vec<_> = rows.iter().map(|row| row.lapse(now)).collect();
    let Some(due) = events.iter().map(|event| event.at).min() else { return Ok((Swept::default(), from)) };
    let last = rows.last().and_then(|row| row.reserved_by).map_or(from, DeviceId);
    let refs: Vec<_> = rows.iter().map(|row| row.keypackage_ref.as_slice()).collect();
    if retire {
        conn.end(&refs, State::Retired, now)?
    } else {
        conn.give_back(&refs)?
    };
    conn.record(&events)?;
    Ok((Swept { rows: rows.len(), due: Some(timestamp(due)?) }, last))
}

fn expire<C: BatchSql + SweepSql + AuditSql>(conn: &mut C, limit: i64, now: i64) -> Result<Swept, StoreError> {
    let rows = conn.expired_batch(now, limit)?;
    let Some((_, _, due, _)) = rows.first() else { return Ok(Swept::default()) };
    let refs: Vec<_> = rows.iter().map(|row| row.0.as_slice()).collect();
    conn.end(&refs, State::Expired, now)?;
    let events: Vec<_> = rows
        .iter()
        .map(|(keypackage_ref, owner, not_after, last_resort)| {
            Event::plain((*owner, keypackage_ref), Action::Expire, None, *last_resort, *not_after)
        })
        .collect();
    conn.record(&events)?;
    Ok(Swept { rows: rows.len(), due: Some(timestamp(*due)?) })
}

fn forget<C: BatchSql + SweepSql>(conn: &mut C, before: i64, limit: i64, now: i64) -> Result<usize, StoreError> {
    let refs = conn.ended_batch(before, limit)?;
    let rows = if refs.is_empty() { 0 } else { conn.forget_key_packages(&refs)? };
    Ok(rows
        + conn.forget_keys(before, limit)?
        + conn.forget_answers(now, limit)?
        + conn.forget_enrolments(now, limit)?)
}

fn forget_events<C: AuditSql>(conn: &mut C, before: i64, limit: i64) -> Result<usize, StoreError> {
    let ids: Vec<_> =
        conn.oldest_events(limit)?.into_iter().filter(|(_, at)| *at <= before).map(|(id, _)| id).collect();
    if ids.is_empty() { Ok(0) } else { Ok(conn.forget_events(&ids)?) }
}

impl Store {
    /// Notes reservations that have lapsed: their KeyPackages are available again, or retired. Begins with those that the
    /// device `from` had, and answers whose it came to: no earlier device has anything for the next batch.
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
        with_conn!(self, write "sweep_lapsed", |conn| lapse(conn, retire, batch, now.as_second()))
    }

    /// Notes KeyPackages that have expired.
    ///
    /// # Errors
    /// When the database fails. Nothing is changed then.
    pub fn sweep_expired(&self, limit: u32, now: Timestamp) -> Result<Swept, StoreError> {
        with_conn!(self, write "sweep_expired", |conn| expire(conn, i64::from(limit), now.as_second()))
    }

    /// Forgets KeyPackages and keys that expired before `before`, answers that need not be repeated any longer, and
    /// enrolments that are over. Answers how many rows.
    ///
    /// # Errors
    /// When the database fails. Nothing is forgotten then.
    pub fn forget(&self, before: Timestamp, limit: u32, now: Timestamp) -> Result<usize, StoreError> {
        let (before, limit, now) = (before.as_second(), i64::from(limit), now.as_second());
        with_conn!(self, write "forget", |conn| forget(conn, before, limit, now))
    }

    /// Forgets the part of the audit trail that is from before `before`. Answers how many rows.
    ///
    /// # Errors
    /// When the database fails. Nothing is forgotten then.
    pub fn forget_events(&self, before: Timestamp, limit: u32) -> Result<usize, StoreError> {
        with_conn!(self, write "forget_events", |conn| forget_events(conn, before.as_second(), i64::from(limit)))
    }

    /// How many KeyPackages there are in each state; estimated where a `PostgreSQL` has very many.
    ///
    /// # Errors
    /// When the database fails.
    pub fn census(&self) -> Result<Vec<(State, u64)>, StoreError> {
        let rows = with_conn!(self, read, |conn| conn.census())?;
        rows.into_iter().map(|(state, n)| Ok((state.parse().map_err(StoreError::fatal)?, count(n)?))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::sqlite::plans::plan;

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
