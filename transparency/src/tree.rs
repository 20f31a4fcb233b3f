//! A tree in tiles: appends batches, and makes inclusion and consistency paths, from stored tiles alone.

use std::{cell::RefCell, collections::HashMap, rc::Rc};

use crate::{
    encoding::{Hash, Malformed, put_v16},
    frontier::{Frontier, hashes_at},
    merkle::{empty_root, leaf_hash, node_hash},
    tile::{FULL, HEIGHT, TileId, TileKind, bundle_prefix, tile_hashes},
};

/// The most bytes of an entry: a bundle gives each a two-byte length.
pub const MAX_ENTRY: usize = 65_535;

/// Where the tiles and bundles of one origin are.
pub trait TileStore {
    /// Why a tile cannot be read.
    type Error;

    /// The bytes of a tile or bundle: those of this width, or of a greater one that begins with them. `None` if it is
    /// not there.
    fn read(&self, tile: &TileId) -> Result<Option<Vec<u8>>, Self::Error>;
}

impl<S: TileStore> TileStore for &S {
    type Error = S::Error;

    fn read(&self, tile: &TileId) -> Result<Option<Vec<u8>>, S::Error> {
        (*self).read(tile)
    }
}

/// Why a tree cannot be read or extended.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum TreeError<E> {
    /// The store failed.
    #[error("the tile store failed: {0}")]
    Store(E),
    /// A tile is not there.
    #[error("{0} is missing")]
    Missing(TileId),
    /// A tile is damaged.
    #[error("{0}: {1}")]
    Damaged(TileId, Malformed),
    /// The tree has no such leaf, or is smaller than asked for.
    #[error("a tree of {size} leaves has no {index}")]
    OutOfRange {
        /// What was asked for: the index of a leaf, or a smaller size.
        index: u64,
        /// The size of the tree.
        size: u64,
    },
}

/// An entry is longer than a bundle can hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an entry has {0} bytes; at most 65535 fit in a bundle")]
pub struct EntryTooLong(pub usize);

fn read<S: TileStore>(store: &S, tile: TileId) -> Result<Vec<u8>, TreeError<S::Error>> {
    store.read(&tile).map_err(TreeError::Store)?.ok_or(TreeError::Missing(tile))
}

fn read_hashes<S: TileStore>(store: &S, tile: TileId) -> Result<Vec<Hash>, TreeError<S::Error>> {
    tile_hashes(&read(store, tile)?, tile.width).map_err(|why| TreeError::Damaged(tile, why))
}

/// What a batch adds to a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Appended {
    /// The size of the tree with the batch.
    pub size: u64,
    /// Its root.
    pub root: Hash,
    /// The tiles and bundles to store. A wider one replaces a narrower one of the same kind and index.
    pub tiles: Vec<(TileId, Vec<u8>)>,
}

/// The right edge of a tree, with the entries of its partial bundle: what an append needs of it.
#[derive(Clone, Debug, Default)]
pub struct Appender {
    frontier: Frontier,
    /// The partial entry bundle.
    bundle: Vec<u8>,
}

impl Appender {
    /// The edge of the empty tree.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Reads the edge of a tree of this size: one tile a level, and a bundle.
    pub fn load<S: TileStore>(store: &S, size: u64) -> Result<Self, TreeError<S::Error>> {
        let frontier = Tree::new(store, size).frontier(size)?;
        let mut bundle = Vec::new();
        if let Some(tile) = TileId::in_tree(TileKind::Entries, size / FULL, size) {
            bundle = read(store, tile)?;
            let prefix = bundle_prefix(&bundle, tile.width);
            let length = prefix.map_err(|why| TreeError::Damaged(tile, why))?.len();
            bundle.truncate(length);
        }
        Ok(Self { frontier, bundle })
    }

