use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{KeyPackageRef, MAX_REVOCATIONS, PoolStatus, State, optional_list};

/// Which KeyPackages of the caller's own pool to revoke: `refs` or `all`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RevokeRequest {
    /// The refs of the KeyPackages to revoke, up to 1000.
    #[serde(
        default,
        deserialize_with = "optional_list::<_, _, MAX_REVOCATIONS>",
        skip_serializing_if = "Option::is_none"
    )]
    #[schema(min_items = 1, max_items = 1000)]
    pub refs: Option<Vec<KeyPackageRef>>,
    /// If true, revoke every KeyPackage that is available or reserved, the last resort included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = true)]
    pub all: Option<bool>,
}

/// The result of a revocation.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct RevokeResponse {
    /// The KeyPackages that this call revoked.
    pub revoked: Vec<KeyPackageRef>,
    /// The KeyPackages whose life had ended before, with their state.
    pub ended: Vec<EndedKeyPackage>,
    /// The refs that are not in the caller's pool.
    pub unknown: Vec<KeyPackageRef>,
    /// The pool after the revocation.
    pub pool: PoolStatus,
}

/// A KeyPackage that can never be handed out again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EndedKeyPackage {
    /// The KeyPackage's ref.
    pub keypackage_ref: KeyPackageRef,
    /// Its final state.
    pub state: State,
}
