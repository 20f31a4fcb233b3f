use std::{collections::BTreeMap, fmt, path::Path, time::Duration};

use jiff::Timestamp;
use keypool_openapi::{
    AuditPage, Base64Bytes, DeviceName, InventoryItem, KeyPackageRef, PoolStatus, ReleaseRequest, ReleaseResponse,
    ReservationId, ReserveRequest, ReserveResponse, RevokeRequest, RevokeResponse, SpendRequest, SpendResponse,
    UserName,
};
use openmls::prelude::{Ciphersuite, MlsGroup};
use secrecy::SecretString;

use crate::{
    api::{ApiClient, DEFAULT_TIMEOUT},
    clock::{Clock, SystemClock},
    error::{Error, Result},
    mls::{
        DeviceIdentity, IdentityCheck, Invitation, KeyPackagePool, KeyPackagePoolConfig, MlsConnection, MlsMembership,
        Progress, Provider, RefreshReport,
    },
    storage::{KeyPackageStatus, LocalStore},
};

/// A device to be made.
#[derive(Clone, Debug)]
pub struct NewDevice {
    /// The server's address, `http://HOST:PORT` or `https://HOST`.
    pub server: String,
    /// The user.
    pub user: UserName,
    /// The device's name, unique among the user's.
    pub device: DeviceName,
    /// The token of another device of the user; needed for all but the user's first device.
    pub user_token: Option<SecretString>,
    /// The ciphersuites to have a pool of. Groups made here are of the first by number.
    pub ciphersuites: Vec<Ciphersuite>,
}

/// What a client takes from outside.
pub struct Settings {
    /// Where the time comes from.
    pub clock: Box<dyn Clock>,
    /// How the KeyPackage pool is kept.
    pub pool: KeyPackagePoolConfig,
    /// What the local store is encrypted with; see [`LocalStore::open_with`].
    pub passphrase: Option<SecretString>,
    /// How long a call may take with all its tries, where the server is away or busy.
    pub timeout: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            clock: Box::new(SystemClock),
            pool: KeyPackagePoolConfig::default(),
            passphrase: None,
            timeout: DEFAULT_TIMEOUT,
        }
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings").field("pool", &self.pool).finish_non_exhaustive()
    }
}

/// One device of a user: what an application calls.
///
/// Its futures hold the local store's connection, so they run on one thread, such as that of a current-thread runtime
/// of tokio.
pub struct MlsClient {
    store: LocalStore,
    identity: DeviceIdentity,
    api: ApiClient,
    settings: Settings,
    identity_check: Option<Box<dyn IdentityCheck>>,
}

impl fmt::Debug for MlsClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { store, identity, api, .. } = self;
        f.debug_struct("MlsClient")
            .field("store", store)
            .field("identity", identity)
            .field("api", api)
            .finish_non_exhaustive()
    }
}

impl MlsClient {
    /// Makes a device in `data_dir`: an identity, its registration, and a full KeyPackage pool with a last resort.
    ///
    /// May be repeated with the same arguments, and then finishes what is unfinished.
    pub async fn init(
        data_dir: &Path,
        new: &NewDevice,
        settings: Settings,
        progress: &dyn Fn(Progress),
    ) -> Result<(Self, RefreshReport)> {
        settings.pool.validate()?;
        let store = LocalStore::open_with(data_dir, settings.passphrase.as_ref())?;
        let mut identity = DeviceIdentity::create(&store, &new.server, (&new.user, &new.device), &new.ciphersuites)?;
        if identity.token().is_none() {
            let api = ApiClient::new(identity.server(), new.user_token.clone())?.with_timeout(settings.timeout);
            MlsConnection::new(&api, &store, &*settings.clock, &settings.pool).register(&mut identity).await?;
        }
        let client = Self::assemble(store, identity, settings)?;
        let report = client.connection().refresh_key_packages(&client.identity, true, progress).await?;
        Ok((client, report))
    }

    /// Opens the device in `data_dir`.
    pub fn open(data_dir: &Path) -> Result<Self> {
        Self::open_with(data_dir, Settings::default())
    }

    /// Opens the device in `data_dir` with settings of the application's own.
    pub fn open_with(data_dir: &Path, settings: Settings) -> Result<Self> {
        settings.pool.validate()?;
        let store = LocalStore::open_with(data_dir, settings.passphrase.as_ref())?;
        let identity = DeviceIdentity::load(&store)?;
        Self::assemble(store, identity, settings)
    }

    fn assemble(store: LocalStore, identity: DeviceIdentity, settings: Settings) -> Result<Self> {
        let token = identity.token().cloned().ok_or_else(|| Error::NotRegistered(identity.identity()))?;
        let api = ApiClient::new(identity.server(), Some(token))?.with_timeout(settings.timeout);
        Ok(Self { store, identity, api, settings, identity_check: None })
    }

    /// The same client, with an identity check of the application's own in place of the server's directory.
    #[must_use]
    pub fn with_identity_check(self, check: Box<dyn IdentityCheck>) -> Self {
        Self { identity_check: Some(check), ..self }
    }

