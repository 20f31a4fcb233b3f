use std::{collections::BTreeMap, fmt, path::Path, sync::Arc, time::Duration};

use keypool_openapi::{
    AuditPage, Device, DeviceName, DeviceOf, InventoryItem, KeyPackageRef, PoolStatus, ProblemType, ReleaseRequest,
    ReleaseResponse, RemovedDevice, ReservationId, ReserveRequest, ReserveResponse, RevokeRequest, RevokeResponse,
    SpendResponse, UserName, device_name,
};
use openmls::prelude::{Ciphersuite, MlsGroup};
use secrecy::SecretString;

use crate::{
    api::{ApiClient, DEFAULT_TIMEOUT, OnRetry},
    clock::{Clock, SystemClock},
    connection::MlsConnection,
    error::{Error, Result},
    groups::{Invitation, MlsMembership, Reserved},
    identity::DeviceIdentity,
    identity_check::IdentityCheck,
    key_package_status::KeyPackageStatus,
    log::ServerLog,
    pool::{KeyPackagePool, KeyPackagePoolConfig, OnProgress, PoolStore as _},
    refresh::RefreshReport,
    storage::{LocalStore, Provider},
    transport::Transport,
};

/// The device that [`MlsClient::init`] creates.
#[derive(Clone, Debug)]
pub struct NewDevice {
    /// The server's address, `http://HOST:PORT` or `https://HOST`.
    pub server: String,
    /// The user.
    pub user: UserName,
    /// The device's name, unique among the user's.
    pub device: DeviceName,
    /// The token of another device of the user. Every device but the user's first needs it.
    pub user_token: Option<SecretString>,
    /// The ciphersuites in which the device keeps a pool. New groups use the one with the lowest number.
    pub ciphersuites: Vec<Ciphersuite>,
}

/// The settings of a client.
pub struct Settings {
    /// The clock.
    pub clock: Arc<dyn Clock>,
    /// The sizes of the KeyPackage pool, and the lifetime of a KeyPackage.
    pub pool: KeyPackagePoolConfig,
    /// The passphrase that encrypts the local store; see [`LocalStore::open_with`].
    pub passphrase: Option<SecretString>,
    /// The longest time that a call may take, retries included, while the server is unreachable or busy.
    pub timeout: Duration,
    /// What sends requests, in place of the usual HTTP client; for example, a `reqwest::Client` with a proxy. It is needed where
    /// this crate is built without its feature `http`.
    pub transport: Option<Arc<dyn Transport>>,
    /// What is called before a call to the server is repeated.
    pub on_retry: Option<OnRetry>,
    /// Whether this device's Commits bring a GroupInfo, by which a member that fell behind comes back while all others are
    /// away. It shows the server the group's tree: names, signature keys and capabilities. Without it, a member that fell behind
    /// waits until another one invites it.
    pub group_info: bool,
    /// Whether the device uses a KeyPackage that it was handed only once the server's transparency log has the hand-out, and
    /// refuses a server without a log. It takes up to a second for each invitation, and keeps a server that lies from handing
    /// the KeyPackage to two without being found out.
    pub strict: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            clock: Arc::new(SystemClock),
            pool: KeyPackagePoolConfig::default(),
            passphrase: None,
            timeout: DEFAULT_TIMEOUT,
            transport: None,
            on_retry: None,
            group_info: true,
            strict: false,
        }
    }
}

impl Settings {
    fn api(&self, server: &str, token: Option<SecretString>) -> Result<ApiClient> {
        let api = match &self.transport {
            Some(transport) => ApiClient::with_transport(server, token, Arc::clone(transport))?,
            #[cfg(feature = "http")]
            None => ApiClient::new(server, token)?,
            #[cfg(not(feature = "http"))]
            None => return Err(Error::NoTransport),
        };
        Ok(api.with_timeout(self.timeout).with_on_retry(self.on_retry.clone()))
    }

    fn connection<'a>(&'a self, api: &'a ApiClient, store: &'a LocalStore) -> MlsConnection<'a> {
        let connection = MlsConnection::new(api, store, &*self.clock, &self.pool);
        let connection = if self.group_info { connection } else { connection.without_group_info() };
        if self.strict { connection.strict() } else { connection }
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings").field("pool", &self.pool).finish_non_exhaustive()
    }
}

/// One device of a user. Applications call this type.
///
/// A clone is the same device. Tasks and threads may call it at the same time: calls that change the pool take turns, and
/// so do calls that change groups or process the queue. The local store is held for one transaction and never while the
/// server is asked. Nothing runs in the background.
///
/// A call that is dropped is as one that crashed: no key and no message is lost, and the next call goes on from there.
#[derive(Clone)]
pub struct MlsClient {
    device: Arc<OpenDevice>,
    identity_check: Option<Arc<dyn IdentityCheck>>,
}

