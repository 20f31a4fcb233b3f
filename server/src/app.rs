//! Assembles the server: routes, middleware, and the OpenAPI document.

mod cors;
mod document;
mod door;
mod fallback;
mod info;
mod static_documents;
mod swagger_ui;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use actix_web::{App, dev::ServerHandle, error::PathError, middleware::from_fn, web};
use anyhow::{Context, bail};
use keypool_openapi::ProblemType;
use tokio::task::JoinHandle;
use tracing_actix_web::TracingLogger;
use utoipa_actix_web::AppExt;

use crate::{
    answers::{Answers, send::send},
    auth::Authenticator,
    body_memory::BodyMemory,
    capacity::Capacity,
    clock::Clock,
    config::Config,
    connections::{
        Connections,
        serve::{listener, serve},
    },
    fetches::Fetches,
    limits::Limits,
    log::{Log, Sequencer},
    metrics::Metrics,
    observe::{RequestSpan, observe},
    problem::Failure,
    routes,
    service::Service,
    stop::{Signals, Stopping, in_a_thread},
    store::Store,
    sweeper::Sweeper,
    tls,
    witnesses::Witnesses,
    work::Work,
};

use document::document;
pub use document::openapi_json;
use door::{Door, Key};
use static_documents::StaticDocuments;

/// The parts of a server that need its database.
struct Parts {
    /// The name of the database system, for log messages.
    database: &'static str,
    service: Service,
    authenticator: Authenticator,
    sweeper: Sweeper,
    sequencer: Option<Sequencer>,
}

impl Parts {
    /// Opens and migrates the database, and builds the parts. Blocks.
    fn of(
        config: &Config,
        clock: &Arc<dyn Clock>,
        metrics: Arc<Metrics>,
        under_way: (Arc<Fetches>, Arc<Answers>),
    ) -> anyhow::Result<Self> {
        let store = Store::connect(config, Arc::clone(&metrics), Arc::clone(clock));
        let store = store.with_context(|| format!("cannot open {}", config.database_url))?;
        let database = store.kind();
        let limits = Arc::new(Limits::new(config, Arc::clone(clock)));
        let work = Work::new(Arc::clone(clock), metrics, config.max_waiting_requests as usize);
        let witnesses = Arc::new(Witnesses::new(store.clone(), config));
        // Before the log: a restored database continues it under another name.
        witnesses.resume()?;
        let log = Log::open(&store, config, clock.now())?;
        let sequencer = log.as_ref().map(|log| Sequencer::new(Arc::clone(log), work.clone(), Arc::clone(&witnesses)));
        let service = Service::new((store.clone(), work.clone()), config, Arc::clone(&limits), under_way, log)?;
        let authenticator = Authenticator::new((store.clone(), &work, Arc::clone(clock)), config, Arc::clone(&limits))?;
        let sweeper = Sweeper::new((store, work), config, limits, witnesses);
        service.adopt_signature_keys()?;
        service.listen(config)?;
        Ok(Self { database, service, authenticator, sweeper, sequencer })
    }
}

/// Adds what is under way to the metrics.
fn watch(
    metrics: &Metrics,
    capacity: &Capacity,
    (connections, answers, fetches): (&Arc<Connections>, &Arc<Answers>, &Arc<Fetches>),
) -> prometheus::Result<()> {
    let (connections, answers, fetches) = (Arc::clone(connections), Arc::clone(answers), Arc::clone(fetches));
    let open = move || connections.count();
    metrics.watch("connections", "Open connections of clients.", (capacity.connections, open))?;
    let taken = move || answers.taken();
    metrics.watch("answer_bytes", "Memory of large answers that are being sent.", (capacity.answers, taken))?;
    let waiting = move || fetches.waiting();
    metrics.watch("waiting_fetches", "Requests that wait for a message.", (capacity.waits, waiting))
}

/// The listener with its connections.
struct Listening {
    address: SocketAddr,
    scheme: &'static str,
    handle: ServerHandle,
    running: JoinHandle<std::io::Result<()>>,
    watching: JoinHandle<()>,
}

