//! Limits the number of client connections, and closes overdue ones so that new clients can connect.

pub(crate) mod http_stream;
pub(crate) mod serve;
pub(crate) mod socket;

use std::{
    cell::Cell,
    collections::BTreeMap,
    fmt,
    rc::Rc,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::Context,
    time::{Duration, Instant},
};

use futures_util::task::AtomicWaker;

use crate::capacity::Capacity;

/// How long an idle connection is kept. Longer than a load balancer keeps its own, commonly 60 s, so that the balancer
/// never sends a request on a connection that is being closed.
pub(crate) const KEEP_ALIVE: Duration = Duration::from_secs(75);

/// The longest that a client may take to send the head of a request.
pub(crate) const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// The longest that a client may take to receive [`ENOUGH`] bytes.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// A client that receives this many bytes within [`WRITE_TIMEOUT`] is not a slow reader: 6 kB a second.
const ENOUGH: usize = 64 * 1024;

/// The shorter timeout while the server is full: a client that receives 64 kB a second, or sends a request, is not
/// closed as long as there is a slower one.
const TIMEOUT_IN_NEED: Duration = Duration::from_secs(1);

/// How long a device's connection may keep sending requests while new clients wait. After that it closes with its next
/// answer. A connection without a valid token closes after [`TIMEOUT_IN_NEED`].
const TURN: Duration = Duration::from_mins(1);

/// While the server is full, an eighth of all connections may be closed in a second, or this number if it is larger.
const LEAST_PACE: usize = 256;

/// Interval at which overdue connections are closed. It is short, so that few connections are replaced at the same
/// moment: many at once would delay all requests.
const LOOK_EVERY: Duration = Duration::from_millis(50);
const LOOKS_A_SECOND: usize = 20;

/// The phases in which a connection may be closed. While a request is answered, the connection is in none of them. If
/// the server is full, connections are closed in the order of the phases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The connection waits for a request.
    Idle,
    /// The client is sending the head of a request.
    Head,
    /// The client is sending the body of a request.
    Body,
    /// The client does not receive the bytes that are sent.
    Stalled,
}

impl Phase {
    const ALL: [Self; 4] = [Self::Idle, Self::Head, Self::Body, Self::Stalled];

    /// The longest that a connection may stay in this phase. Most phases have a shorter timeout in actix-web or
    /// `auth::extract`, which then answer. These have none for the head of a second request, and none for sending.
    fn limit(self) -> Duration {
        match self {
            Self::Idle => KEEP_ALIVE + HEAD_TIMEOUT,
            Self::Head => HEAD_TIMEOUT + Duration::from_secs(2),
            Self::Body => Duration::from_secs(30),
            Self::Stalled => WRITE_TIMEOUT,
        }
    }
}

/// All connections of the server.
pub(crate) struct Connections {
    table: Mutex<Table>,
    /// Whether the limit was reached at the last change of the table.
    is_full: AtomicBool,
    /// How many connections may still be closed for new clients until the next check.
    pace: AtomicUsize,
    most: usize,
    most_stalled: usize,
}

#[derive(Default)]
struct Table {
    open: usize,
    /// The number of open connections that were told to close and have not done so yet.
    ending: usize,
    next: u64,
    /// One map for each phase, ordered by the time of entry.
    phases: [BTreeMap<u64, Entry>; 4],
}

struct Entry {
    since: Instant,
    end: Arc<End>,
}

/// Handle that closes a connection from any task.
#[derive(Debug, Default)]
pub(crate) struct End {
    is_ended: AtomicBool,
    /// Whether the table counts the connection as closing.
    is_counted: AtomicBool,
    waker: AtomicWaker,
}

impl End {
    /// Closes the connection: its next read or write fails, and its task is woken to do it at once.
    pub(crate) fn now(&self) {
        self.is_ended.store(true, Ordering::Release);
        self.waker.wake();
    }

    pub(crate) fn is_ended(&self) -> bool {
        self.is_ended.load(Ordering::Acquire)
    }
}

impl Connections {
    pub(crate) fn new(capacity: &Capacity) -> Self {
        Self {
            table: Mutex::default(),
            is_full: AtomicBool::new(false),
            pace: AtomicUsize::new(0),
            most: capacity.connections,
            most_stalled: capacity.stalled,
        }
    }

