//! The database layer: connections, transactions, tables and rows. It imports no verb.

mod conn;
mod connection;
mod error;
mod language;
mod liveness;
mod migrations;
mod ping;
mod postgres;
pub(super) mod rows;
pub(super) mod schema;
mod server_lock;
pub(super) mod sql;
mod sqlite;
mod wait;
mod watch;

pub(super) use conn::Conn;
pub use connection::Store;
pub use error::{Failure, StoreError};
pub(super) use postgres::with_defaults;
pub use server_lock::ServerLock;
#[cfg(test)]
pub(super) use sqlite::plans;
pub use watch::ClockOff;
pub(super) use watch::Watch;