/// What all clones of a client share.
struct OpenDevice {
    store: LocalStore,
    identity: DeviceIdentity,
    api: ApiClient,
    settings: Settings,
}

impl fmt::Debug for MlsClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let OpenDevice { store, identity, api, .. } = &*self.device;
        f.debug_struct("MlsClient")
            .field("store", store)
            .field("identity", identity)
            .field("api", api)
            .finish_non_exhaustive()
    }
}

impl MlsClient {
    /// Creates a device in `data_dir`: makes its identity, registers it, and fills its KeyPackage pool, with a last
    /// resort.
    ///
    /// A call with the same arguments finishes an earlier call that was interrupted. It also registers a device anew that
    /// the server does not know any more, with new signature keys; its groups are kept, and their members have to invite
    /// it again. As long as there is no token, other arguments replace those of an earlier call.
    pub async fn init(
        data_dir: &Path,
        new: &NewDevice,
        settings: Settings,
        progress: OnProgress<'_>,
    ) -> Result<(Self, RefreshReport)> {
        settings.pool.validate()?;
        let store = LocalStore::open_with(data_dir, settings.passphrase.as_ref())?;
        let mut identity = DeviceIdentity::create(&store, &new.server, (&new.user, &new.device), &new.ciphersuites)?;
        let was_registered = identity.token().is_some();
        let api = settings.api(identity.server(), identity.token())?;
        api.stop(store.open_finding()?);
        let connection = settings.connection(&api, &store);
        if !was_registered {
            register(&connection, &mut identity, new).await?;
        }
        let report = match connection.refresh_key_packages(&identity, true, progress).await {
            Err(error) if was_registered && error.problem() == Some(ProblemType::Unauthenticated) => {
                register(&connection, &mut identity, new).await?;
                connection.refresh_key_packages(&identity, true, progress).await?
            }
            report => report?,
        };
        Ok((Self::assemble(store, identity, api, settings), report))
    }

    /// Opens the device in `data_dir`.
    pub fn open(data_dir: &Path) -> Result<Self> {
        Self::open_with(data_dir, Settings::default())
    }

    /// Opens the device in `data_dir` with the given settings.
    pub fn open_with(data_dir: &Path, settings: Settings) -> Result<Self> {
        settings.pool.validate()?;
        let store = LocalStore::open_with(data_dir, settings.passphrase.as_ref())?;
        let identity = DeviceIdentity::load(&store)?;
        let token = identity.token().ok_or_else(|| Error::NotRegistered(identity.identity()))?;
        let api = settings.api(identity.server(), Some(token))?;
        api.stop(store.open_finding()?);
        Ok(Self::assemble(store, identity, api, settings))
    }

    fn assemble(store: LocalStore, identity: DeviceIdentity, api: ApiClient, settings: Settings) -> Self {
        Self { device: Arc::new(OpenDevice { store, identity, api, settings }), identity_check: None }
    }

    /// Stores another token of the device in `data_dir`, for one that was replaced. Fails if it is not valid, or belongs
    /// to another device. Then the old token stays.
    pub async fn set_token(data_dir: &Path, token: SecretString, settings: Settings) -> Result<()> {
        let store = LocalStore::open_with(data_dir, settings.passphrase.as_ref())?;
        let mut identity = DeviceIdentity::load(&store)?;
        check_device(&settings.api(identity.server(), Some(token.clone()))?, &identity).await?;
        identity.set_token(&store, token)
    }

    /// Stores another address of the server of the device in `data_dir`, for a server that has moved, and answers it as it is
    /// stored. Shows the device's token to the server there. Fails if that one cannot be reached, or does not know the device by
    /// its token. Then the old address stays.
    pub async fn set_server(data_dir: &Path, server: &str, settings: Settings) -> Result<String> {
        let store = LocalStore::open_with(data_dir, settings.passphrase.as_ref())?;
        let identity = DeviceIdentity::load(&store)?;
        let token = identity.token().ok_or_else(|| Error::NotRegistered(identity.identity()))?;
        let api = settings.api(server, Some(token))?;
        check_device(&api, &identity).await?;
        store.set_server(api.server())?;
        Ok(api.server().to_owned())
    }

    /// Replaces the server's directory by the application's own identity check.
    #[must_use]
    pub fn with_identity_check(self, check: Arc<dyn IdentityCheck>) -> Self {
        Self { identity_check: Some(check), ..self }
    }

