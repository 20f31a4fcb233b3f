//! Which database this is, and how far it has come.
//!
//! A backup remembers as available what was handed out after it was made. So a server that finds its database restored
//! fences it: it withdraws all that may have been handed out, and every device fills its pool anew.

use diesel::prelude::*;
use jiff::Timestamp;
use keypool_openapi::{Action, State};

use super::{
    Store, StoreError,
    connection::with_conn,
    rows::{Ended, statements},
    schema::{audit_events, idempotency_keys, key_packages, lineage},
};

/// How a database is known to be another than the one that was served before.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Restored {
    /// It says so itself.
    #[error("it is {now}, and was {before} when it was last served")]
    AnotherOrigin {
        /// What it was.
        before: String,
        /// What it is.
        now: String,
    },
    /// The generation file is ahead of it.
    #[error("it is at generation {database}, and its generation file at {file}")]
    Behind {
        /// The database's generation.
        database: i64,
        /// The file's.
        file: i64,
    },
    /// There is no generation file beside it, though it was served before.
    #[error("it is at generation {database}, and has no generation file beside it")]
    Alone {
        /// The database's generation.
        database: i64,
    },
}

/// What only one database can say or do about itself.
pub(super) trait Lineage {
    /// What tells it from a copy that was restored or promoted; `None` where it does not say.
    fn origin(&mut self) -> QueryResult<Option<String>>;
    /// Its origin as it was noted, its generation, and when it was fenced; held until the transaction ends.
    fn hold_lineage(&mut self) -> QueryResult<(String, i64, Option<i64>)>;
    /// Keeps everybody else from changing a pool until the transaction ends, however long it takes.
    fn hold_pools(&mut self) -> QueryResult<()>;
    /// Numbers that queued messages had before the restore are not given again: a client may remember them.
    fn skip_deliveries(&mut self) -> QueryResult<()>;
}

/// How many numbers of deliveries are skipped: more than were given since any backup.
pub(super) const SKIPPED: i64 = 1 << 32;

statements! {
    pub(super) trait LineageSql {
        /// All that may have been handed out; answers how many. A last resort is anybody's at any time, and stays.
        fn withdraw_all(conn, now: i64) -> QueryResult<usize> {
            let live = key_packages::live.and(diesel::dsl::not(key_packages::last_resort));
            let events = key_packages::table.filter(live).select((
                key_packages::device_id,
                key_packages::keypackage_ref,
                <&str>::from(Action::Revoke).into_sql::<diesel::sql_types::Text>(),
                key_packages::last_resort,
                now.into_sql::<diesel::sql_types::BigInt>(),
            ));
            diesel::insert_into(audit_events::table)
                .values(events)
                .into_columns((
                    audit_events::device_id,
                    audit_events::keypackage_ref,
                    audit_events::action,
                    audit_events::last_resort,
                    audit_events::at,
                ))
                .execute(conn)?;
            diesel::update(key_packages::table.filter(live)).set(Ended::new(State::Revoked, now)).execute(conn)
        }

        /// An answer that is given again would name what is withdrawn.
        fn forget_all_answers(conn) -> QueryResult<usize> {
            diesel::delete(idempotency_keys::table).execute(conn)
        }

        fn noted_origin(conn) -> QueryResult<String> {
            lineage::table.select(lineage::origin).first(conn)
        }

        fn note_origin(conn, origin: &str) -> QueryResult<usize> {
            diesel::update(lineage::table).set(lineage::origin.eq(origin)).execute(conn)
        }

        fn note_generation(conn, generation: i64) -> QueryResult<usize> {
            diesel::update(lineage::table).set(lineage::generation.eq(generation)).execute(conn)
        }

        fn note_fence(conn, at: i64) -> QueryResult<usize> {
            diesel::update(lineage::table).set(lineage::fenced_at.eq(at)).execute(conn)
        }

        fn raise_generation(conn) -> QueryResult<i64> {
            diesel::update(lineage::table)
                .set(lineage::generation.eq(lineage::generation + 1))
                .returning(lineage::generation)
                .get_result(conn)
        }

        /// When the database was fenced last.
        fn fenced_at(conn) -> QueryResult<Option<i64>> {
            lineage::table.select(lineage::fenced_at).first(conn)
        }
    }
}

