//! Paths to the newest tree, through the trees that it continues.

use std::collections::HashMap;

use keypool_transparency::{
    encoding::Hash,
    leaf::{Leaf, TextLeaf},
    merkle::roots_from_consistency,
    statement::Heir,
    tile::{FULL, TileId, TileKind, bundle_entries},
    tree::{Tree, TreeError},
};

use super::{
    origins::{self, OriginRow},
    positions::Position,
    sequencer::tree_error,
    state::TreeState,
    tiles::Tiles,
};
use crate::store::database::{Conn, StoreError};

/// A leaf, its index, its path, and the heirs of its log.
pub(super) type Included = (Leaf, u64, Vec<Hash>, Vec<Heir>);

/// Makes paths. Those of one value share the bundles that they read.
pub(super) struct Paths<'c, 'd> {
    conn: &'c mut Conn<'d>,
    state: TreeState,
    /// The newest first.
    origins: Vec<OriginRow>,
    bundles: HashMap<(i32, u64), Vec<u8>>,
}

impl<'c, 'd> Paths<'c, 'd> {
    pub fn of(conn: &'c mut Conn<'d>, state: TreeState) -> Result<Self, StoreError> {
        let mut origins = origins::all(conn)?;
        // A newer one may have begun since.
        origins.retain(|origin| origin.k <= state.k);
        Ok(Self { conn, state, origins, bundles: HashMap::new() })
    }

    /// Paths within the newest log alone. Needs no statement.
    pub fn of_newest(conn: &'c mut Conn<'d>, state: TreeState) -> Self {
        Self { conn, state, origins: Vec::new(), bundles: HashMap::new() }
    }

    /// The number of a log that the newest tree is of or continues.
    pub fn number_of(&self, origin: &str) -> Option<i32> {
        self.origins.iter().find(|row| row.origin.to_string() == origin).map(|row| row.k)
    }

    /// How much of a log the newest tree has, and the root over it.
    pub fn kept_of(&self, k: i32) -> Option<(u64, Hash)> {
        if k == self.state.k {
            return Some((self.state.size, self.state.root));
        }
        let heir = self.origins.iter().find(|origin| origin.k == k.saturating_add(1));
        heir.and_then(|heir| heir.kept.as_ref()).map(|kept| (kept.size, kept.root))
    }

    fn size_of(&self, k: i32) -> u64 {
        self.kept_of(k).map_or(0, |(size, _)| size)
    }

    /// Whether the leaf at a position is pruned.
    pub fn is_pruned(&self, Position { k, index }: Position) -> bool {
        self.origins.iter().any(|origin| origin.k == k && index < origin.first_entry)
    }

    /// The leaf at a position with its path; `None` if the tree does not have it yet, or if it is pruned.
    pub fn to(&mut self, position: Position) -> Result<Option<Included>, StoreError> {
        let Position { k, index } = position;
        let size = self.size_of(k);
        if index >= size {
            return Ok(None);
        }
        let Some(leaf) = self.leaf(k, index, size)? else { return Ok(None) };
        let Some(path) = self.path(k, index, size)? else { return Ok(None) };
        let Some(heirs) = self.heirs(k)? else { return Ok(None) };
        Ok(Some((leaf, index, path, heirs)))
    }

    /// The logs that continue one, up to the newest; `None` if the newest has no entry yet, or if a tile is pruned.
    pub fn heirs(&mut self, k: i32) -> Result<Option<Vec<Heir>>, StoreError> {
        let mut heirs = Vec::new();
        for heir in (k..self.state.k).map(|k| k.saturating_add(1)) {
            let Some(row) = self.origins.iter().find(|origin| origin.k == heir) else { return Ok(None) };
            let entry = TextLeaf::Origin { name: row.origin.to_string(), kept: row.kept.clone() };
            let size = self.size_of(heir);
            // The heir has not begun.
            if size == 0 {
                return Ok(None);
            }
            let Some(path) = self.path(heir, 0, size)? else { return Ok(None) };
            heirs.push(Heir { entry, path });
        }
        Ok(Some(heirs))
    }

    /// The consistency path (RFC 9162) from a smaller size to what the newest tree has of a log. Empty if that is not larger, or if the
    /// tiles do not lead to its root.
    pub fn consistency(&mut self, k: i32, smaller: u64) -> Result<Vec<Hash>, StoreError> {
        let Some((size, root)) = self.kept_of(k).filter(|(size, _)| 0 < smaller && smaller < *size) else {
            return Ok(Vec::new());
        };
        let path = match Tree::new(Tiles::of(self.conn, k), size).explicit_consistency(smaller) {
            Ok(path) => path,
            Err(TreeError::Store(error)) => return Err(error),
            Err(_) => return Ok(Vec::new()),
        };
        let is_right = roots_from_consistency(smaller, size, &path).is_some_and(|(_, larger)| larger == root);
        // RFC 9162 leaves the first hash out where it is the root of the smaller tree.
        let explicit = usize::from(smaller.is_power_of_two());
        Ok(if is_right { path[explicit..].to_vec() } else { Vec::new() })
    }

    /// The root over the first leaves of a log; `None` if a tile is pruned.
    pub fn root(&mut self, k: i32, size: u64) -> Result<Option<Hash>, StoreError> {
        match Tree::new(Tiles::of(self.conn, k), size).root() {
            Ok(root) => Ok(Some(root)),
            Err(TreeError::Missing(_)) => Ok(None),
            Err(error) => Err(tree_error(error)),
        }
    }

    fn path(&mut self, k: i32, index: u64, size: u64) -> Result<Option<Vec<Hash>>, StoreError> {
        match Tree::new(Tiles::of(self.conn, k), size).inclusion(index) {
            Ok(path) => Ok(Some(path)),
            // It is pruned.
            Err(TreeError::Missing(_)) => Ok(None),
            Err(error) => Err(tree_error(error)),
        }
    }

    fn leaf(&mut self, k: i32, index: u64, size: u64) -> Result<Option<Leaf>, StoreError> {
        let number = index / FULL;
        let damaged = |error| StoreError::fatal(anyhow::anyhow!("a bundle of the log is damaged: {error}"));
        let Some(tile) = TileId::in_tree(TileKind::Entries, number, size) else { return Ok(None) };
        if !self.bundles.contains_key(&(k, number)) {
            let tiles = Tiles::of(self.conn, k);
            let Some(bytes) = keypool_transparency::tree::TileStore::read(&tiles, &tile)? else { return Ok(None) };
            self.bundles.insert((k, number), bytes);
        }
        let Some(bytes) = self.bundles.get(&(k, number)) else { return Ok(None) };
        let entries = bundle_entries(bytes, tile.width).map_err(damaged)?;
        let entry = usize::try_from(index % FULL).ok().and_then(|place| entries.get(place));
        entry.map(|entry| Leaf::from_bytes(entry).map_err(damaged)).transpose()
    }
}
