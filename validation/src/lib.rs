//! From bytes that anybody may have made to what the server trusts: [`key_package`]s that are uploaded, the headers of
//! [`mls_message`]s that are delivered, and the [`token`]s of those who ask; and which
//! [`signature_key`]s they have.
//!
//! It is a crate of its own, with few dependencies, so that it can be fuzzed without the rest of the server.

pub mod key_package;
pub mod mls_message;
pub mod signature_key;
pub mod token;
