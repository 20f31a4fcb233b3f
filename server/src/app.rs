//! The server put together: routes, middleware, the OpenAPI document.

mod document;
mod fallback;

use std::{net::SocketAddr, sync::Arc};

use actix_web::{App, HttpServer, dev::ServerHandle, error::PathError, web};
use anyhow::Context;
use keypool_openapi::ProblemType;
use tracing_actix_web::TracingLogger;
use utoipa_actix_web::AppExt;
use utoipa_swagger_ui::SwaggerUi;

use crate::{clock::Clock, config::Config, pool::Pool, problem::Failure, store::Store, sweeper};

pub use document::openapi_json;
use document::{document, routes};

/// A running server.
pub struct Server {
    address: SocketAddr,
    database: &'static str,
    handle: ServerHandle,
    running: tokio::task::JoinHandle<std::io::Result<()>>,
    pool: Pool,
    sweeping: tokio::task::JoinHandle<()>,
}

impl Server {
    /// Opens and migrates the database, binds, and begins to serve.
    ///
    /// # Errors
    /// When the database or the address cannot be had.
    pub async fn start(config: Config, clock: Arc<dyn Clock>) -> anyhow::Result<Self> {
        let (listen, sweep_interval, document) = (config.listen, config.sweep_interval, document(&config));
        let pool = web::block(move || -> anyhow::Result<_> {
            let store = Store::connect(&config).with_context(|| format!("cannot open {}", config.database_url))?;
            Ok((store.kind(), Pool::new(store, clock, &config)?))
        });
        let (database, pool) = pool.await??;
        let shared = web::Data::new(pool.clone());
        let paths = web::Data::new(fallback::Paths::of(&document));
        let server = HttpServer::new(move || {
            App::new()
                .wrap(TracingLogger::default())
                .app_data(shared.clone())
                .app_data(paths.clone())
                .app_data(web::PathConfig::default().error_handler(|error, _| unreadable_path(&error).into()))
                .into_utoipa_app()
                .configure(routes)
                .into_app()
                .service(SwaggerUi::new("/swagger-ui/{_:.*}").url("/openapi.json", document.clone()))
                .default_service(web::to(fallback::nothing_here))
        })
        .bind(listen)
        .with_context(|| {
            format!("cannot listen on {listen}: is another server there, or is the address not this machine's?")
        })?;
        let address = *server.addrs().first().context("the server is bound to no address")?;
        let server = server.run();
        let handle = server.handle();
        let sweeping = tokio::spawn(sweeper::run(pool.clone(), sweep_interval));
        Ok(Self { address, database, handle, running: tokio::spawn(server), pool, sweeping })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
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

    /// Serves until a signal ends it.
    ///
    /// # Errors
    /// When serving fails.
    pub async fn run_until_stopped(self) -> anyhow::Result<()> {
        Ok(self.running.await??)
    }

    /// Ends it when what runs is finished.
    pub async fn stop(self) {
        self.sweeping.abort();
        self.handle.stop(true).await;
    }
}

fn unreadable_path(error: &PathError) -> Failure {
    Failure::new(ProblemType::MalformedRequest, format!("The path cannot be read: {error}."))
}
