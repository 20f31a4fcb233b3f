//! The rules, one file for each verb: which caller may hold which KeyPackages for how long, and the health of pools.
//!
//! The service calls the verbs of the store, and knows neither HTTP nor SQL.

mod audit;
mod batches;
mod commits;
mod core;
mod devices;
mod directory;
mod examples;
mod group_infos;
mod health;
mod inventory;
mod links;
mod log;
mod log_heads;
mod low_pools;
mod messages;
mod mls_messages;
mod pages;
mod policy;
mod registration;
mod release;
mod reservations;
mod reserve;
mod revoke;
mod spend;
mod status;
mod times;
mod upload;

pub use self::core::Service;
pub(crate) use messages::Fetched;
