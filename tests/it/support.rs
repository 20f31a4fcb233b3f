//! What the tests stand on: databases, servers, HTTP, and devices that make KeyPackages.

mod database;
mod device;
mod http;
mod postgres;
mod server;
pub mod tools;

pub use database::{Database, Place, Raw};
pub use device::{Device, encode, tampered, with_the_keys_of};
pub use http::{Answer, Http, builder, group, hot_client};
pub use postgres::Postgres;
pub use server::{PATIENCE, ServerProcess, TestServer, binary, now, without_settings};
