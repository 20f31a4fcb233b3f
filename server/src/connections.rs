//! The connections of clients, so that none of them keeps others out: how many there are, and which is ended first where
//! room is needed.

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

/// How long a connection without a request is kept: longer than what balances the load keeps its own, commonly 60 s, so
/// that it never sends a request into a connection that is just being closed.
pub(crate) const KEEP_ALIVE: Duration = Duration::from_secs(75);

/// How long a client may take for the head of a request.
pub(crate) const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a client may take for [`ENOUGH`] of what is sent to it.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// A client that takes so many bytes within [`WRITE_TIMEOUT`] is not a slow reader: 6 kB a second.
const ENOUGH: usize = 64 * 1024;

/// The same where others need the room: who takes 64 kB a second, or asks for something, is not ended for them as long as there is
/// somebody else.
const TIMEOUT_IN_NEED: Duration = Duration::from_secs(1);

/// How long a connection of a device may go on asking where others wait for a place: then it ends with its next answer. One that
/// has shown no valid token goes after [`TIMEOUT_IN_NEED`].
const TURN: Duration = Duration::from_mins(1);

/// If others need the room, an eighth of all connections is ended in a second, or this number if it is larger.
const LEAST_PACE: usize = 256;

/// How often overdue connections are ended: often, so that few are replaced at the same moment, which delays all requests.
const LOOK_EVERY: Duration = Duration::from_millis(50);
const LOOKS_A_SECOND: usize = 20;

/// What a connection may be in the middle of, where it may be ended; while a request is answered, it is in none of these.
/// In this order connections are ended where room for another one is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// It has no request.
    Idle,
    /// The head of a request is coming.
    Head,
    /// The body of a request is coming.
    Body,
    /// Its client does not take what is sent.
    Stalled,
}

impl Phase {
    const ALL: [Self; 4] = [Self::Idle, Self::Head, Self::Body, Self::Stalled];

    /// How long a connection may be in it. actix-web and `auth::extract` have shorter times for most of these, and then answer;
    /// they have none for the head of a second request, nor for what is sent.
    fn limit(self) -> Duration {
        match self {
            Self::Idle => KEEP_ALIVE + HEAD_TIMEOUT,
            Self::Head => HEAD_TIMEOUT + Duration::from_secs(2),
            Self::Body => Duration::from_secs(30),
            Self::Stalled => WRITE_TIMEOUT,
        }
    }
}

/// All connections of a server.
pub(crate) struct Connections {
    table: Mutex<Table>,
    /// Whether there are as many as there may be, as of the last change of the table.
    is_full: AtomicBool,
    /// How many connections may still be ended for others until it is looked at again.
    pace: AtomicUsize,
    most: usize,
    most_stalled: usize,
}

#[derive(Default)]
struct Table {
    open: usize,
    /// Those of them that are told to end, and have not yet done so.
    ending: usize,
    next: u64,
    /// By phase, the longest in it first.
    phases: [BTreeMap<u64, Entry>; 4],
}

struct Entry {
    since: Instant,
    end: Arc<End>,
}

/// Ends a connection from anywhere.
#[derive(Debug, Default)]
pub(crate) struct End {
    is_ended: AtomicBool,
    /// Whether the table counts it among those that end.
    is_counted: AtomicBool,
    waker: AtomicWaker,
}

impl End {
    /// The next thing that its task does with the connection fails, and it does so at once.
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

    /// Counts a connection that was just made. Where there are too many, `end_overdue` makes room; until then, new ones wait to be
    /// accepted, as `serve` has it.
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

    /// Ends the connection whose client has taken too little of what is sent to it for the longest, if there is one.
    pub(crate) fn end_a_stalled_one(&self, now: Instant) -> bool {
        self.table().end_first(&[Phase::Stalled], (now, TIMEOUT_IN_NEED))
    }

    /// Ends what has lasted too long. Where there is no room for others, that is a second, and only so many are ended as are needed,
    /// at a pace: to end and accept connections takes time from those who are served.
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

