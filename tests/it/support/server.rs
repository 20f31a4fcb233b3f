use std::{
    net::TcpListener,
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use jiff::{SignedDuration, Timestamp};
use keypool_server::{
    Server,
    clock::{Clock, ManualClock, SystemClock},
    config::Config,
    log::Sequencer,
    metrics::Metrics,
    store::Store,
    sweeper::{Report, Sweeper},
};
use keypool_validation::token::Token;
use reqwest::Method;
use tokio::sync::oneshot;

use super::{
    Database, Http, Place, Raw, Where, binary,
    compose::{self, Lent},
    without_settings,
};

/// How long a server may take to come up or down before a test gives up on it.
pub const PATIENCE: Duration = Duration::from_mins(1);

/// The real time, for KeyPackages: OpenMLS judges their lifetimes by the system's clock.
pub fn now() -> Timestamp {
    SystemClock.now()
}

/// A server within the test's own process, whose time stands still until the test moves it. Where the tests run against
/// containers, it stands for those, and has nothing but its address.
pub struct TestServer {
    pub base: String,
    serves: Serves,
}

enum Serves {
    Here(Box<Here>),
    /// Others may have them when this is dropped.
    Containers {
        _lent: Lent,
    },
}

struct Here {
    clock: Arc<ManualClock>,
    sweeper: Sweeper,
    sequencer: Sequencer,
    stop: Option<oneshot::Sender<()>>,
    place: Arc<Place>,
}

impl TestServer {
    pub async fn start(place: impl Into<Where>) -> Self {
        Self::start_with(place, |_| {}).await
    }

    /// Containers have the settings that docker-compose.yml gives them, without limits.
    pub async fn start_with(place: impl Into<Where>, change: impl FnOnce(&mut Config)) -> Self {
        match place.into().here() {
            Ok(database) => {
                let place = tokio::task::spawn_blocking(move || database.migrated()).await.unwrap();
                Self::start_at(Arc::new(place), change).await
            }
            Err(database) => {
                let lent = compose::lend(database).await;
                Self { base: lent.base.clone(), serves: Serves::Containers { _lent: lent } }
            }
        }
    }

    #[track_caller]
    fn here(&self) -> &Here {
        match &self.serves {
            Serves::Here(here) => here,
            Serves::Containers { .. } => {
                panic!("containers do not do this: the test has to say Database, not Anywhere")
            }
        }
    }

    /// Starts on a database that is there already.
    pub async fn start_at(place: Arc<Place>, change: impl FnOnce(&mut Config)) -> Self {
        Self::run(place, Arc::new(ManualClock::at(now())), change).await
    }

    /// Starts at another time than the real one.
    pub async fn start_then(database: Database, then: Timestamp, change: impl FnOnce(&mut Config)) -> Self {
        let place = tokio::task::spawn_blocking(move || database.migrated()).await.unwrap();
        Self::run(Arc::new(place), Arc::new(ManualClock::at(then)), change).await
    }

    /// A further server of the same database, and of the same time.
    pub async fn beside(&self, change: impl FnOnce(&mut Config)) -> Self {
        let here = self.here();
        Self::run(Arc::clone(&here.place), Arc::clone(&here.clock), change).await
    }

    /// A further server of the same database, on a machine with a clock of its own.
    pub async fn on_another_machine(&self, change: impl FnOnce(&mut Config)) -> Self {
        let here = self.here();
        Self::run(Arc::clone(&here.place), Arc::new(here.clock.beside()), change).await
    }

    async fn run(place: Arc<Place>, clock: Arc<ManualClock>, change: impl FnOnce(&mut Config)) -> Self {
        let mut config = Config {
            listen: "127.0.0.1:0".parse().unwrap(),
            database_url: place.url.clone().into(),
            log_key: place.log_key(),
            // Tests sweep when they choose.
            sweep_interval: Duration::from_hours(1),
            ..Config::default()
        };
        change(&mut config);
        let (started, starting) = oneshot::channel();
        let (stop, stopped) = oneshot::channel();
        let its_clock = Arc::clone(&clock);
        // A thread of its own: the server goes on while the test's runtime is busy or gone.
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let server = Server::start(config, its_clock).await.unwrap();
                let sequencer = server.sequencer().expect("the server has no log").clone();
                let _ = started.send((server.address(), server.sweeper().clone(), sequencer));
                let _ = stopped.await;
                server.stop().await;
            });
        });
        let (address, sweeper, sequencer) = starting.await.expect("the server did not start");
        let here = Here { clock, sweeper, sequencer, stop: Some(stop), place };
        let server = Self { base: format!("http://{address}"), serves: Serves::Here(Box::new(here)) };
        server.settled().await;
        server
    }

    /// Waits for the census and the sweep that every server begins with: what a test moves on is tidied up when the test has it done.
    async fn settled(&self) {
        let patience = Instant::now() + PATIENCE;
        let anyone = self.anyone();
        while anyone.get("/metrics").await.text.contains("\nkeypool_sweeper_last_run_timestamp_seconds 0\n") {
            assert!(Instant::now() < patience, "the server's first sweep is not over after {PATIENCE:?}");
        }
    }

    /// Moves the server's time on.
    pub fn advance(&self, span: SignedDuration) {
        self.here().clock.advance(span);
    }

    /// Sets the clock of the server's machine so far ahead of the database's.
    pub fn set_ahead(&self, span: SignedDuration) {
        self.here().clock.set_ahead(span);
    }

    /// Has the server tidy up, as it does by itself every now and then.
    pub async fn sweep(&self) -> Report {
        self.here().sweeper.sweep().await.unwrap()
    }

    /// Has the server put all that was handed out into the log, as it does by itself twice a second.
    pub async fn sequence(&self) {
        self.here().sequencer.run_once().await.unwrap();
    }

    /// How many steps of KeyPackages the log has, each once; of containers, nobody knows.
    pub async fn logged(&self) -> Option<usize> {
        match &self.serves {
            Serves::Here(_) => Some(crate::log::is_whole(self).await),
            Serves::Containers { .. } => None,
        }
    }

    /// The same where it may refuse to; answers why.
    pub async fn try_sweep(&self) -> Result<Report, String> {
        self.here().sweeper.sweep().await.map_err(|failure| failure.to_string())
    }

    /// Has the server count the KeyPackages of all pools, as it does by itself every now and then.
    pub async fn census(&self) {
        self.here().sweeper.census().await.unwrap();
    }

    /// The value of a metric, which is named without its prefix and with its labels.
    pub async fn metric(&self, name: &str) -> String {
        let metrics = self.anyone().get("/metrics").await.text;
        let value = metrics.lines().find_map(|line| line.strip_prefix(&format!("keypool_{name} ")));
        value.unwrap_or_else(|| panic!("no {name} in\n{metrics}")).to_owned()
    }

    /// The server's time.
    pub fn now(&self) -> Timestamp {
        match &self.serves {
            Serves::Here(here) => here.clock.now(),
            Serves::Containers { .. } => now(),
        }
    }

    /// The same in whole seconds, as it answers times that it has kept.
    pub fn second(&self) -> String {
        Timestamp::from_second(self.now().as_second()).unwrap().to_string()
    }

    /// Its database.
    pub fn place(&self) -> Arc<Place> {
        Arc::clone(&self.here().place)
    }

    /// Stops, and leaves its database.
    pub fn stopped_at(self) -> Arc<Place> {
        Arc::clone(&self.here().place)
    }

    /// Waits until some request waits for something.
    pub async fn waits_for_a_message(&self) {
        let patience = Instant::now() + PATIENCE;
        // The one that asks for this is in flight as well.
        while !self.anyone().get("/metrics").await.text.contains("\nkeypool_http_requests_in_flight 2\n") {
            assert!(Instant::now() < patience, "no request waits");
        }
    }

    /// Its database, behind its back.
    pub fn database(&self) -> Raw {
        self.here().place.open()
    }

    /// The file that SQLite writes to first.
    pub fn wal(&self) -> std::path::PathBuf {
        format!("{}-wal", self.here().place.url.strip_prefix("sqlite://").unwrap()).into()
    }

    /// Notes an enrolment token of a user, as the operator does it, and answers the token.
    pub fn enrol(&self, user: &str, lasts: SignedDuration) -> String {
        let token = Token::enrolment().unwrap();
        self.store().enrol(&user.parse().unwrap(), &token.hash(), self.now(), self.now() + lasts).unwrap();
        token.reveal().to_owned()
    }

    /// A store on its database, for the verbs that no request reaches alone. All that it does goes over one connection.
    pub fn store(&self) -> Store {
        let database_url = self.here().place.url.clone().into();
        let config = Config { database_url, database_connections: 1, ..Config::default() };
        Store::connect(&config, Arc::new(Metrics::new().unwrap()), self.here().clock.clone()).unwrap()
    }

    /// How many requests of clients it has answered; of containers, nobody knows.
    pub async fn requests(&self) -> Option<u64> {
        let Serves::Here(_) = &self.serves else { return None };
        let metrics = self.anyone().get("/metrics").await.text;
        let of_clients =
            |line: &&str| line.starts_with("keypool_http_requests_total") && !line.contains(r#"route="/metrics""#);
        let count = |line: &str| line.rsplit_once(' ').unwrap().1.parse::<u64>().unwrap();
        Some(metrics.lines().filter(of_clients).map(count).sum())
    }

    /// Someone without a token.
    pub fn anyone(&self) -> Http {
        Http::new(&self.base)
    }
}

