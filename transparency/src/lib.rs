//! Keypool's transparency log. It knows no HTTP, no database and no MLS library: server, client and `keypool-verify` share
//! it. `docs/transparency.md` has the formats and what they prove.
//!
//! | who | begins with |
//! | --- | --- |
//! | server | [`commitment::LogSecret::seal`] makes leaves, [`leaf::shuffled_batch`] hides them, [`tree::Appender`] appends them, [`checkpoint::Checkpoint::sign`] and [`receipt::Receipt::sign_batch`] sign, [`tree::Tree`] makes paths |
//! | adder | [`adder::HandOut`], [`answers::Answers::check`], [`adder::check`] |
//! | owner | [`owner::OwnPackage`], [`owner::check`] |
//! | everybody | [`policy::Policy`], [`history::succession`], [`evidence::EvidenceFile`], [`verification::verify`] |
//!
//! Modules depend on those above them only: encoding, merkle and package; leaves and notes; trees, checkpoints and receipts; statements
//! and evidence; the checks of adders and owners.

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
