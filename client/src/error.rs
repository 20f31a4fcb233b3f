use std::{io, path::PathBuf, time::Duration};

use jiff::{SignedDuration, Unit};
use keypool_openapi::{DeviceOf, KeyPackageRef, ProblemType, ReservationId, UserName};

use crate::{
    cause::Cause, finding::LogError, key_package_status::KeyPackageStatus, leaf_identity::LeafIdentity,
    transport::TransportError,
};

/// The result of a call of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of this crate. Its message says what is wrong, and the description of its variant says what it means.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The data directory holds no device yet.
    #[error("there is no device in {}", .0.display())]
    NotInitialised(PathBuf),
    /// The device was created, but its registration did not finish.
    #[error("the device {0} is not registered yet")]
    NotRegistered(String),
    /// The data directory already holds another device than the requested one.
    #[error("this data directory belongs to {found}, not to {wanted}")]
    OtherDevice {
        /// The device in the data directory, with its server.
        found: String,
        /// The requested device, with its server.
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
        /// The path of the file or directory.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The database of the local store returned an error, or that of an application's [`crate::PoolStore`].
    #[error("cannot {doing} in the local store")]
    Storage {
        /// What was attempted, as a verb.
        doing: &'static str,
        /// Why not.
        source: Cause,
    },
    /// The tables cannot be brought up to date.
    #[error("cannot bring the tables of the local store up to date")]
    Migration(#[source] Cause),
    /// A newer version of this program wrote the local store.
    #[error("the local store has version {found}, and this program knows versions up to {known}")]
    NewerStore {
        /// The version in the file.
        found: i64,
        /// The newest version known here.
        known: i64,
    },
    /// The local store contains something that this program does not write.
    #[error("the local store is damaged: {0}")]
    Damaged(String),
    /// The local store is encrypted, but no passphrase was given.
    #[error("{} is encrypted, but no passphrase was given", .0.display())]
    Encrypted(PathBuf),
    /// A passphrase was given, but the local store is not encrypted.
    #[error("a passphrase was given, but {} is not encrypted", .0.display())]
    NotEncrypted(PathBuf),
    /// The passphrase cannot be used, because this program was built without the feature `sqlcipher`.
    #[error("{} cannot be encrypted or decrypted: this program was built without encryption", .0.display())]
    NoEncryption(PathBuf),
    /// The database in the data directory belongs to another program, for example to a Keypool server.
    #[error("{} is the database of another program, such as a Keypool server", .0.display())]
    OtherProgram(PathBuf),
    /// The passphrase does not decrypt the local store.
    #[error("the passphrase does not open {}", .0.display())]
    WrongPassphrase(PathBuf),
    /// The local store does not have this KeyPackage.
    #[error("the local store has no KeyPackage {0}")]
    UnknownKeyPackage(KeyPackageRef),
    /// The status of a KeyPackage cannot change that way.
    #[error("KeyPackage {keypackage_ref} is {status} and cannot become {next}")]
    InvalidTransition {
        /// Its ref.
        keypackage_ref: KeyPackageRef,
        /// Its status.
        status: KeyPackageStatus,
        /// The requested status.
        next: KeyPackageStatus,
    },
    /// The pool would exceed its hard cap.
    #[error("cannot generate {needed} KeyPackages: the pool has room for {available}")]
    PoolCapacityExceeded {
        /// The number to generate.
        needed: usize,
        /// The number that the pool has room for.
        available: usize,
    },
    /// Another client repeatedly fills this device's pool on the server.
    #[error("another client uses this device's pool, too: {foreign} KeyPackages on the server were not generated here")]
    TwoClients {
        /// The number of its KeyPackages on the server.
        foreign: usize,
    },
    /// The private keys of a KeyPackage or of a signature key are missing.
    #[error("the private keys of {0} are not in the local store")]
    MissingKeys(String),
    /// OpenMLS returned an error.
    #[error("cannot {doing}")]
    Mls {
        /// What was attempted, as a verb.
        doing: &'static str,
        /// Why not.
        source: Cause,
    },
    /// The local store does not have this group.
    #[error("there is no group {0:?} here")]
    UnknownGroup(String),
    /// The text matches the names or ids of several groups.
    #[error("{name:?} matches several groups, by name or by the beginning of the id: {}", ids.join(", "))]
    AmbiguousGroup {
        /// The text.
        name: String,
        /// Their ids, in hex.
        ids: Vec<String>,
    },
    /// A leaf does not belong to the device that it names.
    #[error("the leaf of {member:?} is refused: {why}")]
    WrongIdentity {
        /// The identity in the leaf's credential.
        member: String,
        /// Why.
        why: String,
    },
    /// There is no answer of the identity check about some leaves yet. Public calls ask it themselves and never return
    /// this error.
    #[error("{} leaves have to be checked first", leaves.len())]
    Unchecked {
        /// The leaves.
        leaves: Vec<LeafIdentity>,
    },
    /// This device refused a Commit that the server accepted, so it is behind the group's epoch.
    #[error("the group {group:?} cannot be changed any more: a Commit by {by} was refused")]
    GroupBehind {
        /// The group.
        group: String,
        /// The sender of the Commit.
        by: String,
    },
    /// This device missed or could not apply a Commit that the server accepted. The members who applied it are in a later
    /// epoch, and cannot read what this device would send.
    #[error("this device fell behind in the group {group:?}: {}", missed(by.as_deref()))]
    FellBehind {
        /// The group.
        group: String,
        /// The sender of the Commit; `None` if the Commit did not arrive.
        by: Option<String>,
    },
    /// This device fell behind, and the newest change of the group is by a member that came in meanwhile. A server could have
    /// made that member up, so this device does not come back by its word: it asks the members that it knows.
    #[error("this device fell behind in the group {group:?}, and does not know the member that changed it last")]
    UnknownSigner {
        /// The group.
        group: String,
    },
    /// This device has asked the other members to let it go, so it can neither write in the group nor change it.
    #[error("this device has asked to leave the group {group:?}")]
    Leaving {
        /// The group.
        group: String,
    },
    /// The device to remove is this device.
    #[error("{device} is this device itself")]
    OwnLeaf {
        /// The device.
        device: DeviceOf,
    },
    /// Another group replaced this group.
    #[error("the group {group:?} is read-only: another group has replaced it")]
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
    /// A device cannot renew a group without itself. It leaves the group instead.
    #[error("this device cannot renew a group without itself: leave the group instead")]
    OwnDevice,
    /// The server keeps no signature keys of a user, so there is nothing to compare.
    #[error("the server keeps no signature keys of {user}, so there is nothing to compare")]
    NoSignatureKeys {
        /// The user.
        user: UserName,
    },
    /// The server's directory has another signature key of this device than the device signs with. A refresh finishes a
    /// change of the key; if the keys differ after it, the server is wrong.
    #[error(
        "the server's directory has another signature key of this device in ciphersuite {ciphersuite} than it signs with"
    )]
    WrongOwnKey {
        /// The ciphersuite.
        ciphersuite: u16,
    },
    /// The address of a server cannot be read.
    #[error("{0:?} is not the address of a server")]
    ServerAddress(String),
    /// The settings name no transport, and this program was built without the feature `http`.
    #[error("there is nothing to send requests with: the settings name no transport")]
    NoTransport,
    /// A request cannot be written.
    #[error("cannot write the request")]
    Request(#[source] Cause),
    /// The server cannot be reached.
    #[error("cannot reach {server}")]
    Unreachable {
        /// The server's address.
        server: String,
        /// Why not.
        source: TransportError,
    },
    /// The host in the server's address has no address in the network.
    #[error("there is no host of {server}")]
    UnknownHost {
        /// The server's address.
        server: String,
        /// Why not.
        source: TransportError,
    },
    /// The server's certificate is not valid for its address, or no certificate authority that this machine trusts has
    /// signed it.
    #[error("the certificate of {server} is not trusted")]
    Untrusted {
        /// The server's address.
        server: String,
        /// Why not.
        source: TransportError,
    },
    /// The server's answer does not follow the contract.
    #[error("{server} answered {status} with something that this program does not understand: {found}")]
    Answer {
        /// The server's address.
        server: String,
        /// The HTTP status.
        status: u16,
        /// The beginning of the answer, or why it cannot be read.
        found: String,
        /// The wait before the next attempt, if the answer names one.
        retry_after: Option<Duration>,
    },
    /// The server refused the call.
    #[error("{title}: {detail}")]
    Refused {
        /// The problem type; `None` for a type that this version does not know.
        kind: Option<ProblemType>,
        /// The problem's `type`, as received.
        code: String,
        /// The HTTP status.
        status: u16,
        /// The problem in a few words.
        title: Box<str>,
        /// This occurrence, and what to do.
        detail: Box<str>,
        /// The wait before the next attempt, if the answer names one.
        retry_after: Option<Duration>,
        /// The reservation that caused the refusal, if any.
        reservation_id: Option<ReservationId>,
        /// The group's epoch on the server, if a Commit was refused for its epoch.
        epoch: Option<u64>,
    },
    /// The server refused the registration for want of the right token.
    #[error("{answer}")]
    NotEnrolled {
        /// Whether a token was shown.
        has_token: bool,
        /// The server's answer.
        answer: Box<Error>,
    },
    /// A token belongs to another device.
    #[error("this is the token of {found}, and not of {wanted}")]
    TokenOfOther {
        /// The device of the token.
        found: String,
        /// The device in the data directory.
        wanted: String,
    },
    /// The server refused this device's proof of membership, because the last Commit of the group asks for another one.
    #[error(
        "the group {group:?} cannot be changed any more: its last Commit asks for a proof that this device does not have"
    )]
    ProofRefused {
        /// The group.
        group: String,
        /// The server's answer.
        source: Box<Error>,
    },
    /// The server refused all KeyPackages of a refresh.
    #[error("the server refused all KeyPackages: {0}")]
    AllRejected(String),
    /// The server never hands out what this device generates.
    #[error(
        "the server hands out only KeyPackages that are valid for another {min_remaining:#}, and this device makes them for \
         {lifetime:#}: nobody could add it"
    )]
    LifetimeTooShort {
        /// The lifetime of this device's KeyPackages.
        lifetime: SignedDuration,
        /// How long a KeyPackage must still be valid to be handed out.
        min_remaining: SignedDuration,
    },
    /// A reserved KeyPackage is not valid.
    #[error("the server handed out an invalid KeyPackage for {device}")]
    InvalidKeyPackage {
        /// The `user/device` that the reservation names.
        device: String,
        /// Why not.
        source: Cause,
    },
    /// A reserved KeyPackage may be valid, but this program cannot add it to a group.
    #[error("the KeyPackage of {device} does not fit")]
    UnfitKeyPackage {
        /// The `user/device` that the reservation names.
        device: String,
        /// Why not.
        source: Cause,
    },
    /// This machine's clock and the server's differ so much that lifetimes cannot be checked: OpenMLS checks them by this
    /// machine's clock. A message that needs such a check stays in the queue.
    #[error(
        "this machine's clock is {:#} {} the server's, so it cannot tell which KeyPackages are valid",
        rounded(ahead.abs()),
        if ahead.is_negative() { "behind" } else { "ahead of" }
    )]
    WrongClock {
        /// How far it is ahead of the server's; negative if it is behind.
        ahead: SignedDuration,
    },
    /// Something is wrong with the server's transparency log, or it shows that the server has broken a promise.
    #[error(transparent)]
    Log(#[from] LogError),
    /// This device did not make the reservation, or has forgotten it.
    #[error("this device does not know the reservation {0}")]
    UnknownReservation(ReservationId),
    /// A reserved KeyPackage belongs to another device than the reservation says.
    #[error("the server handed out a KeyPackage of {found:?} for {device}")]
    ForeignKeyPackage {
        /// The `user/device` that the reservation names.
        device: String,
        /// The identity in the KeyPackage's credential.
        found: String,
    },
}

