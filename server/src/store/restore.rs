//! Detects that a database was restored from a backup, and fences it.
//!
//! A backup lists as available the KeyPackages that were handed out after it was made. So the server withdraws every
//! KeyPackage that may have been handed out, and every device fills its pool again.

mod lineage;

use std::sync::Arc;

use diesel::{prelude::*, sql_types::BigInt};
use keypool_openapi::State;

use self::lineage::{Row, SKIPPED, Signs};
use super::database::{
    Conn, Store, StoreError, Watch,
    rows::Ended,
    schema::{idempotency_keys, key_packages},
    sql::statements,
};
use super::{group_infos, log, steps};
use crate::{clock::Clock, config::Config, metrics::Metrics};
pub(super) use lineage::{NOBODY, fenced_at};

/// The evidence that this is not the database as it was served before.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Restored {
    /// The database's origin differs from the recorded one.
    #[error("it is {now}, and was {before} when it was last served")]
    AnotherOrigin {
        /// The recorded origin.
        before: String,
        /// The origin of this database.
        now: String,
    },
    /// The generation file is ahead of the database.
    #[error("it is at generation {database}, and its generation file at {file}")]
    Behind {
        /// The database's generation.
        database: i64,
        /// The generation in the file.
        file: i64,
    },
    /// The database was served before, but its generation file is missing.
    #[error("it is at generation {database}, and has no generation file beside it")]
    Alone {
        /// The database's generation.
        database: i64,
    },
    /// The witness row of a table is missing, or was not written in this database.
    #[error("its table {table} was loaded from a backup, or written anew")]
    Loaded {
        /// The table's name.
        table: &'static str,
    },
    /// The database has a lower generation than this server saw before.
    #[error("it is at generation {database}, and was at {seen} when this server last looked")]
    WentBack {
        /// The database's generation.
        database: i64,
        /// The generation that this server remembers.
        seen: i64,
    },
}

/// The facts that a server compares its database with.
#[derive(Clone, Copy, Debug)]
struct TakeUp<'a> {
    /// The database's origin, if the database reports one.
    origin: Option<&'a str>,
    /// The highest generation that the server knows of.
    reached: i64,
    /// Whether the operator vouches for a database that was restored.
    trust: bool,
    /// The time, by the database's clock.
    now: i64,
}

/// Adds the events of what [`withdraw_all`] withdraws. Their leaves end hand-outs: see `steps`.
fn note_withdrawals() -> String {
    let revoked = steps::REVOKED;
    format!(
        "INSERT INTO audit_events (device_id, keypackage_ref, action, last_resort, at, reservation, package_id, step, opened) \
         SELECT device_id, keypackage_ref, 'revoke', false, $1, CASE WHEN step & 3 = 1 THEN reservation END, package_id, \
         {revoked}, CASE WHEN step & 3 = 1 THEN opened END FROM key_packages WHERE live AND NOT last_resort"
    )
}

/// Withdraws all KeyPackages that may have been handed out, and returns their number. Last resorts stay: any number of
/// adders may use one at any time.
fn withdraw_all(conn: &mut Conn<'_>, now: i64) -> QueryResult<usize> {
    match conn {
        Conn::Postgres(conn) => {
            let noted = format!(
                "WITH noted AS ({} RETURNING id) INSERT INTO log_outbox (events) \
                 SELECT array_agg(id) FROM noted WHERE EXISTS (SELECT 1 FROM log_origins) GROUP BY id / 100",
                note_withdrawals()
            );
            diesel::sql_query(noted).bind::<BigInt, _>(now).execute(*conn)?;
        }
        Conn::Sqlite(conn) => drop(diesel::sql_query(note_withdrawals()).bind::<BigInt, _>(now).execute(*conn)?),
    }
    end_all(conn, now)
}

statements! {
    fn end_all(conn, now: i64) -> QueryResult<usize> {
        let live = key_packages::live.and(diesel::dsl::not(key_packages::last_resort));
        diesel::update(key_packages::table.filter(live))
            .set((Ended::new(State::Revoked, now), key_packages::step.eq(steps::revoked_in_row())))
            .execute(conn)
    }

    /// Deletes all kept answers: a repeated answer would name KeyPackages that are withdrawn.
    pub(super) fn forget_all_answers(conn) -> QueryResult<usize> {
        diesel::delete(idempotency_keys::table).execute(conn)
    }
}