    /// The size of the tree.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.frontier.size()
    }

    /// The root of the tree.
    #[must_use]
    pub fn root(&self) -> Hash {
        self.frontier.root()
    }

    /// Appends entries. The tiles that it returns have to be stored before the appender is used again, or it has to be
    /// loaded again.
    pub fn append(&mut self, entries: &[impl AsRef<[u8]>]) -> Result<Appended, EntryTooLong> {
        if let Some(long) = entries.iter().map(|entry| entry.as_ref().len()).find(|length| *length > MAX_ENTRY) {
            return Err(EntryTooLong(long));
        }
        let (before, mut tiles) = (self.size(), Vec::new());
        for entry in entries {
            put_v16(&mut self.bundle, entry.as_ref());
            if (self.size() + 1).is_multiple_of(FULL) {
                let tile = TileId { kind: TileKind::Entries, index: self.size() / FULL, width: 256 };
                tiles.push((tile, std::mem::take(&mut self.bundle)));
            }
            self.frontier.push(leaf_hash(entry.as_ref()), &mut |tile, hashes| tiles.push((tile, hashes.concat())));
        }
        self.put_partial(before, &mut tiles);
        Ok(Appended { size: self.size(), root: self.root(), tiles })
    }

    /// The partial tiles and the partial bundle that changed.
    fn put_partial(&self, before: u64, tiles: &mut Vec<(TileId, Vec<u8>)>) {
        let size = self.size();
        let has_changed = |tile: &TileId| match tile.kind {
            TileKind::Hashes(level) => hashes_at(level.into(), before) != hashes_at(level.into(), size),
            TileKind::Entries => before != size,
        };
        let partial = self.frontier.partial_tiles().map(|(tile, hashes)| (tile, hashes.concat()));
        let bundle = TileId::in_tree(TileKind::Entries, size / FULL, size).map(|tile| (tile, self.bundle.clone()));
        tiles.extend(partial.chain(bundle).filter(|(tile, _)| has_changed(tile)));
    }
}

/// A tile's hashes, and those of the nodes above them: one list a height.
type Nodes = Rc<Vec<Vec<Hash>>>;

/// Reads a tree of a certain size from its tiles. Paths of one `Tree` share the tiles that they read.
pub struct Tree<S> {
    store: S,
    size: u64,
    tiles: RefCell<HashMap<TileId, Nodes>>,
}

/// A `Tree` forgets what it has read after this many tiles, each of 16 KiB.
const MAX_CACHED_TILES: usize = 4096;

impl<S: TileStore> Tree<S> {
    /// A tree in a store. The store may hold a larger one that begins with it.
    pub fn new(store: S, size: u64) -> Self {
        Self { store, size, tiles: RefCell::default() }
    }

    /// How many leaves it has.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The root.
    pub fn root(&self) -> Result<Hash, TreeError<S::Error>> {
        if self.size == 0 { Ok(empty_root()) } else { self.range(0, self.size) }
    }

    /// The inclusion path of a leaf.
    pub fn inclusion(&self, index: u64) -> Result<Vec<Hash>, TreeError<S::Error>> {
        if index >= self.size {
            return Err(TreeError::OutOfRange { index, size: self.size });
        }
        let (mut start, mut end, mut path) = (0, self.size, Vec::new());
        while end - start > 1 {
            let middle = start + largest_power_below(end - start);
            if index < middle {
                path.push(self.range(middle, end)?);
                end = middle;
            } else {
                path.push(self.range(start, middle)?);
                start = middle;
            }
        }
        path.reverse();
        Ok(path)
    }

    /// The consistency path from a smaller tree to this one. Empty if the smaller one is empty or as large.
    pub fn consistency(&self, smaller: u64) -> Result<Vec<Hash>, TreeError<S::Error>> {
        if smaller > self.size {
            return Err(TreeError::OutOfRange { index: smaller, size: self.size });
        }
        let (mut start, mut end, mut path) = (0, self.size, Vec::new());
        if smaller == 0 {
            return Ok(path);
        }
        while smaller != end {
            let middle = start + largest_power_below(end - start);
            if smaller <= middle {
                path.push(self.range(middle, end)?);
                end = middle;
            } else {
                path.push(self.range(start, middle)?);
                start = middle;
            }
        }
        if start != 0 {
            path.push(self.range(start, end)?);
        }
        path.reverse();
        Ok(path)
    }

