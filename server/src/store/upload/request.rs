//! An upload and its result.

use std::collections::BTreeSet;

use keypool_openapi::RejectionReason;
use keypool_validation::key_package::ValidatedKeyPackage;

use crate::store::{
    database::rows::DeviceId,
    signature_keys::{KeyChange, Registration},
};

/// Limits of a pool.
#[derive(Clone, Copy, Debug)]
pub struct UploadLimits {
    /// The most KeyPackages that are reserved or may be handed out, per device and ciphersuite. The last resort is not
    /// counted.
    pub capacity: u32,
    /// Whether a device must keep to one signature key in each ciphersuite.
    pub binds_keys: bool,
}

/// The KeyPackages and key changes of one upload request.
#[derive(Clone, Copy, Debug)]
pub struct Upload<'a> {
    /// The owner of the pool, and the registration that its token belongs to.
    pub by: Registration,
    /// The SHA-256 of the owner's token.
    pub token_hash: [u8; 32],
    /// Validated KeyPackages.
    pub packages: &'a [ValidatedKeyPackage],
    /// Signature keys to change, at most one of each ciphersuite.
    pub changes: &'a [KeyChange],
    /// Whether the packages take the place of the pool in their ciphersuites.
    pub replace: bool,
}

impl Upload<'_> {
    pub(crate) fn owner(&self) -> i64 {
        self.by.device.0
    }

    /// The ciphersuites of its packages.
    pub(super) fn suites(&self) -> BTreeSet<u16> {
        self.packages.iter().map(|package| package.ciphersuite).collect()
    }
}

/// The result of an upload.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Uploaded {
    /// The outcome of each KeyPackage, in the order of the upload.
    pub outcomes: Vec<UploadOutcome>,
    /// The user's other devices, to be notified because a key has changed.
    pub told: Vec<DeviceId>,
    /// How many KeyPackages were revoked because the upload replaces the pool.
    pub replaced: usize,
}

/// The outcome of a valid KeyPackage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UploadOutcome {
    /// The KeyPackage is in the pool now.
    Stored,
    /// The KeyPackage was in the pool before, and nothing changed. The usual reason is a repeated upload whose answer
    /// was lost.
    Known,
    /// Refused: the device has this other signature key.
    OtherKey(Vec<u8>),
    /// Refused for this reason.
    Refused(RejectionReason),
}
