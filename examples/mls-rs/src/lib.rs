//! A device of a Keypool server on [mls-rs](https://crates.io/crates/mls-rs): registers, uploads KeyPackages, invites,
//! joins, talks, commits with proofs, and leaves. It keeps everything in memory; a real client stores it, see
//! docs/writing-a-client.md.

mod device;
mod http;
mod mls;

pub use device::{Device, Received, register, register_with};
