//! Groups: the commit fence, and messages to their members.

use actix_web::{post, web};
use keypool_openapi::{CommitRequest, CommitResponse, GroupId, MessageRequest, MessageResponse};

use crate::{auth::Signed, pool::Pool, problem::Failure};

/// Commit to a group.
///
/// In one step: the Commit takes the group's epoch, the KeyPackages that it uses are spent, and it is queued for the
/// members, and the Welcome for the devices that it adds. Where another Commit took the epoch before, or a reservation
/// cannot be spent, nothing of it happens: clear the Commit, and make another. Merge it only after this has answered 200.
///
/// A Commit can ask the next one for a `proof` that only members can know, so that nobody else takes an epoch.
///
/// The first Commit of a group says in which epoch the group is. Repeating a Commit that was accepted is answered the
/// same, and delivers nothing twice: ask so when an answer got lost. The server reads the group, the epoch and the kind
/// of a message, and keeps no members.
#[utoipa::path(
    tag = "groups",
    params(("group_id" = GroupId, Path, description = "The group")),
    request_body = CommitRequest,
    responses((status = 200, description = "The Commit counts", body = CommitResponse)),
    extensions(("x-problems" = json!(["stale-epoch", "reservation-lapsed", "queue-full", "already-spent", "not-your-reservation", "unknown-reservation"])))
)]
#[post("/groups/{group_id}/commits")]
pub(crate) async fn commit(
    pool: web::Data<Pool>,
    group_id: web::Path<GroupId>,
    Signed(caller, request): Signed<CommitRequest>,
) -> Result<web::Json<CommitResponse>, Failure> {
    Ok(web::Json(pool.commit(caller, group_id.into_inner(), request).await?))
}

/// Send a message to members of a group.
///
/// Queued for the devices that are named, in the order in which messages come. Repeating it queues it again: receivers
/// know by MLS that they had it.
#[utoipa::path(
    tag = "groups",
    params(("group_id" = GroupId, Path, description = "The group")),
    request_body = MessageRequest,
    responses((status = 200, description = "It is queued", body = MessageResponse)),
    extensions(("x-problems" = json!(["unknown-group"])))
)]
#[post("/groups/{group_id}/messages")]
pub(crate) async fn send(
    pool: web::Data<Pool>,
    group_id: web::Path<GroupId>,
    Signed(caller, request): Signed<MessageRequest>,
) -> Result<web::Json<MessageResponse>, Failure> {
    Ok(web::Json(pool.post(caller, group_id.into_inner(), request).await?))
}
