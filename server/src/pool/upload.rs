//! What enters the pool.

use std::sync::Arc;

use jiff::Timestamp;
use keypool_openapi::{
    AcceptedKeyPackage, Base64Bytes, ProblemType, RejectedKeyPackage, RejectionReason, UploadRequest, UploadResponse,
};
use rayon::{
    ThreadPool, ThreadPoolBuildError, ThreadPoolBuilder,
    iter::{IntoParallelRefIterator, ParallelIterator},
};

use super::Pool;
use crate::{
    key_package::{Rejection, ValidatedKeyPackage},
    problem::Failure,
    store::{DeviceRow, UploadOutcome},
};

/// How far those who judge KeyPackages stand back behind all else on the machine, as `nice` has it.
#[cfg(target_os = "linux")]
const STAND_BACK: i32 = 10;

/// Threads that judge KeyPackages: as many as there are cores, however many upload at the moment. Nothing else waits for them:
/// to judge an upload takes milliseconds of a core, which a reservation would notice.
pub(super) fn judges() -> Result<ThreadPool, ThreadPoolBuildError> {
    let judges = ThreadPoolBuilder::new().thread_name(|number| format!("judge-{number}"));
    // Linux has it of each thread, others of the whole process.
    #[cfg(target_os = "linux")]
    let judges = judges.start_handler(|_| {
        if let Err(error) = rustix::process::nice(STAND_BACK) {
            tracing::warn!(%error, "judging KeyPackages may slow down other requests: it cannot stand back");
        }
    });
    judges.build()
}

impl Pool {
    /// Takes KeyPackages into the caller's pool, each judged on its own.
    pub async fn upload(&self, caller: Arc<DeviceRow>, request: UploadRequest) -> Result<UploadResponse, Failure> {
        let packages = request.keypackages;
        if packages.is_empty() {
            return Err(Failure::new(
                ProblemType::MalformedRequest,
                "The upload has no KeyPackages. Send at least one, each as the base64 of its MLSMessage.",
            ));
        }
        self.block(move |pool, now| pool.upload_blocking(&caller, &packages, now)).await
    }

    fn upload_blocking(
        &self,
        caller: &DeviceRow,
        packages: &[String],
        now: Timestamp,
    ) -> Result<UploadResponse, Failure> {
        let (mut valid, mut indexes, mut rejected) = (Vec::new(), Vec::new(), Vec::new());
        let judge = || packages.par_iter().map(|text| self.validate(caller, text, now)).collect();
        let judged: Vec<_> = self.judges.install(judge);
        for (index, judged) in judged.into_iter().enumerate() {
            match judged {
                Ok(package) => {
                    valid.push(package);
                    indexes.push(index);
                }
                Err(Rejection { reason, detail }) => rejected.push(RejectedKeyPackage { index, reason, detail }),
            }
        }
        let mut accepted = Vec::new();
        if !valid.is_empty() {
            let outcomes =
                self.store.upload(caller.id, &valid, self.policy.limits, self.view(now))?.ok_or_else(|| {
                    let detail = "The device was removed. Register it again, and upload new KeyPackages.";
                    Failure::new(ProblemType::Unauthenticated, detail)
                })?;
            for ((index, package), outcome) in indexes.into_iter().zip(valid).zip(outcomes) {
                match outcome {
                    UploadOutcome::Stored | UploadOutcome::Known => accepted.push(accept(index, package)),
                    UploadOutcome::Refused(reason) => {
                        let detail = self.refusal(reason, &package);
                        rejected.push(RejectedKeyPackage { index, reason, detail });
                    }
                }
            }
        }
        rejected.sort_by_key(|rejection| rejection.index);
        if rejected.len() == packages.len() && rejected.iter().all(|r| r.reason == RejectionReason::PoolFull) {
            return Err(Failure::new(ProblemType::PoolFull, rejected.swap_remove(0).detail));
        }
        let pool = self.status_blocking(caller, now)?;
        Ok(UploadResponse { accepted, rejected, pool })
    }

    fn validate(&self, caller: &DeviceRow, text: &str, now: Timestamp) -> Result<ValidatedKeyPackage, Rejection> {
        let bytes = Base64Bytes::decode(text)
            .map_err(|error| Rejection { reason: RejectionReason::Malformed, detail: format!("{error}.") })?;
        ValidatedKeyPackage::parse(bytes.0, (&caller.user, &caller.device), &self.policy.rules, now)
    }

    fn refusal(&self, reason: RejectionReason, package: &ValidatedKeyPackage) -> String {
        let (name, suite) = (&package.keypackage_ref, package.ciphersuite);
        match reason {
            RejectionReason::Duplicate => format!(
                "KeyPackage {name} stands twice in this upload, or was spent, revoked or expired before. Generate a new one."
            ),
            RejectionReason::InitKeyReused => format!(
                "KeyPackage {name} has an init key or encryption key that an earlier one had. Generate one with new keys."
            ),
            RejectionReason::SecondLastResort => {
                format!("This upload has a last resort of ciphersuite {suite} already. Send one of each ciphersuite.")
            }
            _ => format!(
                "The pool holds {} KeyPackages of ciphersuite {suite}, and takes no more. Upload again when some are spent.",
                self.policy.limits.capacity
            ),
        }
    }
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

    /// How far this thread stands back.
    fn nice() -> i32 {
        let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
        // The 19th field of all; the second is a name in parentheses.
        let (_, fields) = stat.rsplit_once(')').unwrap();
        fields.split_whitespace().nth(16).unwrap().parse().unwrap()
    }

    #[test]
    fn who_judges_stands_back_and_nobody_else() {
        let own = nice();
        assert_eq!(judges().unwrap().install(nice), (own + STAND_BACK).min(19));
        assert_eq!(nice(), own);
    }
}
