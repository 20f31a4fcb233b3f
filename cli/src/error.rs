//! Errors of the command, and what to do about those of the library.

use std::{io, path::PathBuf};

use keypool_client::{Error as ClientError, LogError};
use keypool_openapi::ProblemType;

/// An error of the command. Its message says what is wrong; [`Error::hint`] says what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An error of the library.
    #[error(transparent)]
    Client(Box<ClientError>),
    /// The arguments cannot be used.
    #[error("{0}")]
    Usage(String),
    /// Nobody used the code of `keypool device link` in time.
    #[error("no device was registered with the code, and it has ended")]
    LinkOver,
    /// A file cannot be used.
    #[error("cannot {doing} {}", path.display())]
    File {
        /// What was attempted, as a verb.
        doing: &'static str,
        /// The path of the file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The received items could not be printed.
    #[error("could not print what was received: none of it is lost")]
    Unprinted {
        /// Why not.
        source: io::Error,
    },
    /// The answer could not be printed.
    #[error("the answer could not be printed; what the command does, it has done")]
    Unwritten {
        /// Why not.
        source: io::Error,
    },
    /// A chat ended before all that was typed was sent.
    #[error("not sent: {}", texts.join(", "))]
    Unsent {
        /// The texts, each quoted and with its group.
        texts: Vec<String>,
        /// Why not; `None` if the server did not answer in time.
        source: Option<Box<ClientError>>,
    },
}

/// The result of a command.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl From<ClientError> for Error {
    fn from(error: ClientError) -> Self {
        Self::Client(Box::new(error))
    }
}

impl Error {
    /// Whether the same command may succeed later.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Client(error) => error.is_retryable(),
            Self::Unsent { .. } => true,
            Self::Usage(_) | Self::LinkOver | Self::File { .. } | Self::Unprinted { .. } | Self::Unwritten { .. } => {
                false
            }
        }
    }

    /// Whether the server has broken a promise.
    pub fn accuses_server(&self) -> bool {
        let (Self::Client(error) | Self::Unsent { source: Some(error), .. }) = self else { return false };
        matches!(**error, ClientError::Log(LogError::Misbehaved(_)))
    }

    /// The message with those of its causes, in one line.
    pub fn with_causes(&self) -> String {
        match self {
            Self::Client(error) => error.with_causes(),
            Self::Usage(_) | Self::LinkOver => self.to_string(),
            Self::File { source, .. } | Self::Unprinted { source } | Self::Unwritten { source } => {
                format!("{self}: {source}")
            }
            Self::Unsent { source: Some(source), .. } => format!("{self}: {}", source.with_causes()),
            Self::Unsent { source: None, .. } => format!("{self}: the server did not answer in time"),
        }
    }

    /// The type of the server's problem, as received.
    pub fn code(&self) -> Option<&str> {
        match self {
            Self::Client(error) | Self::Unsent { source: Some(error), .. } => error.code(),
            _ => None,
        }
    }

    /// What to do, if the message does not say it.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Client(error) => hint(error),
            Self::Usage(_) => None,
            Self::LinkOver => Some("run `keypool device link` again: it makes a new code"),
            Self::File { .. } => Some("check that the file exists, and that you may read it"),
            Self::Unprinted { .. } => {
                Some("run `keypool receive` again with an output that works: it prints everything again")
            }
            Self::Unwritten { .. } => Some("check that the disk has room"),
            Self::Unsent { .. } => {
                Some("send it again, in a chat or with `keypool send`, when the server can be reached")
            }
        }
    }
}

