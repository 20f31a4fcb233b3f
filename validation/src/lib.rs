//! Parsers and checks of untrusted input: uploaded [`key_package`]s, the headers of [`mls_message`]s, [`group_info`]s,
//! [`token`]s of callers, and changes of [`signature_key`]s. This crate has few dependencies, so that the fuzzers build without the
//! rest of the server.

pub mod group_info;
pub mod key_package;
pub mod mls_message;
pub mod signature_key;
pub mod token;
mod wire;
