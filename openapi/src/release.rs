use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{KeyPackageRef, ReservationId, State};

/// A reservation that the adder does not need.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ReleaseRequest {
    /// The reservation.
    pub reservation_id: ReservationId,
}

/// A released KeyPackage.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ReleaseResponse {
    /// The KeyPackage's ref.
    pub keypackage_ref: KeyPackageRef,
    /// `available`; `retired` on a server that hands out each KeyPackage only once; `revoked` or `expired` if that
    /// happened before.
    pub state: State,
}
