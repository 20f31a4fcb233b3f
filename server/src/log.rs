//! The transparency log (docs/transparency.md): signs what the store has logged, and puts events into the log.

mod core;
mod heads;
mod key_file;
mod outbox_end;
mod reader;
mod receipts;
mod sequencer;
mod tile_cache;

pub(crate) use self::receipts::Receivable;
pub use self::{core::Log, sequencer::Sequencer};
