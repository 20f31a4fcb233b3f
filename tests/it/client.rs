//! The client library and the `keypool` command against real servers.

mod applications;
mod backup;
mod behind;
mod calls;
mod changed_keys;
mod chat;
mod command;
mod concurrency;
mod crash;
mod delivery;
mod first_come;
mod foreign;
mod groups;
pub mod helpers;
mod honest;
mod impostors;
mod lying_server;
mod mls_rs;
mod random;
mod refresh;
mod registered_anew;
mod renewals;
mod requests;
mod rotation;
mod ts_mls;
mod unusual;
mod verify;
