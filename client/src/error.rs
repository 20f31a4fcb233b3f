use std::{io, path::PathBuf, time::Duration};

use keypool_openapi::{KeyPackageRef, ProblemType, ReservationId};

use crate::{mls::LeafIdentity, storage::KeyPackageStatus};

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
    /// The local database is encrypted, and no passphrase was given.
    #[error("{} is encrypted, and no passphrase was given", .0.display())]
    Encrypted(PathBuf),
    /// A passphrase was given, and the local database is not encrypted.
    #[error("a passphrase was given, and {} is not encrypted", .0.display())]
    NotEncrypted(PathBuf),
    /// The local database cannot be decrypted.
    #[error("the passphrase does not open {}", .0.display())]
    WrongPassphrase(PathBuf),
    /// There is no such KeyPackage in the local store.
    #[error("there is no KeyPackage {0} here")]
    UnknownKeyPackage(KeyPackageRef),
    /// A KeyPackage's life does not go that way.
    #[error("KeyPackage {keypackage_ref} is {status}, and cannot become {next}")]
    InvalidTransition {
        /// Which.
        keypackage_ref: KeyPackageRef,
        /// Where it is.
        status: KeyPackageStatus,
        /// Where it was to go.
        next: KeyPackageStatus,
    },
    /// More KeyPackages were to be generated than the pool may hold.
    #[error("{needed} KeyPackages are to be generated, and the pool has room for {available}")]
    PoolCapacityExceeded {
        /// How many were to be generated.
        needed: usize,
        /// How many may be.
        available: usize,
    },
    /// The pool on the server is filled by somebody else as well, again and again.
    #[error("another client fills the pool of this device, too: {foreign} KeyPackages there were not generated here")]
    TwoClients {
        /// How many of its KeyPackages were found.
        foreign: usize,
    },
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
    /// Several groups are called so, or have an id that begins so.
    #[error("several groups are called {name:?}, or have an id that begins so: {}", ids.join(", "))]
    AmbiguousGroup {
        /// What was given.
        name: String,
        /// Their ids, in hex.
        ids: Vec<String>,
    },
    /// A leaf is not of the device that it says it is of.
    #[error("the leaf of {member:?} is refused: {why}")]
    WrongIdentity {
        /// The identity in the leaf's credential.
        member: String,
        /// Why.
        why: String,
    },
    /// Leaves have to be checked before something can be taken in. Calls that can ask the identity check do so by
    /// themselves, and never answer this.
    #[error("{} leaves have to be checked first", leaves.len())]
    Unchecked {
        /// Which.
        leaves: Vec<LeafIdentity>,
    },
    /// A Commit of a group was refused here, and the group's epoch on the server has gone on with it.
    #[error("the group {group:?} cannot be changed any more: a Commit by {by} was refused")]
    GroupBehind {
        /// The group.
        group: String,
        /// Who sent the Commit.
        by: String,
    },
    /// Another group has taken the place of a group.
    #[error("the group {group:?} is read-only: another group has taken its place")]
    ReadOnlyGroup {
        /// The group.
        group: String,
    },
    /// A user or a device is not in a group.
    #[error("{member} is not in {group:?}")]
    NotAMember {
        /// The user, or the device.
        member: String,
        /// The group.
        group: String,
    },
    /// A KeyPackage pool's configuration breaks a rule.
    #[error("invalid KeyPackage pool configuration: {0}")]
    Config(String),
    /// What the command was given cannot be used.
    #[error("{0}")]
    Usage(String),
    /// What came could not be written to where it was to be printed.
    #[error("what came could not be printed, and none of it is lost")]
    Unprinted {
        /// Why not.
        source: io::Error,
    },
    /// A chat ended before all that was typed was sent.
    #[error("not sent: {}", texts.join(", "))]
    Unsent {
        /// What, each quoted and with its group.
        texts: Vec<String>,
        /// Why not.
        source: Box<Error>,
    },
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
        /// How long to wait before the next try, if it said so.
        retry_after: Option<Duration>,
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
        title: Box<str>,
        /// This occurrence, and what to do next.
        detail: Box<str>,
        /// How long to wait before the next try, if it said so.
        retry_after: Option<Duration>,
        /// Which reservation was the reason, if one was.
        reservation_id: Option<ReservationId>,
        /// The epoch that the group is in on the server, where a Commit was refused for its own.
        epoch: Option<u64>,
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
            Self::Unreachable { .. } | Self::InUse(_) | Self::Unsent { .. } => true,
            Self::Refused { status, .. } | Self::Answer { status, .. } => matches!(status, 429 | 500 | 502..=504),
            _ => false,
        }
    }

    /// How long the server wants to be left alone before the next try.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused { retry_after, .. } | Self::Answer { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// The message with those of its causes, in one line.
    #[must_use]
    pub fn with_causes(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(inner) = cause {
            text = format!("{text}: {inner}");
            cause = inner.source();
        }
        text
    }

    /// The epoch that a group is in on the server, which refused a Commit of another one.
    #[must_use]
    pub fn group_epoch(&self) -> Option<u64> {
        match self {
            Self::Refused { epoch, .. } => *epoch,
            _ => None,
        }
    }

    /// The reservation for which the server refused a Commit.
    #[must_use]
    pub fn reservation_id(&self) -> Option<ReservationId> {
        match self {
            Self::Refused { reservation_id, .. } => *reservation_id,
            _ => None,
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
            Self::UnknownGroup(_) => "`keypool group list` lists those that this device is in",
            Self::WrongIdentity { .. } => "ask those whose device it says it is; nothing of it was taken in",
            Self::GroupBehind { .. } => {
                "run `keypool group renew GROUP --without USER/DEVICE`: it makes a new group with everybody else"
            }
            Self::ReadOnlyGroup { .. } => "use the group of the same name that has taken its place",
            Self::AmbiguousGroup { .. } => "give its whole id; `keypool group list` says which group is which",
            Self::Encrypted(_) => "give its passphrase in KEYPOOL_PASSPHRASE or by --passphrase-file",
            Self::NotEncrypted(_) => {
                "leave the passphrase out, or make a new device in another --data-dir: encryption begins with `keypool init`"
            }
            Self::WrongPassphrase(_) => {
                "give the one that the device was made with; if the file is damaged, restore a backup"
            }
            Self::TwoClients { .. } => {
                "stop the other client, which works on a copy of this data directory; then run `keypool rotate` on the one \
                 to be kept"
            }
            Self::Damaged(_) | Self::MissingKeys(_) => {
                "restore the data directory from a backup, or make a new device in another --data-dir"
            }
            Self::Unprinted { .. } => {
                "run `keypool receive` again with an output that takes it: all that came is printed again"
            }
            Self::Unsent { .. } => "say it again, in a chat or with `keypool send`, when the server can be reached",
            Self::ServerAddress(_) => "give it as http://HOST:PORT or https://HOST",
            Self::Unreachable { .. } => "check that the server runs and that the address is right, then try again",
            Self::Answer { .. } => {
                "check that the address is that of a Keypool server, and not of something in front of it"
            }
            Self::InvalidKeyPackage { .. } | Self::ForeignKeyPackage { .. } => {
                "do not add this device; tell its owner and the server's operator"
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
            title: "".into(),
            detail: "".into(),
            retry_after: None,
            reservation_id: None,
            epoch: None,
        };
        assert!(refused(503).is_retryable());
        assert!(refused(429).is_retryable());
        assert!(!refused(409).is_retryable());
        assert!(!Error::Config(String::new()).is_retryable());
    }
}
