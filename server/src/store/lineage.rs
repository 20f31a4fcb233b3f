//! Which database this is, and how far it has come.
//!
//! A backup remembers as available what was handed out after it was made. So a server that finds its database restored
//! fences it: it withdraws all that may have been handed out, and every device fills its pool anew.

use diesel::{
    prelude::*,
    sql_types::{BigInt, Bool, Nullable, Text},
};
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
    /// The witness of a table is missing, or was not written here.
    #[error("its table {table} was loaded from a backup, or written anew")]
    Loaded {
        /// The table's name.
        table: &'static str,
    },
    /// It had come further when this server last looked.
    #[error("it is at generation {database}, and was at {seen} when this server last looked")]
    WentBack {
        /// The database's generation.
        database: i64,
        /// The generation that this server remembers.
        seen: i64,
    },
}

/// What a database says of itself, at one moment.
#[derive(Clone, Debug, QueryableByName)]
pub(super) struct Signs {
    /// Its origin, as a server last noted it; empty where none has.
    #[diesel(sql_type = Text)]
    origin: String,
    #[diesel(sql_type = BigInt)]
    generation: i64,
    #[diesel(sql_type = Nullable<BigInt>)]
    fenced_at: Option<i64>,
    /// Whether the witness of `lineage` is as a server wrote it here.
    #[diesel(sql_type = Bool)]
    lineage_holds: bool,
    /// Whether the witness of `key_packages` is as a server wrote it here.
    #[diesel(sql_type = Bool)]
    pool_holds: bool,
}

/// The generation that a sweep has raised.
#[derive(QueryableByName)]
pub(super) struct Renewed {
    #[diesel(sql_type = BigInt)]
    pub generation: i64,
}

/// The row of `lineage`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Row<'a> {
    pub origin: &'a str,
    pub generation: i64,
    pub fenced_at: Option<i64>,
}

/// With what a server takes up its database.
#[derive(Clone, Copy, Debug)]
pub(super) struct TakeUp<'a> {
    /// What the database says that it is.
    pub origin: Option<&'a str>,
    /// The generation that it had reached, as far as the server knows.
    pub reached: i64,
    /// Whether the operator vouches for a database that was restored.
    pub trust: bool,
    /// The time, by the database's clock.
    pub now: i64,
}

/// The ref of the witness in `key_packages`. A KeyPackage's ref is a hash, and longer.
pub(super) const WITNESS: &[u8] = b"witness";

/// The device that the witness is of, which nobody is.
pub(super) const NOBODY: i64 = 0;

