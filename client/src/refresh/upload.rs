//! Uploads the KeyPackages that the server has not confirmed, and records its answer.

use jiff::Timestamp;
use keypool_openapi::{Base64Bytes, KeyPackageRef, MAX_UPLOAD_BATCH, RejectionReason, UploadRequest, UploadResponse};
use tracing::warn;

use super::{
    report::{RefreshReport, Rejection},
    steps::Refresh,
};
use crate::{
    error::Result,
    key_package_status::KeyPackageStatus,
    pool::{KeyPackageMetadata, OnProgress, PoolIdentity, PoolStore, Progress, change_status, fail, give_up, rows},
};

impl<S: PoolStore, I: PoolIdentity> Refresh<'_, S, I> {
    pub(super) async fn upload_unconfirmed(&self, report: &mut RefreshReport, progress: OnProgress<'_>) -> Result<()> {
        let mut is_changed = false;
        let unconfirmed = self.pool.as_offered_by(&report.pool).unconfirmed(report.pool.at)?;
        let total = unconfirmed.len();
        let mut done = 0;
        for batch in unconfirmed.chunks(MAX_UPLOAD_BATCH) {
            let keypackages = batch.iter().map(|(_, message)| Base64Bytes(message.clone()).encode()).collect();
            let refs = batch.iter().map(|(keypackage_ref, _)| keypackage_ref);
            let signature_key_changes = self.signature_key_changes(refs).await?;
            let request = UploadRequest { signature_key_changes, ..UploadRequest::of(keypackages) };
            let answer = self.api.upload_key_packages(&request).await?;
            report.uploaded += answer.accepted.len();
            report.rejected.extend(self.record(batch, &answer, self.later(answer.pool.at))?);
            report.pool = answer.pool;
            is_changed |=
                request.signature_key_changes.iter().any(|change| self.identity.change(change.ciphersuite).is_none());
            done += batch.len();
            progress(Progress::Uploaded { done, total });
        }
        if is_changed {
            // With the change, the server revoked the KeyPackages of the old key.
            self.reconcile_pool(report).await?;
        }
        Ok(())
    }

    /// Records the server's answer about each KeyPackage of an upload, in one transaction.
    fn record(
        &self,
        batch: &[(KeyPackageRef, Vec<u8>)],
        answer: &UploadResponse,
        now: Timestamp,
    ) -> Result<Vec<Rejection>> {
        let store = self.pool.store;
        let mut rejections = Vec::new();
        store.transaction(|| {
            for accepted in &answer.accepted {
                change_status(store, &accepted.keypackage_ref, KeyPackageStatus::Uploaded, now)?;
                self.identity.accept_change(accepted.ciphersuite)?;
                if accepted.last_resort {
                    // The server keeps one last resort: the new one has replaced the old one.
                    let before = |row: &KeyPackageMetadata| {
                        row.last_resort
                            && row.status.is_live()
                            && row.ciphersuite == accepted.ciphersuite
                            && row.keypackage_ref != accepted.keypackage_ref
                    };
                    for row in rows(store)?.into_iter().filter(before) {
                        give_up(store, &row.keypackage_ref, now)?;
                    }
                }
            }
            for rejected in &answer.rejected {
                let Some((keypackage_ref, _)) = batch.get(rejected.index) else { continue };
                refuse(store, keypackage_ref, rejected.reason, now)?;
                warn!(%keypackage_ref, reason = %rejected.reason, detail = rejected.detail, "the server refused a KeyPackage");
                rejections.push(Rejection {
                    keypackage_ref: keypackage_ref.clone(),
                    reason: rejected.reason,
                    detail: rejected.detail.clone(),
                });
            }
            Ok(())
        })?;
        Ok(rejections)
    }
}

/// Records the refusal of a KeyPackage. A duplicate may come from an earlier upload whose answer was lost: the
/// KeyPackage may have been handed out, so its keys are kept for the Welcome.
fn refuse(
    store: &impl PoolStore,
    keypackage_ref: &KeyPackageRef,
    reason: RejectionReason,
    now: Timestamp,
) -> Result<()> {
    match reason {
        RejectionReason::Duplicate | RejectionReason::InitKeyReused => give_up(store, keypackage_ref, now),
        RejectionReason::LifetimeExpired => change_status(store, keypackage_ref, KeyPackageStatus::Expired, now),
        _ => fail(store, keypackage_ref, None, now),
    }
}

#[cfg(test)]
mod tests {
    use keypool_openapi::RejectionReason;

    use super::*;
    use crate::pool::{
        GRACE,
        test_support::{TestStore, over_each_store},
    };

    over_each_store!(a_package_that_may_have_been_handed_out_keeps_its_keys);

    fn a_package_that_may_have_been_handed_out_keeps_its_keys<S: TestStore>() {
        let (_directory, store) = S::open();
        let now: Timestamp = "2030-01-01T00:00:00Z".parse().unwrap();
        let refused = |number: u8, reason| {
            let keypackage_ref = KeyPackageRef::from(vec![number; 32]);
            let row = KeyPackageMetadata::created(keypackage_ref.clone(), (now, now + GRACE), 1, false);
            store.create_pool_metadata(&row).unwrap();
            refuse(&store, &keypackage_ref, reason, now).unwrap();
            let row = store.find_metadata(&keypackage_ref).unwrap().unwrap();
            (row.status, row.keep_until)
        };
        assert_eq!(refused(1, RejectionReason::Duplicate), (KeyPackageStatus::Failed, Some(now + GRACE)));
        assert_eq!(refused(2, RejectionReason::LifetimeExpired), (KeyPackageStatus::Expired, None));
        assert_eq!(refused(3, RejectionReason::InvalidSignature), (KeyPackageStatus::Failed, None));
    }
}
