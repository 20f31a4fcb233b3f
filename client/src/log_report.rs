//! What a refresh has compared with the server's log.

use serde::Serialize;
use utoipa::ToSchema;

/// What a refresh has compared with the server's log.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct LogReport {
    /// The name of the log.
    pub origin: String,
    /// The number of its leaves.
    pub size: u64,
    /// How many hand-outs and KeyPackages were checked and found to be as they have to be.
    pub checked: usize,
    /// How many wait, because the log does not have them yet.
    pub waiting: usize,
    /// How many the server can no longer prove, which proves nothing.
    pub unknown: usize,
}
