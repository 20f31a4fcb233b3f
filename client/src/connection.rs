//! A device's connection to its server.

use jiff::Timestamp;
use keypool_openapi::{DeviceOf, ProblemType, RegisterRequest};
use secrecy::SecretString;
use tracing::info;

use crate::{
    api::ApiClient,
    clock::Clock,
    error::{Error, Result},
    identity::DeviceIdentity,
    identity_check::{DirectoryCheck, IdentityCheck},
    log::ServerLog,
    pool::{KeyPackagePool, KeyPackagePoolConfig},
    storage::LocalStore,
};

/// A device's connection to its server: registers the device and keeps its KeyPackage pool full.
#[derive(Clone, Copy)]
pub struct MlsConnection<'a> {
    pub(crate) api: &'a ApiClient,
    pub(crate) store: &'a LocalStore,
    pub(crate) clock: &'a dyn Clock,
    config: &'a KeyPackagePoolConfig,
    identity_check: Option<&'a dyn IdentityCheck>,
    /// Whether the device's Commits bring a GroupInfo.
    pub(crate) has_group_info: bool,
    /// Whether a hand-out is used only once the server's log has it.
    is_strict: bool,
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
        Self { api, store, clock, config, identity_check: None, has_group_info: true, is_strict: false }
    }

    /// Replaces the server's directory by another identity check.
    #[must_use]
    pub fn with_identity_check(self, check: &'a dyn IdentityCheck) -> Self {
        Self { identity_check: Some(check), ..self }
    }

    /// Makes Commits without a GroupInfo, which shows the server the group's tree.
    #[must_use]
    pub fn without_group_info(self) -> Self {
        Self { has_group_info: false, ..self }
    }

    /// Uses a hand-out only once the server's transparency log has it.
    #[must_use]
    pub fn strict(self) -> Self {
        Self { is_strict: true, ..self }
    }

    /// The server's transparency log, as this device checks it.
    #[must_use]
    pub fn log(&self, identity: &DeviceIdentity) -> ServerLog<'a> {
        ServerLog::new((self.api, self.store), self.clock, identity.identity(), self.is_strict)
    }

    /// The check of the identities in leaves: the application's, or the server's directory.
    pub(crate) fn identity_check(&self, own: DeviceOf) -> Box<dyn IdentityCheck + 'a> {
        match self.identity_check {
            Some(check) => Box::new(check),
            None => Box::new(DirectoryCheck::new(self.api, own)),
        }
    }

    /// Whether the application checks identities, so that credentials may be of any form.
    pub(crate) fn has_own_check(&self) -> bool {
        self.identity_check.is_some()
    }

    /// The server's API.
    #[must_use]
    pub fn api(&self) -> &'a ApiClient {
        self.api
    }

    pub(crate) fn store(&self) -> &'a LocalStore {
        self.store
    }

    pub(crate) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Registers the device and stores its token at once, because the server shows the token only once. The call may be
    /// repeated until the token is used.
    ///
    /// A device that has a token already is registered anew, with new signature keys: the server had removed it. On an
    /// error it stays as it was.
    pub async fn register(&self, identity: &mut DeviceIdentity) -> Result<()> {
        let key = identity.begin_registration(self.store)?;
        // Its user may be in groups that the new device does not know.
        self.store.set_looks_for_groups(true)?;
        let request = RegisterRequest { user: identity.user().clone(), device: identity.device().clone() };
        let answer = self.api.register(&request, Some(&key)).await.map_err(|error| {
            let lacks_token = matches!(error.problem(), Some(ProblemType::Unauthenticated | ProblemType::Forbidden));
            if lacks_token {
                Error::NotEnrolled { has_token: self.api.has_token(), answer: Box::new(error) }
            } else {
                error
            }
        })?;
        let token = SecretString::from(answer.token);
        if identity.token().is_some() {
            identity.begin_anew(self.store, token)?;
        } else {
            identity.set_token(self.store, token)?;
        }
        info!(device = identity.identity(), "registered");
        Ok(())
    }

    /// The device's own KeyPackages in the local store.
    #[must_use]
    pub fn pool(&self) -> KeyPackagePool<'a, LocalStore> {
        KeyPackagePool::new(self.store, self.config)
    }
}
