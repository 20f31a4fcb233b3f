//! Messages to the members of a group, and a device's own queue of them.

use std::rc::Rc;

use actix_web::{HttpRequest, HttpResponse, get, http::header::ContentType, post, web};
use keypool_openapi::{
    AckRequest, AckResponse, GroupId, MessageRequest, MessageResponse, MessagesPage, MessagesQuery, ProblemType,
};

use crate::{
    answers::send::Kept,
    auth::{Params, Signed},
    caller::Caller,
    connections::Connection,
    problem::Failure,
    service::{Fetched, Service},
};

/// Send a message to members of a group.
///
/// The server queues the message for the named devices, in the order of arrival. A repetition queues it again:
/// receivers notice by MLS that they had it.
#[utoipa::path(
    tag = "groups",
    params(("group_id" = GroupId, Path, description = "The group")),
    request_body = MessageRequest,
    responses((status = 200, description = "The message is queued", body = MessageResponse)),
    extensions(("x-problems" = json!([ProblemType::UnknownGroup, ProblemType::StaleEpoch])))
)]
#[post("/groups/{group_id}/messages")]
pub(crate) async fn send_message(
    service: web::Data<Service>,
    group_id: web::Path<GroupId>,
    Signed(caller, request): Signed<MessageRequest>,
) -> Result<web::Json<MessageResponse>, Failure> {
    Ok(web::Json(service.post(caller, group_id.into_inner(), request).await?))
}

/// Fetch the messages in the caller's queue.
///
/// Oldest first. A message stays in the queue until the caller acknowledges it, so the caller may repeat the call if
/// the answer got lost. With `wait` and an empty queue, the server answers when a message comes, or when the time is
/// up. A device has two of these calls at a time: a third one ends the oldest one with an empty page. When very many
/// devices wait, the server answers further ones at once.
#[utoipa::path(
    tag = "messages",
    params(MessagesQuery),
    responses((status = 200, description = "The messages; none if the queue is empty", body = MessagesPage))
)]
#[get("/messages")]
pub(crate) async fn fetch_messages(
    service: web::Data<Service>,
    caller: Caller,
    query: Params<MessagesQuery>,
    request: HttpRequest,
) -> Result<HttpResponse, Failure> {
    let connection = request.conn_data::<Rc<Connection>>();
    let end = connection.map(|connection| connection.end());
    let Fetched { page, mut room, fetch, is_turned_away } = service.messages(caller, query.0, end).await?;
    if is_turned_away {
        connection.inspect(|connection| connection.gives_way());
    }
    // The final size, so that the buffer is not copied while it grows.
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

/// Acknowledge messages that the caller has fetched and processed.
///
/// The server removes them from the queue. It ignores ids that are not in the caller's queue, so the caller may repeat
/// the call. The sender of a refused Welcome or Commit gets a notice with the reason in its own queue, and can remove
/// the device and invite it again.
#[utoipa::path(
    tag = "messages",
    request_body = AckRequest,
    responses((status = 200, description = "The number of removed messages", body = AckResponse))
)]
#[post("/messages/ack")]
pub(crate) async fn acknowledge_messages(
    service: web::Data<Service>,
    Signed(caller, request): Signed<AckRequest>,
) -> Result<web::Json<AckResponse>, Failure> {
    Ok(web::Json(service.acknowledge(caller, request).await?))
}