    /// The number of open connections.
    pub(crate) fn count(&self) -> usize {
        self.table().open
    }

    /// Counts a new connection. If the limit is exceeded, `end_overdue` closes others; until then, `serve` accepts no
    /// further connection.
    pub(crate) fn open(self: &Arc<Self>) -> Rc<Connection> {
        let mut table = self.table();
        table.open += 1;
        self.note_fullness(&table);
        drop(table);
        let connection = Connection {
            all: Arc::clone(self),
            end: Arc::default(),
            phase: Cell::new(None),
            place: Cell::new(None),
            received: Cell::new(0),
            taken: Cell::new(0),
            has_unread_body: Cell::new(false),
            opened: Instant::now(),
            turn: Cell::new(TIMEOUT_IN_NEED),
            is_closing: Cell::new(false),
        };
        connection.enter(Some(Phase::Head));
        Rc::new(connection)
    }

    /// Closes the connection that has been stalled the longest, if there is one.
    pub(crate) fn end_a_stalled_one(&self, now: Instant) -> bool {
        self.table().end_first(&[Phase::Stalled], (now, TIMEOUT_IN_NEED))
    }

    /// Closes overdue connections. If the server is full, the timeout is one second, but no more connections are closed
    /// than are needed, and at a limited pace: closing and accepting connections takes time from running requests.
    fn end_overdue(&self, now: Instant) {
        let mut table = self.table();
        for phase in Phase::ALL {
            while table.end_first(&[phase], (now, phase.limit())) {
                tracing::debug!(?phase, "ended a connection that took too long");
            }
        }
        let mut pace = (self.most / 8).max(LEAST_PACE) / LOOKS_A_SECOND;
        while pace > 0 && self.note_fullness(&table) && table.end_first(&Phase::ALL, (now, TIMEOUT_IN_NEED)) {
            pace -= 1;
        }
        self.pace.store(pace, Ordering::Relaxed);
    }

    /// Closes overdue connections at every interval. Never returns.
    pub(crate) async fn watch(self: Arc<Self>) {
        let mut ticks = tokio::time::interval(LOOK_EVERY);
        loop {
            ticks.tick().await;
            self.end_overdue(Instant::now());
        }
    }

    /// Takes one from the pace. Returns whether one more connection may be closed for a new client now.
    fn keeps_pace(&self) -> bool {
        let fewer = |pace: usize| pace.checked_sub(1);
        self.pace.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fewer).is_ok()
    }

    fn note_fullness(&self, table: &Table) -> bool {
        let is_full = table.open - table.ending >= self.most;
        self.is_full.store(is_full, Ordering::Relaxed);
        is_full
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    /// Closes the first connection that has been in one of these phases for this long. Returns whether there was one.
    fn end_first(&mut self, phases: &[Phase], (now, age): (Instant, Duration)) -> bool {
        let first = phases.iter().find_map(|phase| {
            let first = self.phases[*phase as usize].first_entry()?;
            (now >= first.get().since + age).then(|| first.remove())
        });
        if let Some(entry) = &first {
            entry.end.is_counted.store(true, Ordering::Relaxed);
            self.ending += 1;
            entry.end.now();
        }
        first.is_some()
    }
}

/// One connection, as seen by its own task.
pub(crate) struct Connection {
    all: Arc<Connections>,
    end: Arc<End>,
    /// The current phase, ignoring whether the client has stalled.
    phase: Cell<Option<Phase>>,
    /// The connection's entry in the table.
    place: Cell<Option<(Phase, u64)>>,
    /// Bytes received since the last request began.
    received: Cell<usize>,
    /// Bytes that the client has received since it stalled.
    taken: Cell<usize>,
    has_unread_body: Cell<bool>,
    opened: Instant,
    /// How long the connection may keep sending requests while new clients wait.
    turn: Cell<Duration>,
    is_closing: Cell<bool>,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("phase", &self.phase).field("place", &self.place).finish_non_exhaustive()
    }
}

