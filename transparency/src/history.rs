//! Whether a checkpoint continues the last one that a client has seen.

use crate::{
    checkpoint::{BadNote, Checkpoint},
    encoding::Hash,
    evidence::{Evidence, EvidenceFile},
    merkle::{is_consistent, roots_from_consistency},
    note::Note,
    policy::LogKeys,
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
    /// The path proves neither, so the server has not shown that the log continues.
    NotShown,
    /// It is of another log.
    OtherLog,
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
