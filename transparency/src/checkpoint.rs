//! Checkpoints: the signed size and root of a log (C2SP tlog-checkpoint).

use std::fmt;

use crate::{
    encoding::{Hash, Malformed, array_from_base64, base64, decimal},
    note::{NotSigned, Note, SignerKey, VerifierKey},
};

/// The size and root of a log, as its key signed them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// The name of the log.
    pub origin: String,
    /// The number of its leaves.
    pub size: u64,
    /// The root of the tree over them.
    pub root: Hash,
}

/// Why a checkpoint or receipt is not believed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadNote {
    /// It cannot be read.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// No key of its log is trusted.
    #[error("no trusted key is of the log {0}")]
    UnknownLog(String),
    /// The log's key has not signed it.
    #[error("the log's key {key}: {why}")]
    NotSigned {
        /// The name of the key.
        key: String,
        /// What is wrong with the signature.
        why: NotSigned,
    },
    /// It is of another log than the key.
    #[error("it is of {got}, and the key is of {expected}")]
    OtherOrigin {
        /// The log of the key.
        expected: String,
        /// The log that the note names.
        got: String,
    },
}

impl fmt::Display for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\n{}\n{}\n", self.origin, self.size, base64(&self.root))
    }
}

impl Checkpoint {
    /// Signs it.
    pub fn sign(&self, key: &SignerKey) -> Result<Note, Malformed> {
        key.sign(&self.to_string())
    }

    /// Reads the text of a checkpoint without its signatures. Extension lines are passed over.
    pub fn unverified(note: &Note) -> Result<Self, Malformed> {
        let wrong = |why| Malformed::other("checkpoint", why);
        let mut lines = note.text().strip_suffix('\n').unwrap_or_default().split('\n');
        let (Some(origin), Some(size), Some(root)) = (lines.next(), lines.next(), lines.next()) else {
            return Err(wrong("it has fewer than three lines"));
        };
        if origin.is_empty() || lines.any(str::is_empty) {
            return Err(wrong("it has an empty line"));
        }
        let (size, root) = (decimal("size of a checkpoint", size)?, array_from_base64("root of a checkpoint", root)?);
        Ok(Self { origin: origin.to_owned(), size, root })
    }

    /// Reads a checkpoint that the log's key has signed.
    pub fn verified(note: &Note, key: &VerifierKey) -> Result<Self, BadNote> {
        verify_origin(note, key, Self::unverified(note)?, |checkpoint| &checkpoint.origin)
    }
}

/// Gives a value that was read from a note if the key is of its origin and has signed the note.
pub(crate) fn verify_origin<T>(
    note: &Note,
    key: &VerifierKey,
    value: T,
    origin: impl Fn(&T) -> &str,
) -> Result<T, BadNote> {
    let got = origin(&value);
    if got != key.name() {
        return Err(BadNote::OtherOrigin { expected: key.name().to_owned(), got: got.to_owned() });
    }
    note.verify(key).map_err(|why| BadNote::NotSigned { key: key.name().to_owned(), why })?;
    Ok(value)
}
