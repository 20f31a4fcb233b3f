use serde::{Deserialize, Serialize};
use strum::{Display, EnumIter, EnumString, IntoStaticStr};
use utoipa::ToSchema;

use crate::{
    Base64Bytes, DeviceName, DeviceOf, MAX_RECIPIENTS, ReservationId, UserName, list_or_empty, objects_or_empty,
    schemas::{next_proof_digest_schema, proof_schema},
};

/// A Commit, with the Welcome for the devices that it adds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CommitRequest {
    /// The Commit, an `MLSMessage`.
    pub commit: Base64Bytes,
    /// The Welcome, an `MLSMessage`. The server queues it for the devices whose KeyPackages are spent.
    #[serde(default)]
    pub welcome: Option<Base64Bytes>,
    /// The proof that the caller is a member: the 32 bytes whose SHA-256 is `next_proof_digest` of the previous Commit.
    #[serde(default)]
    #[schema(schema_with = proof_schema)]
    pub proof: Option<Base64Bytes>,
    /// The SHA-256 of the `proof` that the next Commit has to show.
    #[serde(default)]
    #[schema(schema_with = next_proof_digest_schema)]
    pub next_proof_digest: Option<Base64Bytes>,
    /// The reservations whose KeyPackages are in the Commit, up to 1000. The server spends all of them, or refuses the
    /// Commit.
    #[serde(default, deserialize_with = "list_or_empty::<_, _, MAX_RECIPIENTS>")]
    #[schema(value_type = Option<Vec<ReservationId>>, max_items = 1000)]
    pub reservations: Vec<ReservationId>,
    /// The `bind` of each of the `reservations`, in their order. With them, the answer has a receipt of each spend.
    #[serde(
        default,
        deserialize_with = "list_or_empty::<_, _, MAX_RECIPIENTS>",
        skip_serializing_if = "Vec::is_empty"
    )]
    #[schema(value_type = Option<Vec<Base64Bytes>>, max_items = 1000)]
    pub binds: Vec<Base64Bytes>,
    /// The devices that get the Commit, up to 1000: the other members of the group.
    #[serde(default, deserialize_with = "objects_or_empty::<_, _, MAX_RECIPIENTS>")]
    #[schema(value_type = Option<Vec<DeviceOf>>, max_items = 1000)]
    pub recipients: Vec<DeviceOf>,
    /// The `GroupInfo` of the epoch after the Commit, an `MLSMessage` with the extensions `external_pub` and
    /// `ratchet_tree`: by it, a member that fell behind comes back while all others are offline. It shows the server the
    /// group's tree. Send it with `members`, or neither.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group_info: Option<Base64Bytes>,
    /// The devices in the group after the Commit, up to 1000, the caller included. They may read the `GroupInfo`.
    #[serde(
        default,
        deserialize_with = "objects_or_empty::<_, _, MAX_RECIPIENTS>",
        skip_serializing_if = "Vec::is_empty"
    )]
    #[schema(value_type = Option<Vec<DeviceOf>>, max_items = 1000)]
    pub members: Vec<DeviceOf>,
}

/// An accepted Commit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CommitResponse {
    /// The group's epoch after the Commit.
    #[schema(example = 8)]
    pub epoch: u64,
    /// The devices that do not get the Commit or the Welcome.
    pub undelivered: Vec<Undelivered>,
    /// Whether the server keeps the `group_info`. It keeps a limited number of bytes for each user.
    #[serde(default)]
    pub group_info_kept: bool,
    /// The receipts of the spends, if the request had `binds` (docs/transparency.md). A repetition gets none: ask `POST
    /// /log/proofs`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub receipts: Vec<SpendReceipt>,
}

/// What binds the server to a spend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SpendReceipt {
    /// The reservation that was spent.
    pub reservation_id: ReservationId,
    /// The receipt.
    pub receipt: String,
}

/// A device that does not get a message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Undelivered {
    /// The user.
    #[schema(example = "bob")]
    pub user: UserName,
    /// The device.
    #[schema(example = "phone")]
    pub device: DeviceName,
    /// The reason.
    pub reason: UndeliveredReason,
}

/// Why a device does not get a message.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Display, EnumIter, EnumString, IntoStaticStr, ToSchema,
)]
#[serde(rename_all = "kebab-case")]
#[strum(serialize_all = "kebab-case")]
pub enum UndeliveredReason {
    /// There is no such device.
    UnknownDevice,
    /// The device's queue is full: the device has not fetched its messages for long.
    QueueFull,
}
