//! The right edge of a tree: what is needed to append leaves to it, and to compute its root.

use crate::{
    encoding::{Hash, Malformed},
    merkle::{empty_root, node_hash},
    tile::{FULL, HEIGHT, TileId, TileKind},
};

/// The hashes of the partial tiles of a tree, one list a level.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frontier {
    size: u64,
    /// As many levels as the size requires, and at least one.
    edge: Vec<Vec<Hash>>,
}

impl Default for Frontier {
    fn default() -> Self {
        Self { size: 0, edge: vec![Vec::new()] }
    }
}

/// How many hashes a tree of this size has at a level.
pub(crate) fn hashes_at(level: usize, size: u64) -> u64 {
    u32::try_from(level).ok().and_then(|level| size.checked_shr(HEIGHT.checked_mul(level)?)).unwrap_or(0)
}

impl Frontier {
    /// The frontier of a tree of this size whose partial tiles are known.
    pub fn new(size: u64, edge: Vec<Vec<Hash>>) -> Result<Self, Malformed> {
        let levels = (0..8).find(|level| hashes_at(*level, size) == 0).unwrap_or(8).max(1);
        let fits = |(level, hashes): (usize, &Vec<Hash>)| hashes.len() as u64 == hashes_at(level, size) % FULL;
        if edge.len() == levels && edge.iter().enumerate().all(fits) {
            Ok(Self { size, edge })
        } else {
            Err(Malformed::other("edge of a tree", "its partial tiles are not those of the size"))
        }
    }

    /// The size of the tree.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The hashes of the partial tiles, one list a level.
    #[must_use]
    pub fn edge(&self) -> &[Vec<Hash>] {
        &self.edge
    }

    /// Appends a leaf, and calls `full` with each tile that is full now.
    pub fn push(&mut self, leaf: Hash, full: &mut impl FnMut(TileId, &[Hash])) {
        self.edge[0].push(leaf);
        self.size += 1;
        let mut level = 0;
        while self.edge[level].len() == 256 {
            let hashes = std::mem::take(&mut self.edge[level]);
            let kind = TileKind::Hashes(u8::try_from(level).unwrap_or(u8::MAX));
            full(TileId { kind, index: hashes_at(level + 1, self.size) - 1, width: 256 }, &hashes);
            level += 1;
            if level == self.edge.len() {
                self.edge.push(Vec::new());
            }
            self.edge[level].push(complete_root(&hashes));
        }
    }

    /// The partial tiles.
    pub fn partial_tiles(&self) -> impl Iterator<Item = (TileId, &[Hash])> {
        (0u8..).zip(&self.edge).filter_map(|(level, hashes)| {
            let index = hashes_at(level.into(), self.size) / FULL;
            let width = u16::try_from(hashes.len()).ok().filter(|width| *width > 0)?;
            Some((TileId { kind: TileKind::Hashes(level), index, width }, hashes.as_slice()))
        })
    }

    /// The root of the tree.
    #[must_use]
    pub fn root(&self) -> Hash {
        let mut root = None;
        for level in &self.edge {
            // From the right: the smallest complete subtree of the level first.
            let mut end = level.len();
            while end > 0 {
                let width = 1 << end.trailing_zeros();
                let left = complete_root(&level[end - width..end]);
                root = Some(root.map_or(left, |right| node_hash(&left, &right)));
                end -= width;
            }
        }
        root.unwrap_or_else(empty_root)
    }
}

/// The root of a complete tree, whose number of leaves is a power of two.
fn complete_root(hashes: &[Hash]) -> Hash {
    match hashes {
        [hash] => *hash,
        [left, right] => node_hash(left, right),
        _ => {
            let (left, right) = hashes.split_at(hashes.len() / 2);
            node_hash(&complete_root(left), &complete_root(right))
        }
    }
}
