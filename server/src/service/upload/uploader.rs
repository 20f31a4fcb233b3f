//! Validates the KeyPackages of uploads on all cores, and stores the valid ones.

use std::{collections::BTreeSet, sync::Arc};

use jiff::Timestamp;
use keypool_openapi::{AcceptedKeyPackage, Base64Bytes, RejectedKeyPackage, RejectionReason};
use keypool_validation::key_package::{Rejection, Rules, ValidatedKeyPackage};
use rayon::{
    ThreadPool, ThreadPoolBuildError, ThreadPoolBuilder,
    iter::{IntoParallelRefIterator, ParallelIterator},
};

use super::key_changes::{Changes, registration};
use crate::{
    batching::Batch,
    caller::Caller,
    problem::Failure,
    service::policy::Policy,
    store::{DeviceId, DeviceRow, Store, StoreError, Upload, UploadLimits, UploadOutcome, Uploaded},
};

/// The `nice` value of the threads that validate KeyPackages.
#[cfg(target_os = "linux")]
const NICE: i32 = 10;

/// Threads that validate KeyPackages, one for each core. They run at low priority: validating an upload takes
/// milliseconds of a core, which would delay reservations.
fn validators() -> Result<ThreadPool, ThreadPoolBuildError> {
    let validators = ThreadPoolBuilder::new().thread_name(|number| format!("validate-{number}"));
    // Linux has a priority per thread; other systems have one per process.
    #[cfg(target_os = "linux")]
    let validators = validators.start_handler(|_| {
        if let Err(error) = rustix::process::nice(NICE) {
            tracing::warn!(%error, "cannot lower the priority of validation: uploads may slow down other requests");
        }
    });
    validators.build()
}

/// An upload before validation: KeyPackages in base64, and changes of signature keys.
pub(crate) struct PendingUpload {
    pub caller: Caller,
    pub packages: Vec<String>,
    pub changes: Changes,
    /// Whether the KeyPackages take the place of the pool.
    pub replace: bool,
}

impl PendingUpload {
    /// Whether the upload withdraws KeyPackages: it replaces the pool, or changes a signature key.
    pub(crate) fn withdraws(&self) -> bool {
        self.replace || !self.changes.proven.is_empty()
    }
}

/// The answer to an upload, and the devices to notify.
pub(crate) struct UploadResult {
    pub accepted: Vec<AcceptedKeyPackage>,
    pub rejected: Vec<RejectedKeyPackage>,
    pub changed: Vec<u16>,
    pub told: Vec<DeviceId>,
    pub replaced: u64,
}

/// The KeyPackages of an upload after validation, before they are compared with the pool.
struct Validated {
    valid: Vec<ValidatedKeyPackage>,
    /// The position of each valid KeyPackage in the upload.
    indexes: Vec<usize>,
    rejected: Vec<RejectedKeyPackage>,
}

/// Validates uploads and stores them.
pub(crate) struct Uploader {
    store: Store,
    validators: ThreadPool,
    rules: Rules,
    limits: UploadLimits,
    policy: Arc<Policy>,
}

impl Uploader {
    /// # Errors
    /// When the system cannot start the threads.
    pub(crate) fn new(
        store: Store,
        rules: Rules,
        limits: UploadLimits,
        policy: Arc<Policy>,
    ) -> Result<Self, ThreadPoolBuildError> {
        Ok(Self { store, validators: validators()?, rules, limits, policy })
    }

    fn validated(&self, upload: &PendingUpload, now: Timestamp) -> Validated {
        let validate = |text: &String| self.validate(&upload.caller.device, text, now);
        Validated::of(upload.packages.par_iter().map(validate).collect())
    }

    fn validate(&self, caller: &DeviceRow, text: &str, now: Timestamp) -> Result<ValidatedKeyPackage, Rejection> {
        let bytes = Base64Bytes::decode(text)
            .map_err(|error| Rejection { reason: RejectionReason::Malformed, detail: format!("{error}.") })?;
        ValidatedKeyPackage::parse(bytes.0, (&caller.user, &caller.device), &self.rules, now)
    }

    fn result(&self, upload: &PendingUpload, validated: Validated, uploaded: Uploaded) -> UploadResult {
        let Validated { valid, indexes, mut rejected } = validated;
        let Uploaded { outcomes, told, replaced } = uploaded;
        let stored: BTreeSet<_> = valid
            .iter()
            .zip(&outcomes)
            .filter(|(_, outcome)| self.limits.binds_keys && **outcome == UploadOutcome::Stored)
            .map(|(package, _)| (package.ciphersuite, package.signature_key.as_slice()))
            .collect();
        let changed = upload.changes.made(&stored);
        let mut accepted = Vec::new();
        for ((index, package), outcome) in indexes.into_iter().zip(valid).zip(outcomes) {
            match outcome {
                UploadOutcome::OtherKey(current) => {
                    let detail = upload.changes.refusal(&package, &current);
                    let reason = RejectionReason::SignatureKeyMismatch;
                    rejected.push(RejectedKeyPackage { index, reason, detail });
                }
                UploadOutcome::Stored | UploadOutcome::Known => accepted.push(accept(index, package)),
                UploadOutcome::Refused(reason) => {
                    let detail = self.refusal(reason, &package);
                    rejected.push(RejectedKeyPackage { index, reason, detail });
                }
            }
        }
        rejected.sort_by_key(|rejection| rejection.index);
        UploadResult { accepted, rejected, changed, told, replaced: replaced as u64 }
    }

