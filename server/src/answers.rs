//! Memory limit for answers that are being sent: large answers share a bounded total.

pub(crate) mod send;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use keypool_openapi::ProblemType;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{connections::Connections, problem::Failure};

const KIB: usize = 1024;

/// Answers up to this size are not counted: the limit on connections bounds them.
pub(crate) const SMALL: usize = 64 * KIB;

/// The longest that an answer waits for memory, while the slowest readers are closed.
const PATIENCE: Duration = Duration::from_secs(5);

/// Interval at which a waiting answer checks for memory, and closes another slow reader.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// The memory for the answers of a server.
pub(crate) struct Answers {
    /// One permit for each KiB.
    room: Arc<Semaphore>,
    most: usize,
    /// The part of the memory that messages must leave to other answers.
    reserved: usize,
    connections: Arc<Connections>,
}

/// The memory of one answer, returned when this value is dropped.
#[derive(Debug)]
pub(crate) struct Room(OwnedSemaphorePermit);

impl Room {
    /// Returns the memory above this many bytes.
    pub(crate) fn shrink_to(&mut self, bytes: usize) {
        let more = self.0.num_permits().saturating_sub(bytes.div_ceil(KIB));
        drop(self.0.split(more));
    }
}

impl Answers {
    pub(crate) fn new(bytes: usize, connections: Arc<Connections>) -> Self {
        let kib = bytes / KIB;
        Self { room: Arc::new(Semaphore::new(kib)), most: kib * KIB, reserved: kib / 4, connections }
    }

    /// The memory that is taken now, in bytes.
    pub(crate) fn taken(&self) -> usize {
        self.most.saturating_sub(self.room.available_permits() * KIB)
    }

    /// Takes memory for reading, encoding and sending this many bytes of messages; `None` if there is too little now.
    pub(crate) fn for_messages(&self, bytes: usize) -> Option<Room> {
        // The rows, and their JSON in base64.
        let needed = if bytes > SMALL { (bytes * 5 / 2).div_ceil(KIB) } else { 0 };
        let room = Arc::clone(&self.room);
        if needed > 0 && room.available_permits() < needed + self.reserved {
            self.connections.end_a_stalled_one(Instant::now());
            return None;
        }
        room.try_acquire_many_owned(u32::try_from(needed).ok()?).ok().map(Room)
    }

    /// Waits for memory for this many bytes of messages, and closes slow readers meanwhile. `None` if there is too
    /// little after a while, or if the answer is no longer needed.
    pub(crate) async fn wait_for_messages(&self, bytes: usize, is_needed: impl Fn() -> bool) -> Option<Room> {
        let begun = Instant::now();
        while is_needed() && begun.elapsed() < PATIENCE {
            let room = self.for_messages(bytes);
            if room.is_some() {
                return room;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        None
    }

    /// Takes memory for an answer that already exists.
    pub(crate) fn for_answer(&self, bytes: usize) -> Option<Room> {
        let kib = u32::try_from(bytes.div_ceil(KIB)).ok()?;
        let room = Arc::clone(&self.room).try_acquire_many_owned(kib).ok();
        if room.is_none() {
            self.connections.end_a_stalled_one(Instant::now());
        }
        room.map(Room)
    }
}

pub(crate) fn no_room() -> Failure {
    Failure::new(
        ProblemType::Unavailable,
        "The server has too many large answers under way. Try again in a moment, or ask for less at a time.",
    )
}