    /// The same with the first hash explicit, for [`crate::merkle::roots_from_consistency`].
    pub fn explicit_consistency(&self, smaller: u64) -> Result<Vec<Hash>, TreeError<S::Error>> {
        let mut path = self.consistency(smaller)?;
        if smaller.is_power_of_two() && smaller < self.size {
            path.insert(0, self.range(0, smaller)?);
        }
        Ok(path)
    }

    /// The right edge of a smaller tree that this one begins with.
    pub fn frontier(&self, smaller: u64) -> Result<Frontier, TreeError<S::Error>> {
        let mut edge = vec![Vec::new()];
        for level in (0u8..).take_while(|level| hashes_at((*level).into(), smaller) > 0) {
            edge.resize(usize::from(level) + 1, Vec::new());
            let (kind, index) = (TileKind::Hashes(level), hashes_at(level.into(), smaller) / FULL);
            let Some(TileId { width, .. }) = TileId::in_tree(kind, index, smaller) else { continue };
            let tile = TileId::in_tree(kind, index, self.size);
            let tile = tile.ok_or(TreeError::OutOfRange { index: smaller, size: self.size })?;
            let mut hashes = read_hashes(&self.store, tile)?;
            hashes.truncate(width.into());
            edge[usize::from(level)] = hashes;
        }
        let first = TileId { kind: TileKind::Hashes(0), index: smaller / FULL, width: 0 };
        Frontier::new(smaller, edge).map_err(|why| TreeError::Damaged(first, why))
    }

    /// The hash of the node over some leaves, the first of which is the first of a complete subtree at least as large.
    fn range(&self, start: u64, end: u64) -> Result<Hash, TreeError<S::Error>> {
        let width = end - start;
        if width.is_power_of_two() {
            return self.node(width.trailing_zeros(), start / width);
        }
        let middle = start + largest_power_below(width);
        Ok(node_hash(&self.range(start, middle)?, &self.range(middle, end)?))
    }

    /// The hash of the complete subtree number `index` of those with this height.
    fn node(&self, height: u32, index: u64) -> Result<Hash, TreeError<S::Error>> {
        let (level, height) = (height / HEIGHT, height % HEIGHT);
        let tile = index >> (HEIGHT - height);
        let kind = TileKind::Hashes(u8::try_from(level).unwrap_or(u8::MAX));
        let out_of_range = TreeError::OutOfRange { index, size: self.size };
        let id = TileId::in_tree(kind, tile, self.size).ok_or(out_of_range)?;
        let place = usize::try_from(index - (tile << (HEIGHT - height))).unwrap_or(usize::MAX);
        let nodes = self.tile(id)?;
        let hash = nodes.get(height as usize).and_then(|hashes| hashes.get(place)).copied();
        hash.ok_or(TreeError::OutOfRange { index, size: self.size })
    }

    fn tile(&self, id: TileId) -> Result<Nodes, TreeError<S::Error>> {
        if let Some(nodes) = self.tiles.borrow().get(&id) {
            return Ok(Rc::clone(nodes));
        }
        let mut nodes = vec![read_hashes(&self.store, id)?];
        while let Some(hashes) = nodes.last().filter(|hashes| hashes.len() > 1) {
            let (pairs, _) = hashes.as_chunks();
            let above = pairs.iter().map(|[left, right]| node_hash(left, right)).collect();
            nodes.push(above);
        }
        let nodes = Rc::new(nodes);
        let mut tiles = self.tiles.borrow_mut();
        if tiles.len() >= MAX_CACHED_TILES {
            tiles.clear();
        }
        tiles.insert(id, Rc::clone(&nodes));
        Ok(nodes)
    }
}

/// The largest power of two that is less than a number of at least 2.
fn largest_power_below(number: u64) -> u64 {
    1 << (number - 1).ilog2()
}