impl Connection {
    /// A request has begun. Until [`Self::answered`], the connection is closed only if its client stalls.
    pub(crate) fn begins(&self, has_body: bool) {
        self.received.set(0);
        self.has_unread_body.set(has_body);
        self.enter(None);
    }

    /// The server waits for the request's body.
    pub(crate) fn reads_body(&self) {
        self.enter(Some(Phase::Body));
        self.end.waker.wake();
    }

    /// The request's body was received in full.
    pub(crate) fn has_body(&self) {
        self.has_unread_body.set(false);
        self.enter(None);
    }

    /// The client has shown a device's token.
    pub(crate) fn is_a_devices(&self) {
        self.turn.set(TURN);
    }

    /// The request could not wait for messages, so its connection closes if a new client needs it.
    pub(crate) fn gives_way(&self) {
        self.turn.set(Duration::ZERO);
    }

    /// Returns whether the connection must close after this request: its body will not be read, or its turn is over and
    /// new clients wait.
    pub(crate) fn must_close(&self) -> bool {
        let has_had_its_turn = || self.all.is_full.load(Ordering::Relaxed) && self.opened.elapsed() >= self.turn.get();
        let must = self.is_closing.get() || self.has_unread_body.get() || has_had_its_turn() && self.all.keeps_pace();
        self.is_closing.set(must);
        self.is_closing.get()
    }

    /// The whole answer was handed to the connection, or the request was abandoned.
    pub(crate) fn answered(&self) {
        self.received.set(0);
        self.enter(Some(Phase::Idle));
        self.end.waker.wake();
    }

    /// The handle that closes the connection from another task.
    pub(crate) fn end(&self) -> Arc<End> {
        Arc::clone(&self.end)
    }

    /// Bytes were received.
    fn receives(&self, bytes: usize) {
        self.received.set(self.received.get().saturating_add(bytes));
        if bytes > 0 && self.phase.get() == Some(Phase::Idle) {
            self.enter(Some(Phase::Head));
        }
    }

    /// The client does not receive the bytes that are sent.
    fn stalls(&self) {
        if !self.is_stalled() {
            self.taken.set(0);
            self.stand(Some(Phase::Stalled));
            let mut table = self.all.table();
            if table.phases[Phase::Stalled as usize].len() > self.all.most_stalled {
                table.end_first(&[Phase::Stalled], (Instant::now(), Duration::ZERO));
            }
        }
    }

    /// The client has received some bytes.
    fn takes(&self, bytes: usize) {
        if self.is_stalled() {
            self.taken.set(self.taken.get().saturating_add(bytes));
            if self.taken.get() >= ENOUGH {
                self.taken.set(0);
                self.stand(Some(Phase::Stalled));
            }
        }
    }

    /// The client has received all bytes.
    fn has_taken_all(&self) {
        if self.is_stalled() {
            self.stand(self.phase.get());
        }
    }

    fn is_stalled(&self) -> bool {
        matches!(self.place.get(), Some((Phase::Stalled, _)))
    }

    fn is_ended(&self) -> bool {
        self.end.is_ended()
    }

    /// Registers the task. The call that closes the connection wakes it.
    fn waits(&self, cx: &Context<'_>) {
        self.end.waker.register(cx.waker());
    }

    fn enter(&self, phase: Option<Phase>) {
        self.phase.set(phase);
        if !self.is_stalled() {
            self.stand(phase);
        }
    }

    /// Enters a phase, as the newest connection in it.
    fn stand(&self, phase: Option<Phase>) {
        let mut table = self.all.table();
        if let Some((phase, place)) = self.place.get() {
            table.phases[phase as usize].remove(&place);
        }
        // A connection that is closing gets no new entry: it would be closed, and counted, again.
        self.place.set(phase.filter(|_| !self.is_ended()).map(|phase| {
            let place = table.next;
            table.next += 1;
            let entry = Entry { since: Instant::now(), end: Arc::clone(&self.end) };
            table.phases[phase as usize].insert(place, entry);
            (phase, place)
        }));
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.stand(None);
        let mut table = self.all.table();
        table.open -= 1;
        table.ending -= usize::from(self.end.is_counted.load(Ordering::Relaxed));
        self.all.note_fullness(&table);
    }
}

#[cfg(test)]
mod tests;
