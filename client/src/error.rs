use std::{io, path::PathBuf};

use keypool_openapi::ProblemType;

/// What a call of this crate answers.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of a library below, kept as the cause.
pub type Cause = Box<dyn std::error::Error + Send + Sync>;

/// What failed. The message says what happened, to what; [`Error::hint`] what to do next.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The data directory holds no device yet.
    #[error("there is no device in {}", .0.display())]
    NotInitialised(PathBuf),
    /// The device was made, and its registration never finished.
    #[error("the device {0} is not registered yet")]
    NotRegistered(String),
    /// The data directory holds a device already, and another one than was asked for.
    #[error("this data directory belongs to {found}, not to {wanted}")]
    OtherDevice {
        /// The device that is there, with its server.
        found: String,
        /// The device that was asked for, with its server.
        wanted: String,
    },
    /// Another process has the data directory open.
    #[error("{} is in use by another process", .0.display())]
    InUse(PathBuf),
    /// The data directory, or a file in it, cannot be used.
    #[error("cannot {doing} {}", path.display())]
    File {
        /// What was attempted, as a verb.
        doing: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The local database refused.
    #[error("cannot {doing} in the local store")]
    Storage {
        /// What was attempted, as a verb.
        doing: &'static str,
        /// Why not.
        source: rusqlite::Error,
    },
    /// The tables of OpenMLS cannot be brought up to date.
    #[error("cannot bring the tables of OpenMLS up to date")]
    Migration(#[source] Cause),
    /// A newer version of this program wrote the local database.
    #[error("the local store has version {found}, and this program knows versions up to {known}")]
    NewerStore {
        /// The version in the file.
        found: i64,
        /// The newest version known here.
        known: i64,
    },
    /// Something in the local database is not what this program writes.
    #[error("the local store is damaged: {0}")]
    Damaged(String),
    /// No private keys are stored for a KeyPackage or a signature key that should have them.
    #[error("the private keys of {0} are not in the local store")]
    MissingKeys(String),
    /// OpenMLS refused.
    #[error("cannot {doing}")]
    Mls {
        /// What was attempted, as a verb.
        doing: &'static str,
        /// Why not.
        source: Cause,
    },
    /// There is no such group in the local store.
    #[error("there is no group {0:?} here")]
    UnknownGroup(String),
    /// A KeyPackage pool's configuration breaks a rule.
    #[error("invalid KeyPackage pool configuration: {0}")]
    Config(String),
    /// The address of a server cannot be read.
    #[error("{0:?} is no address of a server")]
    ServerAddress(String),
    /// The server did not answer.
    #[error("cannot reach {server}")]
    Unreachable {
        /// The server's address.
        server: String,
        /// Why not.
        source: reqwest::Error,
    },
    /// The server's answer is not what the contract says.
    #[error("{server} answered {status} with something that this program does not understand: {found}")]
    Answer {
        /// The server's address.
        server: String,
        /// The HTTP status.
        status: u16,
        /// The beginning of the answer, or why it cannot be read.
        found: String,
    },
    /// The server refused.
    #[error("{title}: {detail}")]
    Refused {
        /// Which problem; `None` for one that this version does not know.
        kind: Option<ProblemType>,
        /// The problem's `type`, as it came.
        code: String,
        /// The HTTP status.
        status: u16,
        /// The problem in a few words.
        title: String,
        /// This occurrence, and what to do next.
        detail: String,
    },
    /// The server refused all KeyPackages of a refresh.
    #[error("the server took none of the KeyPackages: {0}")]
    AllRejected(String),
    /// A reserved KeyPackage is not a valid one.
    #[error("the KeyPackage that the server answered for {device} is not valid")]
    InvalidKeyPackage {
        /// The `user/device` that the reservation names.
        device: String,
        /// Why not.
        source: Cause,
    },
    /// A reserved KeyPackage is of somebody else than the reservation says.
    #[error("the server answered a KeyPackage of {found:?} for {device}")]
    ForeignKeyPackage {
        /// The `user/device` that the reservation names.
        device: String,
        /// The identity in the KeyPackage's credential.
        found: String,
    },
}

impl Error {
    /// Whether the same call may succeed later, with nothing changed here.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::InUse(_) => true,
            Self::Refused { status, .. } | Self::Answer { status, .. } => matches!(status, 429 | 500 | 502..=504),
            _ => false,
        }
    }

    /// What to do next, where the message does not say it already.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        Some(match self {
            Self::NotInitialised(_) => "run `keypool init --server URL --user NAME` first",
            Self::NotRegistered(_) => "run the same `keypool init` again: it finishes what is unfinished",
            Self::OtherDevice { .. } => {
                "choose another --data-dir for another device, or the same server, user and device"
            }
            Self::InUse(_) => "wait until it is done, or choose another --data-dir",
            Self::File { .. } => "check that the directory exists and is yours, and that the disk has room",
            Self::NewerStore { .. } => "use the version that wrote it, or a newer one",
            Self::Damaged(_) | Self::MissingKeys(_) => {
                "restore the data directory from a backup, or make a new device in another --data-dir"
            }
            Self::ServerAddress(_) => "give it as http://HOST:PORT or https://HOST",
            Self::Unreachable { .. } => "check that the server runs and that the address is right, then try again",
            Self::Answer { .. } => {
                "check that the address is that of a Keypool server, and not of something in front of it"
            }
            Self::InvalidKeyPackage { .. } | Self::ForeignKeyPackage { .. } => {
                "do not add this device; tell its owner and whoever runs the server"
            }
            Self::Refused { kind: Some(ProblemType::AlreadyRegistered), .. } => {
                "choose another --device, or use the data directory that the device was made in"
            }
            Self::Refused { kind: Some(ProblemType::Unauthenticated | ProblemType::Forbidden), .. } => {
                "a further device of a user needs --user-token: `keypool token` prints it on one of the user's devices"
            }
            _ => return None,
        })
    }

    /// The problem that the server answered, if it is one that this version knows.
    #[must_use]
    pub fn problem(&self) -> Option<ProblemType> {
        match self {
            Self::Refused { kind, .. } => *kind,
            _ => None,
        }
    }

    /// Wraps an error of OpenMLS; `doing` completes "cannot".
    pub(crate) fn mls(doing: &'static str) -> impl FnOnce(Cause) -> Self {
        move |source| Self::Mls { doing, source }
    }

    /// Wraps an error of the local database; `doing` completes "cannot … in the local store".
    pub(crate) fn storage(doing: &'static str) -> impl FnOnce(rusqlite::Error) -> Self {
        move |source| Self::Storage { doing, source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_time_can_heal_is_retryable() {
        let refused = |status| Error::Refused {
            kind: None,
            code: "new".to_owned(),
            status,
            title: String::new(),
            detail: String::new(),
        };
        assert!(refused(503).is_retryable());
        assert!(refused(429).is_retryable());
        assert!(!refused(409).is_retryable());
        assert!(!Error::Config(String::new()).is_retryable());
    }
}
