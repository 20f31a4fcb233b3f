use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use strum::{Display, EnumIter, EnumString, IntoStaticStr};
use utoipa::{IntoParams, ToSchema};

use crate::{
    Base64Bytes, DeviceName, DeviceOf, MAX_ACKNOWLEDGED, MAX_RECIPIENTS, ReservationId, UserName, bounded,
    ids::{group_id_schema, proof_schema},
    whole_numbers,
};

/// A Commit, with the Welcome for those that it adds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CommitRequest {
    /// The Commit, an `MLSMessage`.
    pub commit: Base64Bytes,
    /// The Welcome, an `MLSMessage`, which goes to the devices whose KeyPackages are spent.
    #[serde(default)]
    pub welcome: Option<Base64Bytes>,
    /// That the caller is in the group: what `next_proof_digest` of the Commit before is the SHA-256 of. Left out where
    /// that had none. Where the server was restored from a backup and `stale-epoch` names an epoch before the Commit's: that
    /// of the epoch that it names, which lets the Commit skip up to 64 epochs.
    #[serde(default)]
    #[schema(schema_with = proof_schema)]
    pub proof: Option<Base64Bytes>,
    /// The SHA-256 of the `proof` that the next Commit has to show: of something that only members of the next epoch can
    /// know, such as 32 bytes of its exporter (RFC 9420, section 8.5). Left out, anybody who knows the group's id could
    /// take its next epoch.
    #[serde(default)]
    #[schema(schema_with = proof_schema)]
    pub next_proof_digest: Option<Base64Bytes>,
    /// The reservations whose KeyPackages are in the Commit, up to 1000. All are spent, or nothing happens.
    #[serde(default, deserialize_with = "bounded::<_, _, MAX_RECIPIENTS>")]
    #[schema(max_items = 1000)]
    pub reservations: Vec<ReservationId>,
    /// The devices that the Commit goes to, up to 1000: the group's other members.
    #[serde(default, deserialize_with = "bounded::<_, _, MAX_RECIPIENTS>")]
    #[schema(max_items = 1000)]
    pub recipients: Vec<DeviceOf>,
}

/// A Commit that is accepted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CommitResponse {
    /// The group's epoch now.
    #[schema(example = 8)]
    pub epoch: u64,
    /// The devices that it was not queued for.
    pub undelivered: Vec<Undelivered>,
}

/// A message to members of a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MessageRequest {
    /// The message, an `MLSMessage` with an application message or a proposal.
    pub message: Base64Bytes,
    /// The devices that it goes to, up to 1000.
    #[serde(deserialize_with = "bounded::<_, _, MAX_RECIPIENTS>")]
    #[schema(max_items = 1000)]
    pub recipients: Vec<DeviceOf>,
}

/// A message that is queued.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MessageResponse {
    /// The devices that it was not queued for.
    pub undelivered: Vec<Undelivered>,
}

/// A device that something was not queued for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Undelivered {
    /// The user.
    #[schema(example = "bob")]
    pub user: UserName,
    /// The device.
    #[schema(example = "phone")]
    pub device: DeviceName,
    /// Why.
    pub reason: UndeliveredReason,
}

/// Why something was not queued for a device.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Display, EnumIter, EnumString, IntoStaticStr, ToSchema,
)]
#[serde(rename_all = "kebab-case")]
#[strum(serialize_all = "kebab-case")]
pub enum UndeliveredReason {
    /// There is no such device.
    UnknownDevice,
    /// Its queue has no room: it has fetched nothing for long.
    QueueFull,
}

/// What to fetch of the caller's queue.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct MessagesQuery {
    /// How many seconds to wait for something, where there is nothing.
    #[param(nullable = false, maximum = 60, default = 0)]
    pub wait: Option<u32>,
    /// How many at most.
    #[param(nullable = false, minimum = 1, maximum = 1000, default = 100)]
    pub limit: Option<u32>,
    /// The `devices_version` of an earlier answer. Where it is another one by now, the call does not wait.
    #[param(nullable = false, minimum = 0)]
    pub devices_version: Option<u64>,
}

/// What waits for the caller.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MessagesPage {
    /// The oldest first; each is here until it is acknowledged.
    pub messages: Vec<QueuedMessage>,
    /// Another number whenever a device of the caller's user was registered, removed, or has changed its signature key.
    /// `GET /users/{user}/devices?removed=true` then says which: tell the person what differs.
    #[serde(default)]
    #[schema(example = 3)]
    pub devices_version: u64,
}

/// Something that waits for a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct QueuedMessage {
    /// Names it in an acknowledgement. Later ones have higher ids.
    #[schema(example = 4711)]
    pub id: u64,
    /// What it is.
    pub kind: MessageKind,
    /// The group that it is about.
    #[schema(schema_with = group_id_schema)]
    pub group_id: Base64Bytes,
    /// Who sent it, as the server knows; MLS says who signed it.
    pub from: DeviceOf,
    /// The `MLSMessage`, to the byte as it was sent; empty for `unreadable`.
    pub message: Base64Bytes,
    /// When it was sent.
    #[schema(value_type = String, format = DateTime)]
    pub sent_at: Timestamp,
}

/// What waits for a device.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Display, EnumIter, EnumString, IntoStaticStr, ToSchema,
)]
#[serde(rename_all = "kebab-case")]
#[strum(serialize_all = "kebab-case")]
pub enum MessageKind {
    /// A Welcome.
    Welcome,
    /// A Commit.
    Commit,
    /// An application message or a proposal.
    Message,
    /// The sender of this could not open the Welcome that the caller sent it: its private keys are gone.
    Unreadable,
}

/// What the caller has fetched and dealt with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AckRequest {
    /// These are done, up to 1000.
    #[serde(default, deserialize_with = "whole_numbers::<_, MAX_ACKNOWLEDGED>")]
    #[schema(max_items = 1000)]
    pub ids: Vec<u64>,
    /// These are done as well, and are Welcomes whose private keys are gone: their senders are told. Up to 1000.
    #[serde(default, deserialize_with = "whole_numbers::<_, MAX_ACKNOWLEDGED>")]
    #[schema(max_items = 1000)]
    pub unreadable: Vec<u64>,
}

/// What was acknowledged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AckResponse {
    /// How many left the queue by this call.
    #[schema(example = 3)]
    pub acknowledged: u64,
}
