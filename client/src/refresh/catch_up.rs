//! What processes the messages that wait for the device.

use std::pin::Pin;

use crate::error::Result;

/// What [`CatchUp::catch_up`] promises.
pub type CatchingUp<'a> = Pin<Box<dyn Future<Output = Result<()>> + Send + 'a>>;

/// Processes the messages that wait for the device. A refresh asks for it before it deletes the keys of old KeyPackages, since a
/// Welcome that waits may need them.
pub trait CatchUp: Send + Sync {
    /// Processes all messages that wait. On an error, the refresh ends and deletes nothing.
    fn catch_up(&self) -> CatchingUp<'_>;
}
