//! The way back into a group that a device has lost touch with.

use actix_web::{get, put, web};
use keypool_openapi::{
    GroupId, GroupInfoRequest, GroupInfoResponse, GroupList, GroupsQuery, KeptGroupInfo, ProblemType,
};

use crate::{
    auth::{Params, Signed},
    caller::Caller,
    problem::Failure,
    service::Service,
};

/// List the groups of the caller's user.
///
/// Lists the groups whose `group_info` is kept and in which devices of the caller's user are, ordered by id. A new device
/// asks the members of these groups to add it, by a proposal from outside (RFC 9420, section 12.1.8).
#[utoipa::path(
    tag = "groups",
    params(GroupsQuery),
    responses((status = 200, description = "The groups", body = GroupList))
)]
#[get("/groups")]
pub(crate) async fn list_groups(
    service: web::Data<Service>,
    caller: Caller,
    query: Params<GroupsQuery>,
) -> Result<web::Json<GroupList>, Failure> {
    Ok(web::Json(service.groups(caller, query.0).await?))
}

/// Read a group's `GroupInfo`.
///
/// For devices of users who have a device in the group. A device that fell behind makes an external Commit from it, which
/// removes its own old leaf (RFC 9420, section 12.4.3.2), and sends that to `POST /groups/{group_id}/commits`: nobody else
/// has to be online.
#[utoipa::path(
    tag = "groups",
    params(("group_id" = GroupId, Path, description = "The group")),
    responses((status = 200, description = "The `GroupInfo` of the group's epoch", body = GroupInfoResponse)),
    extensions(("x-problems" = json!([ProblemType::UnknownGroup])))
)]
#[get("/groups/{group_id}/info")]
pub(crate) async fn get_group_info(
    service: web::Data<Service>,
    caller: Caller,
    group_id: web::Path<GroupId>,
) -> Result<web::Json<GroupInfoResponse>, Failure> {
    Ok(web::Json(service.group_info(caller, group_id.into_inner()).await?))
}

/// Keep a group's `GroupInfo`.
///
/// For a group whose newest Commit brought none. A later Commit replaces it, or ends it if it brings none.
#[utoipa::path(
    tag = "groups",
    params(("group_id" = GroupId, Path, description = "The group")),
    request_body = GroupInfoRequest,
    responses((status = 200, description = "The `GroupInfo` is kept", body = KeptGroupInfo)),
    extensions(("x-problems" = json!([ProblemType::UnknownGroup, ProblemType::StaleEpoch])))
)]
#[put("/groups/{group_id}/info")]
pub(crate) async fn keep_group_info(
    service: web::Data<Service>,
    group_id: web::Path<GroupId>,
    Signed(caller, request): Signed<GroupInfoRequest>,
) -> Result<web::Json<KeptGroupInfo>, Failure> {
    Ok(web::Json(service.keep_group_info(caller, group_id.into_inner(), request).await?))
}
