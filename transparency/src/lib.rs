//! Keypool's transparency log. It knows no HTTP, no database and no MLS library: server, client and `keypool-verify` share
//! it. `docs/transparency.md` has the formats and what they prove.

pub mod checkpoint;
pub mod commitment;
pub mod encoding;
pub mod key_package;
pub mod leaf;
pub mod merkle;
pub mod note;
pub mod origin;
pub mod package;
pub mod policy;
pub mod receipt;
pub mod tile;
pub mod tree;