/// What to do about an error of the library, if its message does not say it.
pub fn hint(error: &ClientError) -> Option<&'static str> {
    use ClientError as E;

    Some(match error {
        E::NotInitialised(_) => "run `keypool init --server URL --user NAME` first",
        E::NotRegistered(_) => "run the same `keypool init` again: it finishes the registration",
        E::OtherDevice { .. } => {
            "choose another --data-dir for another device, or give the same server, user and device"
        }
        E::InUse(_) => "wait until the other process has ended, or choose another --data-dir",
        E::File { .. } => "check that the directory exists and is yours, and that the disk has room",
        E::NewerStore { .. } => "use the version of keypool that wrote it, or a newer one",
        E::UnknownGroup(_) => "`keypool group list` lists those that this device is in",
        E::WrongIdentity { .. } => "ask the owner of the named device; the message was refused",
        E::GroupBehind { .. } => {
            "run `keypool group renew GROUP --without USER/DEVICE`: it makes a new group with everybody else"
        }
        E::FellBehind { .. } => {
            "run `keypool receive`: the device comes back by itself if it can. Otherwise ask another member to invite its user \
             again, or make a new group with `keypool group renew GROUP`"
        }
        E::UnknownSigner { .. } => {
            "run `keypool receive`: it asks the members that this device knows, and one of them brings it back when it is \
             online. If none of them is left, run `keypool group forget GROUP`, and ask another member to invite its user"
        }
        E::Leaving { .. } => {
            "wait until another member lets it go, or delete the group with `keypool group forget GROUP`"
        }
        E::OwnLeaf { .. } => "a device cannot remove itself: run `keypool group leave GROUP`",
        E::ReadOnlyGroup { .. } => "use the new group of the same name",
        E::AmbiguousGroup { .. } => "give its whole id; `keypool group list` prints the ids",
        E::Encrypted(_) => "give its passphrase in KEYPOOL_PASSPHRASE or by --passphrase-file",
        E::NotEncrypted(_) => "omit the passphrase; `keypool passphrase change` encrypts it",
        E::OtherProgram(_) => "choose another --data-dir, where no server has its database",
        E::WrongPassphrase(_) => "give its last passphrase; if the file is damaged, restore a backup",
        E::TwoClients { .. } => {
            "stop the other client, which uses a copy of this data directory; then run `keypool rotate` on the client \
             that you keep"
        }
        E::Damaged(_) | E::MissingKeys(_) => {
            "restore the data directory from a backup, or make a new device in another --data-dir"
        }
        E::ServerAddress(_) => "give it as http://HOST:PORT or https://HOST",
        E::Unreachable { .. } => "check that the server runs and that the address is right, then try again",
        E::Log(LogError::Misbehaved(finding)) if finding.is_proven => {
            "give the file to others: `keypool-verify evidence FILE --vkey KEY` convinces them. `keypool log` shows more, and \
             `keypool log dismiss` uses the server again all the same"
        }
        E::Log(LogError::Misbehaved(_)) => {
            "ask the server's operator. `keypool log` shows more, and `keypool log dismiss` uses the server again all the same"
        }
        E::Log(LogError::Untrusted { .. }) => {
            "ask the operator, by another way than the server, whether that is the new key; if it is, run `keypool log trust VKEY`"
        }
        E::Log(LogError::Missing | LogError::Unlogged(_)) => {
            "ask the operator to switch the log on, or run the command without --strict and KEYPOOL_STRICT"
        }
        E::Log(LogError::NotLogged { .. }) => {
            "run the command again; if that does not help, tell the server's operator"
        }
        E::UnknownReservation(_) => "give the id as `keypool reserve` printed it on this device",
        E::UnknownHost { .. } => "check the name of the host, and this machine's connection to the network",
        E::WrongClock { .. } => "set this machine's clock; if it is right, tell the server's operator",
        E::Untrusted { .. } => {
            "check this machine's clock; if the server has a certificate of your own authority, name that authority's certificate in SSL_CERT_FILE"
        }
        E::Answer { .. } => {
            "check that the address is that of a Keypool server, and that no proxy in front of it answers"
        }
        E::WrongOwnKey { .. } => "run `keypool refresh`; if that does not help, tell the server's operator",
        E::LifetimeTooShort { .. } => "ask the server's operator to lower KEYPOOL_MIN_REMAINING",
        E::UnfitKeyPackage { .. } => {
            "check this device's clock; otherwise the other device needs a program that makes other KeyPackages"
        }
        E::InvalidKeyPackage { .. } | E::ForeignKeyPackage { .. } => {
            "do not add this device; tell its owner and the server's operator"
        }
        E::Refused { kind: Some(ProblemType::AlreadyRegistered), .. } => {
            "choose another --device, or use the data directory of the existing device"
        }
        // Of a token that was shown, the server's answer says what is wrong with it.
        E::NotEnrolled { has_token: false, .. } => {
            "give --user-token: for another device of a user, what `keypool token` prints on one of the user's devices; for \
             a first device, or if all devices are lost, what the operator handed out"
        }
        E::TokenOfOther { .. } => "take the token of this device, or choose the --data-dir of the other one",
        E::ProofRefused { .. } => "run `keypool group renew GROUP`: it makes a new group with all members",
        E::Refused { kind: Some(ProblemType::Unauthenticated), .. } => {
            "the device was removed, or its token was replaced: `keypool init` with its server, user and device registers it \
             anew, and `keypool token --set` takes a token that replaced the old one"
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_command_can_mend_is_named_with_the_command() {
        let refused = || Box::new(ClientError::ServerAddress(String::new()));
        let group = || "friends".to_owned();
        for (error, command) in [
            (ClientError::TwoClients { foreign: 33 }, "keypool rotate"),
            (ClientError::ProofRefused { group: group(), source: refused() }, "keypool group renew"),
            (ClientError::GroupBehind { group: group(), by: "bob/laptop".to_owned() }, "keypool group renew"),
            (ClientError::WrongOwnKey { ciphersuite: 1 }, "keypool refresh"),
            (ClientError::NotInitialised(PathBuf::new()), "keypool init"),
        ] {
            let hint = Error::from(error).hint();
            assert!(hint.is_some_and(|hint| hint.contains(command)), "{hint:?}");
        }
    }
}
