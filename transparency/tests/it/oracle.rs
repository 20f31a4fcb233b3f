//! Software that others wrote reads our trees, tiles and checkpoints, and gets the same.

use std::cell::Cell;

use ct_merkle::{ConsistencyProof, InclusionProof, RootHash, mem_backed_tree::MemoryBackedTree};
use keypool_transparency::{
    frontier::Frontier,
    merkle::{
        empty_root, explicit_path, is_consistent, is_included, leaf_hash, path, root, root_from_inclusion,
        roots_from_consistency,
    },
    tile::{TileId, TileKind, exact_bundle, tile_hashes},
    tree::{Appender, TreeError},
};
use proptest::prelude::*;
use sha2::Sha256;
use tlog_tiles::{HashReader, Tile, TileHashReader, TileReader};

use crate::support::{Log, MemoryStore};

type Oracle = MemoryBackedTree<Sha256, Vec<u8>>;

fn oracle(entries: &[Vec<u8>]) -> Oracle {
    let mut tree = Oracle::new();
    for entry in entries {
        tree.push(entry.clone());
    }
    tree
}

fn entries(count: usize, seed: u8) -> Vec<Vec<u8>> {
    (0..count).map(|i| [&[1, seed], &i.to_be_bytes()[..]].concat()).collect()
}

fn concat(hashes: &[[u8; 32]]) -> Vec<u8> {
    hashes.concat()
}

#[test]
fn an_empty_tree_has_the_root_of_rfc_6962() {
    let expected = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    assert_eq!(hex::encode(empty_root()), expected);
    assert_eq!(Appender::new().root(), empty_root());
    assert_eq!(Log::new(1).root(0), empty_root());
}

/// Every pair of sizes up to 40: all shapes of small trees.
#[test]
fn small_trees_have_the_roots_and_paths_of_ct_merkle() {
    let mut log = Log::new(1);
    for entry in entries(40, 1) {
        log.append(&[entry]);
    }
    for size in 1..=40 {
        check_size(&log, size);
        for smaller in 1..=size {
            check_consistency(&log, smaller, size);
        }
    }
}

fn check_size(log: &Log, size: usize) {
    let (oracle, tree) = (oracle(&log.entries[..size]), log.tree(size as u64));
    let expected = oracle.root();
    let hashes: Vec<_> = log.entries[..size].iter().map(|entry| leaf_hash(entry)).collect();
    let own = tree.root().unwrap();
    assert_eq!(own, <[u8; 32]>::from(*expected.as_bytes()));
    assert_eq!(own, root(&hashes));
    for index in 0..size {
        let proof = tree.inclusion(index as u64).unwrap();
        assert_eq!(concat(&proof), oracle.prove_inclusion(index).as_bytes(), "{index} of {size}");
        assert_eq!(Some(&proof), path(&hashes, index).as_ref());
        let (index, size) = (index as u64, size as u64);
        assert!(is_included(&hashes[usize::try_from(index).unwrap()], index, size, &own, &proof));
        let theirs = InclusionProof::<Sha256>::try_from_bytes(concat(&proof)).unwrap();
        expected.verify_inclusion(&log.entries[usize::try_from(index).unwrap()], index, &theirs).unwrap();
    }
    assert_eq!(tree.inclusion(size as u64), Err(TreeError::OutOfRange { index: size as u64, size: size as u64 }));
}