impl Listening {
    fn abort(&self) {
        self.running.abort();
        self.watching.abort();
    }
}

/// A server that listens, and whose database is not open yet. It answers `GET /healthz`, and all other requests with
/// `unavailable`.
pub struct Opening {
    listening: Listening,
    key: Key,
    metrics: Arc<Metrics>,
    fetches: Arc<Fetches>,
    answers: Arc<Answers>,
    stopping: Stopping,
}

impl Opening {
    /// Binds the address, and starts to answer.
    ///
    /// # Errors
    /// When the address is in use, the TLS certificate cannot be read, or the process has too little memory.
    pub fn begin(config: &Config) -> anyhow::Result<Self> {
        let (tls, origins, document) = (tls::server_config(config)?, config.cors_origins.clone(), document(config));
        let (metrics, capacity) = (Arc::new(Metrics::new()?), Capacity::of_process(config)?);
        let connections = Arc::new(Connections::new(&capacity));
        let answers = Arc::new(Answers::new(capacity.answers, Arc::clone(&connections)));
        let fetches = Arc::new(Fetches::new(capacity.waits));
        watch(&metrics, &capacity, (&connections, &answers, &fetches))?;
        let (stopping, key) = (Stopping::default(), Key::default());
        let bodies = web::Data::new(BodyMemory::new(capacity.bodies, Arc::clone(&metrics)));
        let log_access = web::Data::new(config.log_access);
        let (paths, info) = (web::Data::new(fallback::Paths::of(&document)), web::Data::new(info::info(config)));
        let documents = web::Data::new(StaticDocuments::new(&document)?);
        let shared_metrics = web::Data::from(Arc::clone(&metrics));
        let (shared_answers, shared_stopping) =
            (web::Data::from(Arc::clone(&answers)), web::Data::new(stopping.clone()));
        let its_key = key.clone();
        let app = move || {
            App::new()
                .wrap(from_fn(door::pass))
                .wrap(from_fn(send))
                .wrap(cors::cors(&origins))
                .wrap(from_fn(observe))
                .wrap(TracingLogger::<RequestSpan>::new())
                .app_data(web::Data::new(Door::new(its_key.clone())))
                .app_data(bodies.clone())
                .app_data(paths.clone())
                .app_data(shared_metrics.clone())
                .app_data(shared_stopping.clone())
                .app_data(shared_answers.clone())
                .app_data(documents.clone())
                .app_data(info.clone())
                .app_data(log_access.clone())
                .app_data(web::PathConfig::default().error_handler(|error, _| unreadable_path(&error).into()))
                .into_utoipa_app()
                .configure(routes::register)
                .into_app()
                .service(static_documents::openapi)
                .service(swagger_ui::example_upload)
                .service(static_documents::swagger_ui_file)
                .service(static_documents::swagger_ui_without_slash)
                .default_service(web::to(fallback::nothing_here))
        };
        let listen = config.listen;
        let listener = listener(listen).with_context(|| {
            format!("cannot listen on {listen}: is another server there, or is the address not this machine's?")
        })?;
        let (scheme, address) = (if tls.is_some() { "https" } else { "http" }, listener.local_addr()?);
        let server = serve(listener, tls, (Arc::clone(&connections), capacity.accepted), app)?;
        let (handle, watching) = (server.handle(), tokio::spawn(connections.watch()));
        let listening = Listening { address, scheme, handle, running: tokio::spawn(server), watching };
        Ok(Self { listening, key, metrics, fetches, answers, stopping })
    }

    /// Opens and migrates the database, and serves.
    ///
    /// # Errors
    /// When the database cannot be reached, opened or migrated.
    pub async fn finish(self, config: Config, clock: Arc<dyn Clock>) -> anyhow::Result<Server> {
        let Self { listening, key, metrics, fetches, answers, stopping } = self;
        let (sweep_interval, shutdown_delay) = (config.sweep_interval, config.shutdown_delay);
        let parts = in_a_thread(move || Parts::of(&config, &clock, metrics, (fetches, answers))).await;
        let Parts { database, service, authenticator, sweeper, sequencer } =
            parts.inspect_err(|_| listening.abort())?;
        key.open(service.clone(), authenticator);
        let sweeping = tokio::spawn(sweeper.clone().run(sweep_interval));
        let sequencing = sequencer.clone().map(|sequencer| tokio::spawn(sequencer.run()));
        Ok(Server { listening, database, service, sweeper, sweeping, sequencer, sequencing, stopping, shutdown_delay })
    }
}

