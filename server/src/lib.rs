//! The authority of a KeyPackage pool: it decides what is reserved, for whom and how long, and that nothing is ever
//! handed out twice.
//!
//! Arrows point one way: [`routes`] call the [`pool`]'s rules, which call the [`store`]'s verbs. The store knows no
//! HTTP, the routes know no SQL.

mod answers;
pub mod app;
pub mod auth;
mod batching;
pub mod capacity;
pub mod clock;
pub mod config;
mod connections;
mod fetches;
mod generation;
mod limits;
pub mod metrics;
pub mod observe;
pub mod pool;
pub mod problem;
pub mod routes;
pub mod stop;
pub mod store;
pub mod sweeper;
pub mod tls;

pub use app::Server;
