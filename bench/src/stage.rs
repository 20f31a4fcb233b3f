//! A filled database with a server and its adders.

use std::{sync::Arc, time::Duration};

use anyhow::Result;

use crate::{
    load::{self, Measured},
    pace::Pace,
    postgres::{Database, Postgres},
    requests::{Cast, Mix},
    server::Server,
};

/// One database of a PostgreSQL, with its server.
#[derive(Debug)]
pub(crate) struct Stage<'a> {
    pub database: Database<'a>,
    pub server: Server,
    pub cast: Arc<Cast>,
    pub connections: usize,
}

impl<'a> Stage<'a> {
    /// Fills a database with so many KeyPackages of so many users, and opens so many connections, each with its own
    /// device.
    pub(crate) async fn set(
        postgres: &'a Postgres,
        name: &str,
        (users, packages): (u64, u64),
        connections: u16,
    ) -> Result<Self> {
        Self::set_up(postgres, name, (users, packages), connections, None).await
    }

    async fn set_up(
        postgres: &'a Postgres,
        name: &str,
        (users, packages): (u64, u64),
        connections: u16,
        memory: Option<u32>,
    ) -> Result<Self> {
        let database = postgres.database(name)?;
        database.fill(users, packages)?;
        let connections = usize::from(connections);
        let adders = database.add_adders(connections)?;
        let server = match memory {
            Some(memory) => Server::start_within(&database.url, memory).await?,
            None => Server::start(&database.url).await?,
        };
        let cast = Arc::new(Cast::new(server.address.clone(), adders, ("user-", users)));
        Ok(Self { database, server, cast, connections })
    }

    /// The same with a server that may use so many MiB of memory.
    pub(crate) async fn set_within(
        postgres: &'a Postgres,
        name: &str,
        (users, packages): (u64, u64),
        connections: u16,
        memory: u32,
    ) -> Result<Self> {
        Self::set_up(postgres, name, (users, packages), connections, Some(memory)).await
    }

    /// Warm-up, so that no round includes the first plans and cold caches.
    pub(crate) async fn warm_up(&self) -> Result<()> {
        self.run(Mix::RESERVE, Pace::Full(Duration::from_secs(1))).await.map(drop)
    }

    /// Sends requests over all connections.
    pub(crate) async fn run(&self, mix: Mix, pace: Pace) -> Result<Measured> {
        load::run(mix, &self.cast, self.connections, pace).await
    }
}
