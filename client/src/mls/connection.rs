use jiff::{SignedDuration, Timestamp};
use keypool_openapi::{
    Base64Bytes, DeviceOf, KeyPackageRef, MAX_REVOCATIONS, MAX_UPLOAD_BATCH, RegisterRequest, RejectionReason,
    RevokeRequest, UploadRequest, UploadResponse,
};
use secrecy::SecretString;
use tracing::{info, warn};

use super::{
    DeviceIdentity, IdentityCheck, KeyPackagePool, KeyPackagePoolConfig, MlsMembership, Progress, RefreshReport,
    Rejection, Warning,
    identity_check::DirectoryCheck,
    keypackage_pool::{GRACE, give_up},
    reconciliation::{Reconciliation, reconcile},
};
use crate::{
    api::ApiClient,
    clock::{Clock, SKEW, skew},
    error::{Error, Result},
    storage::{KeyPackageMetadata, KeyPackageStatus, LocalStore},
};

/// Foreign KeyPackages in the pool once are a restored backup; twice within this span they are another client.
const RESTORE_SPAN: SignedDuration = SignedDuration::from_hours(30 * 24);

/// A device's connection to its server: registration, and the KeyPackage pool that it keeps full there.
#[derive(Clone, Copy)]
pub struct MlsConnection<'a> {
    pub(super) api: &'a ApiClient,
    pub(super) store: &'a LocalStore,
    clock: &'a dyn Clock,
    config: &'a KeyPackagePoolConfig,
    identity_check: Option<&'a dyn IdentityCheck>,
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
        Self { api, store, clock, config, identity_check: None }
    }

    /// The same connection, with an identity check in place of the server's directory.
    #[must_use]
    pub fn with_identity_check(self, check: &'a dyn IdentityCheck) -> Self {
        Self { identity_check: Some(check), ..self }
    }

    /// Who says whether leaves are whose they say they are.
    pub(super) fn identity_check(&self, own: DeviceOf) -> Box<dyn IdentityCheck + 'a> {
        match self.identity_check {
            Some(check) => Box::new(check),
            None => Box::new(DirectoryCheck::new(self.api, own)),
        }
    }

    /// The calls of the server.
    #[must_use]
    pub fn api(&self) -> &'a ApiClient {
        self.api
    }

    pub(super) fn store(&self) -> &'a LocalStore {
        self.store
    }

    pub(super) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Registers the device, and stores its token before anything else happens: the server shows it once. May be repeated
    /// until the token is used.
    pub async fn register(&self, identity: &mut DeviceIdentity) -> Result<()> {
        let request = RegisterRequest { user: identity.user().clone(), device: identity.device().clone() };
        let answer = self.api.register(&request, identity.registration_key()).await?;
        identity.set_token(self.store, SecretString::from(answer.token))?;
        info!(device = identity.identity(), "registered");
        Ok(())
    }

    /// Brings the pool in order. Idempotent: where all is in order, it is one request, and changes nothing.
    ///
    /// 1. Asks the server how the pool is doing.
    /// 2. Removes here what ended a day ago; before that, takes in this device's queue, where the Welcome that needs it
    ///    may wait.
    /// 3. Where the server was restored from a backup, gives up all that may have been handed out since.
    /// 4. Where the two sides differ, reads the server's inventory, takes over what it says, and withdraws there what has
    ///    no keys here.
    /// 5. Uploads again what never arrived.
    /// 6. Fills the pool up to its target where fresh KeyPackages are below the low watermark, or, with `fill`, wherever
    ///    it stands; and replaces the last resort if it was used or is near its end.
    /// 7. Withdraws what a rotation of the signature key has superseded.
    ///
    /// The time for which keys are kept begins by whichever clock is ahead, the server's or this machine's, and ends by
    /// whichever is behind: neither a clock that jumps nor a server that lies about the time deletes keys too early.
    /// Lifetimes begin by the server's.
    pub async fn refresh_key_packages(
        &self,
        identity: &DeviceIdentity,
        fill: bool,
        progress: &dyn Fn(Progress),
    ) -> Result<RefreshReport> {
        let mut report = RefreshReport::new(self.api.get_key_package_status().await?);
        let (here, there) = (self.clock.now(), report.pool.at);
        let skew = skew(here, there);
        if skew.abs() > SKEW {
            report.warnings.push(Warning::ClockSkew { seconds: skew.as_secs() });
        }
        let now = here.min(there);
        if !self.pool().ended(now)?.is_empty() {
            MlsMembership::new(*self, identity).catch_up().await?;
        }
        report.removed = self.pool().cleanup_expired(now)?;
        self.heed_fence(&mut report)?;
        self.agree(&mut report).await?;
        self.accept_changes(identity)?;
        self.upload_unconfirmed(identity, &mut report, &|_| {}).await?;
        self.replenish(identity, fill, &mut report, progress).await?;
        self.withdraw_superseded(identity, &mut report).await?;
        // An upload that was repeated may have been of something that is handed out by now.
        self.agree(&mut report).await?;
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

    /// The device's own KeyPackages.
    #[must_use]
    pub fn pool(&self) -> KeyPackagePool<'a> {
        KeyPackagePool::new(self.store, self.config)
    }

    /// Where the server's database was restored, it does not know what it handed out since the backup: nothing that it
    /// may have had is offered again. Its keys stay until a Welcome for it is out of the question. A last resort is
    /// anybody's at any time, and stays as it is.
    fn heed_fence(&self, report: &mut RefreshReport) -> Result<()> {
        let fenced_at = report.pool.fenced_at.map(Timestamp::as_second);
        if self.store.fence()? == fenced_at {
            return Ok(());
        }
        let given_up = self.store.transaction(|| {
            let mut given_up = 0;
            for row in self.store.metadata()?.into_iter().filter(|row| row.status.is_live() && !row.last_resort) {
                let until = row.not_after.saturating_add(GRACE).unwrap_or(Timestamp::MAX);
                self.store.mark_failed(&row.keypackage_ref, Some(until), report.pool.at)?;
                given_up += 1;
            }
            self.store.note_fence(fenced_at)?;
            Ok(given_up)
        })?;
        if given_up > 0 {
            report.reconciled += given_up;
            report.warnings.push(Warning::ServerRestored { given_up });
        }
        Ok(())
    }

    /// Brings the two sides to agree: the server is right about who holds and who spent what, and this side about which
    /// keys there are.
    async fn agree(&self, report: &mut RefreshReport) -> Result<()> {
        let pool = self.pool();
        if !pool.agrees_with(&report.pool)? {
            let now = self.later(report.pool.at);
            let inventory = self.api.get_inventory().await?;
            let before = self.withdrawn()?;
            let Reconciliation { changed, to_revoke, foreign } = reconcile(self.store, &pool, inventory, now)?;
            // With a change of the signature key, the server withdraws what is of the old one by itself.
            let withdrawn = self.withdrawn()?.saturating_sub(before);
            report.revoked += withdrawn;
            report.reconciled += changed.saturating_sub(withdrawn);
            let since = now.saturating_sub(RESTORE_SPAN).unwrap_or(Timestamp::MIN);
            if foreign > 0 && self.store.foreign_since(since)? {
                return Err(Error::TwoClients { foreign });
            }
            self.revoke(&to_revoke, report).await?;
            if foreign > 0 {
                // Noted when it is done: who is interrupted and finds the same once more is not two.
                self.store.note_foreign(now)?;
                report.warnings.push(Warning::ForeignKeyPackages { count: foreign });
            }
        }
        if pool.agrees_with(&report.pool)? {
            self.store.confirm_uploaded()?;
        }
        Ok(())
    }

    async fn revoke(&self, refs: &[KeyPackageRef], report: &mut RefreshReport) -> Result<()> {
        for batch in refs.chunks(MAX_REVOCATIONS) {
            let request = RevokeRequest { refs: Some(batch.to_vec()), all: None };
            let answer = self.api.revoke_key_packages(&request).await?;
            report.revoked += answer.revoked.len();
            report.pool = answer.pool;
        }
        Ok(())
    }

    async fn replenish(
        &self,
        identity: &DeviceIdentity,
        fill: bool,
        report: &mut RefreshReport,
        progress: &dyn Fn(Progress),
    ) -> Result<()> {
        let (pool, now) = (self.pool(), report.pool.at);
        for ciphersuite in identity.ciphersuites() {
            let of_suite = report.pool.ciphersuites.iter().find(|part| part.ciphersuite == u16::from(ciphersuite));
            let uses = of_suite.map_or(0, |part| part.last_resort.uses);
            let last_resort = pool.needs_last_resort(ciphersuite, uses, now)?;
            let count = if fill || pool.should_replenish(ciphersuite, now)? {
                pool.get_replenishment_needed(ciphersuite, now)?
            } else {
                0
            };
            if count > 0 || last_resort {
                pool.generate_and_update_pool(identity, ciphersuite, (count, last_resort), now, progress)?;
                report.generated += count + usize::from(last_resort);
            }
        }
        self.upload_unconfirmed(identity, report, progress).await
    }

    async fn upload_unconfirmed(
        &self,
        identity: &DeviceIdentity,
        report: &mut RefreshReport,
        progress: &dyn Fn(Progress),
    ) -> Result<()> {
        let mut is_changed = false;
        let unconfirmed = self.pool().unconfirmed(report.pool.at)?;
        let total = unconfirmed.len();
        let mut done = 0;
        for batch in unconfirmed.chunks(MAX_UPLOAD_BATCH) {
            let keypackages = batch.iter().map(|(_, message)| Base64Bytes(message.clone()).encode()).collect();
            let refs = batch.iter().map(|(keypackage_ref, _)| keypackage_ref);
            let signature_key_changes = self.signature_key_changes(identity, refs).await?;
            let request = UploadRequest { signature_key_changes, ..UploadRequest::of(keypackages) };
            let answer = self.api.upload_key_packages(&request).await?;
            report.uploaded += answer.accepted.len();
            report.rejected.extend(record((self.store, identity), batch, &answer, self.later(answer.pool.at))?);
            report.pool = answer.pool;
            is_changed |=
                request.signature_key_changes.iter().any(|change| identity.change(change.ciphersuite).is_none());
            done += batch.len();
            progress(Progress::Uploaded { done, total });
        }
        if is_changed {
            // What the server has withdrawn with the change.
            self.agree(report).await?;
        }
        Ok(())
    }

    /// Withdraws what is of an old signature key, but for what somebody holds, and not before the server has accepted the
    /// new key.
    async fn withdraw_superseded(&self, identity: &DeviceIdentity, report: &mut RefreshReport) -> Result<()> {
        let old = |row: &KeyPackageMetadata| {
            let is_changed = identity.change(row.ciphersuite).is_none();
            is_changed && row.superseded && row.status.is_live() && row.status != KeyPackageStatus::Reserved
        };
        let rows = self.store.metadata()?.into_iter().filter(old);
        let refs: Vec<_> = rows.map(|row| row.keypackage_ref).collect();
        if refs.is_empty() {
            return Ok(());
        }
        self.revoke(&refs, report).await?;
        let now = self.later(report.pool.at);
        self.store.transaction(|| refs.iter().try_for_each(|old| give_up(self.store, old, now)))
    }

    /// The time by this machine's clock or by the server's, whichever is ahead: from then on, keys are kept for a day.
    fn later(&self, there: Timestamp) -> Timestamp {
        self.clock.now().max(there)
    }
}