impl Error {
    /// Whether the same call may succeed later.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::UnknownHost { .. } | Self::InUse(_) => true,
            Self::Log(error) => matches!(error, LogError::NotLogged { .. }),
            // 520 to 527 are Cloudflare's, for a server behind it that cannot be reached.
            Self::Refused { status, .. } | Self::Answer { status, .. } => {
                matches!(status, 408 | 425 | 429 | 500 | 502..=504 | 520..=527)
            }
            _ => false,
        }
    }

    /// The time that the server asks to wait before the next attempt.
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

    /// The group's epoch on the server, if the server refused a Commit for its epoch.
    #[must_use]
    pub fn group_epoch(&self) -> Option<u64> {
        match self {
            Self::Refused { epoch, .. } => *epoch,
            _ => None,
        }
    }

    /// The reservation that made the server refuse a Commit.
    #[must_use]
    pub fn reservation_id(&self) -> Option<ReservationId> {
        match self {
            Self::Refused { reservation_id, .. } => *reservation_id,
            _ => None,
        }
    }

    /// The type of the server's problem, as received.
    #[must_use]
    pub fn code(&self) -> Option<&str> {
        match self {
            Self::Refused { code, .. } => Some(code),
            Self::NotEnrolled { answer: error, .. } | Self::ProofRefused { source: error, .. } => error.code(),
            _ => None,
        }
    }

    /// The type of the server's problem, if this version knows it.
    #[must_use]
    pub fn problem(&self) -> Option<ProblemType> {
        match self {
            Self::Refused { kind, .. } => *kind,
            Self::NotEnrolled { answer, .. } => answer.problem(),
            _ => None,
        }
    }

    /// Wraps an error of OpenMLS; `doing` completes "cannot …".
    pub(crate) fn mls(doing: &'static str) -> impl FnOnce(Cause) -> Self {
        move |source| Self::Mls { doing, source }
    }

    /// Wraps an error of a database; `doing` completes "cannot … in the local store".
    pub(crate) fn storage<E: Into<Cause>>(doing: &'static str) -> impl FnOnce(E) -> Self {
        move |source| {
            let source = source.into();
            #[cfg(feature = "sqlite")]
            if let Some(rusqlite::Error::FromSqlConversionFailure(_, _, invalid)) = source.downcast_ref() {
                return Self::Damaged(invalid.to_string());
            }
            Self::Storage { doing, source }
        }
    }
}

/// Without the seconds of a long duration.
fn rounded(duration: SignedDuration) -> SignedDuration {
    if duration < SignedDuration::from_hours(1) {
        return duration;
    }
    duration.round(Unit::Minute).unwrap_or(duration)
}

/// A credential that this program cannot check, since it is not basic.
#[cfg(feature = "sqlite")]
#[derive(Debug, thiserror::Error)]
#[error("this program cannot check its credential of the type {}", credential_type(*.0))]
pub(crate) struct WrongCredential(pub(crate) openmls::prelude::CredentialType);

#[cfg(feature = "sqlite")]
fn credential_type(kind: openmls::prelude::CredentialType) -> String {
    match kind {
        openmls::prelude::CredentialType::X509 => "X.509".to_owned(),
        other => u16::from(other).to_string(),
    }
}

/// Why a device fell behind, as the end of a sentence.
fn missed(by: Option<&str>) -> String {
    by.map_or_else(|| "a Commit did not arrive".to_owned(), |by| format!("it could not apply a Commit by {by}"))
}

#[cfg(test)]
mod tests;