fn check_consistency(log: &Log, smaller: usize, larger: usize) {
    let (m, n) = (smaller as u64, larger as u64);
    let proof = log.tree(n).consistency(m).unwrap();
    let (old, new) = (log.root(m), log.root(n));
    assert!(is_consistent((m, &old), (n, &new), &proof), "{smaller} to {larger}");
    if smaller < larger {
        let theirs = oracle(&log.entries[..larger]).prove_consistency(larger - smaller);
        assert_eq!(concat(&proof), theirs.as_bytes(), "{smaller} to {larger}");
        let explicit = log.tree(n).explicit_consistency(m).unwrap();
        assert_eq!(explicit, explicit_path(m, &old, &proof));
        assert_eq!(roots_from_consistency(m, n, &explicit), Some((old, new)));
        let proof = ConsistencyProof::<Sha256>::try_from_bytes(concat(&proof)).unwrap();
        let [old, new] = [(old, m), (new, n)].map(|(root, size)| RootHash::<Sha256>::new(root.into(), size));
        new.verify_consistency(&old, &proof).unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Batches of any sizes give one tree, up to three levels of tiles.
    #[test]
    fn large_trees_have_the_roots_and_paths_of_ct_merkle(
        batches in proptest::collection::vec(1_usize..700, 1..5),
        picks in proptest::collection::vec(any::<prop::sample::Index>(), 8),
    ) {
        let mut log = Log::new(1);
        for (seed, size) in (0..).zip(batches) {
            log.append(&entries(size, seed));
        }
        let (oracle, size) = (oracle(&log.entries), log.entries.len());
        prop_assert_eq!(log.root(size as u64), <[u8; 32]>::from(*oracle.root().as_bytes()));
        for pick in picks {
            let index = pick.index(size);
            let proof = log.tree(size as u64).inclusion(index as u64).unwrap();
            prop_assert_eq!(concat(&proof), oracle.prove_inclusion(index).as_bytes().to_vec());
            check_consistency(&log, index + 1, size);
        }
    }

    /// A path with one changed byte, or for another place, leads to another root.
    #[test]
    fn a_changed_path_proves_nothing(
        size in 2_usize..600,
        pick in any::<prop::sample::Index>(),
        flip in any::<(prop::sample::Index, u8)>(),
        shift in 1_u64..600,
    ) {
        let mut log = Log::new(1);
        log.append(&entries(size, 9));
        let (n, index) = (size as u64, pick.index(size) as u64);
        let (root, tree) = (log.root(n), log.tree(n));
        let leaf = leaf_hash(&log.entries[pick.index(size)]);
        let proof = tree.inclusion(index).unwrap();
        prop_assert!(is_included(&leaf, index, n, &root, &proof));
        prop_assert!(!is_included(&leaf, (index + shift) % n, n, &root, &proof) || shift % n == 0);
        let mut changed = proof.clone();
        let place = flip.0.index(changed.len() * 32);
        changed[place / 32][place % 32] ^= flip.1.max(1);
        prop_assert!(!is_included(&leaf, index, n, &root, &changed));
        prop_assert!(!is_included(&leaf, index, n, &root, &proof[1..]));
        prop_assert_eq!(root_from_inclusion(&leaf, index, n, &proof[1..]), None);
        prop_assert_eq!(root_from_inclusion(&leaf, index, n, &[&proof[..], &[root]].concat()), None);
        prop_assert!(!is_included(&leaf, index, n, &root, &[&proof[..], &[root]].concat()));
        let smaller = index + 1;
        if smaller < n {
            let explicit = tree.explicit_consistency(smaller).unwrap();
            prop_assert_eq!(roots_from_consistency(smaller, n, &explicit[1..]), None);
            prop_assert_eq!(roots_from_consistency(smaller, n, &[&explicit[..], &[root]].concat()), None);
            let mut proof = tree.consistency(smaller).unwrap();
            let old = log.root(smaller);
            let place = flip.0.index(proof.len() * 32);
            proof[place / 32][place % 32] ^= flip.1.max(1);
            prop_assert!(!is_consistent((smaller, &old), (n, &root), &proof));
        }
    }
}

/// Gives our tiles to `tlog_tiles`, whose paths have the height of tiles in them, as Go's checksum database has.
struct TheirReader<'a>(&'a Log, Cell<usize>);

impl TileReader for TheirReader<'_> {
    fn height(&self) -> u8 {
        8
    }

    fn read_tiles(&self, tiles: &[Tile]) -> Result<Vec<Vec<u8>>, tlog_tiles::Error> {
        self.1.set(self.1.get() + tiles.len());
        let read = |tile: &Tile| {
            let path = tile.path().replacen("tile/8/", "tile/", 1);
            let id: TileId = path.parse().unwrap();
            assert_eq!(id.to_string(), path);
            let (TileKind::Hashes(_), Ok(Some(bytes))) =
                (id.kind, keypool_transparency::tree::TileStore::read(&self.0.store, &id))
            else {
                panic!("{path} is missing")
            };
            concat(&tile_hashes(&bytes, id.width).unwrap())
        };
        Ok(tiles.iter().map(read).collect())
    }

    fn save_tiles(&self, _: &[Tile], _: &[Vec<u8>]) {}
}

#[test]
fn tlog_tiles_reads_our_tiles_and_proves_what_is_in_them() {
    let mut log = Log::new(1);
    for batch in [1, 255, 3, 700, 66_000] {
        log.append(&entries(batch, 3));
    }
    let size = log.size();
    let root = tlog_tiles::Hash(log.root(size));
    let reader = TheirReader(&log, Cell::new(0));
    let hashes = TileHashReader::new(size, root, &reader);
    assert_eq!(tlog_tiles::tree_hash(size, &hashes).unwrap(), root);
    for index in [0, 1, 255, 256, 958, 65_535, 65_536, size - 1] {
        let entry = &log.entries[usize::try_from(index).unwrap()];
        let leaf = tlog_tiles::record_hash(entry);
        assert_eq!(hashes.read_hashes(&[tlog_tiles::stored_hash_index(0, index)]).unwrap(), [leaf]);
        let proof: Vec<_> = log.tree(size).inclusion(index).unwrap().into_iter().map(tlog_tiles::Hash).collect();
        assert_eq!(tlog_tiles::prove_record(size, index, &hashes).unwrap(), proof);
        tlog_tiles::check_record(&proof, size, root, index, leaf).unwrap();
        let smaller = index + 1;
        let proof: Vec<_> = log.tree(size).consistency(smaller).unwrap().into_iter().map(tlog_tiles::Hash).collect();
        tlog_tiles::check_tree(&proof, size, root, smaller, tlog_tiles::Hash(log.root(smaller))).unwrap();
    }
    assert!(reader.1.get() > 20);
}

