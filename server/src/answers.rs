//! Answers under way: large ones share a room that is bounded, and each goes out in pieces, as fast as its client takes them.

use std::{
    any::Any,
    convert::Infallible,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use actix_web::{
    Error,
    body::{BodySize, BoxBody, MessageBody},
    dev::{ServiceRequest, ServiceResponse},
    http::{ConnectionType, header},
    middleware::Next,
    web::{self, Bytes},
};
use keypool_openapi::ProblemType;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{
    connections::{Connection, Connections},
    problem::Failure,
};

const KIB: usize = 1024;

/// So much of an answer is copied for its connection at a time. The rest of it is shared, or counted.
pub(crate) const PIECE: usize = 16 * KIB;

/// Answers up to this size are not counted: they are bounded with the connections.
const SMALL: usize = 64 * KIB;

/// How long an answer waits for room, while the slowest readers are cut off for it.
const PATIENCE: Duration = Duration::from_secs(5);

/// How often it looks whether there is room, and cuts another one off.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Room for the answers of a server.
pub(crate) struct Answers {
    /// By KiB.
    room: Arc<Semaphore>,
    /// What is left of it for other answers than messages.
    reserved: usize,
    connections: Arc<Connections>,
}

/// Room that an answer has, until this is dropped.
#[derive(Debug)]
pub(crate) struct Room(OwnedSemaphorePermit);

impl Room {
    /// Gives back what is more than so many bytes.
    pub(crate) fn shrink_to(&mut self, bytes: usize) {
        let more = self.0.num_permits().saturating_sub(bytes.div_ceil(KIB));
        drop(self.0.split(more));
    }
}

/// What an answer holds until it is sent.
pub(crate) struct Kept(#[expect(dead_code, reason = "it is kept to be dropped")] pub Box<dyn Any>);

/// Marks the answer whose bytes all requests share: it takes no room of its own.
pub(crate) struct Shared;

impl Answers {
    pub(crate) fn new(bytes: usize, connections: Arc<Connections>) -> Self {
        let kib = bytes / KIB;
        Self { room: Arc::new(Semaphore::new(kib)), reserved: kib / 4, connections }
    }

    /// Room for messages of so many bytes while they are read, written as JSON, and sent; `None` where there is none now.
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

    /// Waits for room for messages of so many bytes, while who does not take an answer is cut off for it. `None` where there is
    /// none after a while, or nobody needs it any longer.
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

    /// Room for an answer that is there.
    fn for_answer(&self, bytes: usize) -> Option<Room> {
        let kib = u32::try_from(bytes.div_ceil(KIB)).ok()?;
        let room = Arc::clone(&self.room).try_acquire_many_owned(kib).ok();
        if room.is_none() {
            self.connections.end_a_stalled_one(Instant::now());
        }
        room.map(Room)
    }
}

/// Tells the connection what becomes of its request, and sends the answer in pieces.
pub(crate) async fn send(
    answers: web::Data<Answers>,
    request: ServiceRequest,
    next: Next<BoxBody>,
) -> Result<ServiceResponse<BoxBody>, Error> {
    let under_way = UnderWay::begin(&request);
    let mut response = next.call(request).await?;
    if under_way.0.as_ref().is_some_and(|connection| connection.must_close()) {
        response.response_mut().head_mut().set_connection_type(ConnectionType::Close);
    }
    let (is_shared, kept) = {
        let mut extensions = response.response_mut().extensions_mut();
        (extensions.remove::<Shared>().is_some(), extensions.remove::<Kept>())
    };
    let BodySize::Sized(bytes) = response.response().body().size() else { return Ok(response) };
    let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
    let needs_room = bytes > SMALL && !is_shared && kept.is_none();
    let room = if needs_room { answers.for_answer(bytes) } else { None };
    if needs_room && room.is_none() {
        return Ok(response.error_response(no_room()).map_body(|_, body| pieces(body, (None, None, under_way))));
    }
    Ok(response.map_body(|_, body| pieces(body, (room, kept, under_way))))
}

pub(crate) fn no_room() -> Failure {
    Failure::new(
        ProblemType::Unavailable,
        "The server has too many large answers under way. Try again in a moment, or ask for less at a time.",
    )
}

/// A request whose answer is not yet on its way as a whole.
struct UnderWay(Option<Rc<Connection>>);

impl UnderWay {
    fn begin(request: &ServiceRequest) -> Self {
        let connection = request.conn_data::<Rc<Connection>>().cloned();
        if let Some(connection) = &connection {
            let has_length = request.headers().get(header::CONTENT_LENGTH).is_some_and(|length| length != "0");
            connection.begins(has_length || request.headers().contains_key(header::TRANSFER_ENCODING));
        }
        Self(connection)
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        if let Some(connection) = &self.0 {
            connection.answered();
        }
    }
}

/// The body of an answer, a piece at a time.
struct Pieces {
    bytes: Bytes,
    /// Of the whole.
    size: u64,
    _holds: (Option<Room>, Option<Kept>, UnderWay),
}

fn pieces(body: BoxBody, holds: (Option<Room>, Option<Kept>, UnderWay)) -> BoxBody {
    match body.try_into_bytes() {
        Ok(bytes) => Pieces { size: bytes.len() as u64, bytes, _holds: holds }.boxed(),
        // No route makes such a body; it would come through as it is.
        Err(body) => body,
    }
}

impl MessageBody for Pieces {
    type Error = Infallible;

    fn size(&self) -> BodySize {
        BodySize::Sized(self.size)
    }

    fn poll_next(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Bytes, Infallible>>> {
        if self.bytes.is_empty() {
            return Poll::Ready(None);
        }
        let piece = self.bytes.len().min(PIECE);
        Poll::Ready(Some(Ok(self.bytes.split_to(piece))))
    }
}
