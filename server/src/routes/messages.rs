//! A device's own queue.

use std::rc::Rc;

use actix_web::{HttpRequest, HttpResponse, get, http::header::ContentType, post, web};
use keypool_openapi::{AckRequest, AckResponse, MessagesPage, MessagesQuery, ProblemType};

use crate::{
    answers::Kept,
    auth::{Caller, Params, Signed},
    connections::Connection,
    pool::{Fetched, Pool},
    problem::Failure,
};

/// Fetch what waits for the caller.
///
/// The oldest first. Everything stays in the queue until it is acknowledged, so an answer that got lost is no loss. With
/// `wait`, an empty queue is answered when something comes, or the time is up. A device has two of these calls at a time: a
/// third one ends the oldest, which is answered an empty page. Where very many devices wait, further ones are answered at once.
#[utoipa::path(
    tag = "messages",
    params(MessagesQuery),
    responses((status = 200, description = "What waits, perhaps nothing", body = MessagesPage))
)]
#[get("/messages")]
pub(crate) async fn fetch(
    pool: web::Data<Pool>,
    caller: Caller,
    query: Params<MessagesQuery>,
    request: HttpRequest,
) -> Result<HttpResponse, Failure> {
    let connection = request.conn_data::<Rc<Connection>>();
    let end = connection.map(|connection| connection.end());
    let Fetched { page, mut room, fetch, is_turned_away } = pool.messages(caller, query.0, end).await?;
    if is_turned_away {
        connection.inspect(|connection| connection.gives_way());
    }
    // As large as it will be, so that it is not copied while it grows.
    let size = page.messages.iter().map(|one| one.message.0.len() / 3 * 4 + 1024).sum::<usize>() + 256;
    let mut body = Vec::with_capacity(size);
    serde_json::to_writer(&mut body, &page).map_err(|error| {
        tracing::error!(%error, "messages cannot be written as JSON");
        Failure::new(ProblemType::Internal, "The messages cannot be written as JSON; the server's log says why.")
    })?;
    drop(page);
    if let Some(room) = &mut room {
        room.shrink_to(body.len());
    }
    let mut response = HttpResponse::Ok().content_type(ContentType::json()).body(body);
    response.extensions_mut().insert(Kept(Box::new((room, fetch))));
    Ok(response)
}

/// Acknowledge what was fetched and dealt with.
///
/// It leaves the queue. Ids that are not in the caller's queue are passed over, so it may be repeated. The sender of a
/// Welcome that is `unreadable` finds a note about it in its own queue, and can remove the device and invite it again.
#[utoipa::path(
    tag = "messages",
    request_body = AckRequest,
    responses((status = 200, description = "How many left the queue", body = AckResponse))
)]
#[post("/messages/ack")]
pub(crate) async fn acknowledge(
    pool: web::Data<Pool>,
    Signed(caller, request): Signed<AckRequest>,
) -> Result<web::Json<AckResponse>, Failure> {
    Ok(web::Json(pool.acknowledge(caller, request).await?))
}
