//! The logs that a database has had.

use diesel::{connection::SimpleConnection, prelude::*};
use keypool_transparency::{
    encoding::Hash,
    leaf::{Kept, TextLeaf},
    merkle::empty_root,
    origin::Origin,
    tree::Appender,
};
use rand::{TryRng, rngs::SysRng};

use super::{
    ages, events,
    state::{self, TreeState},
    tiles,
};
use crate::store::database::{
    Conn, Store, StoreError,
    schema::{key_packages, log_origins},
    sql::statements,
};

/// One log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OriginRow {
    /// Its number.
    pub k: i32,
    /// Its name.
    pub origin: Origin,
    /// Its public key, a vkey; `None` before a server with the key file has seen it.
    pub key: Option<String>,
    /// The note by which the key of the log before names this key.
    pub key_note: Option<String>,
    /// The part of the log before that it continues.
    pub kept: Option<Kept>,
    /// The first entry that is kept: earlier ones are pruned.
    pub first_entry: u64,
}

/// The public key of a log, and the note that leads to it.
#[derive(Clone, Debug)]
pub struct LogKey {
    /// The vkey.
    pub key: String,
    /// The note by which the key of the log before names it.
    pub note: Option<String>,
}

type Columns = (i32, String, Option<String>, Option<String>, Option<i64>, Option<Vec<u8>>, i64);

statements! {
    fn rows(conn) -> QueryResult<Vec<Columns>> {
        log_origins::table.order(log_origins::k.desc()).load(conn)
    }

    fn add(conn, k: i32, name: &str, kept: Option<(i64, &[u8])>) -> QueryResult<usize> {
        diesel::insert_into(log_origins::table)
            .values((
                log_origins::k.eq(k),
                log_origins::name.eq(name),
                log_origins::kept_size.eq(kept.map(|(size, _)| size)),
                log_origins::kept_root.eq(kept.map(|(_, root)| root)),
            ))
            .on_conflict_do_nothing()
            .execute(conn)
    }

    /// If another server has given a key first, that one stays.
    fn adopt(conn, k: i32, key: &LogKey) -> QueryResult<usize> {
        diesel::update(log_origins::table.find(k).filter(log_origins::key.is_null()))
            .set((log_origins::key.eq(&key.key), log_origins::key_note.eq(&key.note)))
            .execute(conn)
    }

    /// What was handed out before there was a log has no leaf.
    fn begin_steps(conn) -> QueryResult<usize> {
        diesel::update(key_packages::table.filter(key_packages::live.and(key_packages::step.ne(-1))))
            .set((key_packages::step.eq(-1), key_packages::opened.eq(None::<i64>)))
            .execute(conn)
    }
}

/// Returns the logs, the newest first.
pub(super) fn all(conn: &mut Conn<'_>) -> Result<Vec<OriginRow>, StoreError> {
    let rows = rows(conn)?;
    let names: Vec<_> = rows.iter().map(|row| row.1.clone()).collect();
    let mut origins = Vec::new();
    for (number, (k, name, key, key_note, kept_size, kept_root, first_entry)) in rows.into_iter().enumerate() {
        let kept = match (names.get(number + 1), kept_size, kept_root) {
            (Some(origin), Some(size), Some(root)) => {
                let root: Hash = root.try_into().map_err(|_| wrong("a kept root has not 32 bytes"))?;
                Some(Kept { origin: origin.clone(), size: u64::try_from(size).map_err(StoreError::fatal)?, root })
            }
            _ => None,
        };
        let (origin, first_entry) = (name.parse().map_err(StoreError::fatal)?, first_entry.cast_unsigned());
        origins.push(OriginRow { k, origin, key, key_note, kept, first_entry });
    }
    Ok(origins)
}

fn wrong(what: &'static str) -> StoreError {
    StoreError::fatal(anyhow::anyhow!(what))
}

fn random<const N: usize>() -> Result<[u8; N], StoreError> {
    let mut bytes = [0; N];
    SysRng.try_fill_bytes(&mut bytes).map_err(StoreError::fatal)?;
    Ok(bytes)
}

/// Begins the first log. Does nothing if there is one.
fn begin(conn: &mut Conn<'_>, now: i64) -> Result<(), StoreError> {
    let origin = Origin { server: random()?, k: 1, copy: random()? };
    if add(conn, 1, &origin.to_string(), None)? == 0 {
        return Ok(());
    }
    begin_steps(conn)?;
    let last_event = events::last_id(conn)?.unwrap_or_default();
    state::write(conn, &TreeState { k: 1, size: 0, root: empty_root(), at: now, last_event })?;
    Ok(())
}

/// Begins another log if there is one: the database was restored, so leaves of the old one may be lost, and its name must not
/// be signed again. The new one keeps what this database has of it.
pub(in crate::store) fn begin_another(conn: &mut Conn<'_>, now: i64) -> QueryResult<()> {
    if let Conn::Postgres(conn) = conn {
        // What is signed afterwards has to survive a crash.
        conn.batch_execute("SET LOCAL synchronous_commit = on")?;
    }
    let Some(old) = state::await_hold(conn)? else { return Ok(()) };
    let Some((k, name, ..)) = rows(conn)?.into_iter().next() else { return Ok(()) };
    let before: Origin = name.parse().map_err(state::unreadable)?;
    let origin = Origin { k: before.k.saturating_add(1), copy: random().map_err(state::unreadable)?, ..before };
    let (next, size) = (k.saturating_add(1), i64::try_from(old.size).unwrap_or(i64::MAX));
    add(conn, next, &origin.to_string(), Some((size, &old.root)))?;
    ages::end(conn, k, (old.size, old.at))?;
    // With its first entry: a log without one could not be shown to continue the old one, and another restore may follow.
    let kept = Kept { origin: before.to_string(), size: old.size, root: old.root };
    let entry = TextLeaf::Origin { name: origin.to_string(), kept: Some(kept) }.to_bytes();
    let grown = Appender::new().append(&[entry]).map_err(state::unreadable)?;
    tiles::write(conn, next, &grown.tiles).map_err(state::unreadable)?;
    state::write(conn, &TreeState { k: next, size: grown.size, root: grown.root, at: now, ..old }).map(drop)
}

impl Store {
    /// Returns the logs of the database, the newest first.
    ///
    /// # Errors
    /// When the database fails.
    pub fn log_origins(&self) -> Result<Vec<OriginRow>, StoreError> {
        self.read(all)
    }

    /// Begins a log if the database has none.
    ///
    /// # Errors
    /// When the database fails, or the operating system gives no random bytes.
    pub fn begin_log(&self, now: jiff::Timestamp) -> Result<(), StoreError> {
        self.write("begin_log", |conn| begin(conn, now.as_second()))
    }

    /// Records the public key of a log. If another server has recorded one before, that one stays.
    ///
    /// # Errors
    /// When the database fails.
    pub fn adopt_log_key(&self, k: i32, key: &LogKey) -> Result<(), StoreError> {
        self.write("adopt_log_key", |conn| adopt(conn, k, key).map(drop).map_err(StoreError::from))
    }
}
