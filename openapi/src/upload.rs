use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use strum::{Display, EnumIter, EnumString, IntoStaticStr};
use utoipa::ToSchema;

use crate::{
    KeyPackageRef, MAX_SIGNATURE_KEY_CHANGES, MAX_UPLOAD_BATCH, PoolStatus, SignatureKeyChange, list, objects_or_empty,
    or_default,
};

/// KeyPackages for the caller's own pool.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UploadRequest {
    /// Up to 100 KeyPackages, each as the base64 of the `MLSMessage` that wraps it.
    #[serde(deserialize_with = "list::<_, _, MAX_UPLOAD_BATCH>")]
    #[schema(min_items = 1, max_items = 100, example = json!(["AAEABQABAAEg"]))]
    pub keypackages: Vec<String>,
    /// Signature keys that change with this upload, at most one of each ciphersuite. The server makes the change
    /// together with the first KeyPackage under the new key that it accepts; without such a KeyPackage, nothing
    /// changes. It revokes the available KeyPackages under the old key, the last resort included. Reserved ones can
    /// still be spent.
    #[serde(
        default,
        deserialize_with = "objects_or_empty::<_, _, MAX_SIGNATURE_KEY_CHANGES>",
        skip_serializing_if = "Vec::is_empty"
    )]
    #[schema(value_type = Option<Vec<SignatureKeyChange>>, max_items = 16)]
    pub signature_key_changes: Vec<SignatureKeyChange>,
    /// Whether these KeyPackages take the place of the pool. In each ciphersuite of which it accepts at least one, the server
    /// revokes the available KeyPackages that are not in this upload, the last resort included, in the same transaction.
    /// Reserved ones can still be spent, and are not handed out again.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "std::ops::Not::not")]
    #[schema(value_type = Option<bool>)]
    pub replace: bool,
}

impl UploadRequest {
    /// An upload of KeyPackages, each in base64, under the device's current signature keys.
    #[must_use]
    pub fn of(keypackages: Vec<String>) -> Self {
        Self { keypackages, signature_key_changes: Vec::new(), replace: false }
    }
}

/// The result of an upload.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct UploadResponse {
    /// The KeyPackages that are now in the pool, in the order of the upload.
    pub accepted: Vec<AcceptedKeyPackage>,
    /// The refused KeyPackages, each with its reason, in the order of the upload.
    pub rejected: Vec<RejectedKeyPackage>,
    /// The ciphersuites of `signature_key_changes` that have the new key now. For the others, `rejected` has the reason
    /// of each KeyPackage under the new key.
    #[serde(default)]
    #[schema(example = json!([1]))]
    pub changed_signature_keys: Vec<u16>,
    /// How many KeyPackages were revoked because the upload replaces the pool.
    #[serde(default)]
    #[schema(example = 0)]
    pub replaced: u64,
    /// The pool after the upload.
    pub pool: PoolStatus,
}

/// An accepted KeyPackage. The server reads all fields but `index` from its bytes.
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
    /// Whether it is marked as a last resort.
    pub last_resort: bool,
}

/// A refused KeyPackage.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct RejectedKeyPackage {
    /// Its place in the upload, from 0.
    pub index: usize,
    /// The reason, for programs: it is stable.
    pub reason: RejectionReason,
    /// The reason and the next step, for people.
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
    /// The bytes are no `MLSMessage` with a KeyPackage, or the KeyPackage breaks a rule of RFC 9420, section 10.1.
    Malformed,
    /// The signature of the KeyPackage or of its leaf node does not verify.
    InvalidSignature,
    /// The credential is not the caller's `user/device`.
    CredentialMismatch,
    /// The device has another signature key in this ciphersuite.
    SignatureKeyMismatch,
    /// `not_after` has passed.
    LifetimeExpired,
    /// It expires too soon to be handed out: the server hands out only KeyPackages that are valid for another
    /// `min_remaining` of `GET /`.
    NeverAvailable,
    /// `not_before` is in the future.
    LifetimeNotYetValid,
    /// From `not_before` to `not_after` is longer than the server allows.
    LifetimeTooLong,
    /// The server does not accept this ciphersuite.
    UnsupportedCiphersuite,
    /// The credential's type is not among the capabilities of the leaf node.
    UnsupportedCredential,
    /// An extension is not among the capabilities of the leaf node, or is not allowed in a KeyPackage.
    UnsupportedExtension,
    /// Its init key or its encryption key was in the pool before.
    InitKeyReused,
    /// The same KeyPackage was spent, revoked or expired before, or is in the upload twice.
    Duplicate,
    /// It is larger than 64 KiB.
    TooLarge,
    /// The pool has no room for another KeyPackage of this ciphersuite.
    PoolFull,
    /// It is the second last resort of its ciphersuite in one upload.
    SecondLastResort,
}
