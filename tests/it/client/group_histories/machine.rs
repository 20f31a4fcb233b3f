//! The server of the histories, which can be killed, and what sends the requests of a device to it.

use std::sync::Arc;

use jiff::SignedDuration;
use keypool_client::{
    Sending, Transport, TransportError,
    http::{Request, Response},
};
use keypool_openapi::UserName;
use keypool_server::{clock::SystemClock, config::Config, metrics::Metrics, store::Store};
use keypool_validation::token::Token;
use parking_lot::Mutex;
use secrecy::SecretString;
use tokio::sync::Notify;

use super::step::Fault;
use crate::support::{Database, Place, ServerProcess, builder, now};

/// A server that starts again where it was killed.
pub struct Machine {
    place: Place,
    pub base: String,
    process: tokio::sync::Mutex<Option<ServerProcess>>,
    store: Store,
}

impl Machine {
    pub async fn start(db: Database) -> Self {
        let place = tokio::task::spawn_blocking(move || db.migrated()).await.unwrap();
        let process = ServerProcess::start(&place).await;
        let config = Config { database_url: place.url.clone().into(), database_connections: 1, ..Config::default() };
        let store = Store::connect(&config, Arc::new(Metrics::new().unwrap()), Arc::new(SystemClock)).unwrap();
        Self { base: process.base.clone(), process: tokio::sync::Mutex::new(Some(process)), place, store }
    }

    /// Kills the server, and starts it at the same address.
    pub async fn dies(&self) {
        let mut process = self.process.lock().await;
        let dying = process.take().unwrap();
        let address = dying.address().to_owned();
        dying.kill();
        *process = Some(ServerProcess::start_at(&self.place, &address).await);
    }

    /// A token with which a device of the user is registered.
    pub fn enrol(&self, user: &UserName) -> SecretString {
        let token = Token::enrolment().unwrap();
        self.store.enrol(user, &token.hash(), now(), now() + SignedDuration::from_hours(1)).unwrap();
        token.reveal().to_owned().into()
    }
}

/// What sends the requests of a device.
pub struct Line {
    machine: Arc<Machine>,
    http: reqwest::Client,
    /// How many requests are still to pass before the fault.
    plan: Mutex<Option<(usize, Fault)>>,
    crash: Notify,
}

impl Line {
    pub fn to(machine: &Arc<Machine>) -> Arc<Self> {
        let http = builder().build().unwrap();
        Arc::new(Self { machine: Arc::clone(machine), http, plan: Mutex::default(), crash: Notify::new() })
    }

    pub fn plan(&self, fault: Option<(usize, Fault)>) {
        *self.plan.lock() = fault;
    }

    /// Waits until the device's program has to end.
    pub async fn crashes(&self) {
        self.crash.notified().await;
    }

    fn fault(&self) -> Option<Fault> {
        let mut plan = self.plan.lock();
        match &mut *plan {
            Some((0, _)) => plan.take().map(|(_, fault)| fault),
            Some((left, _)) => {
                *left -= 1;
                None
            }
            None => None,
        }
    }

    async fn end<T>(&self) -> T {
        self.crash.notify_one();
        std::future::pending().await
    }
}

impl Transport for Line {
    fn send(&self, request: Request<Vec<u8>>, limit: usize) -> Sending<'_> {
        Box::pin(async move {
            let lost = || Err::<Response<Vec<u8>>, _>(TransportError::Other("it was lost".into()));
            match self.fault() {
                None => self.http.send(request, limit).await,
                Some(Fault::Lost) => lost(),
                Some(Fault::LostAnswer) => {
                    drop(self.http.send(request, limit).await);
                    lost()
                }
                Some(Fault::CrashBefore) => self.end().await,
                Some(Fault::CrashAfter) => {
                    drop(self.http.send(request, limit).await);
                    self.end().await
                }
                Some(Fault::ServerDies) => {
                    let (answer, ()) = tokio::join!(self.http.send(request, limit), self.machine.dies());
                    answer.or_else(|_| lost())
                }
            }
        })
    }
}
