//! A device's own queue.

use actix_web::{get, post, web};
use keypool_openapi::{AckRequest, AckResponse, MessagesPage, MessagesQuery};

use crate::{
    auth::{Caller, Params, Signed},
    pool::Pool,
    problem::Failure,
};

/// Fetch what waits for the caller.
///
/// The oldest first. Everything stays in the queue until it is acknowledged, so an answer that got lost is no loss. With
/// `wait`, an empty queue is answered when something comes, or the time is up.
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
) -> Result<web::Json<MessagesPage>, Failure> {
    Ok(web::Json(pool.messages(caller, query.0).await?))
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