    fn refusal(&self, reason: RejectionReason, package: &ValidatedKeyPackage) -> String {
        let (name, suite) = (&package.keypackage_ref, package.ciphersuite);
        match reason {
            RejectionReason::Duplicate => format!(
                "KeyPackage {name} stands twice in this upload, or was spent, revoked or expired before. Generate a new one."
            ),
            RejectionReason::NeverAvailable => format!(
                "KeyPackage {name} expires at {}, and the server hands out only what is valid for another {} s \
                 (`min_remaining` of GET /): nobody would get it. Generate one with a longer lifetime.",
                package.not_after, self.policy.min_remaining
            ),
            RejectionReason::InitKeyReused => format!(
                "KeyPackage {name} has an init key or encryption key that an earlier one had. Generate one with new keys."
            ),
            RejectionReason::SecondLastResort => {
                format!("This upload has a last resort of ciphersuite {suite} already. Send one of each ciphersuite.")
            }
            _ => format!(
                "The pool holds {} KeyPackages of ciphersuite {suite}, and takes no more. Upload again when some are spent.",
                self.limits.capacity
            ),
        }
    }
}

impl Batch for Uploader {
    const NAME: &'static str = "upload";
    type Request = PendingUpload;
    type Answer = UploadResult;

    fn together(&self, pending: &[PendingUpload], now: Timestamp) -> Result<Vec<Option<UploadResult>>, StoreError> {
        let validated =
            self.validators.install(|| pending.par_iter().map(|upload| self.validated(upload, now)).collect());
        let validated: Vec<Validated> = validated;
        let uploads = pending.iter().zip(&validated).map(|(upload, validated)| to_store(upload, validated));
        let uploads: Vec<_> = uploads.filter(|upload| !upload.packages.is_empty()).collect();
        let as_of = self.policy.as_of(now);
        let stored =
            if uploads.is_empty() { Vec::new() } else { self.store.upload_batch(&uploads, self.limits, as_of)? };
        let mut stored = stored.into_iter();
        let results = pending.iter().zip(validated).map(|(upload, validated)| {
            let nothing = validated.valid.is_empty();
            let uploaded = if nothing { Some(Uploaded::default()) } else { stored.next().flatten() };
            uploaded.map(|uploaded| self.result(upload, validated, uploaded))
        });
        Ok(results.collect())
    }

    fn alone(&self, upload: PendingUpload, now: Timestamp) -> Result<UploadResult, Failure> {
        let validated = self.validators.install(|| self.validated(&upload, now));
        let as_of = self.policy.as_of(now);
        let uploaded = self.store.upload(to_store(&upload, &validated), self.limits, as_of)?;
        Ok(self.result(&upload, validated, uploaded))
    }
}

impl Validated {
    fn of(outcomes: Vec<Result<ValidatedKeyPackage, Rejection>>) -> Self {
        let mut validated = Self { valid: Vec::new(), indexes: Vec::new(), rejected: Vec::new() };
        for (index, outcome) in outcomes.into_iter().enumerate() {
            match outcome {
                Ok(package) => {
                    validated.valid.push(package);
                    validated.indexes.push(index);
                }
                Err(Rejection { reason, detail }) => {
                    validated.rejected.push(RejectedKeyPackage { index, reason, detail });
                }
            }
        }
        validated
    }
}

fn to_store<'a>(upload: &'a PendingUpload, validated: &'a Validated) -> Upload<'a> {
    let Caller { device, token_hash } = &upload.caller;
    let (by, changes) = (registration(device), &upload.changes.proven);
    Upload { by, token_hash: *token_hash, packages: &validated.valid, changes, replace: upload.replace }
}

fn accept(index: usize, package: ValidatedKeyPackage) -> AcceptedKeyPackage {
    AcceptedKeyPackage {
        index,
        keypackage_ref: package.keypackage_ref,
        ciphersuite: package.ciphersuite,
        not_after: package.not_after,
        last_resort: package.last_resort,
    }
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use super::*;

    /// The `nice` value of this thread.
    fn nice() -> i32 {
        let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
        // The 19th field in total; the second is a name in parentheses.
        let (_, fields) = stat.rsplit_once(')').unwrap();
        fields.split_whitespace().nth(16).unwrap().parse().unwrap()
    }

    #[test]
    fn validation_runs_at_low_priority_and_nothing_else_does() {
        let own = nice();
        assert_eq!(validators().unwrap().install(nice), (own + NICE).min(19));
        assert_eq!(nice(), own);
    }
}