impl<'a> TakeUp<'a> {
    fn of(watch: &Watch, origin: Option<&'a str>) -> Self {
        let (reached, trust, now) = (watch.reached(), watch.trusts_restores(), watch.database_now().as_second());
        Self { origin, reached, trust, now }
    }
}

impl TakeUp<'_> {
    /// Returns the evidence that the database was restored, if there is any.
    fn restored(&self, signs: Option<&Signs>) -> Option<Restored> {
        let Some(signs) = signs else { return Some(Restored::Loaded { table: "lineage" }) };
        // An empty recorded origin means that no server has served this database.
        if let Some(now) = self.origin.filter(|now| !signs.origin.is_empty() && *now != signs.origin) {
            return Some(Restored::AnotherOrigin { before: signs.origin.clone(), now: now.to_owned() });
        }
        match signs {
            Signs { lineage_holds: false, .. } => Some(Restored::Loaded { table: "lineage" }),
            Signs { pool_holds: false, .. } => Some(Restored::Loaded { table: "key_packages" }),
            Signs { generation: database, .. } if *database < self.reached => {
                Some(Restored::WentBack { database: *database, seen: self.reached })
            }
            _ => None,
        }
    }

    /// Returns the generation if the database is the one that was served before and its origin is recorded. Nothing
    /// needs to be written then.
    fn known(&self, signs: Option<&Signs>) -> Option<i64> {
        let is_noted = |signs: &&Signs| self.origin.is_none_or(|origin| origin == signs.origin);
        if self.restored(signs).is_some() { None } else { signs.filter(is_noted).map(|signs| signs.generation) }
    }
}

/// Returns the next row of `lineage`, with a generation that no server has seen.
fn next_row<'a>(signs: Option<&'a Signs>, up: &TakeUp<'a>) -> Row<'a> {
    let (noted, generation, fenced_at) =
        signs.map_or(("", 0, None), |signs| (signs.origin.as_str(), signs.generation, signs.fenced_at));
    let generation = generation.max(up.reached).saturating_add(SKIPPED);
    Row { origin: up.origin.unwrap_or(noted), generation, fenced_at }
}

/// Returns the number of KeyPackages that it withdrew, and the new generation.
fn fence(conn: &mut Conn<'_>, signs: Option<&Signs>, up: &TakeUp<'_>) -> QueryResult<(usize, i64)> {
    lineage::hold_pools(conn)?;
    let withdrawn = withdraw_all(conn, up.now)?;
    forget_all_answers(conn)?;
    log::begin_another(conn, up.now)?;
    // The members may be in later epochs. A device that came back by a GroupInfo of the backup would take an epoch that they
    // have left, and change the proof that the next Commit has to show.
    group_infos::forget_all(conn)?;
    lineage::skip_deliveries(conn)?;
    let row = next_row(signs, up);
    // Clients tell two fences apart by their times, so the times must differ.
    let fenced_at = row.fenced_at.map_or(up.now, |before| up.now.max(before.saturating_add(1)));
    lineage::write_lineage(conn, Row { fenced_at: Some(fenced_at), ..row })?;
    Ok((withdrawn, row.generation))
}

/// Fences a database that was restored, or accepts it as it is if the operator vouches for it. Returns the new
/// generation.
fn settle(conn: &mut Conn<'_>, restored: &Restored, signs: Option<&Signs>, up: &TakeUp<'_>) -> QueryResult<i64> {
    if up.trust {
        let row = next_row(signs, up);
        lineage::write_lineage(conn, row)?;
        tracing::warn!(%restored, "the database was restored or promoted, and is trusted to have lost nothing");
        return Ok(row.generation);
    }
    let (withdrawn, generation) = fence(conn, signs, up)?;
    tracing::warn!(
        %restored,
        withdrawn,
        "the database was restored or promoted: what may have been handed out since is withdrawn, and every device \
         fills its pool anew at its next refresh"
    );
    Ok(generation)
}

/// Takes over a database that is not the one served before, and fences it unless it is new. Returns its generation.
fn take_up(conn: &mut Conn<'_>, up: &TakeUp<'_>) -> QueryResult<i64> {
    let signs = lineage::hold_signs(conn)?;
    // Another connection may have done this first.
    if let Some(generation) = up.known(signs.as_ref()) {
        return Ok(generation);
    }
    if let Some(restored) = up.restored(signs.as_ref()) {
        return settle(conn, &restored, signs.as_ref(), up);
    }
    // The database is new: only its origin must be recorded.
    let generation = signs.as_ref().map_or(0, |signs| signs.generation);
    lineage::write_lineage(conn, Row { generation, ..next_row(signs.as_ref(), up) })?;
    Ok(generation)
}