/// A running server.
pub struct Server {
    listening: Listening,
    database: &'static str,
    service: Service,
    sweeper: Sweeper,
    sweeping: JoinHandle<()>,
    sequencer: Option<Sequencer>,
    sequencing: Option<JoinHandle<()>>,
    stopping: Stopping,
    shutdown_delay: Duration,
}

impl Server {
    /// Binds the address, opens and migrates the database, and serves.
    ///
    /// # Errors
    /// When the address is in use, the TLS certificate cannot be read, or the database cannot be reached.
    pub async fn start(config: Config, clock: Arc<dyn Clock>) -> anyhow::Result<Self> {
        Opening::begin(&config)?.finish(config, clock).await
    }

    /// The address that the server listens on.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.listening.address
    }

    /// The server's URL.
    #[must_use]
    pub fn url(&self) -> String {
        format!("{}://{}", self.listening.scheme, self.listening.address)
    }

    /// The name of its database system, for log messages.
    #[must_use]
    pub fn database(&self) -> &'static str {
        self.database
    }

    /// The sweeper of its database.
    #[must_use]
    pub fn sweeper(&self) -> &Sweeper {
        &self.sweeper
    }

    /// The sequencer of the transparency log, if there is one.
    #[must_use]
    pub fn sequencer(&self) -> Option<&Sequencer> {
        self.sequencer.as_ref()
    }

    /// Serves until a signal stops the server. The server then reports that it is not ready, keeps serving for the
    /// `shutdown_delay`, accepts no further connections, and finishes the running requests. A second signal stops it at
    /// once.
    ///
    /// # Errors
    /// When serving fails, or a second signal stops the server.
    pub async fn run_until_stopped(self, mut signals: Signals) -> anyhow::Result<()> {
        let Self { listening, service, sweeping, sequencer, sequencing, stopping, shutdown_delay, .. } = self;
        let Listening { handle, mut running, watching, .. } = listening;
        let signal = tokio::select! {
            ended = &mut running => return Ok(ended??),
            signal = signals.next() => signal,
        };
        tracing::info!(signal, ?shutdown_delay, "stopping: not ready from now on, and serving on for the delay");
        stopping.begin();
        let stop = async {
            tokio::time::sleep(shutdown_delay).await;
            tracing::info!("stopping: accepting no more, and finishing what runs");
            sweeping.abort();
            service.stop_waiting();
            handle.stop(true).await;
            finish_log(sequencer, sequencing).await;
            watching.abort();
        };
        tokio::select! {
            () = stop => {
                tracing::info!("stopped");
                Ok(running.await??)
            }
            signal = signals.next() => {
                // Dropping the server with its task stops it by force.
                running.abort();
                bail!("stopped at once by a second signal, {signal}: what still ran is not answered")
            }
        }
    }

    /// Stops the server after the running requests are finished.
    pub async fn stop(self) {
        self.sweeping.abort();
        self.service.stop_waiting();
        self.listening.handle.stop(true).await;
        finish_log(self.sequencer, self.sequencing).await;
        self.listening.watching.abort();
    }
}

/// Puts what was handed out last into the log.
async fn finish_log(sequencer: Option<Sequencer>, sequencing: Option<JoinHandle<()>>) {
    if let Some(sequencing) = sequencing {
        sequencing.abort();
    }
    let Some(sequencer) = sequencer else { return };
    if let Err(error) = sequencer.run_once().await {
        tracing::warn!(%error, "the last hand-outs were not put into the transparency log; the next server does it");
    }
}

fn unreadable_path(error: &PathError) -> Failure {
    Failure::new(ProblemType::MalformedRequest, format!("The path cannot be read: {error}."))
}
