//! Evidence: files that prove to anybody who knows a log's key that its server lied or was badly restored.
//!
//! Only what the log signed counts, and openings, which nobody can invent. What an accuser says counts for nothing.

use serde::{Deserialize, Serialize};

use crate::{
    commitment::{Details, Opening},
    encoding::{Hash, bytes, from_json, hashes, to_json},
    leaf::Leaf,
    note::Note,
    statement::Statement,
};

/// The most bytes of an evidence file.
pub const MAX_SIZE: usize = 128 << 20;

/// What a server has been proven to have done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Two different leaves have one tag, or one tag is at two places.
    #[error("two different leaves of the log have one tag, or one tag is at two places")]
    TagRepeated = 1,
    /// Two checkpoints contradict each other.
    #[error("two signed checkpoints contradict each other: the log has two histories")]
    Fork = 2,
    /// A package was handed out after it had been spent or revoked.
    #[error("a KeyPackage was handed out after it had been spent or revoked")]
    HandedOutAfterEnd = 3,
    /// A reservation lapsed before its time.
    #[error("a reservation lapsed before its time, or the server's clock jumped")]
    LapsedEarly = 4,
    /// A signed receipt is false.
    #[error("a signed receipt is false")]
    FalseReceipt = 5,
    /// A promised leaf is not in the log.
    #[error("a leaf that a receipt promised is not in the log")]
    LeafMissing = 6,
}

/// One accusation with all that is needed to check it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
#[expect(clippy::large_enum_variant, reason = "there is one at a time")]
pub enum Evidence {
    /// Kind 1.
    TagRepeated {
        /// A statement.
        one: Statement,
        /// Another one with the same tag.
        other: Statement,
    },
    /// Kind 2.
    Fork {
        /// The checkpoint of the smaller tree.
        smaller: Note,
        /// That of the larger tree.
        larger: Note,
        /// The larger tree's consistency path, with its first hash explicit; empty if both have one size.
        #[serde(with = "hashes")]
        path: Vec<Hash>,
    },
    /// Kind 3.
    HandedOutAfterEnd {
        /// end(n).
        end: Statement,
        /// Its opening: a spend or a revoke.
        details: Details,
        /// open(later), with later > n.
        open: Statement,
        /// The number of the later hand-out.
        later: u32,
    },
    /// Kind 4.
    LapsedEarly {
        /// open(n).
        open: Statement,
        /// Its opening, which says until when the reservation holds.
        open_details: Details,
        /// end(n). Its checkpoint has the cosignatures, if `next` is left out.
        end: Statement,
        /// Its opening: a lapse.
        end_details: Details,
        /// A receipt of open(n+1).
        #[serde(default, skip_serializing_if = "Option::is_none")]
        next: Option<Statement>,
    },
    /// Kind 5: a receipt denies a tag that is in the log.
    FalseNone {
        /// The receipt.
        receipt: String,
        /// The leaf, below the receipt's size.
        leaf: Statement,
    },
    /// Kind 5: a receipt gives a device a leaf that names another device as the actor.
    OtherActor {
        /// The receipt.
        receipt: String,
        /// The leaf in it.
        leaf: Leaf,
        /// Its opening with both levels.
        opening: Opening,
    },
    /// Kind 6.
    LeafMissing {
        /// The receipt.
        receipt: String,
        /// The leaf in it.
        leaf: Leaf,
        /// A cosigned checkpoint that is larger than the receipt's size.
        smaller: Note,
        /// A larger one, cosigned a day later.
        larger: Note,
        /// The hashes of all leaves of the larger tree.
        #[serde(with = "bytes")]
        leaf_hashes: Vec<u8>,
    },
}

/// The format's name, which stands in each file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Format {
    #[serde(rename = "keypool/evidence/v1")]
    V1,
}

/// An evidence file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvidenceFile {
    format: Format,
    /// Notes that lead from a key of the verifier's policy to the key of the accused log.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub key_notes: Vec<Note>,
    /// The accusation.
    pub evidence: Evidence,
}

impl EvidenceFile {
    /// A file with this accusation.
    #[must_use]
    pub fn new(evidence: Evidence, key_notes: Vec<Note>) -> Self {
        Self { format: Format::V1, key_notes, evidence }
    }

    /// Reads a file.
    ///
    /// # Errors
    /// When it is longer than [`MAX_SIZE`], or is not JSON of this format.
    pub fn from_json(json: &[u8]) -> Result<Self, serde_json::Error> {
        from_json(json, MAX_SIZE)
    }

    /// The file's text.
    #[must_use]
    pub fn to_json(&self) -> String {
        to_json(self)
    }
}
