//! The server put together: routes, middleware, the OpenAPI document.

mod document;
mod fallback;
mod static_documents;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use actix_web::{App, dev::ServerHandle, error::PathError, middleware::from_fn, web};
use anyhow::{Context, bail};
use keypool_openapi::ProblemType;
use tokio::task::JoinHandle;
use tracing_actix_web::TracingLogger;
use utoipa_actix_web::AppExt;

use crate::{
    answers,
    clock::Clock,
    config::Config,
    connections::serve::{listener, serve},
    metrics::Metrics,
    observe::{RequestSpan, observe},
    pool::Pool,
    problem::Failure,
    stop::{Signals, Stopping},
    store::Store,
    sweeper, tls,
};

pub use document::openapi_json;
use document::{document, routes};
use static_documents::StaticDocuments;

/// A running server.
pub struct Server {
    address: SocketAddr,
    scheme: &'static str,
    database: &'static str,
    handle: ServerHandle,
    running: JoinHandle<std::io::Result<()>>,
    pool: Pool,
    sweeping: JoinHandle<()>,
    watching: JoinHandle<()>,
    stopping: Stopping,
    shutdown_delay: Duration,
}

impl Server {
    /// Opens and migrates the database, binds, and begins to serve.
    ///
    /// # Errors
    /// When the database cannot be reached, the address is in use, or the TLS certificate cannot be read.
    pub async fn start(config: Config, clock: Arc<dyn Clock>) -> anyhow::Result<Self> {
        let (listen, sweep_interval, shutdown_delay) = (config.listen, config.sweep_interval, config.shutdown_delay);
        let document = document(&config);
        let tls = tls::server_config(&config)?;
        let metrics = Arc::new(Metrics::new()?);
        let its_metrics = Arc::clone(&metrics);
        let pool = web::block(move || -> anyhow::Result<_> {
            let store = Store::connect(&config, its_metrics, Arc::clone(&clock));
            let store = store.with_context(|| format!("cannot open {}", config.database_url))?;
            let (kind, pool) = (store.kind(), Pool::new(store, clock, &config)?);
            pool.resume()?;
            pool.adopt_signature_keys()?;
            pool.listen(&config)?;
            Ok((kind, pool))
        });
        let (database, pool) = pool.await??;
        let (shared, stopping) = (web::Data::new(pool.clone()), Stopping::default());
        let paths = web::Data::new(fallback::Paths::of(&document));
        let documents = web::Data::new(StaticDocuments::new(&document)?);
        let (answers, connections) = (web::Data::from(Arc::clone(pool.answers())), Arc::clone(pool.connections()));
        let accepted = pool.capacity().accepted;
        let (metrics, its_stopping) = (web::Data::from(metrics), web::Data::new(stopping.clone()));
        let app = move || {
            App::new()
                .wrap(from_fn(answers::send))
                .wrap(from_fn(observe))
                .wrap(TracingLogger::<RequestSpan>::new())
                .app_data(shared.clone())
                .app_data(paths.clone())
                .app_data(metrics.clone())
                .app_data(its_stopping.clone())
                .app_data(answers.clone())
                .app_data(documents.clone())
                .app_data(web::PathConfig::default().error_handler(|error, _| unreadable_path(&error).into()))
                .into_utoipa_app()
                .configure(routes)
                .into_app()
                .service(static_documents::openapi)
                .service(static_documents::swagger_ui)
                .default_service(web::to(fallback::nothing_here))
        };
        let listener = listener(listen).with_context(|| {
            format!("cannot listen on {listen}: is another server there, or is the address not this machine's?")
        })?;
        let (scheme, address) = (if tls.is_some() { "https" } else { "http" }, listener.local_addr()?);
        let watching = tokio::spawn(Arc::clone(&connections).watch());
        let server = serve(listener, tls, (connections, accepted), app)?;
        let handle = server.handle();
        let running = tokio::spawn(server);
        let sweeping = tokio::spawn(sweeper::run(pool.clone(), sweep_interval));
        Ok(Self { address, scheme, database, handle, running, pool, sweeping, watching, stopping, shutdown_delay })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The URL of what it serves.
    #[must_use]
    pub fn url(&self) -> String {
        format!("{}://{}", self.scheme, self.address)
    }

    /// The kind of its database, for people.
    #[must_use]
    pub fn database(&self) -> &'static str {
        self.database
    }

    /// The pool that it serves.
    #[must_use]
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Serves until a signal ends it: then it is not ready, still serves for the `shutdown_delay`, accepts no more, and
    /// finishes what runs. A second signal ends it at once.
    ///
    /// # Errors
    /// When serving fails, or a second signal ends it.
    pub async fn run_until_stopped(self, mut signals: Signals) -> anyhow::Result<()> {
        let Self { mut running, pool, sweeping, watching, stopping, shutdown_delay, handle, .. } = self;
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
            pool.stop_waiting();
            handle.stop(true).await;
            watching.abort();
        };
        tokio::select! {
            () = stop => {
                tracing::info!("stopped");
                Ok(running.await??)
            }
            signal = signals.next() => {
                // The server that is dropped with its task stops by force.
                running.abort();
                bail!("stopped at once by a second signal, {signal}: what still ran is not answered")
            }
        }
    }

    /// Ends it when what runs is finished.
    pub async fn stop(self) {
        self.sweeping.abort();
        self.pool.stop_waiting();
        self.handle.stop(true).await;
        self.watching.abort();
    }
}

fn unreadable_path(error: &PathError) -> Failure {
    Failure::new(ProblemType::MalformedRequest, format!("The path cannot be read: {error}."))
}
