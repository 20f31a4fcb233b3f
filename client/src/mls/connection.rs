use jiff::Timestamp;
use keypool_openapi::{
    Base64Bytes, KeyPackageRef, MAX_UPLOAD_BATCH, PoolStatus, RegisterRequest, RejectionReason, UploadRequest,
    UploadResponse,
};
use secrecy::SecretString;
use tracing::{info, warn};

use super::{DeviceIdentity, KeyPackagePool, KeyPackagePoolConfig, Progress};
use crate::{
    api::ApiClient,
    clock::Clock,
    error::{Error, Result},
    storage::{KeyPackageStatus, LocalStore},
};

/// A KeyPackage that the server refused.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Rejection {
    /// Which.
    pub keypackage_ref: KeyPackageRef,
    /// Why: stable, and what a program decides by.
    pub reason: RejectionReason,
    /// Why, in words.
    pub detail: String,
}

/// What a refresh did.
#[derive(Clone, Debug, serde::Serialize)]
pub struct RefreshReport {
    /// KeyPackages that were removed here, with their keys: expired or refused before.
    pub removed: usize,
    /// KeyPackages that were generated, a last resort included.
    pub generated: usize,
    /// KeyPackages that the server confirmed, a last resort included.
    pub uploaded: usize,
    /// KeyPackages that the server refused.
    pub rejected: Vec<Rejection>,
    /// The pool on the server after the refresh.
    pub pool: PoolStatus,
}

/// A device's connection to its server: registration, and the KeyPackage pool that it keeps full there.
#[derive(Clone, Copy)]
pub struct MlsConnection<'a> {
    api: &'a ApiClient,
    store: &'a LocalStore,
    clock: &'a dyn Clock,
    config: &'a KeyPackagePoolConfig,
}

impl std::fmt::Debug for MlsConnection<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MlsConnection").field("api", self.api).finish_non_exhaustive()
    }
}

impl<'a> MlsConnection<'a> {
    /// A connection over `api`, for the device in `store`.
    #[must_use]
    pub fn new(
        api: &'a ApiClient,
        store: &'a LocalStore,
        clock: &'a dyn Clock,
        config: &'a KeyPackagePoolConfig,
    ) -> Self {
        Self { api, store, clock, config }
    }

    /// Registers the device, and stores its token before anything else happens: the server shows it once.
    pub async fn register(&self, identity: &mut DeviceIdentity) -> Result<()> {
        let request = RegisterRequest { user: identity.user().clone(), device: identity.device().clone() };
        let answer = self.api.register(&request).await?;
        identity.set_token(self.store, SecretString::from(answer.token))?;
        info!(device = identity.identity(), "registered");
        Ok(())
    }

    /// Brings the pool in order: removes what expired, uploads again what was never confirmed, fills the pool up to
    /// its target if fresh KeyPackages are below the low watermark, and keeps a last resort. With `fill`, the pool is filled up
    /// wherever it stands. Where all is in order, changes nothing.
    pub async fn refresh_key_packages(
        &self,
        identity: &DeviceIdentity,
        fill: bool,
        progress: &dyn Fn(Progress),
    ) -> Result<RefreshReport> {
        let now = self.clock.now();
        let pool = KeyPackagePool::new(self.store);
        let status = self.api.status().await?;
        let mut report = RefreshReport {
            removed: pool.remove_expired(now)?,
            generated: 0,
            uploaded: 0,
            rejected: Vec::new(),
            pool: status,
        };
        self.upload_unconfirmed(now, &mut report, &|_| {}).await?;
        let count = self.config.wanted(size(report.pool.fresh), size(report.pool.available), fill);
        let last_resort = !report.pool.last_resort.present;
        if count > 0 || last_resort {
            pool.generate(identity, (count, last_resort), self.config.lifetime, now, progress)?;
            report.generated = count + usize::from(last_resort);
            self.upload_unconfirmed(now, &mut report, progress).await?;
        }
        match report.rejected.first() {
            Some(first) if report.uploaded == 0 => Err(Error::AllRejected(format!(
                "{} were refused, the first as {}: {}",
                report.rejected.len(),
                first.reason,
                first.detail
            ))),
            _ => Ok(report),
        }
    }

    async fn upload_unconfirmed(
        &self,
        now: Timestamp,
        report: &mut RefreshReport,
        progress: &dyn Fn(Progress),
    ) -> Result<()> {
        let unconfirmed = KeyPackagePool::new(self.store).unconfirmed(now)?;
        let total = unconfirmed.len();
        let mut done = 0;
        for batch in unconfirmed.chunks(MAX_UPLOAD_BATCH) {
            let keypackages = batch.iter().map(|(_, message)| Base64Bytes(message.clone()).encode()).collect();
            let answer = self.api.upload(&UploadRequest { keypackages }).await?;
            report.uploaded += answer.accepted.len();
            report.rejected.extend(record(self.store, batch, &answer, now)?);
            report.pool = answer.pool;
            done += batch.len();
            progress(Progress::Uploaded { done, total });
        }
        Ok(())
    }
}

/// Writes down what the server said of each KeyPackage of an upload, in one transaction.
fn record(
    store: &LocalStore,
    batch: &[(KeyPackageRef, Vec<u8>)],
    answer: &UploadResponse,
    now: Timestamp,
) -> Result<Vec<Rejection>> {
    let mut rejections = Vec::new();
    store.transaction(|| {
        for accepted in &answer.accepted {
            store.set_uploaded(&accepted.keypackage_ref, now)?;
        }
        for rejected in &answer.rejected {
            let Some((keypackage_ref, _)) = batch.get(rejected.index) else { continue };
            store.set_status(keypackage_ref, after_rejection(rejected.reason))?;
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

/// What a refused KeyPackage becomes. An upload whose answer was lost may have arrived, and the KeyPackage may have been
/// handed out since: then its keys are needed for the Welcome.
fn after_rejection(reason: RejectionReason) -> KeyPackageStatus {
    match reason {
        RejectionReason::Duplicate => KeyPackageStatus::Spent,
        RejectionReason::LifetimeExpired => KeyPackageStatus::Expired,
        _ => KeyPackageStatus::Failed,
    }
}

/// A count of the server's, as this machine counts.
fn size(count: u64) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_that_may_have_been_handed_out_keeps_its_keys() {
        assert_eq!(after_rejection(RejectionReason::Duplicate), KeyPackageStatus::Spent);
        assert_eq!(after_rejection(RejectionReason::LifetimeExpired), KeyPackageStatus::Expired);
        assert_eq!(after_rejection(RejectionReason::InvalidSignature), KeyPackageStatus::Failed);
    }
}
