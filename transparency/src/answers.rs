//! What a server answers about steps: leaves with their paths to one checkpoint.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use crate::{
    checkpoint::{BadNote, Checkpoint},
    commitment::Opening,
    encoding::{Hash, hashes},
    history::Head,
    leaf::Leaf,
    merkle::is_included,
    note::Note,
    package::{PackageId, Step, Tag},
    policy::LogKeys,
    statement::{Heir, Statement},
};

/// What a server has found of a step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
#[expect(clippy::large_enum_variant, reason = "nearly all are of the large one")]
pub enum Found {
    /// The log has it.
    Included {
        /// The leaf.
        leaf: Leaf,
        /// Its index.
        index: u64,
        /// Its inclusion path in the checkpoint's tree.
        #[serde(with = "hashes")]
        path: Vec<Hash>,
        /// What it commits to, as much as the caller may see. Left out if the owner's device was erased.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        opening: Option<Opening>,
        /// Where the leaf is in the tree that an older origin left: see [`Statement::Included`].
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        heirs: Vec<Heir>,
    },
    /// It happened, and will be in the log.
    Pending,
    /// It has not happened.
    None,
    /// The server does not know the package any more.
    Erased,
}

/// What a server has found of the step with a tag.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Answer {
    /// The tag.
    pub tag: Tag,
    /// What it found.
    pub found: Found,
}

/// An answer about some steps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Answers {
    /// The checkpoint of the tree that the paths lead to.
    pub checkpoint: Note,
    /// The answers, each tag once.
    pub proofs: Vec<Answer>,
    /// A receipt of the answers that are not in the tree.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub receipt: Option<String>,
    /// How the checkpoint continues the one that the client has named, see [`Head`].
    #[serde(default, with = "hashes", skip_serializing_if = "Vec::is_empty")]
    pub consistency: Vec<Hash>,
    /// The logs between the named one and the one of the checkpoint, see [`Head`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub heirs: Vec<Heir>,
}

/// Why answers are not believed. HTTP answers are not signed, so this proves nothing to others.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadAnswers {
    /// The checkpoint is not believed.
    #[error(transparent)]
    Checkpoint(#[from] BadNote),
    /// A leaf has another tag than the answer that has it.
    #[error("the leaf of an answer has another tag")]
    OtherTag(Tag),
    /// A path does not lead to the checkpoint.
    #[error("the inclusion path of an answer does not lead to the checkpoint")]
    NotIncluded(Tag),
    /// Two answers are of one tag.
    #[error("two answers are of one tag")]
    Twice(Tag),
}

/// Answers whose signature and paths are verified.
#[derive(Clone, Debug)]
pub struct CheckedAnswers<'a> {
    /// The checkpoint.
    pub checkpoint: Checkpoint,
    answers: &'a Answers,
    by_tag: HashMap<Tag, &'a Found>,
}

impl Answers {
    /// Verifies the checkpoint and all paths.
    pub fn check(&self, keys: &LogKeys) -> Result<CheckedAnswers<'_>, BadAnswers> {
        let checkpoint = keys.checkpoint(&self.checkpoint)?;
        let mut by_tag = HashMap::with_capacity(self.proofs.len());
        for Answer { tag, found } in &self.proofs {
            if let Found::Included { leaf, index, path, heirs, .. } = found {
                if leaf.tag() != *tag {
                    return Err(BadAnswers::OtherTag(*tag));
                }
                let is_there = if heirs.is_empty() {
                    is_included(&leaf.hash(), *index, checkpoint.size, &checkpoint.root, path)
                } else {
                    self.statement(found).is_some_and(|statement| statement.verify(keys).is_ok())
                };
                if !is_there {
                    return Err(BadAnswers::NotIncluded(*tag));
                }
            }
            if by_tag.insert(*tag, found).is_some() {
                return Err(BadAnswers::Twice(*tag));
            }
        }
        Ok(CheckedAnswers { checkpoint, answers: self, by_tag })
    }

    /// The checkpoint, and how it continues the one that the client has named.
    #[must_use]
    pub fn head(&self) -> Head {
        let (consistency, heirs) = (self.consistency.clone(), self.heirs.clone());
        Head { checkpoint: self.checkpoint.clone(), consistency, heirs }
    }

    fn statement(&self, found: &Found) -> Option<Statement> {
        let Found::Included { leaf, index, path, heirs, .. } = found else { return None };
        Some(Statement::Included {
            leaf: *leaf,
            index: *index,
            path: path.clone(),
            heirs: heirs.clone(),
            checkpoint: self.checkpoint.clone(),
        })
    }
}

impl CheckedAnswers<'_> {
    /// What was found of a step.
    #[must_use]
    pub fn get(&self, tag: &Tag) -> Option<&Found> {
        self.by_tag.get(tag).copied()
    }

    /// The receipt of the answers.
    #[must_use]
    pub fn receipt(&self) -> Option<&str> {
        self.answers.receipt.as_deref()
    }

    /// The leaves of some steps as statements, for evidence.
    pub fn statements<'a>(&'a self, tags: impl IntoIterator<Item = Tag> + 'a) -> impl Iterator<Item = Statement> + 'a {
        tags.into_iter().filter_map(|tag| self.answers.statement(self.get(&tag)?))
    }

    /// The openings of some steps.
    pub fn openings<'a>(&'a self, tags: impl IntoIterator<Item = Tag> + 'a) -> impl Iterator<Item = Opening> + 'a {
        tags.into_iter().filter_map(|tag| match self.get(&tag)? {
            Found::Included { opening, .. } => opening.clone(),
            _ => None,
        })
    }

    /// Whether a step has happened that is not in the log yet.
    pub(crate) fn has_pending(&self) -> bool {
        self.answers.proofs.iter().any(|answer| matches!(answer.found, Found::Pending))
    }

    /// The openings of a last resort's uses and spends.
    pub(crate) fn uses_of<'a>(&'a self, package: &'a PackageId) -> impl Iterator<Item = &'a Opening> + 'a {
        self.answers.proofs.iter().filter_map(|answer| match &answer.found {
            Found::Included { leaf, opening: Some(opening), .. } if opening.details.package == *package => {
                let step = opening.step_of(leaf)?;
                (matches!(step, Step::Use(_) | Step::Used(_)) && opening.open(leaf, &step).is_ok()).then_some(opening)
            }
            _ => None,
        })
    }
}