/// Compares the database with its generation file; `file` is the generation in it, if there is one.
fn resume(conn: &mut Conn<'_>, file: Option<i64>, up: &TakeUp<'_>) -> QueryResult<i64> {
    let signs = lineage::hold_signs(conn)?;
    let database = signs.as_ref().map_or(0, |signs| signs.generation);
    let restored = match file {
        Some(file) if file > database => Restored::Behind { database, file },
        None if database > 0 => Restored::Alone { database },
        _ => {
            let row = next_row(signs.as_ref(), up);
            let row = Row { generation: database.saturating_add(1), ..row };
            return lineage::write_lineage(conn, row).map(|()| row.generation);
        }
    };
    settle(conn, &restored, signs.as_ref(), &TakeUp { reached: up.reached.max(file.unwrap_or(0)), ..*up })
}

/// Checks over a new connection whether the database was restored, and fences it if so. After a failover or a restore
/// all connections are new, so this check precedes every other statement.
fn look(conn: &mut Conn<'_>, watch: &Watch) -> QueryResult<()> {
    watch.compare_clocks(conn)?;
    let origin = lineage::origin(conn)?;
    let up = TakeUp::of(watch, origin.as_deref());
    let generation = match up.known(lineage::signs(conn)?.as_ref()) {
        Some(generation) => generation,
        None => conn.transaction(&mut |conn| take_up(conn, &up))?,
    };
    watch.saw(generation);
    Ok(())
}

impl Store {
    /// Connects to the configured database, and brings its schema up to date. Waits for a PostgreSQL that is not there
    /// yet. Several servers may start at once. A database that was restored or promoted is fenced, here and at every later
    /// connection, unless the operator has it trusted.
    ///
    /// # Errors
    /// When the database cannot be reached or opened, or a migration fails.
    pub fn connect(config: &Config, metrics: Arc<Metrics>, clock: Arc<dyn Clock>) -> Result<Self, StoreError> {
        let watch = Arc::new(Watch::new(config, clock, Arc::clone(&metrics)));
        let its = Arc::clone(&watch);
        Self::open(config, metrics, watch, move |conn| look(conn, &its))
    }

    /// Withdraws all KeyPackages that may have been handed out, because the database was restored. Returns their
    /// number.
    ///
    /// # Errors
    /// When the database fails. Nothing is withdrawn then.
    pub fn fence(&self) -> Result<usize, StoreError> {
        let origin = self.read(lineage::origin)?;
        let up = TakeUp::of(&self.watch, origin.as_deref());
        let (withdrawn, generation) = self.write("fence", |conn| {
            let signs = lineage::hold_signs(conn)?;
            fence(conn, signs.as_ref(), &up).map_err(StoreError::from)
        })?;
        self.watch.saw(generation);
        Ok(withdrawn)
    }

    /// Compares the database with its generation file (`None` if the file is missing), and fences the database if it
    /// was restored, unless the operator has it trusted. Returns its generation.
    ///
    /// # Errors
    /// When the database fails. Nothing has changed then.
    pub fn resume(&self, file: Option<i64>) -> Result<i64, StoreError> {
        let up = TakeUp::of(&self.watch, None);
        let generation = self.write("resume", |conn| resume(conn, file, &up).map_err(StoreError::from))?;
        self.watch.saw(generation);
        Ok(generation)
    }

    /// Raises the database's generation, and returns it. Fences the database if a table was loaded from a backup, or if
    /// the database went back to an earlier state since the last check, unless the operator has it trusted.
    ///
    /// # Errors
    /// When the database fails.
    pub fn renew_witnesses(&self) -> Result<i64, StoreError> {
        let reached = self.watch.reached();
        let renewed =
            self.write("renew_witnesses", |conn| lineage::renew_witnesses(conn, reached).map_err(StoreError::from))?;
        let generation = if let Some(generation) = renewed {
            generation
        } else {
            let origin = self.read(lineage::origin)?;
            let up = TakeUp { reached, ..TakeUp::of(&self.watch, origin.as_deref()) };
            self.write("take_up", |conn| take_up(conn, &up).map_err(StoreError::from))?
        };
        self.watch.saw(generation);
        Ok(generation)
    }
}