/// The example of the C2SP page: a tree of 70,000.
#[test]
fn a_tree_of_70000_has_the_tiles_of_the_standard() {
    let mut log = Log::new(1);
    log.append(&entries(70_000, 4));
    assert_eq!(log.store.len(), 274 + 2 + 1 + 274);
    let width = |kind, index| TileId::in_tree(kind, index, 70_000).map(|tile| tile.width);
    assert_eq!(width(TileKind::Hashes(0), 272), Some(256));
    assert_eq!(width(TileKind::Hashes(0), 273), Some(112));
    assert_eq!(width(TileKind::Hashes(0), 274), None);
    assert_eq!((width(TileKind::Hashes(1), 0), width(TileKind::Hashes(1), 1)), (Some(256), Some(17)));
    assert_eq!((width(TileKind::Hashes(2), 0), width(TileKind::Hashes(3), 0)), (Some(1), None));
    let last = TileId::in_tree(TileKind::Entries, 273, 70_000).unwrap();
    assert_eq!(last.to_string(), "tile/entries/273.p/112");
    let bytes = keypool_transparency::tree::TileStore::read(&log.store, &last).unwrap().unwrap();
    assert_eq!(exact_bundle(&bytes, 112).unwrap(), log.entries[69_888..]);
}

/// Appending one by one stores what appending at once stores.
#[test]
fn the_tiles_do_not_depend_on_the_batches() {
    let all = entries(700, 5);
    let (mut once, mut each) = (MemoryStore::default(), MemoryStore::default());
    for (store, batch) in [(&mut once, 700), (&mut each, 1)] {
        let mut appender = Appender::new();
        for batch in all.chunks(batch) {
            store.write(appender.append(batch).unwrap().tiles);
        }
    }
    for (kind, count) in [(TileKind::Hashes(0), 3), (TileKind::Hashes(1), 1), (TileKind::Entries, 3)] {
        for index in 0..count {
            let tile = TileId::in_tree(kind, index, 700).unwrap();
            let read = |store| keypool_transparency::tree::TileStore::read(store, &tile).unwrap().unwrap();
            assert_eq!(read(&once), read(&each), "{tile}");
        }
    }
}

#[test]
fn a_missing_or_short_tile_is_named() {
    let mut log = Log::new(1);
    log.append(&entries(300, 6));
    let empty = MemoryStore::default();
    let tile = TileId::in_tree(TileKind::Hashes(0), 1, 300).unwrap();
    assert_eq!(Appender::load(&empty, 300).unwrap_err(), TreeError::Missing(tile));
    assert_eq!(tile.to_string(), "tile/0/001.p/44");
    log.store.write(vec![(tile, vec![0; 44 * 32 - 1])]);
    let error = log.tree(300).root().unwrap_err();
    assert_eq!(error.to_string(), "tile/0/001.p/44: tile: it ends within a field");
    let too_long = Appender::new().append(&[vec![0; 65_536]]).unwrap_err();
    assert_eq!(too_long.to_string(), "an entry has 65536 bytes; at most 65535 fit in a bundle");
}

/// A writer that crashed between tiles and state finds wider tiles than its size needs.
#[test]
fn an_append_can_be_repeated_over_wider_tiles() {
    let mut log = Log::new(1);
    log.append(&entries(300, 7));
    let mut again = log.clone();
    log.append(&entries(30, 8));
    again.store = log.store.clone();
    again.append(&entries(30, 8));
    assert_eq!(again.root(330), log.root(330));
    let tile = TileId::in_tree(TileKind::Entries, 1, 330).unwrap();
    let read = |log: &Log| keypool_transparency::tree::TileStore::read(&log.store, &tile).unwrap();
    assert_eq!(read(&again), read(&log));
    let frontier = Appender::load(&log.store, 330).unwrap();
    assert_eq!((frontier.size(), frontier.root()), (330, log.root(330)));
}

#[test]
fn an_edge_has_the_tiles_of_its_size() {
    let hashes = |count| vec![[1; 32]; count];
    for (size, edge, is_accepted) in [
        (0, vec![hashes(0)], true),
        (5, vec![hashes(5)], true),
        (256, vec![hashes(0), hashes(1)], true),
        (70_000, vec![hashes(112), hashes(17), hashes(1)], true),
        (0, vec![], false),
        (5, vec![hashes(4)], false),
        (5, vec![hashes(5), hashes(0)], false),
        (256, vec![hashes(0)], false),
        (256, vec![hashes(256), hashes(1)], false),
    ] {
        assert_eq!(Frontier::new(size, edge).is_ok(), is_accepted, "{size}");
    }
}
