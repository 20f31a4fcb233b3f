use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use strum::{AsRefStr, Display, EnumIter, EnumString, IntoStaticStr};
use utoipa::ToSchema;

use crate::{
    DeviceName, KeyPackageRef, MAX_SIGNATURE_KEY_CHANGES, MAX_UPLOAD_BATCH, SignatureKeyChange, UserName, bounded,
};

/// Where a KeyPackage is in its life.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Hash,
    Serialize,
    Deserialize,
    AsRefStr,
    Display,
    EnumIter,
    EnumString,
    IntoStaticStr,
    ToSchema,
)]
#[serde(rename_all = "kebab-case")]
#[strum(serialize_all = "kebab-case")]
pub enum State {
    /// Can be reserved.
    Available,
    /// Held for the device that reserved it.
    Reserved,
    /// Used in a Commit: gone for good.
    Spent,
    /// Withdrawn by its owner.
    Revoked,
    /// Past its `not_after`.
    Expired,
    /// Handed out once, and given back or left to lapse, where the operator has each handed out only once.
    Retired,
}

/// KeyPackages for the caller's own pool.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UploadRequest {
    /// Up to 100 KeyPackages, each the base64 of the `MLSMessage` that wraps it.
    #[serde(deserialize_with = "bounded::<_, _, MAX_UPLOAD_BATCH>")]
    #[schema(min_items = 1, max_items = 100, example = json!(["AAEABQABAAEg"]))]
    pub keypackages: Vec<String>,
    /// Signature keys that change with this upload, one of each ciphersuite at most. A change counts together with the
    /// first KeyPackage under the new key that is accepted, and not without one: what is available under the old key,
    /// the last resort included, is revoked, and what is reserved can still be spent.
    #[serde(
        default,
        deserialize_with = "bounded::<_, _, MAX_SIGNATURE_KEY_CHANGES>",
        skip_serializing_if = "Vec::is_empty"
    )]
    #[schema(max_items = 16)]
    pub signature_key_changes: Vec<SignatureKeyChange>,
}

impl UploadRequest {
    /// An upload of KeyPackages, each in base64, under the signature keys that the device has.
    #[must_use]
    pub fn of(keypackages: Vec<String>) -> Self {
        Self { keypackages, signature_key_changes: Vec::new() }
    }
}

/// What became of each KeyPackage of an upload.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct UploadResponse {
    /// Those now in the pool, in the order of the upload.
    pub accepted: Vec<AcceptedKeyPackage>,
    /// Those refused, each with its reason, in the order of the upload.
    pub rejected: Vec<RejectedKeyPackage>,
    /// The ciphersuites of `signature_key_changes` whose key is the new one now. For each of the others, `rejected` says
    /// why of the KeyPackages under the new key.
    #[serde(default)]
    #[schema(example = json!([1]))]
    pub changed_signature_keys: Vec<u16>,
    /// The pool after the upload.
    pub pool: PoolStatus,
}

/// A KeyPackage that was taken. All but `index` is read from its bytes.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct AcceptedKeyPackage {
    /// Its place in the upload, from 0.
    pub index: usize,
    /// Its ref.
    pub keypackage_ref: KeyPackageRef,
    /// Its ciphersuite (RFC 9420, section 17.1).
    #[schema(example = 1)]
    pub ciphersuite: u16,
    /// When it expires.
    #[schema(value_type = String, format = DateTime)]
    pub not_after: Timestamp,
    /// Whether it carries the last-resort extension.
    pub last_resort: bool,
}

/// A KeyPackage that was refused.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct RejectedKeyPackage {
    /// Its place in the upload, from 0.
    pub index: usize,
    /// Why: stable, and what a program decides by.
    pub reason: RejectionReason,
    /// Why, in words, and what to do next.
    pub detail: String,
}

/// Why a KeyPackage of an upload was refused.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Hash,
    Serialize,
    Deserialize,
    Display,
    EnumIter,
    EnumString,
    IntoStaticStr,
    ToSchema,
)]
#[serde(rename_all = "kebab-case")]
#[strum(serialize_all = "kebab-case")]
pub enum RejectionReason {
    /// No `MLSMessage` with a well-formed KeyPackage, or one that breaks a rule of RFC 9420, section 10.1.
    Malformed,
    /// The signature of the KeyPackage or of its leaf node does not verify.
    InvalidSignature,
    /// The credential is not the caller's `user/device`.
    CredentialMismatch,
    /// The signature key is not the one that the device has in this ciphersuite.
    SignatureKeyMismatch,
    /// `not_after` has passed.
    LifetimeExpired,
    /// `not_before` has not come.
    LifetimeNotYetValid,
    /// From `not_before` to `not_after` is longer than the server allows.
    LifetimeTooLong,
    /// The server does not take this ciphersuite.
    UnsupportedCiphersuite,
    /// The credential's type is not among the capabilities of the leaf node.
    UnsupportedCredential,
    /// An extension is not among the capabilities of the leaf node, or may not stand in a KeyPackage.
    UnsupportedExtension,
    /// Its init key or its encryption key was in the pool before.
    InitKeyReused,
    /// This very KeyPackage was spent, revoked or expired before, or stands in the upload twice.
    Duplicate,
    /// Larger than 64 KiB.
    TooLarge,
    /// The pool takes no further KeyPackage of this ciphersuite.
    PoolFull,
    /// A second last resort of the same ciphersuite in one upload.
    SecondLastResort,
}

