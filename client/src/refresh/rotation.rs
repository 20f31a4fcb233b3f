//! Changes of the signature key: the old key signs the change, and the server applies it with the first new KeyPackage.

use std::collections::BTreeSet;

use keypool_openapi::{Base64Bytes, KeyPackageRef, SignatureKeyChange, SignatureKeyChangeContent};

use super::steps::Refresh;
use crate::{
    error::{Error, Result},
    key_package_status::KeyPackageStatus,
    pool::{KeyChange, KeyPackageMetadata, PoolIdentity, PoolStore, rows},
};

impl<S: PoolStore, I: PoolIdentity> Refresh<'_, S, I> {
    /// The unfinished changes of signature keys in the ciphersuites of these KeyPackages, signed by the old keys.
    pub(super) async fn signature_key_changes<'k>(
        &self,
        key_packages: impl Iterator<Item = &'k KeyPackageRef>,
    ) -> Result<Vec<SignatureKeyChange>> {
        let mut ciphersuites = BTreeSet::new();
        for keypackage_ref in key_packages {
            let row = self.pool.store.find_metadata(keypackage_ref)?;
            ciphersuites
                .extend(row.map(|row| row.ciphersuite).filter(|number| self.identity.change(*number).is_some()));
        }
        if ciphersuites.is_empty() {
            return Ok(Vec::new());
        }
        let device = self.identity.device();
        let devices = self.api.devices(&device.user).await?.devices;
        let own = devices.into_iter().find(|one| one.device == device.device).ok_or_else(|| {
            self.api.unexpected(format!("the devices of {}, and {} is not one of them", device.user, device.device))
        })?;
        let change = |ciphersuite| {
            let KeyChange { old_key, old_signer, new_key } = self.identity.change(ciphersuite)?;
            let content = SignatureKeyChangeContent {
                user: &device.user,
                device: &device.device,
                registered_at: own.registered_at,
                ciphersuite,
                old_key: &old_key,
                new_key: &new_key,
            };
            let signature = old_signer
                .sign(&content.signed_bytes())
                .map_err(|_| Error::mls("sign the change of the signature key")("the old key does not sign".into()));
            let signature_key = Base64Bytes(new_key);
            Some(signature.map(|signature| SignatureKeyChange {
                ciphersuite,
                signature_key,
                signature: Base64Bytes(signature),
            }))
        };
        ciphersuites.into_iter().filter_map(change).collect()
    }

    /// Records changes that the server applied but whose answer was lost: it has KeyPackages of the new keys.
    pub(super) fn accept_changes(&self) -> Result<()> {
        let store = self.pool.store;
        store.transaction(|| {
            let mut rows = rows(store)?.into_iter().filter(is_on_the_server);
            rows.try_for_each(|row| self.identity.accept_change(row.ciphersuite))
        })
    }

    /// The number of KeyPackages of old signature keys that are recorded as revoked.
    pub(super) fn revoked_superseded(&self) -> Result<usize> {
        let rows = self.pool.get_metadata_by_status(KeyPackageStatus::Failed)?;
        Ok(rows.iter().filter(|row| row.superseded).count())
    }
}

/// Whether the server accepted this KeyPackage and it has the current signature key.
fn is_on_the_server(row: &KeyPackageMetadata) -> bool {
    use KeyPackageStatus as S;
    !row.superseded && matches!(row.status, S::Uploaded | S::Available | S::Reserved | S::Spent)
}
