//! The way back into a group: what a device reads of a group that it has lost touch with.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::{
    Base64Bytes, DeviceOf, GroupId, MAX_RECIPIENTS, objects,
    schemas::{group_id_schema, proof_schema},
};

/// A group's `GroupInfo` for its current epoch, for a group whose last Commit brought none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct GroupInfoRequest {
    /// The `GroupInfo`, an `MLSMessage` (RFC 9420, section 12.4.3). It has the extensions `external_pub` and
    /// `ratchet_tree`.
    pub group_info: Base64Bytes,
    /// The devices in the group, up to 1000, the caller included.
    #[serde(deserialize_with = "objects::<_, _, MAX_RECIPIENTS>")]
    #[schema(max_items = 1000)]
    pub members: Vec<DeviceOf>,
    /// The proof that the next Commit has to show.
    #[serde(default)]
    #[schema(schema_with = proof_schema)]
    pub proof: Option<Base64Bytes>,
}

/// What a device needs to come back into a group by an external Commit (RFC 9420, section 12.4.3.2).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GroupInfoResponse {
    /// The epoch that the group is in.
    #[schema(example = 8)]
    pub epoch: u64,
    /// The `GroupInfo` of this epoch, an `MLSMessage`.
    pub group_info: Base64Bytes,
    /// The devices in the group.
    pub members: Vec<DeviceOf>,
}

/// The stored `GroupInfo`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct KeptGroupInfo {
    /// The epoch of the `GroupInfo`.
    #[schema(example = 8)]
    pub epoch: u64,
}

/// Which groups to list.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct GroupsQuery {
    /// The `next` of an earlier answer.
    #[param(nullable = false)]
    pub after: Option<GroupId>,
}

/// A group in which devices of the caller's user are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ListedGroup {
    /// The group.
    #[schema(schema_with = group_id_schema)]
    pub group_id: Base64Bytes,
    /// The epoch that the group is in.
    #[schema(example = 8)]
    pub epoch: u64,
    /// Whether the caller itself is among the devices in the group.
    pub listed: bool,
}

/// A page of groups.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GroupList {
    /// The groups, in the order of their ids.
    pub groups: Vec<ListedGroup>,
    /// Where the next page begins; absent on the last one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub next: Option<GroupId>,
}
