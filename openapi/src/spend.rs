use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{Base64Bytes, KeyPackageRef, ReservationId, State, schemas::group_id_schema};

/// A reservation whose KeyPackage is now in a Commit.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SpendRequest {
    /// The reservation.
    pub reservation_id: ReservationId,
    /// The group of the Commit.
    #[schema(schema_with = group_id_schema)]
    pub group_id: Base64Bytes,
}

/// A spent KeyPackage.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct SpendResponse {
    /// The KeyPackage's ref.
    pub keypackage_ref: KeyPackageRef,
    /// `spent`; `available` for a last resort, which is never used up.
    pub state: State,
    /// When the reservation was first spent.
    #[schema(value_type = String, format = DateTime)]
    pub spent_at: Timestamp,
}
