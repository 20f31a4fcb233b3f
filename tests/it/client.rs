//! The client library and the `keypool` command against real servers.

mod backup;
mod behind;
mod calls;
mod chat;
mod command;
mod crash;
mod delivery;
mod first_come;
mod foreign;
mod groups;
mod honest;
mod impostors;
mod lying_server;
mod random;
mod refresh;
mod registered_anew;
mod renewals;
mod requests;
mod rotation;
mod verify;
