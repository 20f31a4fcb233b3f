//! Sends answers in pieces at the client's speed, and reports the progress of requests to their connection.

use std::{
    any::Any,
    convert::Infallible,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
};

use actix_web::{
    Error,
    body::{BodySize, BoxBody, MessageBody},
    dev::{ServiceRequest, ServiceResponse},
    http::{ConnectionType, header},
    middleware::Next,
    web::{self, Bytes},
};

use super::{Answers, Room, SMALL, no_room};
use crate::connections::Connection;

/// Size of a piece in bytes. Only this much of an answer is copied for its connection; the rest is shared or counted.
pub(crate) const PIECE: usize = 16 * 1024;

/// A value that must live until the answer is sent.
pub(crate) struct Kept(#[expect(dead_code, reason = "it is kept to be dropped")] pub Box<dyn Any>);

/// Marks an answer whose bytes all requests share: it needs no memory permit.
pub(crate) struct Shared;

/// Reports the progress of the request to its connection, and sends the answer in pieces.
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

/// A request whose answer has not been handed over in full.
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

/// The body of an answer, sent in pieces.
struct Pieces {
    bytes: Bytes,
    /// Bytes of the whole body.
    size: u64,
    _holds: (Option<Room>, Option<Kept>, UnderWay),
}

fn pieces(body: BoxBody, holds: (Option<Room>, Option<Kept>, UnderWay)) -> BoxBody {
    match body.try_into_bytes() {
        Ok(bytes) => Pieces { size: bytes.len() as u64, bytes, _holds: holds }.boxed(),
        // No route returns such a body; it would be sent unchanged.
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