    fn connection(&self) -> MlsConnection<'_> {
        let OpenDevice { store, api, settings, .. } = &*self.device;
        let connection = settings.connection(api, store);
        match &self.identity_check {
            Some(check) => connection.with_identity_check(&**check),
            None => connection,
        }
    }

    /// The server's transparency log, as this device checks it.
    #[must_use]
    pub fn log(&self) -> ServerLog<'_> {
        self.connection().log(self.identity())
    }

    /// The calls for this device's groups and their messages.
    #[must_use]
    pub fn membership(&self) -> MlsMembership<'_> {
        MlsMembership::new(self.connection(), self.identity())
    }

    /// Brings the pool up to date; see [`MlsConnection::refresh_key_packages`].
    pub async fn refresh_key_packages(&self, progress: OnProgress<'_>) -> Result<RefreshReport> {
        self.membership().refresh_key_packages(progress).await
    }

    /// Makes a new signature key and a new pool; see [`MlsConnection::rotate`].
    pub async fn rotate(&self, progress: OnProgress<'_>) -> Result<RefreshReport> {
        self.connection().rotate(self.identity(), progress).await
    }

    /// The devices of this device's user, and their signature keys.
    pub async fn devices(&self) -> Result<Vec<Device>> {
        Ok(self.api().devices(self.identity().user()).await?.devices)
    }

    /// Removes one of the user's devices from the server: its token ends, and its KeyPackages are revoked. It stays in its
    /// groups until a member removes it there.
    pub async fn remove_device(&self, device: &DeviceName) -> Result<RemovedDevice> {
        self.api().remove_device(device).await
    }

    /// Gives one of the user's devices a new bearer token; the old one ends. This device uses its own new token from then
    /// on. If the answer is lost, so is the token: another device of the user asks for a new one.
    pub async fn new_token(&self, device: &DeviceName) -> Result<SecretString> {
        let token = SecretString::from(self.api().new_token(device).await?.token);
        if device == self.identity().device() {
            self.identity().replace_token(self.store(), token.clone())?;
            self.api().set_token(Some(token.clone()));
        }
        Ok(token)
    }

    /// The device's pool on the server.
    pub async fn status(&self) -> Result<PoolStatus> {
        self.api().get_key_package_status().await
    }

    /// The server's inventory of this device's KeyPackages, sorted by ref.
    pub async fn inventory(&self) -> Result<Vec<InventoryItem>> {
        self.api().get_inventory().await
    }

    /// The audit trail of this device's KeyPackages, newest first: at most `limit` events, older than the event
    /// `before`.
    pub async fn audit(&self, before: Option<i64>, limit: u32) -> Result<AuditPage> {
        self.api().get_audit_trail(before, limit).await
    }

    /// Revokes this device's KeyPackages on the server: those with the given refs, or all with `None`. The next refresh
    /// updates the local store.
    pub async fn revoke(&self, refs: Option<Vec<KeyPackageRef>>) -> Result<RevokeResponse> {
        let all = refs.is_none().then_some(true);
        self.api().revoke_key_packages(&RevokeRequest { refs, all }).await
    }

    /// The number of KeyPackages in the local store, by status.
    pub fn local_counts(&self) -> Result<BTreeMap<KeyPackageStatus, usize>> {
        self.pool().count_by_status()
    }

    /// The number of rows of KeyPackages, of sets of private keys, and of rows without keys.
    pub fn rows_and_keys(&self) -> Result<(usize, usize, usize)> {
        let (store, pool) = (self.store(), self.pool());
        let rows = store.metadata()?;
        let mut without = 0;
        for row in &rows {
            without += usize::from(!pool.has_keys(&row.keypackage_ref)?);
        }
        Ok((rows.len(), store.count_keys()?, without))
    }

    /// Reserves KeyPackages of another user's devices. Releases all of them and fails if one does not match the request
    /// or does not carry the current signature key of its device.
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
        let Reserved { reservations, missing, unfit, .. } = self.membership().reserve(&request).await?;
        if let (true, Some(one)) = (reservations.is_empty(), unfit.first()) {
            return Err(Error::UnfitKeyPackage { device: one.device.to_string(), source: one.why.clone().into() });
        }
        Ok(ReserveResponse { reservations, missing })
    }

    /// Spends a reservation: its KeyPackage is in a Commit of the group. Repeating the call changes nothing.
    pub async fn spend(&self, reservation_id: ReservationId, group_id: &[u8]) -> Result<SpendResponse> {
        self.membership().spend(reservation_id, group_id).await
    }

    /// Releases a reservation.
    pub async fn release(&self, reservation_id: ReservationId) -> Result<ReleaseResponse> {
        self.api().release_key_package(&ReleaseRequest { reservation_id }).await
    }

    /// Creates a group with this device as its only member.
    pub fn create_group(&self, group_id: &[u8]) -> Result<MlsGroup> {
        self.membership().create_group(group_id)
    }

    /// Loads a group that this device created or joined.
    pub fn load_group(&self, group_id: &[u8]) -> Result<MlsGroup> {
        self.membership().load_group(group_id)
    }

    /// Makes the messages that add a user to a group whose messages the application delivers; see
    /// [`MlsMembership::prepare_invitation`].
    pub async fn prepare_invitation(&self, group: &mut MlsGroup, user: &UserName) -> Result<Invitation> {
        self.membership().prepare_invitation(group, user).await
    }

    /// Merges and spends an invitation that the delivery service has accepted; see
    /// [`MlsMembership::confirm_invitation`].
    pub async fn confirm_invitation(&self, group: &mut MlsGroup, invitation: &Invitation) -> Result<Vec<DeviceOf>> {
        self.membership().confirm_invitation(group, invitation).await
    }

    /// Gives an invitation up that the delivery service has refused; see [`MlsMembership::withdraw_invitation`].
    pub async fn withdraw_invitation(&self, group: &mut MlsGroup, invitation: &Invitation) -> Result<()> {
        self.membership().withdraw_invitation(group, invitation).await
    }

    /// Joins a group from a Welcome; see [`MlsMembership::join`].
    pub async fn join(&self, welcome: &[u8]) -> Result<MlsGroup> {
        self.membership().join(welcome).await
    }

    /// The identity of this device.
    #[must_use]
    pub fn identity(&self) -> &DeviceIdentity {
        &self.device.identity
    }

    /// The device's own KeyPackages in the local store.
    #[must_use]
    pub fn pool(&self) -> KeyPackagePool<'_, LocalStore> {
        self.connection().pool()
    }

    /// The local store.
    #[must_use]
    pub fn store(&self) -> &LocalStore {
        &self.device.store
    }

    /// The server's API, called with this device's token.
    #[must_use]
    pub fn api(&self) -> &ApiClient {
        &self.device.api
    }

    /// OpenMLS's provider, for an application that uses an [`MlsGroup`] directly.
    #[must_use]
    pub fn provider(&self) -> Provider<'_> {
        self.store().provider()
    }
}

