//! Puts events into the log, in one transaction with its tiles: none is lost, and none comes twice.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use diesel::connection::SimpleConnection;
use jiff::Timestamp;
use keypool_transparency::{
    leaf::{Leaf, TextLeaf, shuffled_batch},
    tree::{Appender, TreeError},
};
use rand::{TryRng, rngs::SysRng};

use super::{
    ages,
    binds::Binds,
    events::{self, LoggedEvent},
    origins, outbox,
    owners::{Owner, Owners},
    positions,
    state::{self, TreeState},
    tiles::{self, Tiles},
    unnamed,
};
use crate::store::database::{Conn, Store, StoreError};

/// The most events in one transaction on SQLite.
const MOST: i64 = 4_096;

/// The most rows of the outbox in one transaction. A row has up to 64 events, seldom more.
const MOST_ROWS: i64 = 256;

/// The most events that one statement names.
const AT_ONCE: usize = 1_000;

/// What this server remembers of its last transactions.
#[derive(Debug, Default)]
pub struct Edge(Mutex<Remembered>);

#[derive(Debug, Default)]
struct Remembered {
    /// The right edge of the tree.
    kept: Option<Kept>,
    binds: Binds,
}

#[derive(Clone, Debug)]
struct Kept {
    k: i32,
    appender: Appender,
}

/// What a transaction did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    /// The tree now.
    pub state: TreeState,
    /// How many entries came, with the filling.
    pub entries: usize,
    /// How many leaves of events came.
    pub leaves: usize,
    /// Events whose package has no name: a server of the version before took and handed it out.
    pub unnamed: usize,
    /// The last row of the outbox that was taken; on SQLite, the last event that was looked at.
    pub last: Option<i64>,
    /// Whether more events wait.
    pub more: bool,
}

/// Events to put into the log.
struct Waiting {
    events: Vec<LoggedEvent>,
    last: Option<i64>,
    more: bool,
}

fn waiting(conn: &mut Conn<'_>, state: &TreeState, after: i64) -> Result<Waiting, StoreError> {
    let (events, last, more) = match conn {
        Conn::Postgres(pg) => {
            let (last, rows, mut ids) = outbox::take(pg, after, MOST_ROWS)?;
            ids.sort_unstable();
            let mut events = Vec::new();
            for some in ids.chunks(AT_ONCE) {
                events.extend(events::by_id(conn, some)?);
            }
            if events.len() != ids.len() {
                tracing::error!(
                    outbox = ids.len(),
                    trail = events.len(),
                    "events of the log's outbox are not in the audit trail: they get no leaves"
                );
            }
            (events, last, i64::try_from(rows).is_ok_and(|rows| rows >= MOST_ROWS))
        }
        Conn::Sqlite(_) => {
            let newest = events::last_id(conn)?;
            let events = events::after(conn, after.max(state.last_event), MOST)?;
            let more = i64::try_from(events.len()).is_ok_and(|events| events >= MOST);
            let last = if more { events.last().map(|event| event.id) } else { newest };
            (events, last, more)
        }
    };
    Ok(Waiting { events, last, more })
}

/// The leaves of events, each with its event and which of its steps it is of.
struct Sealed {
    leaves: Vec<Leaf>,
    of: Vec<(usize, usize)>,
    unnamed: usize,
    owners: HashMap<i64, Arc<Owner>>,
}

fn seal(
    conn: &mut Conn<'_>,
    events: &mut [LoggedEvent],
    owners: &Owners,
    binds: &mut Binds,
) -> Result<Sealed, StoreError> {
    let opened = binds.complete(events);
    let mut opened_events = HashMap::new();
    for some in opened.chunks(AT_ONCE) {
        opened_events.extend(events::by_id(conn, some)?.into_iter().map(|event| (event.id, event)));
    }
    let devices = events.iter().flat_map(|event| [Some(event.device_id), event.actor]);
    let holders = opened_events.values().map(|event| event.actor);
    let owners = owners.of(conn, devices.chain(holders).flatten())?;
    let mut sealed = Sealed { leaves: Vec::new(), of: Vec::new(), unnamed: 0, owners };
    for (number, event) in events.iter().enumerate() {
        let opened = event.opened.and_then(|opened| opened_events.get(&opened));
        let leaves = event.leaves(opened, &sealed.owners)?;
        let Some(owner) = sealed.owners.get(&event.device_id).filter(|_| !leaves.is_empty()) else {
            sealed.unnamed += 1;
            continue;
        };
        for (place, leaf) in leaves.iter().enumerate() {
            sealed.leaves.push(leaf.seal(&owner.secret).0);
            sealed.of.push((number, place));
        }
    }
    Ok(sealed)
}

pub(super) fn tree_error(error: TreeError<StoreError>) -> StoreError {
    match error {
        TreeError::Store(error) => error,
        error => StoreError::fatal(anyhow::anyhow!("the log's tiles are damaged: {error}")),
    }
}

