//! Whether a checkpoint continues the last one that a client has seen.

use serde::{Deserialize, Serialize};

use crate::{
    checkpoint::{BadNote, Checkpoint},
    encoding::{Hash, hashes},
    evidence::{Evidence, EvidenceFile},
    leaf::{Kept, TextLeaf},
    merkle::{is_consistent, is_included, leaf_hash, roots_from_consistency},
    note::Note,
    policy::LogKeys,
    statement::Heir,
};

/// How a checkpoint follows another one of the same log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Succession {
    /// It is as large or larger, and has the older tree as its beginning.
    Continues,
    /// It is of a smaller tree that may be its beginning: a replica or a cache is late, which proves nothing.
    Older,
    /// The two contradict each other.
    Forked(Box<EvidenceFile>),
    /// It is of a log that continues the other one without its last leaves: the server's database was restored.
    Shortened {
        /// How many leaves it keeps.
        kept: u64,
    },
    /// The path proves neither, so the server has not shown that the log continues.
    NotShown,
    /// It is of another log.
    OtherLog,
}

/// The newest checkpoint of a server, and how it continues the checkpoint that a client has named.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Head {
    /// The checkpoint.
    pub checkpoint: Note,
    /// The consistency path (RFC 9162) from the named size to the checkpoint; or, if `heirs` are there, to the part of the named
    /// log that the first of them keeps.
    #[serde(default, with = "hashes", skip_serializing_if = "Vec::is_empty")]
    pub consistency: Vec<Hash>,
    /// If the named log has ended: the logs from the one that kept its tree to the one of the checkpoint.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub heirs: Vec<Heir>,
}

impl Head {
    /// Compares the newest checkpoint that a client keeps, and has named, with this one. `keys` must have the keys of both
    /// logs.
    pub fn succession(&self, kept: &Note, keys: &LogKeys) -> Result<Succession, BadNote> {
        let (old, latest) = (keys.checkpoint(kept)?, keys.checkpoint(&self.checkpoint)?);
        if old.origin == latest.origin {
            return succession(kept, &self.checkpoint, &self.consistency, keys);
        }
        if self.heirs.is_empty() {
            return Ok(Succession::OtherLog);
        }
        let Some(Kept { size, root, .. }) = inherited(&old.origin, &self.heirs, &latest) else {
            return Ok(Succession::NotShown);
        };
        if old.size > size {
            return Ok(Succession::Shortened { kept: size });
        }
        let is_there = is_consistent((old.size, &old.root), (size, &root), &self.consistency);
        Ok(if is_there { Succession::Continues } else { Succession::NotShown })
    }
}

/// The part of a log that its heirs lead to a checkpoint; `None` if they do not.
fn inherited(origin: &str, heirs: &[Heir], checkpoint: &Checkpoint) -> Option<Kept> {
    let (mut first, mut name) = (None, origin.to_owned());
    let mut heirs = heirs.iter().peekable();
    while let Some(heir) = heirs.next() {
        let TextLeaf::Origin { name: next, kept: Some(kept) } = &heir.entry else { return None };
        if kept.origin != name {
            return None;
        }
        let hash = leaf_hash(&heir.entry.to_bytes());
        let within = heirs.peek().map(|heir| &heir.entry);
        let (size, root) = match within {
            Some(TextLeaf::Origin { kept: Some(kept), .. }) => (kept.size, kept.root),
            Some(_) => return None,
            None => (checkpoint.size, checkpoint.root),
        };
        if !is_included(&hash, 0, size, &root, &heir.path) {
            return None;
        }
        first.get_or_insert_with(|| kept.clone());
        name.clone_from(next);
    }
    first.filter(|_| name == checkpoint.origin)
}

/// Compares the newest checkpoint that a client keeps with another one. `path` is the consistency path of
/// the larger tree: of RFC 9162, or, to find a fork, with its first hash explicit.
pub fn succession(kept: &Note, new: &Note, path: &[Hash], keys: &LogKeys) -> Result<Succession, BadNote> {
    let (old, latest) = (keys.checkpoint(kept)?, keys.checkpoint(new)?);
    if old.origin != latest.origin {
        return Ok(Succession::OtherLog);
    }
    let is_newer = old.size <= latest.size;
    let [(small, smaller), (large, larger)] =
        if is_newer { [(&old, kept), (&latest, new)] } else { [(&latest, new), (&old, kept)] };
    if is_consistent((small.size, &small.root), (large.size, &large.root), path) {
        return Ok(if is_newer { Succession::Continues } else { Succession::Older });
    }
    Ok(match contradiction(small, large, path) {
        Some(path) => {
            let evidence = Evidence::Fork { smaller: smaller.clone(), larger: larger.clone(), path };
            Succession::Forked(Box::new(EvidenceFile::new(evidence, Vec::new())))
        }
        None if is_newer => Succession::NotShown,
        None => Succession::Older,
    })
}

/// The path that shows that two checkpoints contradict each other: its first hash is explicit, as
/// [`crate::tree::Tree::explicit_consistency`] makes it from the larger log's tiles.
fn contradiction(small: &Checkpoint, large: &Checkpoint, path: &[Hash]) -> Option<Vec<Hash>> {
    if small.size == large.size {
        return (small.root != large.root).then(Vec::new);
    }
    let (old, new) = roots_from_consistency(small.size, large.size, path)?;
    (new == large.root && old != small.root).then(|| path.to_vec())
}