/// Writes down what the server said of each KeyPackage of an upload, in one transaction.
fn record(
    (store, identity): (&LocalStore, &DeviceIdentity),
    batch: &[(KeyPackageRef, Vec<u8>)],
    answer: &UploadResponse,
    now: Timestamp,
) -> Result<Vec<Rejection>> {
    let mut rejections = Vec::new();
    store.transaction(|| {
        for accepted in &answer.accepted {
            store.update_pool_metadata_status(&accepted.keypackage_ref, KeyPackageStatus::Uploaded, now)?;
            identity.accept_change(store, accepted.ciphersuite)?;
            if accepted.last_resort {
                // The server keeps one: the new one has taken the place of the one before.
                let before = |row: &KeyPackageMetadata| {
                    row.last_resort
                        && row.status.is_live()
                        && row.ciphersuite == accepted.ciphersuite
                        && row.keypackage_ref != accepted.keypackage_ref
                };
                for row in store.metadata()?.into_iter().filter(before) {
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

/// What a refused KeyPackage becomes. An upload whose answer was lost may have arrived, and the KeyPackage may have been
/// handed out since: then its keys are needed for the Welcome.
fn refuse(store: &LocalStore, keypackage_ref: &KeyPackageRef, reason: RejectionReason, now: Timestamp) -> Result<()> {
    match reason {
        RejectionReason::Duplicate | RejectionReason::InitKeyReused => give_up(store, keypackage_ref, now),
        RejectionReason::LifetimeExpired => {
            store.update_pool_metadata_status(keypackage_ref, KeyPackageStatus::Expired, now)
        }
        _ => store.mark_failed(keypackage_ref, None, now),
    }
}

#[cfg(test)]
mod tests {
    use keypool_openapi::RejectionReason;

    use super::*;
    use crate::mls::keypackage_pool::GRACE;

    #[test]
    fn a_package_that_may_have_been_handed_out_keeps_its_keys() {
        let directory = tempfile::tempdir().unwrap();
        let store = LocalStore::open(directory.path()).unwrap();
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