    /// Ends what has lasted too long, for ever.
    pub(crate) async fn watch(self: Arc<Self>) {
        let mut ticks = tokio::time::interval(LOOK_EVERY);
        loop {
            ticks.tick().await;
            self.end_overdue(Instant::now());
        }
    }

    /// Whether one more connection may be ended for others now.
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
    /// Ends the first connection that is in one of these phases for so long by now; answers whether there was one.
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

/// One connection, as its task has it.
pub(crate) struct Connection {
    all: Arc<Connections>,
    end: Arc<End>,
    /// What it is in the middle of, whether or not its client takes what is sent.
    phase: Cell<Option<Phase>>,
    /// Where it stands in the table.
    place: Cell<Option<(Phase, u64)>>,
    /// Bytes that came since the last request began.
    received: Cell<usize>,
    /// Bytes that its client has taken since it stalled.
    taken: Cell<usize>,
    has_unread_body: Cell<bool>,
    opened: Instant,
    /// How long it may go on asking where others wait for a place.
    turn: Cell<Duration>,
    is_closing: Cell<bool>,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("phase", &self.phase).field("place", &self.place).finish_non_exhaustive()
    }
}

impl Connection {
    /// A request begins. Until [`Self::answered`], nothing but a stalled client ends the connection.
    pub(crate) fn begins(&self, has_body: bool) {
        self.received.set(0);
        self.has_unread_body.set(has_body);
        self.enter(None);
    }

    /// The request's body is waited for.
    pub(crate) fn reads_body(&self) {
        self.enter(Some(Phase::Body));
        self.end.waker.wake();
    }

    /// The request's body has come, as a whole.
    pub(crate) fn has_body(&self) {
        self.has_unread_body.set(false);
        self.enter(None);
    }

    /// A device has shown its token.
    pub(crate) fn is_a_devices(&self) {
        self.turn.set(TURN);
    }

    /// What was asked for could not be waited for: its place is for others, if they need one.
    pub(crate) fn gives_way(&self) {
        self.turn.set(Duration::ZERO);
    }

    /// Whether the connection ends with this request: since nobody reads its body, or since others wait for its place.
    pub(crate) fn must_close(&self) -> bool {
        let has_had_its_turn = || self.all.is_full.load(Ordering::Relaxed) && self.opened.elapsed() >= self.turn.get();
        let must = self.is_closing.get() || self.has_unread_body.get() || has_had_its_turn() && self.all.keeps_pace();
        self.is_closing.set(must);
        self.is_closing.get()
    }

    /// All of the answer is on its way, or will never be.
    pub(crate) fn answered(&self) {
        self.received.set(0);
        self.enter(Some(Phase::Idle));
        self.end.waker.wake();
    }

    /// What ends the connection from another task.
    pub(crate) fn end(&self) -> Arc<End> {
        Arc::clone(&self.end)
    }

    /// Bytes have come.
    fn receives(&self, bytes: usize) {
        self.received.set(self.received.get().saturating_add(bytes));
        if bytes > 0 && self.phase.get() == Some(Phase::Idle) {
            self.enter(Some(Phase::Head));
        }
    }

    /// The client does not take what is sent.
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

    /// The client has taken some of what is sent.
    fn takes(&self, bytes: usize) {
        if self.is_stalled() {
            self.taken.set(self.taken.get().saturating_add(bytes));
            if self.taken.get() >= ENOUGH {
                self.taken.set(0);
                self.stand(Some(Phase::Stalled));
            }
        }
    }

    /// The client has taken all that is sent.
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

    /// Where its task waits, it is woken when the connection ends.
    fn waits(&self, cx: &Context<'_>) {
        self.end.waker.register(cx.waker());
    }

    fn enter(&self, phase: Option<Phase>) {
        self.phase.set(phase);
        if !self.is_stalled() {
            self.stand(phase);
        }
    }

    /// Goes to the end of those in this phase.
    fn stand(&self, phase: Option<Phase>) {
        let mut table = self.all.table();
        if let Some((phase, place)) = self.place.get() {
            table.phases[phase as usize].remove(&place);
        }
        // One that ends comes to no other place: it would be ended, and counted, again.
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
