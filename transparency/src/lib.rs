//! Keypool's transparency log. It knows no HTTP, no database and no MLS library: server, client and `keypool-verify` share
//! it. `docs/transparency.md` has the formats and what they prove.

pub mod adder;
pub mod answers;
pub mod checkpoint;
pub mod commitment;
pub mod contradiction;
pub mod encoding;
pub mod evidence;
pub mod files;
pub mod frontier;
pub mod history;
pub mod key_package;
pub mod leaf;
pub mod merkle;
pub mod note;
pub mod origin;
pub mod owner;
pub mod package;
pub mod policy;
pub mod receipt;
pub mod statement;
pub mod tile;
pub mod tlog_proof;
pub mod tree;
pub mod verdict;
pub mod verification;
