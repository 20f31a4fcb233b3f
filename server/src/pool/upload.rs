//! What enters the pool.

use std::{collections::BTreeSet, sync::Arc};

use jiff::Timestamp;
use keypool_openapi::{
    AcceptedKeyPackage, Base64Bytes, ProblemType, RejectedKeyPackage, RejectionReason, UploadRequest, UploadResponse,
};
use keypool_validation::key_package::{Rejection, Rules, ValidatedKeyPackage};
use rayon::{
    ThreadPool, ThreadPoolBuildError, ThreadPoolBuilder,
    iter::{IntoParallelRefIterator, ParallelIterator},
};

use super::{
    Pool,
    key_changes::{Changes, check_form, registration},
};
use crate::{
    auth::Caller,
    problem::Failure,
    store::{DeviceId, DeviceRow, Store, StoreError, Upload, UploadLimits, UploadOutcome, Uploaded, View},
};

/// How far those who judge KeyPackages stand back behind all else on the machine, as `nice` has it.
#[cfg(target_os = "linux")]
const STAND_BACK: i32 = 10;

/// Threads that judge KeyPackages: as many as there are cores, however many upload at the moment. Nothing else waits for them:
/// to judge an upload takes milliseconds of a core, which a reservation would notice.
fn judges() -> Result<ThreadPool, ThreadPoolBuildError> {
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

/// KeyPackages that a device uploads, each in base64.
pub(super) struct Offer {
    caller: Caller,
    packages: Vec<String>,
    changes: Changes,
}

impl Offer {
    /// Whether it changes a signature key. That is rare, and done alone.
    pub(super) fn changes_a_key(&self) -> bool {
        !self.changes.proven.is_empty()
    }
}

/// What became of them.
pub(super) struct Settled {
    accepted: Vec<AcceptedKeyPackage>,
    rejected: Vec<RejectedKeyPackage>,
    changed: Vec<u16>,
    told: Vec<DeviceId>,
}

/// What each of an offer's KeyPackages is by itself, whatever its pool holds.
struct Judgement {
    valid: Vec<ValidatedKeyPackage>,
    /// Where in the offer the valid ones stand.
    indexes: Vec<usize>,
    rejected: Vec<RejectedKeyPackage>,
}

/// Takes in what devices offer. Cheap to clone.
#[derive(Clone)]
pub(super) struct Intake {
    store: Store,
    judges: Arc<ThreadPool>,
    rules: Arc<Rules>,
    limits: UploadLimits,
}

impl Intake {
    /// # Errors
    /// When no threads can be had.
    pub(super) fn new(store: Store, rules: Rules, limits: UploadLimits) -> Result<Self, ThreadPoolBuildError> {
        Ok(Self { store, judges: Arc::new(judges()?), rules: Arc::new(rules), limits })
    }

    /// Takes offers in together; `None` for those that have to be taken in alone.
    pub(super) fn together(&self, offers: &[Offer], view: View) -> Result<Vec<Option<Settled>>, StoreError> {
        let judgements = self.judge(offers, view.now);
        let uploads = offers.iter().zip(&judgements).map(|(offer, judgement)| upload(offer, judgement));
        let uploads: Vec<_> = uploads.filter(|upload| !upload.packages.is_empty()).collect();
        let stored =
            if uploads.is_empty() { Vec::new() } else { self.store.upload_together(&uploads, self.limits, view)? };
        let mut stored = stored.into_iter();
        let settled = offers.iter().zip(judgements).map(|(offer, judgement)| {
            let nothing = judgement.valid.is_empty();
            let uploaded = if nothing { Some(Uploaded::default()) } else { stored.next().flatten() };
            uploaded.map(|uploaded| self.settle(offer, judgement, uploaded))
        });
        Ok(settled.collect())
    }

    /// Takes one offer in.
    pub(super) fn alone(&self, offer: Offer, view: View) -> Result<Settled, Failure> {
        let offers = [offer];
        let judgements = self.judge(&offers, view.now);
        let [offer] = offers;
        let judgement = judgements.into_iter().next().ok_or_else(super::queues::nothing)?;
        let uploaded = self.store.upload(upload(&offer, &judgement), self.limits, view)?;
        Ok(self.settle(&offer, judgement, uploaded))
    }

    fn judge(&self, offers: &[Offer], now: Timestamp) -> Vec<Judgement> {
        let judge = |offer: &Offer| {
            offer.packages.par_iter().map(|text| self.validate(&offer.caller.device, text, now)).collect::<Vec<_>>()
        };
        let judged: Vec<_> = self.judges.install(|| offers.par_iter().map(judge).collect());
        judged.into_iter().map(Judgement::of).collect()
    }

    fn validate(&self, caller: &DeviceRow, text: &str, now: Timestamp) -> Result<ValidatedKeyPackage, Rejection> {
        let bytes = Base64Bytes::decode(text)
            .map_err(|error| Rejection { reason: RejectionReason::Malformed, detail: format!("{error}.") })?;
        ValidatedKeyPackage::parse(bytes.0, (&caller.user, &caller.device), &self.rules, now)
    }

    fn settle(&self, offer: &Offer, judgement: Judgement, uploaded: Uploaded) -> Settled {
        let Judgement { valid, indexes, mut rejected } = judgement;
        let Uploaded { outcomes, told } = uploaded;
        let stored: BTreeSet<_> = valid
            .iter()
            .zip(&outcomes)
            .filter(|(_, outcome)| self.limits.binds_keys && **outcome == UploadOutcome::Stored)
            .map(|(package, _)| (package.ciphersuite, package.signature_key.as_slice()))
            .collect();
        let changed = offer.changes.made(&stored);
        let mut accepted = Vec::new();
        for ((index, package), outcome) in indexes.into_iter().zip(valid).zip(outcomes) {
            match outcome {
                UploadOutcome::OtherKey(current) => {
                    let detail = offer.changes.refusal(&package, &current);
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
        Settled { accepted, rejected, changed, told }
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
                self.limits.capacity
            ),
        }
    }
}

impl Judgement {
    fn of(judged: Vec<Result<ValidatedKeyPackage, Rejection>>) -> Self {
        let mut judgement = Self { valid: Vec::new(), indexes: Vec::new(), rejected: Vec::new() };
        for (index, judged) in judged.into_iter().enumerate() {
            match judged {
                Ok(package) => {
                    judgement.valid.push(package);
                    judgement.indexes.push(index);
                }
                Err(Rejection { reason, detail }) => {
                    judgement.rejected.push(RejectedKeyPackage { index, reason, detail });
                }
            }
        }
        judgement
    }
}

fn upload<'a>(offer: &'a Offer, judgement: &'a Judgement) -> Upload<'a> {
    let Caller { device, token_hash } = &offer.caller;
    let (by, changes) = (registration(device), &offer.changes.proven);
    Upload { by, token_hash: *token_hash, packages: &judgement.valid, changes }
}

impl Pool {
    /// Takes KeyPackages into the caller's pool, each judged on its own, and changes its signature keys.
    pub async fn upload(&self, caller: Caller, request: UploadRequest) -> Result<UploadResponse, Failure> {
        let UploadRequest { keypackages: packages, signature_key_changes: asked } = request;
        if packages.is_empty() {
            return Err(Failure::new(
                ProblemType::MalformedRequest,
                "The upload has no KeyPackages. Send at least one, each as the base64 of its MLSMessage.",
            ));
        }
        check_form(&asked)?;
        let device = Arc::clone(&caller.device);
        let changes = if asked.is_empty() || !self.policy.binds_keys {
            Changes::default()
        } else {
            let device = Arc::clone(&device);
            self.block(move |pool, _| {
                let keys = pool.store.signature_keys(device.id)?;
                Ok::<_, StoreError>(Changes::check(asked, &device, &keys))
            })
            .await?
        };
        let Settled { accepted, mut rejected, changed, told } =
            self.take_in(Offer { caller, packages, changes }).await?;
        self.fetches.ring(&told);
        if accepted.is_empty() && rejected.iter().all(|r| r.reason == RejectionReason::PoolFull) {
            return Err(Failure::new(ProblemType::PoolFull, rejected.swap_remove(0).detail));
        }
        let pool = self.status(device).await?;
        Ok(UploadResponse { accepted, rejected, changed_signature_keys: changed, pool })
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
