//! The steps of a refresh.

use std::fmt;

use jiff::{SignedDuration, Timestamp};
use keypool_openapi::{KeyPackageRef, LogSize, MAX_REVOCATIONS, RevokeRequest};

use super::{
    catch_up::CatchUp,
    report::{RefreshReport, Warning},
};
use crate::{
    api::ApiClient,
    clock::{Clock, MAX_SKEW, SystemClock, skew},
    error::{Error, Result},
    key_package_status::KeyPackageStatus,
    pool::{
        GRACE, KeyPackageMetadata, KeyPackagePool, OnProgress, PoolHistory, PoolIdentity, PoolStore, Reconciliation,
        confirm_uploaded, fail, give_up, reconcile, rows,
    },
};

/// Foreign KeyPackages in the pool mean a restored backup at first; twice within this time, they mean another client.
const RESTORE_SPAN: SignedDuration = SignedDuration::from_hours(30 * 24);

/// Brings a pool and the server to agree, and keeps the pool full.
///
/// [`crate::MlsClient`] uses it for its own pool. An application with its own OpenMLS provider, database or HTTP stack makes one
/// of its [`PoolStore`], its [`PoolIdentity`] and an [`ApiClient`] with the token of the device.
pub struct Refresh<'a, S, I> {
    pub(super) api: &'a ApiClient,
    pub(super) pool: KeyPackagePool<'a, S>,
    pub(super) identity: &'a I,
    clock: &'a dyn Clock,
    catch_up: Option<&'a dyn CatchUp>,
    log_since: Option<LogSize>,
}

impl<S, I> fmt::Debug for Refresh<'_, S, I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Refresh").field("api", self.api).finish_non_exhaustive()
    }
}

impl<'a, S: PoolStore, I: PoolIdentity> Refresh<'a, S, I> {
    /// A refresh of this device's pool, by the machine's clock.
    #[must_use]
    pub fn new(pool: KeyPackagePool<'a, S>, identity: &'a I, api: &'a ApiClient) -> Self {
        Self { api, pool, identity, clock: &SystemClock, catch_up: None, log_since: None }
    }

    /// Uses another clock.
    #[must_use]
    pub fn with_clock(self, clock: &'a dyn Clock) -> Self {
        Self { clock, ..self }
    }

    /// Has the waiting messages processed before the keys of KeyPackages are deleted: a Welcome may need them.
    #[must_use]
    pub fn with_catch_up(self, catch_up: &'a dyn CatchUp) -> Self {
        Self { catch_up: Some(catch_up), ..self }
    }

    /// Has the server show how its transparency log continues a checkpoint: [`RefreshReport::log_head`] then has it.
    #[must_use]
    pub fn with_log_since(self, since: Option<LogSize>) -> Self {
        Self { log_since: since, ..self }
    }