fn fence<C: Lineage + LineageSql>(conn: &mut C, now: i64) -> QueryResult<usize> {
    let (_, _, before) = conn.hold_lineage()?;
    conn.hold_pools()?;
    let withdrawn = conn.withdraw_all(now)?;
    conn.forget_all_answers()?;
    conn.skip_deliveries()?;
    // Clients tell one fence from another by its time.
    conn.note_fence(before.map_or(now, |before| now.max(before.saturating_add(1))))?;
    if let Some(origin) = conn.origin()? {
        conn.note_origin(&origin)?;
    }
    Ok(withdrawn)
}

/// Fences a database that was restored, or takes it as it is where the operator vouches for it.
fn settle<C: Lineage + LineageSql>(conn: &mut C, restored: &Restored, trust: bool, now: i64) -> QueryResult<()> {
    if trust {
        tracing::warn!(%restored, "the database was restored or promoted, and is trusted to have lost nothing");
    } else {
        let withdrawn = fence(conn, now)?;
        tracing::warn!(
            %restored,
            withdrawn,
            "the database was restored or promoted: what may have been handed out since is withdrawn, and every device \
             fills its pool anew at its next refresh"
        );
    }
    Ok(())
}

/// Whether this is the database that was served before, as far as it says.
pub(super) fn is_recognised<C: Lineage + LineageSql>(conn: &mut C) -> QueryResult<bool> {
    let noted = conn.noted_origin()?;
    Ok(conn.origin()?.is_none_or(|origin| origin == noted))
}

/// Takes up a database that is not the one that was served before, and fences it unless it is new.
pub(super) fn recognise<C: Lineage + LineageSql>(conn: &mut C, trust: bool, now: Timestamp) -> QueryResult<()> {
    let (before, ..) = conn.hold_lineage()?;
    // Another connection may have been faster.
    let Some(origin) = conn.origin()?.filter(|origin| *origin != before) else { return Ok(()) };
    if !before.is_empty() {
        let restored = Restored::AnotherOrigin { before, now: origin.clone() };
        settle(conn, &restored, trust, now.as_second())?;
    }
    conn.note_origin(&origin).map(drop)
}

/// Takes up a database whose generation file, if there is one, is at `file`.
fn resume<C: Lineage + LineageSql>(
    conn: &mut C,
    file: Option<i64>,
    trust: bool,
    now: Timestamp,
) -> Result<i64, StoreError> {
    let (_, database, _) = conn.hold_lineage()?;
    let restored = match file {
        Some(file) if file > database => Some(Restored::Behind { database, file }),
        None if database > 0 => Some(Restored::Alone { database }),
        _ => None,
    };
    if let Some(restored) = restored {
        settle(conn, &restored, trust, now.as_second())?;
    }
    let next = database.max(file.unwrap_or(0)).saturating_add(1);
    conn.note_generation(next)?;
    Ok(next)
}

impl Store {
    /// Withdraws all that may have been handed out, because the database was restored. Answers how many KeyPackages.
    ///
    /// # Errors
    /// When the database fails. Nothing is withdrawn then.
    pub fn fence(&self, now: Timestamp) -> Result<usize, StoreError> {
        with_conn!(self, write "fence", |conn| fence(conn, now.as_second()).map_err(StoreError::from))
    }

    /// Takes up a database whose generation file is at `file`, or is missing, and fences it if it was restored, unless
    /// the operator has it trusted. Answers its generation from now on.
    ///
    /// # Errors
    /// When the database fails. Nothing has changed then.
    pub fn resume(&self, file: Option<i64>, trust: bool, now: Timestamp) -> Result<i64, StoreError> {
        with_conn!(self, write "resume", |conn| resume(conn, file, trust, now))
    }

    /// Moves the database's generation on, and answers it.
    ///
    /// # Errors
    /// When the database fails.
    pub fn raise_generation(&self) -> Result<i64, StoreError> {
        with_conn!(self, write "raise_generation", |conn| conn.raise_generation().map_err(StoreError::from))
    }
}
