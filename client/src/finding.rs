//! What a device has found the server to have done.

use std::path::PathBuf;

use jiff::Timestamp;
use serde::Serialize;
use utoipa::ToSchema;

/// A promise that the server has broken. The device does not use the server any more until its user decides otherwise.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Finding {
    /// When it was found.
    #[schema(value_type = String, format = DateTime)]
    pub found_at: Timestamp,
    /// What is wrong.
    pub problem: String,
    /// Whether the file proves it to everybody, by what the server itself has signed. If not, the file is a report.
    pub is_proven: bool,
    /// The file with the evidence, or with the report.
    #[schema(value_type = String)]
    pub file: PathBuf,
    /// Whether the user has decided to go on using the server.
    pub is_dismissed: bool,
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (kind, file) =
            (if self.is_proven { "the proof" } else { "a report, which is no proof," }, self.file.display());
        write!(f, "the server cannot be trusted: {}; {kind} is in {file}", self.problem)
    }
}

/// What is wrong with the server's transparency log.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LogError {
    /// The server has broken a promise, so this device does not use it.
    #[error("{0}")]
    Misbehaved(Box<Finding>),
    /// The server's log has a key that no key which this device believes has named.
    #[error("the server's log {origin} has a new key, and the key of the log before it has not signed it")]
    Untrusted {
        /// The name of the log.
        origin: String,
        /// The key, as a vkey (C2SP signed-note).
        key: String,
    },
    /// A setting requires a log, and the server has none.
    #[error("the server has no transparency log, and the settings require one")]
    Missing,
    /// Steps did not get into the server's log in time, and a setting requires that.
    #[error("the server's log does not have the hand-outs of {} after {seconds} s", devices.join(", "))]
    NotLogged {
        /// The devices whose KeyPackages were handed out, `user/device`.
        devices: Vec<String>,
        /// The time that was waited.
        seconds: u64,
    },
    /// The server reserved a KeyPackage without all that the log needs.
    #[error("the server does not say how it logs the hand-out of a KeyPackage of {0}, and the settings require that")]
    Unlogged(String),
}
