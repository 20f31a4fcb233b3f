//! The transparency log in the database (docs/transparency.md): its state, its tiles, and where the leaves of events are.
//!
//! Verbs of the pool write what leaves are made from into the trail, and on `PostgreSQL` the ids of these events into an
//! outbox. The sequencer puts them into the log, in one transaction with the tiles. Nothing here signs.

mod ages;
mod binds;
mod events;
mod heads;
mod origins;
mod outbox;
mod owners;
mod paths;
mod positions;
mod proofs;
mod sequencer;
mod state;
mod tiles;
mod unnamed;

pub use heads::{Continuation, Standing};
pub(super) use origins::begin_another;
pub use origins::{LogKey, OriginRow};
pub(super) use outbox::first_waiting;
pub(super) use owners::forget_secrets;
pub use owners::{Owner as LogOwner, Owners};
pub use proofs::{Asked, StepFound, Steps};
pub use sequencer::{Appended, Edge};
pub use state::TreeState;
