//! Groups: their members, their Commits, and their messages.

mod admission;
mod arrivals;
mod ask;
mod checks;
mod come_back;
mod commit;
mod commit_proof;
mod content;
mod encoding;
mod fit;
mod group;
mod group_info;
mod history;
mod incoming;
mod invitation;
mod invite;
mod leave;
mod membership;
mod messages;
mod own_devices;
mod process;
mod receive;
mod refusal;
mod remove;
mod renew;
mod reserve;
#[cfg(test)]
mod tests;
mod unfit;
mod update;
mod welcome;

pub use content::Message;
pub use group::{Group, GroupState};
pub use history::MembershipChange;
pub use incoming::{DeviceChange, Event, Incoming};
pub use invitation::Invitation;
pub use invite::Invited;
pub use membership::MlsMembership;
pub use remove::Removed;
pub use renew::Renewed;
pub(crate) use reserve::Reserved;
pub use unfit::{UnfitDevice, UnfitReason};