/// The edge of the tree, from memory if it is this tree's, else from its tiles.
fn edge(conn: &mut Conn<'_>, state: &TreeState, kept: Option<&Kept>) -> Result<Appender, StoreError> {
    let is_this =
        |kept: &&Kept| kept.k == state.k && (kept.appender.size(), kept.appender.root()) == (state.size, state.root);
    if let Some(kept) = kept.filter(is_this) {
        return Ok(kept.appender.clone());
    }
    let appender = Appender::load(&Tiles::of(conn, state.k), state.size).map_err(tree_error)?;
    if appender.root() != state.root {
        return Err(StoreError::fatal(anyhow::anyhow!("the log's tiles do not lead to its root")));
    }
    Ok(appender)
}

/// The entry that begins a log.
fn first_entry(conn: &mut Conn<'_>, k: i32) -> Result<Vec<u8>, StoreError> {
    let origin = origins::all(conn)?.into_iter().find(|origin| origin.k == k);
    let origin = origin.ok_or_else(|| StoreError::fatal(anyhow::anyhow!("log {k} has no row")))?;
    Ok(TextLeaf::Origin { name: origin.origin.to_string(), kept: origin.kept }.to_bytes())
}

struct Outcome {
    appended: Appended,
    kept: Option<Kept>,
    owners: HashMap<i64, Arc<Owner>>,
}

fn append(
    conn: &mut Conn<'_>,
    after: i64,
    owners: &Owners,
    (kept, binds): (Option<&Kept>, &mut Binds),
    now: i64,
) -> Result<Option<Outcome>, StoreError> {
    if let Conn::Postgres(conn) = conn {
        // What is signed afterwards has to survive a crash.
        conn.batch_execute("SET LOCAL synchronous_commit = on")?;
    }
    let Some(state) = state::hold(conn)? else { return Ok(None) };
    let Waiting { mut events, last, more } = waiting(conn, &state, after)?;
    let last_event = events.iter().map(|event| event.id).fold(state.last_event, i64::max);
    let sealed = seal(conn, &mut events, owners, binds)?;
    let random = |bytes: &mut [u8]| SysRng.try_fill_bytes(bytes).map_err(StoreError::fatal);
    let mut failed = None;
    let batch = shuffled_batch(&sealed.leaves, &mut |bytes| {
        if let Err(error) = random(bytes) {
            failed = Some(error);
        }
    });
    if let Some(error) = failed {
        return Err(error);
    }
    let mut entries: Vec<Vec<u8>> = Vec::with_capacity(batch.len() + 2);
    if state.size == 0 {
        entries.push(first_entry(conn, state.k)?);
    }
    let first = state.size + entries.len() as u64;
    let mut places = vec![[None, None]; events.len()];
    for ((_, origin), index) in batch.iter().zip(first..) {
        if let Some((event, place)) = origin.and_then(|number| sealed.of.get(number)) {
            places[*event][*place] = Some(index);
        }
    }
    entries.extend(batch.iter().map(|(leaf, _)| leaf.as_bytes().to_vec()));
    let mut done =
        Appended { state, entries: entries.len(), leaves: sealed.leaves.len(), unnamed: sealed.unnamed, last, more };
    if entries.is_empty() {
        return Ok(Some(Outcome { appended: done, kept: kept.cloned(), owners: sealed.owners }));
    }
    ages::note(conn, state.k, (state.size, state.at), now)?;
    let mut appender = edge(conn, &state, kept)?;
    let grown = appender.append(&entries).map_err(StoreError::fatal)?;
    tiles::write(conn, state.k, &grown.tiles)?;
    let at: Vec<_> = events.iter().map(|event| event.id).zip(places).collect();
    positions::write(conn, state.k, &at)?;
    done.state = TreeState { k: state.k, size: grown.size, root: grown.root, at: now, last_event };
    state::write(conn, &done.state)?;
    Ok(Some(Outcome { appended: done, kept: Some(Kept { k: state.k, appender }), owners: sealed.owners }))
}

impl Store {
    /// Puts waiting events into the log, starting after this row of the outbox (on SQLite, after this event).
    /// Returns `None` if there is no log, or if another server is at it.
    ///
    /// # Errors
    /// When the database fails, or the log's tiles are damaged. Nothing has changed then.
    pub fn sequence(
        &self,
        after: i64,
        owners: &Owners,
        edge: &Edge,
        now: Timestamp,
    ) -> Result<Option<Appended>, StoreError> {
        let mut remembered = edge.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Remembered { kept, binds } = &mut *remembered;
        let before = kept.take();
        let outcome =
            self.write("sequence", |conn| append(conn, after, owners, (before.as_ref(), binds), now.as_second()))?;
        let Some(Outcome { appended, kept: new, owners: seen }) = outcome else {
            *kept = before;
            return Ok(None);
        };
        *kept = new;
        owners.remember(seen);
        Ok(Some(appended))
    }

    /// Whether anything may wait for the log after this row of the outbox (on SQLite, after this event).
    ///
    /// # Errors
    /// When the database fails.
    pub fn waits_for_the_log(&self, after: i64) -> Result<bool, StoreError> {
        self.read(|conn| outbox::waits(conn, after))
    }

    /// Names the KeyPackages that a server of the version before has taken. Returns how many there were.
    ///
    /// # Errors
    /// When the database fails.
    pub fn name_packages(&self) -> Result<usize, StoreError> {
        unnamed::name_all(self)
    }
}
