//! Upload: adds KeyPackages to a device's pool.

mod key_changes;
mod uploader;

use std::sync::Arc;

use keypool_openapi::{ProblemType, RejectionReason, UploadRequest, UploadResponse};

use self::{
    key_changes::{Changes, check_form},
    uploader::{PendingUpload, UploadResult},
};
use super::Service;
use crate::{caller::Caller, problem::Failure, store::StoreError};

pub(super) use uploader::Uploader;

impl Service {
    /// Adds KeyPackages to the caller's pool, each validated on its own, and changes the device's signature keys.
    pub async fn upload(&self, caller: Caller, request: UploadRequest) -> Result<UploadResponse, Failure> {
        let UploadRequest { keypackages: packages, signature_key_changes: asked, replace } = request;
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
            self.block(move |service, _| {
                let keys = service.store.signature_keys(device.id)?;
                Ok::<_, StoreError>(Changes::check(asked, &device, &keys))
            })
            .await?
        };
        let UploadResult { accepted, mut rejected, changed, told, replaced } =
            self.uploaded(PendingUpload { caller, packages, changes, replace }).await?;
        self.fetches.ring(&told);
        if accepted.is_empty() && rejected.iter().all(|r| r.reason == RejectionReason::PoolFull) {
            return Err(Failure::new(ProblemType::PoolFull, rejected.swap_remove(0).detail));
        }
        let pool = self.pool_status(&device).await?;
        Ok(UploadResponse { accepted, rejected, changed_signature_keys: changed, replaced, pool })
    }

    /// Validates and stores an upload. One that withdraws what was there is rare, and never shares a transaction.
    async fn uploaded(&self, upload: PendingUpload) -> Result<UploadResult, Failure> {
        let batcher = &self.batches.upload;
        if upload.withdraws() { batcher.run_alone(upload).await } else { batcher.run(upload).await }
    }
}
