use std::{ops::Deref, path::Path, sync::Arc};

use jiff::{SignedDuration, Timestamp};
use keypool_client::{
    CIPHERSUITE, Event, IdentityCheck, KeyPackagePoolConfig, ManualClock, MlsClient, NewDevice, RefreshReport, Result,
    Settings,
};
use keypool_openapi::AckRequest;
use tempfile::TempDir;

use super::{Http, TestServer, data_directory, now};

/// A device with the client library: its data directory, and a clock that stands still until the test moves it.
#[derive(Debug)]
pub struct Owner {
    client: MlsClient,
    clock: Arc<ManualClock>,
    directory: TempDir,
}

impl Deref for Owner {
    type Target = MlsClient;

    fn deref(&self) -> &MlsClient {
        &self.client
    }
}

/// A user's first device.
pub fn new_device(base: &str, user: &str) -> NewDevice {
    NewDevice {
        server: base.to_owned(),
        user: user.parse().unwrap(),
        device: "laptop".parse().unwrap(),
        user_token: None,
        ciphersuites: vec![CIPHERSUITE],
    }
}

impl Owner {
    /// The same device with an identity check of its own.
    pub fn with_identity_check(self, check: Arc<dyn IdentityCheck>) -> Self {
        let Self { client, clock, directory } = self;
        Self { client: client.with_identity_check(check), clock, directory }
    }

    /// A user's first device, with a full pool.
    pub async fn of(server: &TestServer, user: &str) -> Self {
        Self::with(server, &new_device(&server.base, user), KeyPackagePoolConfig::default()).await.0
    }

    /// The same with a server that goes by the real time.
    pub async fn at(base: &str, user: &str) -> Self {
        Self::then(now(), &new_device(base, user), KeyPackagePoolConfig::default()).await.0
    }

    /// A device as it is asked for, with what its first refresh reported.
    pub async fn with(server: &TestServer, new: &NewDevice, pool: KeyPackagePoolConfig) -> (Self, RefreshReport) {
        Self::then(server.now(), new, pool).await
    }

    async fn then(now: Timestamp, new: &NewDevice, pool: KeyPackagePoolConfig) -> (Self, RefreshReport) {
        let directory = data_directory();
        let clock = Arc::new(ManualClock::new(now));
        let settings = settings(&clock, pool);
        let (client, report) = MlsClient::init(directory.path(), new, settings, &|_| ()).await.unwrap();
        (Self { client, clock, directory }, report)
    }

    /// A further device of the same user.
    pub async fn further(&self, server: &TestServer, device: &str) -> Self {
        let user_token = self.client.identity().token();
        let user = self.client.identity().user().as_str();
        let new = NewDevice { device: device.parse().unwrap(), user_token, ..new_device(&server.base, user) };
        Self::with(server, &new, KeyPackagePoolConfig::default()).await.0
    }

    /// Its name in full.
    pub fn name(&self) -> String {
        self.client.identity().identity()
    }

    /// Processes its queue, and returns the events.
    pub async fn hears(&self) -> Vec<Event> {
        let incoming = self.client.membership().receive(0).await.unwrap();
        self.client.membership().done(&incoming).unwrap();
        incoming.into_iter().map(|one| one.event).collect()
    }

    /// The texts that it received, each with its sender.
    pub async fn texts(&self) -> Vec<(String, String)> {
        let heard = self.hears().await.into_iter();
        heard
            .filter_map(|event| if let Event::Text { sender, text } = event { Some((sender, text)) } else { None })
            .collect()
    }

    /// Loses all that is in its queue, and answers how many messages that were.
    pub async fn lose_queue(&self) -> usize {
        let page = self.client.api().messages(0, 100, None).await.unwrap();
        let ids: Vec<_> = page.messages.iter().map(|message| message.id).collect();
        let lost = ids.len();
        self.client.api().acknowledge(&AckRequest { ids, ..AckRequest::default() }).await.unwrap();
        lost
    }

    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Moves this device's clock on.
    pub fn advance(&self, span: SignedDuration) {
        self.clock.advance(span);
    }

    pub async fn refresh(&self) -> Result<RefreshReport> {
        self.client.refresh_key_packages(&|_| ()).await
    }

    /// Closes the device, has something done to its directory, and opens it again.
    pub fn reopened(self, change: impl FnOnce(&Path)) -> Self {
        let Self { client, clock, directory } = self;
        drop(client);
        change(directory.path());
        let client = MlsClient::open_with(directory.path(), settings(&clock, KeyPackagePoolConfig::default())).unwrap();
        Self { client, clock, directory }
    }

    /// A second client that works on a copy of this one's directory.
    pub fn copied(&self) -> Self {
        let directory = data_directory();
        copy(self.directory(), directory.path());
        let clock = Arc::clone(&self.clock);
        let client = MlsClient::open_with(directory.path(), settings(&clock, KeyPackagePoolConfig::default())).unwrap();
        Self { client, clock, directory }
    }

    /// The same device over plain HTTP.
    pub fn http(&self) -> Http {
        use secrecy::ExposeSecret as _;

        let token = self.client.identity().token().unwrap();
        Http::new(self.client.identity().server().trim_end_matches('/')).with_token(token.expose_secret())
    }
}

fn settings(clock: &Arc<ManualClock>, pool: KeyPackagePoolConfig) -> Settings {
    Settings { clock: Arc::<ManualClock>::clone(clock), pool, ..Settings::default() }
}

/// Copies a data directory as a backup does: all its files.
pub fn copy(from: &Path, to: &Path) {
    for file in std::fs::read_dir(from).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), to.join(file.file_name())).unwrap();
    }
}
