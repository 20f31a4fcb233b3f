//! Rotates the signature key: the old key signs the change, and the server applies it with the first new KeyPackage.

use std::collections::BTreeSet;

use keypool_openapi::{Base64Bytes, KeyPackageRef, SignatureKeyChange, SignatureKeyChangeContent};
use openmls_traits::signatures::Signer as _;
use tracing::info;

use super::report::RefreshReport;
use crate::{
    connection::MlsConnection,
    error::{Error, Result},
    identity::DeviceIdentity,
    key_package_status::KeyPackageStatus,
    pool::OnProgress,
    storage::KeyPackageMetadata,
};

impl MlsConnection<'_> {
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
                self.store.forget_foreign()?;
                self.store.supersede_all()?;
            }
            Ok(next)
        })?;
        if let Some(next) = next {
            identity.begin_change(next);
        }
        info!(device = identity.identity(), "changing the signature key");
        self.refresh_in_turn(identity, true, progress).await
    }

    /// The unfinished changes of signature keys in the ciphersuites of these KeyPackages, signed by the old keys.
    pub(super) async fn signature_key_changes<'k>(
        &self,
        identity: &DeviceIdentity,
        key_packages: impl Iterator<Item = &'k KeyPackageRef>,
    ) -> Result<Vec<SignatureKeyChange>> {
        let mut ciphersuites = BTreeSet::new();
        for keypackage_ref in key_packages {
            let row = self.store.find_metadata(keypackage_ref)?;
            ciphersuites.extend(row.map(|row| row.ciphersuite).filter(|number| identity.change(*number).is_some()));
        }
        if ciphersuites.is_empty() {
            return Ok(Vec::new());
        }
        let devices = self.api.devices(identity.user()).await?.devices;
        let own = devices.into_iter().find(|one| one.device == *identity.device()).ok_or_else(|| {
            self.api.unexpected(format!(
                "the devices of {}, and {} is not one of them",
                identity.user(),
                identity.device()
            ))
        })?;
        let change = |ciphersuite| {
            let (old, next) = identity.change(ciphersuite)?;
            let content = SignatureKeyChangeContent {
                user: identity.user(),
                device: identity.device(),
                registered_at: own.registered_at,
                ciphersuite,
                old_key: old.public(),
                new_key: next.public(),
            };
            let signature = old
                .sign(&content.signed_bytes())
                .map_err(|_| Error::mls("sign the change of the signature key")("the old key does not sign".into()));
            let signature_key = Base64Bytes(next.public().to_vec());
            Some(signature.map(|signature| SignatureKeyChange {
                ciphersuite,
                signature_key,
                signature: Base64Bytes(signature),
            }))
        };
        ciphersuites.into_iter().filter_map(change).collect()
    }

    /// Records changes that the server applied but whose answer was lost: it has KeyPackages of the new keys.
    pub(super) fn accept_changes(&self, identity: &DeviceIdentity) -> Result<()> {
        self.store.transaction(|| {
            for row in self.store.metadata()?.into_iter().filter(is_on_the_server) {
                identity.accept_change(self.store, row.ciphersuite)?;
            }
            Ok(())
        })
    }

    /// The number of KeyPackages of old signature keys that are recorded as revoked.
    pub(super) fn revoked_superseded(&self) -> Result<usize> {
        let rows = self.store.get_metadata_by_status(KeyPackageStatus::Failed)?;
        Ok(rows.iter().filter(|row| row.superseded).count())
    }
}

/// Whether the server accepted this KeyPackage and it has the current signature key.
fn is_on_the_server(row: &KeyPackageMetadata) -> bool {
    use KeyPackageStatus as S;
    !row.superseded && matches!(row.status, S::Uploaded | S::Available | S::Reserved | S::Spent)
}