impl Drop for Here {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
    }
}

/// The operator's token of servers that have one.
pub const ADMIN_TOKEN: &str = "the operator's token of these tests";

/// The server as users run it, a process or containers, with a database of its own.
pub struct Running {
    pub base: String,
    _serves: (Option<(ServerProcess, Place)>, Option<Lent>),
}

impl Running {
    pub async fn start(place: impl Into<Where>) -> Self {
        match place.into().here() {
            Ok(database) => {
                let place = tokio::task::spawn_blocking(move || database.migrated()).await.unwrap();
                let server = ServerProcess::start_with(&place, |command| {
                    command.env("KEYPOOL_ADMIN_TOKEN", ADMIN_TOKEN);
                })
                .await;
                Self { base: server.base.clone(), _serves: (Some((server, place)), None) }
            }
            Err(database) => {
                let lent = compose::lend(database).await;
                Self { base: lent.base.clone(), _serves: (None, Some(lent)) }
            }
        }
    }
}

/// The server as a process.
#[derive(Debug)]
pub struct ServerProcess {
    pub base: String,
    child: Child,
}

impl ServerProcess {
    /// Starts one, and answers before it is up.
    pub fn spawn(place: &Place) -> Self {
        Self::spawn_with(place, |_| {})
    }

    /// The same with other settings, or its output elsewhere.
    pub fn spawn_with(place: &Place, change: impl FnOnce(&mut Command)) -> Self {
        Self::spawn_at(place, &format!("127.0.0.1:{}", free_port()), change)
    }