    fn connection(&self) -> MlsConnection<'_> {
        let connection = MlsConnection::new(&self.api, &self.store, &*self.settings.clock, &self.settings.pool);
        match &self.identity_check {
            Some(check) => connection.with_identity_check(&**check),
            None => connection,
        }
    }

    /// This device's groups: making, joining, changing and leaving them, and their messages.
    #[must_use]
    pub fn membership(&self) -> MlsMembership<'_> {
        MlsMembership::new(self.connection(), &self.identity)
    }

    /// Brings the pool in order; see [`MlsConnection::refresh_key_packages`].
    pub async fn refresh_key_packages(&self, progress: &dyn Fn(Progress)) -> Result<RefreshReport> {
        self.membership().refresh_key_packages(progress).await
    }

    /// Makes a new signature key and a new pool; see [`MlsConnection::rotate`].
    pub async fn rotate(&mut self, progress: &dyn Fn(Progress)) -> Result<RefreshReport> {
        let Self { store, identity, api, settings, identity_check } = self;
        let connection = MlsConnection::new(api, store, &*settings.clock, &settings.pool);
        let connection = match identity_check {
            Some(check) => connection.with_identity_check(&**check),
            None => connection,
        };
        connection.rotate(identity, progress).await
    }

    /// The device's pool on the server.
    pub async fn status(&self) -> Result<PoolStatus> {
        self.api.get_key_package_status().await
    }

    /// All that the server knows of the device's KeyPackages, in the order of their refs.
    pub async fn inventory(&self) -> Result<Vec<InventoryItem>> {
        self.api.get_inventory().await
    }

    /// What happened to the device's KeyPackages, the newest first: a page of at most `limit` events before the event
    /// `before`.
    pub async fn audit(&self, before: Option<i64>, limit: u32) -> Result<AuditPage> {
        self.api.get_audit_trail(before, limit).await
    }

    /// Withdraws KeyPackages of this device from the server, or with `None` all. The next refresh takes note of it.
    pub async fn revoke(&self, refs: Option<Vec<KeyPackageRef>>) -> Result<RevokeResponse> {
        let all = refs.is_none().then_some(true);
        self.api.revoke_key_packages(&RevokeRequest { refs, all }).await
    }

    /// How many KeyPackages the local store holds of each status.
    pub fn local_counts(&self) -> Result<BTreeMap<KeyPackageStatus, usize>> {
        self.store.count_by_status()
    }

    /// Reserves KeyPackages of another user's devices, and gives them back where one is not what was asked for or does not
    /// carry the current signature key of its device.
    pub async fn reserve(
        &self,
        user: &UserName,
        device: Option<&DeviceName>,
        ciphersuite: Option<u16>,
        ttl: Option<Duration>,
    ) -> Result<ReserveResponse> {
        let request = ReserveRequest {
            device: device.cloned(),
            ciphersuite,
            ttl: ttl.map(|ttl| ttl.as_secs()),
            ..ReserveRequest::of(user.clone())
        };
        Ok(self.membership().reserve(&request).await?.0)
    }

    /// Says that a reserved KeyPackage is in a Commit of a group. May be repeated.
    pub async fn spend(&self, reservation_id: ReservationId, group_id: &[u8]) -> Result<SpendResponse> {
        self.api.spend_key_package(&SpendRequest { reservation_id, group_id: Base64Bytes(group_id.to_vec()) }).await
    }

    /// Gives a reserved KeyPackage back.
    pub async fn release(&self, reservation_id: ReservationId) -> Result<ReleaseResponse> {
        self.api.release_key_package(&ReleaseRequest { reservation_id }).await
    }

    /// Makes a group with this device as its only member.
    pub fn create_group(&self, group_id: &[u8]) -> Result<MlsGroup> {
        self.membership().create_group(group_id)
    }

    /// Loads a group that this device created or joined.
    pub fn load_group(&self, group_id: &[u8]) -> Result<MlsGroup> {
        self.membership().load_group(group_id)
    }

    /// Adds all of a user's devices to a group that the application delivers for; see
    /// [`MlsMembership::prepare_invitation`].
    pub async fn prepare_invitation(&self, group: &mut MlsGroup, user: &UserName) -> Result<Invitation> {
        self.membership().prepare_invitation(group, user).await
    }

    /// Joins a group from a Welcome; see [`MlsMembership::join`].
    pub async fn join(&self, welcome: &[u8]) -> Result<MlsGroup> {
        self.membership().join(welcome).await
    }

    /// Who this device is.
    #[must_use]
    pub fn identity(&self) -> &DeviceIdentity {
        &self.identity
    }

    /// The device's own KeyPackages in the local store.
    #[must_use]
    pub fn pool(&self) -> KeyPackagePool<'_> {
        self.connection().pool()
    }

    pub(crate) fn now(&self) -> Timestamp {
        self.settings.clock.now()
    }

    /// The local store.
    #[must_use]
    pub fn store(&self) -> &LocalStore {
        &self.store
    }

    /// The calls of the server, with this device's token.
    #[must_use]
    pub fn api(&self) -> &ApiClient {
        &self.api
    }

    /// OpenMLS's provider, for what an application does with an [`MlsGroup`] itself.
    #[must_use]
    pub fn provider(&self) -> Provider<'_> {
        self.store.provider()
    }
}