/// What only one database can say or do about itself.
pub(super) trait Lineage {
    /// What tells it from a copy that was restored or promoted; `None` where it does not say. Where it may not be asked, this
    /// spoils a transaction.
    fn origin(&mut self) -> QueryResult<Option<String>>;
    /// `None` where its row is gone.
    fn signs(&mut self) -> QueryResult<Option<Signs>>;
    /// The same, held until the transaction ends.
    fn hold_signs(&mut self) -> QueryResult<Option<Signs>>;
    /// Writes the row of `lineage` and both witnesses, and makes what is missing.
    fn write_lineage(&mut self, row: Row<'_>) -> QueryResult<()>;
    /// Raises the generation, and writes both witnesses anew. `None` where one of them was not written here, or the database
    /// has not reached this generation.
    fn renew_witnesses(&mut self, reached: i64) -> QueryResult<Option<i64>>;
    /// Keeps everybody else from changing a pool until the transaction ends, however long it takes.
    fn hold_pools(&mut self) -> QueryResult<()>;
    /// Numbers that queued messages had before the restore are not given again: a client may remember them.
    fn skip_deliveries(&mut self) -> QueryResult<()>;
}

/// How many numbers of deliveries, and how many generations, are skipped: more than there were since any backup. So no other
/// server remembers a generation that the database has not reached, and fences it once more.
pub(super) const SKIPPED: i64 = 1 << 32;

statements! {
    pub(super) trait LineageSql {
        /// All that may have been handed out; answers how many. A last resort is anybody's at any time, and stays.
        fn withdraw_all(conn, now: i64) -> QueryResult<usize> {
            let live = key_packages::live.and(diesel::dsl::not(key_packages::last_resort));
            let events = key_packages::table.filter(live).select((
                key_packages::device_id,
                key_packages::keypackage_ref,
                <&str>::from(Action::Revoke).into_sql::<Text>(),
                key_packages::last_resort,
                now.into_sql::<BigInt>(),
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

        /// When the database was fenced last.
        fn fenced_at(conn) -> QueryResult<Option<i64>> {
            lineage::table.select(lineage::fenced_at).first(conn)
        }
    }
}

impl TakeUp<'_> {
    /// How the database is known to have been restored, if it is.
    fn restored(&self, signs: Option<&Signs>) -> Option<Restored> {
        let Some(signs) = signs else { return Some(Restored::Loaded { table: "lineage" }) };
        // Where no origin was noted, no server has served it.
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

    /// The generation of a database that needs no write: it is the one that was served before, and says so.
    pub(super) fn known(&self, signs: Option<&Signs>) -> Option<i64> {
        let is_noted = |signs: &&Signs| self.origin.is_none_or(|origin| origin == signs.origin);
        if self.restored(signs).is_some() { None } else { signs.filter(is_noted).map(|signs| signs.generation) }
    }
}

/// The row of `lineage` after what `signs` said, with a generation that nobody has seen.
fn next_row<'a>(signs: Option<&'a Signs>, up: &TakeUp<'a>) -> Row<'a> {
    let (noted, generation, fenced_at) =
        signs.map_or(("", 0, None), |signs| (signs.origin.as_str(), signs.generation, signs.fenced_at));
    let generation = generation.max(up.reached).saturating_add(SKIPPED);
    Row { origin: up.origin.unwrap_or(noted), generation, fenced_at }
}

/// Answers how many KeyPackages it withdrew, and the generation from now on.
fn fence<C: Lineage + LineageSql>(conn: &mut C, signs: Option<&Signs>, up: &TakeUp<'_>) -> QueryResult<(usize, i64)> {
    conn.hold_pools()?;
    let withdrawn = conn.withdraw_all(up.now)?;
    conn.forget_all_answers()?;
    conn.skip_deliveries()?;
    let row = next_row(signs, up);
    // Clients tell one fence from another by its time.
    let fenced_at = row.fenced_at.map_or(up.now, |before| up.now.max(before.saturating_add(1)));
    conn.write_lineage(Row { fenced_at: Some(fenced_at), ..row })?;
    Ok((withdrawn, row.generation))
}

/// Fences a database that was restored, or takes it as it is where the operator vouches for it. Answers its generation from
/// now on.
fn settle<C: Lineage + LineageSql>(
    conn: &mut C,
    restored: &Restored,
    signs: Option<&Signs>,
    up: &TakeUp<'_>,
) -> QueryResult<i64> {
    if up.trust {
        let row = next_row(signs, up);
        conn.write_lineage(row)?;
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

/// Takes up a database that is not the one that was served before, and fences it unless it is new. Answers its generation.
pub(super) fn take_up<C: Lineage + LineageSql>(conn: &mut C, up: &TakeUp<'_>) -> QueryResult<i64> {
    let signs = conn.hold_signs()?;
    // Another connection may have been faster.
    if let Some(generation) = up.known(signs.as_ref()) {
        return Ok(generation);
    }
    if let Some(restored) = up.restored(signs.as_ref()) {
        return settle(conn, &restored, signs.as_ref(), up);
    }
    // It is new, and only its origin is to be noted.
    let generation = signs.as_ref().map_or(0, |signs| signs.generation);
    conn.write_lineage(Row { generation, ..next_row(signs.as_ref(), up) })?;
    Ok(generation)
}

/// Takes up a database whose generation file, if there is one, is at `file`.
fn resume<C: Lineage + LineageSql>(conn: &mut C, file: Option<i64>, up: &TakeUp<'_>) -> QueryResult<i64> {
    let signs = conn.hold_signs()?;
    let database = signs.as_ref().map_or(0, |signs| signs.generation);
    let restored = match file {
        Some(file) if file > database => Restored::Behind { database, file },
        None if database > 0 => Restored::Alone { database },
        _ => {
            let row = next_row(signs.as_ref(), up);
            let row = Row { generation: database.saturating_add(1), ..row };
            return conn.write_lineage(row).map(|()| row.generation);
        }
    };
    settle(conn, &restored, signs.as_ref(), &TakeUp { reached: up.reached.max(file.unwrap_or(0)), ..*up })
}

impl Store {
    /// Withdraws all that may have been handed out, because the database was restored. Answers how many KeyPackages.
    ///
    /// # Errors
    /// When the database fails. Nothing is withdrawn then.
    pub fn fence(&self) -> Result<usize, StoreError> {
        let origin = with_conn!(self, read, |conn| conn.origin())?;
        let up = self.watch.take_up(origin.as_deref());
        let (withdrawn, generation) = with_conn!(self, write "fence", |conn| {
            let signs = conn.hold_signs()?;
            fence(conn, signs.as_ref(), &up).map_err(StoreError::from)
        })?;
        self.watch.saw(generation);
        Ok(withdrawn)
    }

    /// Takes up a database whose generation file is at `file`, or is missing, and fences it if it was restored, unless
    /// the operator has it trusted. Answers its generation from now on.
    ///
    /// # Errors
    /// When the database fails. Nothing has changed then.
    pub fn resume(&self, file: Option<i64>) -> Result<i64, StoreError> {
        let up = self.watch.take_up(None);
        let generation = with_conn!(self, write "resume", |conn| resume(conn, file, &up).map_err(StoreError::from))?;
        self.watch.saw(generation);
        Ok(generation)
    }

    /// Moves the database's generation on, and answers it. Where a table was loaded from a backup, or the database went back
    /// to an earlier state, since it was last looked at, it is fenced, unless the operator has it trusted.
    ///
    /// # Errors
    /// When the database fails.
    pub fn renew_witnesses(&self) -> Result<i64, StoreError> {
        let reached = self.watch.reached();
        let renewed =
            with_conn!(self, write "renew_witnesses", |conn| conn.renew_witnesses(reached).map_err(StoreError::from))?;
        let generation = if let Some(generation) = renewed {
            generation
        } else {
            let origin = with_conn!(self, read, |conn| conn.origin())?;
            let up = TakeUp { reached, ..self.watch.take_up(origin.as_deref()) };
            with_conn!(self, write "take_up", |conn| take_up(conn, &up).map_err(StoreError::from))?
        };
        self.watch.saw(generation);
        Ok(generation)
    }
}
