//! Inclusion paths to the newest tree, through the trees that it continues.

use std::collections::HashMap;

use keypool_transparency::{
    encoding::Hash,
    leaf::{Leaf, TextLeaf},
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

    /// How much of a log the newest tree has.
    fn size_of(&self, k: i32) -> u64 {
        if k == self.state.k {
            return self.state.size;
        }
        let heir = self.origins.iter().find(|origin| origin.k == k.saturating_add(1));
        heir.and_then(|heir| heir.kept.as_ref()).map_or(0, |kept| kept.size)
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
        Ok(Some((leaf, index, path, heirs)))
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
