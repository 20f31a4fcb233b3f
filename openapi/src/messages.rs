use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use strum::{Display, EnumIter, EnumString, IntoStaticStr};
use utoipa::{IntoParams, ToSchema};

use crate::{
    Base64Bytes, DeviceOf, MAX_ACKNOWLEDGED, MAX_RECIPIENTS, Undelivered, objects, objects_or_empty,
    schemas::group_id_schema, signed_number, whole, whole_numbers,
};

/// A message to members of a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MessageRequest {
    /// The message: an `MLSMessage` with an application message or a proposal.
    pub message: Base64Bytes,
    /// The devices that get the message, up to 1000.
    #[serde(deserialize_with = "objects::<_, _, MAX_RECIPIENTS>")]
    #[schema(max_items = 1000)]
    pub recipients: Vec<DeviceOf>,
    /// The epoch in which the group has to be. If it has left this epoch, the server queues nothing and answers
    /// `stale-epoch`: members who have applied the newest Commit may not be able to read the message any more.
    #[serde(default, deserialize_with = "whole", skip_serializing_if = "Option::is_none")]
    #[schema(example = 8)]
    pub expected_epoch: Option<u64>,
}

/// A queued message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MessageResponse {
    /// The devices that do not get the message.
    pub undelivered: Vec<Undelivered>,
}

/// How to fetch the caller's queue.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct MessagesQuery {
    /// How many seconds to wait for a message if the queue is empty.
    #[param(nullable = false, maximum = 60, default = 0)]
    pub wait: Option<u32>,
    /// The most messages to answer.
    #[param(nullable = false, minimum = 1, maximum = 1000, default = 100)]
    pub limit: Option<u32>,
    /// The `devices_version` of an earlier answer. If the number has changed, the call does not wait.
    #[param(nullable = false, minimum = 0)]
    pub devices_version: Option<u64>,
}

/// A page of the caller's queue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MessagesPage {
    /// The messages, oldest first. Each stays in the queue until the caller acknowledges it.
    pub messages: Vec<QueuedMessage>,
    /// A number that changes when a device of the caller's user is registered, is removed, or changes its signature key.
    /// `GET /users/{user}/devices?removed=true` then lists the devices: tell the person what differs.
    #[serde(default)]
    #[schema(example = 3)]
    pub devices_version: u64,
}

/// A message in a device's queue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct QueuedMessage {
    /// Names the message in an acknowledgement. Later messages have higher ids.
    #[schema(example = 4711)]
    pub id: u64,
    /// The kind of message.
    pub kind: MessageKind,
    /// The message's group.
    #[schema(schema_with = group_id_schema)]
    pub group_id: Base64Bytes,
    /// The sender as the server knows it; MLS shows who signed the message.
    pub from: DeviceOf,
    /// The `MLSMessage`, with the bytes that were sent; empty for `unreadable`.
    pub message: Base64Bytes,
    /// What could not be used, and why; only in an `unreadable`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub refusal: Option<Refusal>,
    /// When the message was sent.
    #[schema(value_type = String, format = DateTime)]
    pub sent_at: Timestamp,
}

/// The kind of a queued message.
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
    /// A notice: the sender could not use a Welcome, Commit or message of the caller, see `refusal`.
    Unreadable,
}

/// What a device could not use, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Refusal {
    /// The kind of message: `welcome`, `commit` or `message`.
    #[schema(example = "commit")]
    pub about: MessageKind,
    /// The reason.
    pub reason: RefusalReason,
}

/// Why a device could not use a Welcome, a Commit or a message.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Display, EnumIter, EnumString, IntoStaticStr, ToSchema,
)]
#[serde(rename_all = "kebab-case")]
#[strum(serialize_all = "kebab-case")]
pub enum RefusalReason {
    /// The private keys are gone: those of the Welcome's KeyPackage, or those of the group.
    KeysGone,
    /// The device's MLS library does not support something in it, for example an extension or a kind of proposal.
    Unsupported,
    /// A leaf node in it does not belong to the device that it names.
    NotTrusted,
    /// It cannot be decrypted, or breaks a rule of RFC 9420.
    Invalid,
}

/// The messages that the caller has fetched and processed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AckRequest {
    /// Ids of processed messages, up to 1000.
    #[serde(default, deserialize_with = "whole_numbers::<_, MAX_ACKNOWLEDGED>")]
    #[schema(value_type = Option<Vec<u64>>, max_items = 1000)]
    pub ids: Vec<u64>,
    /// Ids of Welcomes whose private keys are gone, up to 1000: the same as `refused` with the reason `keys-gone`.
    #[serde(default, deserialize_with = "whole_numbers::<_, MAX_ACKNOWLEDGED>")]
    #[schema(value_type = Option<Vec<u64>>, max_items = 1000)]
    pub unreadable: Vec<u64>,
    /// Messages that the caller cannot use, up to 1000. The server removes them, too, and tells their senders the reason:
    /// of application messages, once for each sender and group in an acknowledgement.
    #[serde(
        default,
        deserialize_with = "objects_or_empty::<_, _, MAX_ACKNOWLEDGED>",
        skip_serializing_if = "Vec::is_empty"
    )]
    #[schema(value_type = Option<Vec<RefusedMessage>>, max_items = 1000)]
    pub refused: Vec<RefusedMessage>,
}

/// A message that the caller cannot use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RefusedMessage {
    /// Its id.
    #[serde(deserialize_with = "signed_number")]
    #[schema(example = 4711)]
    pub id: u64,
    /// Why.
    pub reason: RefusalReason,
}

/// The result of an acknowledgement.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AckResponse {
    /// How many messages this call removed from the queue.
    #[schema(example = 3)]
    pub acknowledged: u64,
}
