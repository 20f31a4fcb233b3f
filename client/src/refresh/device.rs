//! The refresh of a device whose pool and groups are in the local store.

use keypool_openapi::DeviceOf;
use openmls::prelude::Ciphersuite;
use tracing::info;

use super::{
    catch_up::{CatchUp, CatchingUp},
    report::{RefreshReport, Warning},
    steps::Refresh,
};
use crate::{
    connection::MlsConnection,
    error::Result,
    groups::MlsMembership,
    identity::DeviceIdentity,
    log::{Kept, ServerLog},
    pool::{KeyChange, KeyPackageSigner, OnProgress, PoolIdentity, begin_rotation},
    storage::LocalStore,
};

/// The identity of the device, with the store that it writes changes of its signature keys to.
struct StoredIdentity<'a> {
    identity: &'a DeviceIdentity,
    store: &'a LocalStore,
}

impl PoolIdentity for StoredIdentity<'_> {
    fn device(&self) -> DeviceOf {
        DeviceOf { user: self.identity.user().clone(), device: self.identity.device().clone() }
    }

    fn ciphersuites(&self) -> Vec<Ciphersuite> {
        self.identity.ciphersuites()
    }

    fn key_package_signer(&self, ciphersuite: Ciphersuite) -> Result<KeyPackageSigner> {
        self.identity.key_package_signer(ciphersuite)
    }

    fn change(&self, ciphersuite: u16) -> Option<KeyChange> {
        let (old, next) = self.identity.change(ciphersuite)?;
        let (old_key, new_key) = (old.public().to_vec(), next.public().to_vec());
        Some(KeyChange { old_key, old_signer: old, new_key })
    }

    fn accept_change(&self, ciphersuite: u16) -> Result<()> {
        self.identity.accept_change(self.store, ciphersuite)
    }
}

impl CatchUp for MlsMembership<'_> {
    fn catch_up(&self) -> CatchingUp<'_> {
        Box::pin(self.process_waiting())
    }
}

impl MlsConnection<'_> {
    /// Brings the pool up to date, and processes this device's queue where an old KeyPackage is to be deleted; see
    /// [`Refresh::run`].
    ///
    /// Calls at the same time take turns, and the later ones find nothing to do.
    pub async fn refresh_key_packages(
        &self,
        identity: &DeviceIdentity,
        fill: bool,
        progress: OnProgress<'_>,
    ) -> Result<RefreshReport> {
        let _turn = self.store.turns.pool().await;
        self.refresh_in_turn(identity, fill, progress).await
    }

    async fn refresh_in_turn(
        &self,
        identity: &DeviceIdentity,
        fill: bool,
        progress: OnProgress<'_>,
    ) -> Result<RefreshReport> {
        let (membership, log) = (MlsMembership::new(*self, identity), self.log(identity));
        let kept = log.kept()?;
        let identity = StoredIdentity { identity, store: self.store };
        let refresh = Refresh::new(self.pool(), &identity, self.api)
            .with_clock(self.clock)
            .with_catch_up(&membership)
            .with_log_since(kept.as_ref().map(|kept| kept.place.clone()));
        let mut report = refresh.run(fill, progress).await?;
        self.check_log((&log, kept.as_ref()), &mut report).await?;
        membership.look_for_groups().await;
        Ok(report)
    }

    /// Compares what this device knows of hand-outs with the server's log.
    async fn check_log(&self, (log, kept): (&ServerLog<'_>, Option<&Kept>), report: &mut RefreshReport) -> Result<()> {
        let Some(checked) = log.check(self.pool(), (report.log_head.as_ref(), kept)).await? else {
            if kept.is_some() {
                report.warnings.push(Warning::LogMissing);
            }
            return Ok(());
        };
        if checked.lost > 0 {
            report.warnings.push(Warning::LogLost { leaves: checked.lost });
        }
        report.warnings.extend(checked.unexpected.into_iter().map(|from| Warning::UnexpectedWelcome { from }));
        report.log = Some(checked.report);
        Ok(())
    }

    /// Changes the signature key of each ciphersuite, and fills the pool with KeyPackages of the new keys. The server
    /// applies the change with the first new KeyPackage that it accepts, and revokes the old KeyPackages in the same
    /// transaction. Reserved ones stay until they are spent or lapse. The old private keys stay for a day, for Welcomes
    /// that may still arrive. In its groups, the device keeps using the old key.
    ///
    /// If it fails half-way, the next refresh or rotation finishes it. Until then, the old key is valid.
    pub async fn rotate(&self, identity: &DeviceIdentity, progress: OnProgress<'_>) -> Result<RefreshReport> {
        let _turn = self.store.turns.pool().await;
        let next = self.store.transaction(|| {
            let next = identity.make_next_signers(self.store)?;
            if next.is_some() {
                begin_rotation(self.store)?;
            }
            Ok(next)
        })?;
        if let Some(next) = next {
            identity.begin_change(next);
        }
        info!(device = identity.identity(), "changing the signature key");
        self.refresh_in_turn(identity, true, progress).await
    }
}

impl MlsMembership<'_> {
    /// Brings the pool up to date, so that other users can add this device; see
    /// [`MlsConnection::refresh_key_packages`].
    pub async fn refresh_key_packages(&self, progress: OnProgress<'_>) -> Result<RefreshReport> {
        self.connection.refresh_key_packages(self.identity, false, progress).await
    }
}
