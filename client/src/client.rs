use std::{fmt, path::Path, time::Duration};

use keypool_openapi::{
    Base64Bytes, DeviceName, PoolStatus, ReleaseRequest, ReleaseResponse, ReservationId, ReserveRequest,
    ReserveResponse, SpendRequest, SpendResponse, UserName,
};
use openmls::prelude::MlsGroup;
use secrecy::SecretString;

use crate::{
    api::ApiClient,
    clock::{Clock, SystemClock},
    error::{Error, Result},
    mls::{
        DeviceIdentity, Invitation, KeyPackagePool, KeyPackagePoolConfig, MlsConnection, MlsMembership, Progress,
        Provider, RefreshReport,
    },
    storage::{LocalCounts, LocalStore},
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
}

/// What a client takes from outside.
pub struct Settings {
    /// Where the time comes from.
    pub clock: Box<dyn Clock>,
    /// How the KeyPackage pool is kept.
    pub pool: KeyPackagePoolConfig,
}

impl Default for Settings {
    fn default() -> Self {
        Self { clock: Box::new(SystemClock), pool: KeyPackagePoolConfig::default() }
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
#[derive(Debug)]
pub struct MlsClient {
    store: LocalStore,
    identity: DeviceIdentity,
    api: ApiClient,
    settings: Settings,
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
        let store = LocalStore::open(data_dir)?;
        let mut identity = DeviceIdentity::create(&store, &new.server, &new.user, &new.device)?;
        if identity.token().is_none() {
            let api = ApiClient::new(identity.server(), new.user_token.clone())?;
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
        let store = LocalStore::open(data_dir)?;
        let identity = DeviceIdentity::load(&store)?;
        Self::assemble(store, identity, settings)
    }

    fn assemble(store: LocalStore, identity: DeviceIdentity, settings: Settings) -> Result<Self> {
        let token = identity.token().cloned().ok_or_else(|| Error::NotRegistered(identity.identity()))?;
        let api = ApiClient::new(identity.server(), Some(token))?;
        Ok(Self { store, identity, api, settings })
    }

    fn connection(&self) -> MlsConnection<'_> {
        MlsConnection::new(&self.api, &self.store, &*self.settings.clock, &self.settings.pool)
    }

    fn membership(&self) -> MlsMembership<'_> {
        MlsMembership::new(&self.store, &self.identity)
    }

    /// Brings the pool in order; see [`MlsConnection::refresh_key_packages`].
    pub async fn refresh_key_packages(&self, progress: &dyn Fn(Progress)) -> Result<RefreshReport> {
        self.connection().refresh_key_packages(&self.identity, false, progress).await
    }

    /// The device's pool on the server.
    pub async fn status(&self) -> Result<PoolStatus> {
        self.api.status().await
    }

    /// The KeyPackages in the local store.
    pub fn local_counts(&self) -> Result<LocalCounts> {
        KeyPackagePool::new(&self.store).counts()
    }

    /// Reserves KeyPackages of another user's devices.
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
        self.api.reserve(&request).await
    }

    /// Says that a reserved KeyPackage is in a Commit of a group. May be repeated.
    pub async fn spend(&self, reservation_id: ReservationId, group_id: &[u8]) -> Result<SpendResponse> {
        self.api.spend(&SpendRequest { reservation_id, group_id: Base64Bytes(group_id.to_vec()) }).await
    }

    /// Gives a reserved KeyPackage back.
    pub async fn release(&self, reservation_id: ReservationId) -> Result<ReleaseResponse> {
        self.api.release(&ReleaseRequest { reservation_id }).await
    }

    /// Makes a group with this device as its only member.
    pub fn create_group(&self, group_id: &[u8]) -> Result<MlsGroup> {
        self.membership().create_group(group_id, self.settings.clock.now())
    }

    /// Loads a group that this device created or joined.
    pub fn load_group(&self, group_id: &[u8]) -> Result<MlsGroup> {
        self.membership().load_group(group_id)
    }

    /// Adds all of a user's devices to a group; see [`MlsMembership::invite`].
    pub async fn invite(&self, group: &mut MlsGroup, user: &UserName) -> Result<Invitation> {
        self.membership().invite(&self.api, group, user).await
    }

    /// Joins a group from a Welcome; see [`MlsMembership::join`].
    pub fn join(&self, welcome: &[u8]) -> Result<MlsGroup> {
        self.membership().join(welcome)
    }

    /// Who this device is.
    #[must_use]
    pub fn identity(&self) -> &DeviceIdentity {
        &self.identity
    }

    /// OpenMLS's provider, for what an application does with an [`MlsGroup`] itself.
    #[must_use]
    pub fn provider(&self) -> Provider<'_> {
        self.store.provider()
    }
}
