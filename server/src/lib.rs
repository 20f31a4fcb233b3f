//! The authority of a KeyPackage pool: it decides which KeyPackages are reserved, for which adder and how long, and
//! ensures that none is handed out twice.
//!
//! Dependencies point one way: [`routes`] call the rules of the [`service`], which call the verbs of the [`store`]. The
//! store knows no HTTP, the routes know no SQL, the service knows neither.

mod answers;
pub mod app;
pub mod auth;
mod batching;
mod body_memory;
mod caller;
pub mod capacity;
pub mod clock;
pub mod config;
mod connections;
mod fetches;
mod generation;
mod limits;
pub mod log;
pub mod metrics;
pub mod observe;
pub mod problem;
pub mod routes;
pub mod service;
pub mod stop;
pub mod store;
pub mod sweeper;
pub mod tls;
mod witnesses;
mod work;

pub use app::{Opening, Server};
