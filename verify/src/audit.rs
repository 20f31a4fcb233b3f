//! Follows a log: its checkpoints are consistent, its tiles match them, and no tag repeats.

use std::{collections::HashMap, io, path::Path};

use keypool_transparency::{
    checkpoint::{BadNote, Checkpoint},
    encoding::{Hash, Malformed},
    evidence::{Evidence, EvidenceFile},
    frontier::Frontier,
    history::{Succession, succession},
    leaf::{Leaf, TextLeaf},
    merkle::{is_consistent, leaf_hash},
    note::{Note, VerifierKey},
    policy::{LogKeys, Policy},
    statement::Statement,
    tile::{FULL, TileId, TileKind, bundle_entries, exact_bundle, tile_hashes},
    tree::{TileStore, Tree, TreeError},
    verification::{Outcome, verify},
};

use crate::{
    output::{Found, Report},
    source::{Source, SourceError},
    state::{State, StateDirectory, StateError},
    tags::{Entry, Group},
};

/// Bundles that are read at once.
const CHUNK: u64 = 64;

/// Why an audit cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// The log cannot be read.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The state cannot be used.
    #[error(transparent)]
    State(#[from] StateError),
    /// The files of tags cannot be used.
    #[error("the files of tags: {0}")]
    Tags(io::Error),
    /// The checkpoint is not signed by the log's key.
    #[error("the checkpoint: {0}")]
    Checkpoint(#[from] BadNote),
    /// The tiles cannot be read.
    #[error(transparent)]
    Tree(#[from] TreeError<SourceError>),
    /// A bundle or tile is damaged.
    #[error("{0}: {1}")]
    Damaged(TileId, Malformed),
    /// A tile has other hashes than the entries.
    #[error("{0} does not have the hashes of the entries")]
    OtherTile(TileId),
    /// The tiles do not lead to the checkpoint's root.
    #[error("the tiles do not lead to the root of the checkpoint of size {0}")]
    OtherRoot(u64),
    /// The entries that were read are not the beginning of the checkpoint's tree.
    #[error("the entries below {0} are not those of the checkpoint's tree")]
    OtherEntries(u64),
    /// The state is of another log.
    #[error("the state is of the log {0}, not of {1}: use another --state")]
    OtherLog(String, String),
    /// Nothing names the log's key.
    #[error("give the log's key with --vkey or --policy: nothing in --state names it yet")]
    NoKey,
}

impl AuditError {
    /// Whether a later pass would fail as well: the fault is here, not with the log or the network.
    pub fn is_lasting(&self) -> bool {
        matches!(self, Self::State(_) | Self::Tags(_) | Self::OtherLog(..) | Self::NoKey)
    }
}

/// An audit of one log.
pub struct Audit {
    source: Source,
    directory: StateDirectory,
    state: State,
    /// The leaves between two saves.
    batch: usize,
    /// Called with the number of leaves that were read, and the size of the log.
    progress: Box<dyn Fn(u64, u64)>,
}

/// What a pass has counted.
#[derive(Default)]
struct Counts {
    read: u64,
    texts: u64,
    unknown: u64,
}

impl Audit {
    /// Continues the audit in a directory, or begins one.
    pub fn open(
        log: &str,
        directory: &Path,
        key: Option<VerifierKey>,
        batch: u32,
        progress: Box<dyn Fn(u64, u64)>,
    ) -> Result<Self, AuditError> {
        let directory = StateDirectory::open(directory)?;
        let state = match (directory.load()?, key) {
            (Some(state), Some(key)) if state.key != key => {
                return Err(AuditError::OtherLog(state.key.to_string(), key.to_string()));
            }
            (Some(state), _) => state,
            (None, Some(key)) => State::new(key),
            (None, None) => return Err(AuditError::NoKey),
        };
        let batch = usize::try_from(batch).unwrap_or(usize::MAX);
        Ok(Self { source: Source::new(log)?, directory, state, batch, progress })
    }

    fn keys(&self) -> LogKeys {
        [self.state.key.clone()].into_iter().collect()
    }

    /// Reads the log up to its newest checkpoint.
    pub fn pass(&mut self) -> Result<Report, AuditError> {
        let note = self.source.checkpoint()?;
        let target = Checkpoint::verified(&note, &self.state.key)?;
        if let Some(seen) = self.state.seen.clone()
            && let Some(report) = self.compare(&seen, &note, &target)?
        {
            return Ok(report);
        }
        let tree = Tree::new(&self.source, target.size);
        if tree.root()? != target.root {
            return Err(AuditError::OtherRoot(target.size));
        }
        self.state.seen = Some(note.clone());
        if self.state.size == 0
            && target.size > 0
            && let Some(frontier) = self.pruned(&tree)?
        {
            self.state.set_frontier(&frontier);
            self.state.first = frontier.size();
        }
        let mut counts = Counts::default();
        if let Some(report) = self.read(&note, &target, &mut counts)? {
            return Ok(report);
        }
        let groups = self.state.tags.check(self.directory.path()).map_err(AuditError::Tags)?;
        if let Some(report) = self.repeated(&groups, &note, &target)? {
            return Ok(report);
        }
        self.state.checked = Some(note.clone());
        self.directory.save(&self.state)?;
        Ok(self.good(&note, &target, &counts))
    }

    /// The part of the log whose bundles are pruned: it keeps all hashes.
    fn pruned(&self, tree: &Tree<&Source>) -> Result<Option<Frontier>, AuditError> {
        let has = |index: u64| -> Result<bool, AuditError> {
            let tile = TileId::in_tree(TileKind::Entries, index, tree.size());
            Ok(tile.map(|tile| self.source.read(&tile)).transpose()?.flatten().is_some())
        };
        if has(0)? {
            return Ok(None);
        }
        let last = tree.size().saturating_sub(1) / FULL;
        if !has(last)? {
            return Err(SourceError::Missing("the newest entry".to_owned()).into());
        }
        let (mut missing, mut there) = (0, last);
        while there - missing > 1 {
            let middle = missing.midpoint(there);
            *(if has(middle)? { &mut there } else { &mut missing }) = middle;
        }
        Ok(Some(tree.frontier(there.saturating_mul(FULL))?))
    }

    fn good(&self, note: &Note, target: &Checkpoint, counts: &Counts) -> Report {
        let mut report = Report::new(Found::Good, "no tag repeats, and the log continues what was seen before")
            .with("origin", target.origin.clone())
            .with("size", target.size)
            .with("new", counts.read)
            .with("texts", counts.texts)
            .with("checkpoint", note.to_string());
        if self.state.first > 0 {
            report = report.with("first", self.state.first);
        }
        if counts.unknown > 0 {
            report = report.with("unknown_entries", counts.unknown);
        }
        report
    }

    /// Compares the newest checkpoint with the last one. Gives a report if the audit cannot go on.
    fn compare(&self, seen: &Note, note: &Note, target: &Checkpoint) -> Result<Option<Report>, AuditError> {
        let kept = Checkpoint::verified(seen, &self.state.key)?;
        let (small, large) = (kept.size.min(target.size), kept.size.max(target.size));
        let tree = Tree::new(&self.source, large);
        let mut path = Vec::new();
        if kept.size < target.size {
            path = tree.consistency(small)?;
        }
        let mut found = succession(seen, note, &path, &self.keys())?;
        if found == Succession::NotShown {
            found = succession(seen, note, &tree.explicit_consistency(small)?, &self.keys())?;
        }
        Ok(match found {
            Succession::Continues => None,
            Succession::Forked(evidence) => Some(self.proven("the log has two histories", &evidence)),
            Succession::Older => Some(
                Report::new(
                    Found::CannotTell,
                    "the log shows an older checkpoint than before: a replica or a cache is late, or it went back",
                )
                .with("size", target.size)
                .with("size_before", kept.size),
            ),
            Succession::NotShown | Succession::OtherLog | Succession::Shortened { .. } => {
                return Err(AuditError::OtherRoot(target.size));
            }
        })
    }

    fn proven(&self, reason: &str, evidence: &EvidenceFile) -> Report {
        Report::proven(reason, evidence, &self.directory.path().join("evidence.json"))
    }

    /// Reads entries, from where the last run stopped. Gives a report if a tag repeats.
    fn read(&mut self, note: &Note, target: &Checkpoint, counts: &mut Counts) -> Result<Option<Report>, AuditError> {
        let mut frontier = self
            .state
            .frontier()
            .map_err(|why| AuditError::State(StateError::Damaged(self.directory.path().to_owned(), why.to_string())))?;
        let mut batch = Vec::new();
        while frontier.size() < target.size {
            self.read_chunk(&mut frontier, target, &mut batch, counts)?;
            let is_done = frontier.size() == target.size;
            if is_done || batch.len() >= self.batch {
                self.check_prefix(&frontier, target)?;
                let groups = self.state.tags.add(self.directory.path(), &mut batch).map_err(AuditError::Tags)?;
                if let Some(report) = self.repeated(&groups, note, target)? {
                    return Ok(Some(report));
                }
                self.state.set_frontier(&frontier);
                self.directory.save(&self.state)?;
                if !is_done {
                    (self.progress)(frontier.size(), target.size);
                }
            }
        }
        Ok(None)
    }

    /// Reads some bundles with their tiles, and compares what they have.
    fn read_chunk(
        &self,
        frontier: &mut Frontier,
        target: &Checkpoint,
        batch: &mut Vec<Entry>,
        counts: &mut Counts,
    ) -> Result<(), AuditError> {
        let first = frontier.size() / 256;
        let in_tree = |kind| (first..first + CHUNK).map_while(move |index| TileId::in_tree(kind, index, target.size));
        let bundles: Vec<_> = in_tree(TileKind::Entries).collect();
        let full = in_tree(TileKind::Hashes(0)).filter(TileId::is_full);
        let wanted: Vec<_> = bundles.iter().copied().chain(full).collect();
        let mut read = self.source.read_all(&wanted).into_iter();
        let mut made: HashMap<TileId, Vec<Hash>> = HashMap::new();
        for tile in &bundles {
            let bytes = read.next().ok_or_else(|| SourceError::Missing(tile.to_string()))??;
            let entries = if tile.is_full() { exact_bundle } else { bundle_entries }(&bytes, tile.width);
            let entries = entries.map_err(|why| AuditError::Damaged(*tile, why))?;
            let known = usize::try_from(frontier.size() - tile.index * 256).unwrap_or(usize::MAX);
            for entry in entries.iter().skip(known) {
                batch.extend(counts.count(entry, frontier.size()));
                frontier.push(leaf_hash(entry), &mut |tile, hashes| {
                    made.insert(tile, hashes.to_vec());
                });
            }
        }
        for (tile, bytes) in wanted[bundles.len()..].iter().zip(read) {
            check_tile(tile, &bytes?, &made.remove(tile).unwrap_or_default())?;
        }
        // Those of higher levels: one in 256.
        for (tile, hashes) in made {
            let bytes = self.source.read_all(&[tile]).into_iter().next();
            check_tile(&tile, &bytes.ok_or_else(|| SourceError::Missing(tile.to_string()))??, &hashes)?;
        }
        Ok(())
    }

    /// Checks that what was read is the beginning of the checkpoint's tree. Partial tiles need no more: the root was computed
    /// from them.
    fn check_prefix(&self, frontier: &Frontier, target: &Checkpoint) -> Result<(), AuditError> {
        let (size, root) = (frontier.size(), frontier.root());
        let path = Tree::new(&self.source, target.size).consistency(size)?;
        let is_prefix = is_consistent((size, &root), (target.size, &target.root), &path);
        if is_prefix { Ok(()) } else { Err(AuditError::OtherEntries(size)) }
    }

    /// Compares tags in full whose first 8 bytes are equal.
    fn repeated(&self, groups: &[Group], note: &Note, target: &Checkpoint) -> Result<Option<Report>, AuditError> {
        for group in groups {
            let mut first = HashMap::new();
            for index in group {
                let leaf = self.leaf(*index, target.size)?;
                if let Some(other) = first.insert(leaf.tag(), (*index, leaf)) {
                    return self.proven_repetition([other, (*index, leaf)], note, target).map(Some);
                }
            }
        }
        Ok(None)
    }

    fn proven_repetition(
        &self,
        leaves: [(u64, Leaf); 2],
        note: &Note,
        target: &Checkpoint,
    ) -> Result<Report, AuditError> {
        let tree = Tree::new(&self.source, target.size);
        let [one, other] = leaves.map(|(index, leaf)| -> Result<Statement, AuditError> {
            let path = tree.inclusion(index)?;
            Ok(Statement::Included { leaf, index, path, heirs: Vec::new(), checkpoint: note.clone() })
        });
        let evidence = EvidenceFile::new(Evidence::TagRepeated { one: one?, other: other? }, Vec::new());
        let outcome = verify(&evidence, &Policy::of_logs([self.state.key.clone()]));
        if !matches!(outcome, Outcome::Proven(_)) {
            return Err(AuditError::OtherRoot(target.size));
        }
        Ok(self.proven("a tag repeats", &evidence).with("tag", leaves[0].1.tag().to_string()))
    }

    fn leaf(&self, index: u64, size: u64) -> Result<Leaf, AuditError> {
        let missing = || SourceError::Missing(format!("entry {index}"));
        let tile = TileId::in_tree(TileKind::Entries, index / 256, size).ok_or_else(missing)?;
        let bytes = self.source.read_all(&[tile]).into_iter().next().ok_or_else(missing)??;
        let entries = bundle_entries(&bytes, tile.width).map_err(|why| AuditError::Damaged(tile, why))?;
        let entry = usize::try_from(index % 256).ok().and_then(|place| entries.get(place)).ok_or_else(missing)?;
        Leaf::from_bytes(entry).map_err(|why| AuditError::Damaged(tile, why))
    }
}

impl Counts {
    /// Gives the beginning of the tag, if the entry is the leaf of a step.
    fn count(&mut self, entry: &[u8], index: u64) -> Option<Entry> {
        self.read += 1;
        match entry {
            [1, tag @ ..] if entry.len() == Leaf::SIZE => {
                tag.first_chunk().map(|tag| (u64::from_be_bytes(*tag), index))
            }
            _ => {
                let is_text = TextLeaf::from_bytes(entry).is_ok();
                *(if is_text { &mut self.texts } else { &mut self.unknown }) += 1;
                None
            }
        }
    }
}

/// Compares a tile with the hashes that it should have.
fn check_tile(tile: &TileId, bytes: &[u8], hashes: &[Hash]) -> Result<(), AuditError> {
    let served = tile_hashes(bytes, tile.width).map_err(|why| AuditError::Damaged(*tile, why))?;
    if served == hashes { Ok(()) } else { Err(AuditError::OtherTile(*tile)) }
}