    /// The same where another was.
    pub fn spawn_at(place: &Place, address: &str, change: impl FnOnce(&mut Command)) -> Self {
        Self::spawn_program(&binary("keypool-server"), place, address, change)
    }

    fn spawn_program(program: &Path, place: &Place, address: &str, change: impl FnOnce(&mut Command)) -> Self {
        let mut command = Command::new(program);
        without_settings(&mut command)
            .env("KEYPOOL_LISTEN", address)
            .env("KEYPOOL_DATABASE_URL", &place.url)
            .env("KEYPOOL_LIMITS", "off")
            .env("KEYPOOL_LOG", "warn")
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        if let Some(log_key) = place.log_key() {
            command.env("KEYPOOL_LOG_KEY", log_key);
        }
        change(&mut command);
        Self { base: format!("http://{address}"), child: command.spawn().unwrap() }
    }

    pub async fn start(place: &Place) -> Self {
        Self::start_with(place, |_| {}).await
    }

    pub async fn start_with(place: &Place, change: impl FnOnce(&mut Command)) -> Self {
        let mut server = Self::spawn_with(place, change);
        server.ready().await;
        server
    }

    /// Starts another program than this workspace's server.
    pub async fn start_program(program: &Path, place: &Place) -> Self {
        Self::start_program_with(program, place, |_| {}).await
    }

    /// The same with other settings, or its output elsewhere.
    pub async fn start_program_with(program: &Path, place: &Place, change: impl FnOnce(&mut Command)) -> Self {
        let mut server = Self::spawn_program(program, place, &format!("127.0.0.1:{}", free_port()), change);
        server.ready().await;
        server
    }

    /// The process's number.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Starts one where another was.
    pub async fn start_at(place: &Place, address: &str) -> Self {
        let mut server = Self::spawn_at(place, address, |_| {});
        server.ready().await;
        server
    }

    /// Waits until it serves.
    pub async fn ready(&mut self) {
        self.answers("/readyz").await;
    }

    /// Waits until it listens, whether or not its database is open.
    pub async fn listens(&mut self) {
        self.answers("/healthz").await;
    }

    /// Waits until its database is open, whether or not it is ready.
    pub async fn opened(&mut self) {
        self.answers("/metrics").await;
    }

    async fn answers(&mut self, path: &str) {
        let patience = Instant::now() + PATIENCE;
        let anyone = Http::new(&self.base);
        while !anyone.try_send(Method::GET, path, None).await.is_ok_and(|answer| answer.status == 200) {
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("the server ended by itself: {status}");
            }
            assert!(Instant::now() < patience, "the server does not answer {path} after {PATIENCE:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// The address at which it listens.
    pub fn address(&self) -> &str {
        self.base.split_once("//").unwrap().1
    }

    /// Sends it a signal, such as `TERM`.
    pub fn signal(&self, name: &str) {
        let status = Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]).status();
        assert!(status.unwrap().success());
    }

    /// Waits until it has ended by itself.
    pub async fn ended(mut self) -> ExitStatus {
        let patience = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < patience, "the server runs on after {PATIENCE:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// `kill -9`.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A port that nobody listens on.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}
