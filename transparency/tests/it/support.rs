//! A log in memory.

use std::{cell::RefCell, collections::BTreeMap, convert::Infallible};

use keypool_transparency::{
    checkpoint::Checkpoint,
    encoding::Hash,
    note::{Note, SignerKey},
    origin::Origin,
    tile::{TileId, TileKind},
    tree::{Appender, TileStore, Tree, TreeError},
};

/// Tiles and bundles in memory: the widest of each.
#[derive(Clone, Default)]
pub struct MemoryStore(RefCell<BTreeMap<(TileKind, u64), Vec<u8>>>);

impl TileStore for MemoryStore {
    type Error = Infallible;

    fn read(&self, tile: &TileId) -> Result<Option<Vec<u8>>, Infallible> {
        Ok(self.0.borrow().get(&(tile.kind, tile.index)).cloned())
    }
}

impl MemoryStore {
    pub fn write(&self, tiles: Vec<(TileId, Vec<u8>)>) {
        let tiles = tiles.into_iter().map(|(tile, bytes)| ((tile.kind, tile.index), bytes));
        self.0.borrow_mut().extend(tiles);
    }

    pub fn len(&self) -> usize {
        self.0.borrow().len()
    }
}

/// A log with its key.
#[derive(Clone)]
pub struct Log {
    pub key: SignerKey,
    pub store: MemoryStore,
    pub entries: Vec<Vec<u8>>,
}

pub fn origin(k: u32) -> Origin {
    Origin { server: [0x1f; 8], k, copy: [u8::try_from(k).unwrap(); 4] }
}

impl Log {
    /// An empty log of origin number k of a server.
    pub fn new(k: u32) -> Self {
        let key = origin(k).key(&[7; 32]).unwrap();
        Self { key, store: MemoryStore::default(), entries: Vec::new() }
    }

    pub fn name(&self) -> &str {
        self.key.verifier().name()
    }

    pub fn size(&self) -> u64 {
        self.entries.len() as u64
    }

    /// Appends entries, from the stored tiles alone.
    pub fn append(&mut self, entries: &[impl AsRef<[u8]>]) {
        let appended = Appender::load(&self.store, self.size()).unwrap().append(entries).unwrap();
        self.store.write(appended.tiles);
        self.entries.extend(entries.iter().map(|entry| entry.as_ref().to_vec()));
        assert_eq!(appended.size, self.size());
        assert_eq!(self.tree(self.size()).root(), Ok(appended.root));
    }

    pub fn tree(&self, size: u64) -> Tree<&MemoryStore> {
        Tree::new(&self.store, size)
    }

    pub fn root(&self, size: u64) -> Hash {
        let root: Result<_, TreeError<Infallible>> = self.tree(size).root();
        root.unwrap()
    }

    pub fn checkpoint_at(&self, size: u64) -> Checkpoint {
        Checkpoint { origin: self.name().to_owned(), size, root: self.root(size) }
    }

    /// The signed checkpoint of the whole log.
    pub fn checkpoint(&self) -> Note {
        self.checkpoint_at(self.size()).sign(&self.key).unwrap()
    }
}
