//! Checks that leaves belong to the devices that they name (RFC 9420, section 5.3.1; RFC 9750, section 8).

mod check;
mod directory;
mod new_leaves;
mod notice;

pub use check::{Checking, IdentityCheck, Standing};
pub(crate) use directory::DirectoryCheck;
pub(crate) use new_leaves::{MemberChanges, NewLeaves, Standings, check_sender};
pub use notice::Notice;
