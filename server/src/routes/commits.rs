//! The commit fence.

use actix_web::{post, web};
use keypool_openapi::{CommitRequest, CommitResponse, GroupId, ProblemType};

use crate::{auth::Signed, problem::Failure, service::Service};

/// Send a Commit to a group.
///
/// In one transaction, the server accepts the Commit as the next one of the group's epoch, spends the KeyPackages that
/// it uses, and queues the Commit for the members and the Welcome for the added devices. If another Commit took the
/// epoch before, or a reservation cannot be spent, nothing changes: clear the Commit, and make another one. Merge a
/// Commit only after the answer 200.
///
/// A Commit can require from the next one a `proof` that only members can know, so that nobody else takes an epoch.
///
/// The first Commit of a group sets the group's epoch. A repetition of an accepted Commit gets the same answer, and
/// delivers nothing twice: repeat it if the answer got lost. The server reads the group, the epoch and the kind of a
/// message, and keeps no list of members.
#[utoipa::path(
    tag = "groups",
    params(("group_id" = GroupId, Path, description = "The group")),
    request_body = CommitRequest,
    responses((status = 200, description = "The Commit is accepted", body = CommitResponse)),
    extensions(("x-problems" = json!([
        ProblemType::StaleEpoch,
        ProblemType::ReservationLapsed,
        ProblemType::QueueFull,
        ProblemType::AlreadySpent,
        ProblemType::NotYourReservation,
        ProblemType::UnknownReservation,
    ])))
)]
#[post("/groups/{group_id}/commits")]
pub(crate) async fn send_commit(
    service: web::Data<Service>,
    group_id: web::Path<GroupId>,
    Signed(caller, request): Signed<CommitRequest>,
) -> Result<web::Json<CommitResponse>, Failure> {
    Ok(web::Json(service.commit(caller, group_id.into_inner(), request).await?))
}
