use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    Base64Bytes, KeyPackageRef, Proof, ReservationId, State, or_default,
    schemas::{bind_schema, group_id_schema},
};

/// A reservation whose KeyPackage is now in a Commit.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SpendRequest {
    /// The reservation.
    pub reservation_id: ReservationId,
    /// The group of the Commit.
    #[schema(schema_with = group_id_schema)]
    pub group_id: Base64Bytes,
    /// The `bind` of the reserve.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(schema_with = bind_schema)]
    pub bind: Option<Base64Bytes>,
    /// What the caller wants to get that binds the server to this spend.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Proof::is_none")]
    #[schema(value_type = Option<Proof>)]
    pub proof: Proof,
}

impl SpendRequest {
    /// A spend without `bind` and receipt.
    #[must_use]
    pub fn new(reservation_id: ReservationId, group_id: Base64Bytes) -> Self {
        Self { reservation_id, group_id, bind: None, proof: Proof::None }
    }
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
    /// The number of the hand-out under which the spend is logged: a late spend is one more hand-out. `null` for a last resort, and
    /// in the answer to a repetition.
    #[serde(default)]
    #[schema(example = 0)]
    pub handout: Option<u32>,
    /// The receipt, if the request asked for one. A repetition gets none: ask `POST /log/proofs`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub receipt: Option<String>,
}
