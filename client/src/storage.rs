//! The local store: one SQLite file with OpenMLS's tables and ours.

mod arrivals;
mod column;
mod commits;
mod device;
mod encryption;
mod files;
mod former_name;
mod groups;
mod hand_outs;
mod inbox;
mod key_packages;
mod log;
mod member_keys;
mod membership_changes;
mod open;
mod provider;
mod schema;
mod store;
#[cfg(test)]
mod test_support;
#[cfg(test)]
mod tests;
mod turns;

pub(crate) use arrivals::{Arrival, Ask};
pub(crate) use commits::PendingCommit;
pub(crate) use device::IdentityRow;
pub(crate) use groups::{GroupRow, RefusedCommit};
pub(crate) use hand_outs::{CheckCounts, CheckState, HandOutRow, OwnPackageRow};
pub(crate) use log::LogRow;
pub use provider::{Cbor, CborError, HeldConnection, Provider, SqliteStorage};
pub use store::LocalStore;