/// How a pool is doing.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, Display, EnumIter, EnumString, ToSchema,
)]
#[serde(rename_all = "kebab-case")]
#[strum(serialize_all = "kebab-case")]
pub enum Health {
    /// Nothing but a last resort, if that, can be reserved.
    Empty,
    /// Fresh KeyPackages are below the low watermark.
    Low,
    /// There are enough fresh KeyPackages.
    Good,
}

/// A device's pool. The counts leave the last resort out, and
/// `available + reserved + spent + revoked + expired = total`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct PoolStatus {
    /// The user.
    #[schema(example = "alice")]
    pub user: UserName,
    /// The device.
    #[schema(example = "laptop")]
    pub device: DeviceName,
    /// The server's time at which all of this holds: what a client compares its own clock with.
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
    /// Can be reserved: `fresh + lapsed`.
    pub available: u64,
    /// Available, and never handed out before.
    pub fresh: u64,
    /// Available again, after a reservation lapsed or was released.
    pub lapsed: u64,
    /// Held by somebody now.
    pub reserved: u64,
    /// Used in a Commit.
    pub spent: u64,
    /// Past their `not_after`.
    pub expired: u64,
    /// Withdrawn by the owner, or retired.
    pub revoked: u64,
    /// All that the server still knows of.
    pub total: u64,
    /// Available, and within two days of their `not_after`.
    pub expiring_soon: u64,
    /// When the device last uploaded something that was accepted.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub last_upload: Option<Timestamp>,
    /// When everything in the pools but last resorts was withdrawn, because the server's database had been restored from
    /// a backup. A client that finds another time here than before must not upload again what it had uploaded until
    /// then: it may have been handed out.
    #[serde(default)]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub fenced_at: Option<Timestamp>,
    /// The last resort, over all ciphersuites.
    pub last_resort: LastResortStatus,
    /// The worst health of the ciphersuites.
    pub health: Health,
    /// How many fresh KeyPackages would fill the pool.
    #[schema(example = 24)]
    pub recommended_upload: u64,
    /// SHA-256 over the sorted refs of all that is available or reserved, the last resort included: a client whose
    /// own digest is the same knows exactly what the server has.
    pub inventory_digest: String,
    /// Users who were handed out at least half a pool within the last hour: they drain it, on purpose or not. The most
    /// first.
    pub draining: Vec<Drain>,
    /// The same counts for each ciphersuite of the pool.
    pub ciphersuites: Vec<SuiteStatus>,
}

/// A user who was handed out a lot of one pool within the last hour.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Drain {
    /// Who.
    #[schema(example = "mallory")]
    pub user: UserName,
    /// How many KeyPackages of the pool they reserved.
    #[schema(example = 30)]
    pub handed_out: u64,
}

/// A pool's part of one ciphersuite, counted as in [`PoolStatus`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SuiteStatus {
    /// The ciphersuite (RFC 9420, section 17.1).
    #[schema(example = 1)]
    pub ciphersuite: u16,
    /// Can be reserved: `fresh + lapsed`.
    pub available: u64,
    /// Available, and never handed out before.
    pub fresh: u64,
    /// Available again, after a reservation lapsed or was released.
    pub lapsed: u64,
    /// Held by somebody now.
    pub reserved: u64,
    /// Used in a Commit.
    pub spent: u64,
    /// Past their `not_after`.
    pub expired: u64,
    /// Withdrawn by the owner, or retired.
    pub revoked: u64,
    /// All that the server still knows of.
    pub total: u64,
    /// Available, and within two days of their `not_after`.
    pub expiring_soon: u64,
    /// The last resort of this ciphersuite.
    pub last_resort: LastResortStatus,
    /// The health of this ciphersuite's part.
    pub health: Health,
    /// How many fresh KeyPackages would fill this ciphersuite's part.
    pub recommended_upload: u64,
}

/// The last resort, which is handed out when nothing else is left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LastResortStatus {
    /// Whether there is one that can still be handed out.
    pub present: bool,
    /// How often it was handed out. Above 0: replace it by uploading a new one.
    pub uses: u64,
}