    /// Brings the pool up to date. Idempotent: if nothing has to change, it makes one request.
    ///
    /// 1. Fetches the status of the pool.
    /// 2. Has the waiting messages processed, where a Welcome may need an old KeyPackage, and then deletes KeyPackages that
    ///    ended a day ago.
    /// 3. If the server was restored from a backup, gives up all KeyPackages that it may have handed out since.
    /// 4. If the two sides differ, reconciles with the server's inventory, and revokes KeyPackages whose keys are
    ///    missing here.
    /// 5. Repeats uploads that the server has not confirmed.
    /// 6. Fills the pool up to its target if it has fewer fresh KeyPackages than the low watermark, or always with
    ///    `fill`. Replaces the last resort if it was used. What the server hands out for less than two more days counts
    ///    as gone.
    /// 7. Revokes the KeyPackages of a signature key that was rotated away.
    ///
    /// Keys are kept from the later of the two clocks, the server's and this machine's, until the earlier of the two:
    /// neither a clock that jumps nor a server that lies about the time deletes keys too early. Lifetimes begin by the
    /// server's clock.
    ///
    /// The caller sees to it that one refresh of a pool runs at a time. One that is dropped leaves a pool that the next one
    /// brings up to date.
    pub async fn run(&self, fill: bool, progress: OnProgress<'_>) -> Result<RefreshReport> {
        let mut report = RefreshReport::new(self.api.get_key_package_status_since(self.log_since.as_ref()).await?);
        let (here, there) = (self.clock.now(), report.pool.at);
        let skew = skew(here, there);
        if skew.abs() > MAX_SKEW {
            report.warnings.push(Warning::ClockSkew { seconds: skew.as_secs() });
        }
        let now = here.min(there);
        if let (Some(messages), false) = (self.catch_up, self.pool.ended(now)?.is_empty()) {
            messages.catch_up().await?;
        }
        report.removed = self.pool.cleanup_expired(now)?;
        self.give_up_after_restore(&mut report)?;
        self.reconcile_pool(&mut report).await?;
        self.accept_changes()?;
        self.upload_unconfirmed(&mut report, &|_| {}).await?;
        self.replenish(fill, &mut report, progress).await?;
        self.revoke_superseded(&mut report).await?;
        // A KeyPackage of a repeated upload may have been handed out since the first one.
        self.reconcile_pool(&mut report).await?;
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

    /// Gives up the pool after a restore of the server's database: the server does not know what it handed out since
    /// the backup. The keys stay until no Welcome can arrive. The last resort stays, because it may be handed out
    /// repeatedly anyway.
    fn give_up_after_restore(&self, report: &mut RefreshReport) -> Result<()> {
        let (store, fenced_at) = (self.pool.store, report.pool.fenced_at);
        let second = |time: Option<Timestamp>| time.map(Timestamp::as_second);
        if second(store.history()?.fenced_at) == second(fenced_at) {
            return Ok(());
        }
        let given_up = store.transaction(|| {
            let mut given_up = 0;
            for row in rows(store)?.into_iter().filter(|row| row.status.is_live() && !row.last_resort) {
                let until = row.not_after.saturating_add(GRACE).unwrap_or(Timestamp::MAX);
                fail(store, &row.keypackage_ref, Some(until), report.pool.at)?;
                given_up += 1;
            }
            store.set_history(&PoolHistory { fenced_at, ..store.history()? })?;
            Ok(given_up)
        })?;
        if given_up > 0 {
            report.reconciled += given_up;
            report.warnings.push(Warning::ServerRestored { given_up });
        }
        Ok(())
    }

    /// Reconciles both sides. The server decides about reservations and spends, this device about which keys exist.
    pub(super) async fn reconcile_pool(&self, report: &mut RefreshReport) -> Result<()> {
        let (pool, store) = (self.pool, self.pool.store);
        if !pool.agrees_with(&report.pool)? {
            let now = self.later(report.pool.at);
            let inventory = self.api.get_inventory().await?;
            let before = self.revoked_superseded()?;
            let Reconciliation { changed, to_revoke, foreign } = reconcile(&pool, inventory, now)?;
            // With a change of the signature key, the server itself revokes the KeyPackages of the old key.
            let revoked = self.revoked_superseded()?.saturating_sub(before);
            report.revoked += revoked;
            report.reconciled += changed.saturating_sub(revoked);
            let since = now.saturating_sub(RESTORE_SPAN).unwrap_or(Timestamp::MIN);
            if foreign > 0 && store.history()?.foreign_at.is_some_and(|at| at > since) {
                return Err(Error::TwoClients { foreign });
            }
            self.revoke(&to_revoke, report).await?;
            if foreign > 0 {
                // Record it last: an interrupted refresh that finds the same KeyPackages again is not a second client.
                store.transaction(|| store.set_history(&PoolHistory { foreign_at: Some(now), ..store.history()? }))?;
                report.warnings.push(Warning::ForeignKeyPackages { count: foreign });
            }
        }
        if pool.agrees_with(&report.pool)? {
            store.transaction(|| confirm_uploaded(store))?;
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

    async fn replenish(&self, fill: bool, report: &mut RefreshReport, progress: OnProgress<'_>) -> Result<()> {
        let (pool, now) = (self.pool.as_offered_by(&report.pool), report.pool.at);
        for ciphersuite in self.identity.ciphersuites() {
            let of_suite = report.pool.ciphersuites.iter().find(|part| part.ciphersuite == u16::from(ciphersuite));
            let uses = of_suite.map_or(0, |part| part.last_resort.uses);
            let last_resort = pool.needs_last_resort(ciphersuite, uses, now)?;
            let count = if fill || pool.should_replenish(ciphersuite, now)? {
                pool.get_replenishment_needed(ciphersuite, now)?
            } else {
                0
            };
            if count > 0 || last_resort {
                pool.check_lifetime()?;
                let signer = self.identity.key_package_signer(ciphersuite)?;
                pool.generate_and_update_pool(&signer, (count, last_resort), now, progress)?;
                report.generated += count + usize::from(last_resort);
            }
        }
        self.upload_unconfirmed(report, progress).await
    }

    /// Revokes KeyPackages of an old signature key once the server has accepted the new key, except reserved ones.
    async fn revoke_superseded(&self, report: &mut RefreshReport) -> Result<()> {
        let old = |row: &KeyPackageMetadata| {
            let is_changed = self.identity.change(row.ciphersuite).is_none();
            is_changed && row.superseded && row.status.is_live() && row.status != KeyPackageStatus::Reserved
        };
        let store = self.pool.store;
        let refs: Vec<_> = rows(store)?.into_iter().filter(old).map(|row| row.keypackage_ref).collect();
        if refs.is_empty() {
            return Ok(());
        }
        self.revoke(&refs, report).await?;
        let now = self.later(report.pool.at);
        store.transaction(|| refs.iter().try_for_each(|old| give_up(store, old, now)))
    }

    /// The later of this machine's time and the server's. Keys are kept for a day from then on.
    pub(super) fn later(&self, there: Timestamp) -> Timestamp {
        self.clock.now().max(there)
    }
}
