//! Statements: leaves that a log has promised or shown, each with the signature that binds the log to it.

use serde::{Deserialize, Serialize};

use crate::{
    checkpoint::{BadNote, Checkpoint},
    encoding::{Hash, hashes},
    leaf::{Kept, Leaf, TextLeaf},
    merkle::{is_included, leaf_hash},
    note::Note,
    policy::LogKeys,
};

/// A leaf in a receipt, or with its path to a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Statement {
    /// The log promised it.
    Receipt {
        /// The leaf.
        leaf: Leaf,
        /// A receipt that has the leaf.
        receipt: String,
    },
    /// The log has it.
    Included {
        /// The leaf.
        leaf: Leaf,
        /// Its index, in the oldest of the trees.
        index: u64,
        /// Its inclusion path, in the oldest of the trees.
        #[serde(with = "hashes")]
        path: Vec<Hash>,
        /// Where the leaf is in a tree that a later origin kept: the origins from the one that kept that tree to the one that
        /// signed the checkpoint.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        heirs: Vec<Heir>,
        /// A checkpoint of the newest of the trees.
        checkpoint: Note,
    },
}

/// An origin that continues another one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Heir {
    /// Its first entry, which names the tree that it kept.
    pub entry: TextLeaf,
    /// The inclusion path of that entry.
    #[serde(with = "hashes")]
    pub path: Vec<Hash>,
}

/// Where a leaf is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The origin of the tree: the statement's, or one that it kept.
    pub tree: String,
    /// The index in that tree.
    pub index: u64,
}

/// A statement that a log's signature binds it to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stated {
    /// The log that is bound.
    pub origin: String,
    /// The leaf.
    pub leaf: Leaf,
    /// Where it is; `None` if the log has only promised it.
    pub place: Option<Place>,
    /// When the log promised it, in Unix seconds; `None` if the log has it.
    pub promised: Option<u64>,
}

impl Stated {
    /// Whether the leaf is in the tree of the log itself, below an index.
    #[must_use]
    pub fn is_below(&self, size: u64) -> bool {
        self.place.as_ref().is_some_and(|place| place.tree == self.origin && place.index < size)
    }
}

/// Why a statement binds nobody.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadStatement {
    /// The checkpoint or receipt is not believed.
    #[error(transparent)]
    Note(#[from] BadNote),
    /// The receipt does not have the leaf.
    #[error("the receipt does not have the leaf")]
    NotInReceipt,
    /// A path does not lead to the root.
    #[error("the inclusion path does not lead to the root of {0}")]
    NotIncluded(String),
    /// An entry that should begin an origin does not.
    #[error("the first entry of {0} does not say that it keeps an older tree")]
    NoHeir(String),
}

impl Statement {
    /// The leaf.
    #[must_use]
    pub fn leaf(&self) -> &Leaf {
        match self {
            Self::Receipt { leaf, .. } | Self::Included { leaf, .. } => leaf,
        }
    }

    /// Checks the signature and the paths.
    pub fn verify(&self, keys: &LogKeys) -> Result<Stated, BadStatement> {
        match self {
            Self::Receipt { leaf, receipt } => {
                let receipt = keys.receipt(receipt)?;
                let stated =
                    Stated { origin: receipt.origin.clone(), leaf: *leaf, place: None, promised: Some(receipt.time) };
                if receipt.has_leaf(leaf) { Ok(stated) } else { Err(BadStatement::NotInReceipt) }
            }
            Self::Included { leaf, index, path, heirs, checkpoint } => {
                let checkpoint = keys.checkpoint(checkpoint)?;
                let tree = check_paths(leaf, (*index, path), heirs, &checkpoint)?;
                let place = Some(Place { tree, index: *index });
                Ok(Stated { origin: checkpoint.origin, leaf: *leaf, place, promised: None })
            }
        }
    }
}

/// Checks the path of a leaf, and of the first entry of each heir, each in the tree that the next one kept. Gives the
/// origin of the tree that holds the leaf.
fn check_paths(
    leaf: &Leaf,
    (mut index, mut path): (u64, &[Hash]),
    heirs: &[Heir],
    checkpoint: &Checkpoint,
) -> Result<String, BadStatement> {
    let (mut hash, mut within, mut oldest) = (leaf.hash(), None, None);
    for heir in heirs {
        let TextLeaf::Origin { name, kept: Some(Kept { origin, size, root }) } = &heir.entry else {
            return Err(BadStatement::NoHeir(within.unwrap_or_default()));
        };
        if within.as_ref().is_some_and(|within| within != origin) {
            return Err(BadStatement::NoHeir(name.clone()));
        }
        if !is_included(&hash, index, *size, root, path) {
            return Err(BadStatement::NotIncluded(origin.clone()));
        }
        oldest.get_or_insert_with(|| origin.clone());
        within = Some(name.clone());
        (hash, index, path) = (leaf_hash(&heir.entry.to_bytes()), 0, &heir.path);
    }
    let Checkpoint { origin, size, root } = checkpoint;
    if within.is_some_and(|within| within != *origin) || !is_included(&hash, index, *size, root, path) {
        return Err(BadStatement::NotIncluded(origin.clone()));
    }
    Ok(oldest.unwrap_or_else(|| origin.clone()))
}
