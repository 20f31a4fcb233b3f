//! Files that a client exports for `keypool-verify`.

use serde::{Deserialize, Serialize};

use crate::{adder::HandOut, answers::Answers, note::Note, owner::OwnPackage};

/// The most bytes of an exported file.
pub const MAX_SIZE: usize = 64 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum ProofFormat {
    #[serde(rename = "keypool/proof/v1")]
    V1,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum HandOutsFormat {
    #[serde(rename = "keypool/handouts/v1")]
    V1,
}

/// What an adder exports of one hand-out: the proof that it alone has the package.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProofFile {
    format: ProofFormat,
    /// Notes that lead from a key of the reader's policy to the key of the log.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub key_notes: Vec<Note>,
    /// The hand-out.
    pub hand_out: HandOut,
    /// The server's answers about its steps.
    pub answers: Answers,
}

/// What an owner exports of its packages: the proof of their hand-outs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HandOutsFile {
    format: HandOutsFormat,
    /// Notes that lead from a key of the reader's policy to the key of the log.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub key_notes: Vec<Note>,
    /// The packages with their trails.
    pub packages: Vec<OwnPackage>,
    /// The server's answers about the steps of all of them.
    pub answers: Answers,
}

impl ProofFile {
    /// A file about this hand-out.
    #[must_use]
    pub fn new(hand_out: HandOut, answers: Answers, key_notes: Vec<Note>) -> Self {
        Self { format: ProofFormat::V1, key_notes, hand_out, answers }
    }
}

impl HandOutsFile {
    /// A file about these packages.
    #[must_use]
    pub fn new(packages: Vec<OwnPackage>, answers: Answers, key_notes: Vec<Note>) -> Self {
        Self { format: HandOutsFormat::V1, key_notes, packages, answers }
    }
}