/// Fails if the token of these calls belongs to another device.
async fn check_device(api: &ApiClient, identity: &DeviceIdentity) -> Result<()> {
    let status = api.get_key_package_status().await?;
    let (found, wanted) = (device_name(&status.user, &status.device), identity.identity());
    if found == wanted { Ok(()) } else { Err(Error::TokenOfOther { found, wanted }) }
}

/// Registers a device with the token that its user gave, and has the connection use the device's own from then on.
async fn register(connection: &MlsConnection<'_>, identity: &mut DeviceIdentity, new: &NewDevice) -> Result<()> {
    connection.api().set_token(new.user_token.clone());
    connection.register(identity).await?;
    connection.api().set_token(identity.token());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn can_be_spawned<T: Send>(_: T) {}

    /// Compiles only if tasks on other threads can make every call.
    #[test]
    fn every_call_can_be_spawned() {
        fn can_be_shared<T: Clone + Send + Sync + 'static>() {}

        can_be_shared::<MlsClient>();
        let _ = |data_dir: &Path, new: &NewDevice, settings| {
            can_be_spawned(MlsClient::init(data_dir, new, settings, &|_| {}));
        };
        let _ = |client: &MlsClient, (user, id): (&UserName, ReservationId), group: &mut MlsGroup| {
            can_be_spawned(client.refresh_key_packages(&|_| {}));
            can_be_spawned(client.rotate(&|_| {}));
            can_be_spawned(client.status());
            can_be_spawned(client.inventory());
            can_be_spawned(client.audit(None, 1));
            can_be_spawned(client.revoke(None));
            can_be_spawned(client.reserve(user, None, None, None));
            can_be_spawned(client.spend(id, b""));
            can_be_spawned(client.release(id));
            can_be_spawned(client.join(b""));
            can_be_spawned(client.prepare_invitation(group, user));
        };
        let _ = |client: &MlsClient, group: &mut MlsGroup, other: &mut MlsGroup, invitation: &Invitation| {
            can_be_spawned(client.confirm_invitation(group, invitation));
            can_be_spawned(client.withdraw_invitation(other, invitation));
        };
        let _ = |groups: MlsMembership<'_>, user: &UserName| {
            can_be_spawned(groups.invite(b"", &[]));
            can_be_spawned(groups.remove(b"", user));
            can_be_spawned(groups.leave(b""));
            can_be_spawned(groups.renew(b"", &[]));
            can_be_spawned(groups.update_keys(b""));
            can_be_spawned(groups.send(b"", ""));
            can_be_spawned(groups.receive(0));
            can_be_spawned(groups.settle());
            can_be_spawned(groups.safety_number(user));
        };
        let _ = |groups: MlsMembership<'_>, group: &MlsGroup, message: &openmls::prelude::ProcessedMessage| {
            can_be_spawned(groups.check_message(group, message));
        };
    }
}
