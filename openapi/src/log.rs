use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{Base64Bytes, KeyPackageRef, MAX_PROOFS, ReservationId, object, objects, or_default, signed_number};

/// What a caller wants to get that binds the server to a hand-out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Proof {
    /// Nothing. The server logs the hand-out all the same.
    #[default]
    None,
    /// A receipt: the server signs that the leaf is or will be in its log.
    Receipt,
}

impl Proof {
    /// Whether nothing is wanted.
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Self::None
    }
}

/// The logs of a server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LogInfo {
    /// The log that the server writes now.
    pub origin: LogOrigin,
    /// The logs that it wrote before, the newest first. A server begins a new one when it was restored from a backup.
    pub before: Vec<LogOrigin>,
    /// For how many seconds the server keeps entries at least. It keeps all hashes.
    #[schema(example = 10_368_000)]
    pub retention: u64,
}

/// One log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LogOrigin {
    /// Its name.
    #[schema(example = "keypool/0123456789abcdef/1-89abcdef")]
    pub origin: String,
    /// Where its checkpoint and tiles are, as a path relative to this one: append `/checkpoint` or a tile's path (C2SP
    /// tlog-tiles).
    #[schema(example = "log/1-89abcdef")]
    pub path: String,
    /// Its public key, as a vkey (C2SP signed-note).
    pub key: String,
    /// The first entry that the server still has: the bundles of earlier ones are pruned.
    #[schema(example = 0)]
    pub first_entry: u64,
    /// The note by which the key of the log before names this key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_note: Option<String>,
}

/// Steps of KeyPackages to prove.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ProofsRequest {
    /// Up to 1,000 reservations of the caller, and KeyPackages of its own pool.
    #[serde(deserialize_with = "objects::<_, _, MAX_PROOFS>")]
    #[schema(min_items = 1, max_items = 1000)]
    pub of: Vec<ProofOf>,
    /// Whether the server signs a receipt of the leaves that are not in the log yet, and of the steps that have not happened.
    #[serde(default, deserialize_with = "or_default")]
    #[schema(value_type = Option<bool>)]
    pub receipt: bool,
    /// The checkpoint that the caller has: the answer shows how its own one continues it.
    #[serde(default, deserialize_with = "object", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<LogSize>)]
    pub since: Option<LogSize>,
}

/// A log, and how many leaves it had.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LogSize {
    /// The name of the log.
    #[schema(
        pattern = "^keypool/[0-9a-f]{16}/[1-9][0-9]{0,8}-[0-9a-f]{8}$",
        example = "keypool/0123456789abcdef/1-89abcdef"
    )]
    pub origin: String,
    /// The number of its leaves.
    #[serde(deserialize_with = "signed_number")]
    #[schema(example = 33)]
    pub size: u64,
}

/// The newest checkpoint, and how it continues the one that the caller named by its log and size.
///
/// `consistency` and `heirs` are both empty where nothing was named, where the named log is unknown, and, for half a second after
/// a restore, where the newest log has no entry yet. `consistency` is empty, too, where the named size is 0 or that of the
/// checkpoint, and where the named log has not so many leaves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LogHead {
    /// The checkpoint, a signed note (C2SP tlog-checkpoint).
    pub checkpoint: String,
    /// The consistency path (RFC 9162) from the named size to the checkpoint; or, if `heirs` are there, to the part of the named
    /// log that the first of them keeps.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub consistency: Vec<Base64Bytes>,
    /// If the named log has ended: the first entries of the logs that continue it, from the one that kept its tree to the
    /// newest one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub heirs: Vec<LogHeir>,
}

/// A checkpoint that the caller has seen.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CheckpointRequest {
    /// The checkpoint, a signed note (C2SP tlog-checkpoint).
    #[schema(max_length = 16_384)]
    pub checkpoint: String,
}

/// What to prove: a reservation that the caller made, or a KeyPackage that it owns.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ProofOf {
    /// The reservation: how earlier hand-outs of its KeyPackage ended, that it began, and how it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reservation_id: Option<ReservationId>,
    /// The caller's own KeyPackage: all its steps, and that the next ones have not happened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keypackage_ref: Option<KeyPackageRef>,
}

/// Leaves with their paths to one checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ProofsResponse {
    /// The checkpoint, a signed note (C2SP tlog-checkpoint).
    pub checkpoint: String,
    /// The steps, each once.
    pub proofs: Vec<StepProof>,
    /// The receipt, if the request asked for one and there is something to sign.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub receipt: Option<String>,
    /// With `since`: the consistency path, as [`LogHead`] has it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub consistency: Vec<Base64Bytes>,
    /// With `since`: the logs that continue the named one, as [`LogHead`] has them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub heirs: Vec<LogHeir>,
}

/// What the server knows of one step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StepProof {
    /// The tag that names the step.
    pub tag: Base64Bytes,
    /// What was found.
    pub found: FoundStep,
}

/// What was found of a step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum FoundStep {
    /// The log has it.
    Included(IncludedLeaf),
    /// It happened, and will be in the log.
    Pending,
    /// It has not happened.
    None,
    /// The server does not know the KeyPackage, or how that hand-out ended, any more.
    Erased,
}

/// A leaf in the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct IncludedLeaf {
    /// The leaf.
    pub leaf: Base64Bytes,
    /// Its index.
    #[schema(example = 7)]
    pub index: u64,
    /// Its inclusion path to the checkpoint.
    pub path: Vec<Base64Bytes>,
    /// What it commits to, as much as the caller may see.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub opening: Option<LeafOpening>,
    /// Where the leaf is in the tree that an older log left.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub heirs: Vec<LogHeir>,
}

/// The two levels of an opening.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LeafOpening {
    /// What happened, to which package, and when.
    pub details: Base64Bytes,
    /// The device that did it, and for which group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actor: Option<Base64Bytes>,
}

/// The first entry of a log that continues an older one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LogHeir {
    /// The entry.
    pub entry: Base64Bytes,
    /// Its path to the root that the next heir keeps, or to the checkpoint.
    pub path: Vec<Base64Bytes>,
}
