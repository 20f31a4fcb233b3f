//! The transparency log of real servers, checked by adders, owners and auditors.

mod access;
mod checks;
mod erasing;
mod heads;
mod key;
mod lies;
mod outsiders;
mod proofs;
mod pruning;
mod race;
mod restores;
mod steps;
mod tool;
mod trails;
mod twins;

pub use checks::{is_whole, is_whole_at};
pub use heads::{head, signed};
