//! Hashes, roots and proofs of RFC 6962 (section 2.1) trees, verified as RFC 9162 (sections 2.1.3.2 and 2.1.4.2) says.

use crate::encoding::{Hash, sha256};

/// The root of the empty tree: SHA-256 of nothing.
#[must_use]
pub fn empty_root() -> Hash {
    sha256(&[])
}

/// The hash of an entry.
#[must_use]
pub fn leaf_hash(entry: &[u8]) -> Hash {
    sha256(&[&[0], entry])
}

/// The hash of an inner node.
#[must_use]
pub fn node_hash(left: &Hash, right: &Hash) -> Hash {
    sha256(&[&[1], left, right])
}

/// The root of a tree that is given by its leaves' hashes.
#[must_use]
pub fn root(leaves: &[Hash]) -> Hash {
    match leaves {
        [] => empty_root(),
        [leaf] => *leaf,
        _ => {
            let (left, right) = leaves.split_at(leaves.len().next_power_of_two() / 2);
            node_hash(&root(left), &root(right))
        }
    }
}

/// The inclusion path of a leaf in a tree that is given by its leaves' hashes; `None` if the tree has no such leaf.
#[must_use]
pub fn path(leaves: &[Hash], index: usize) -> Option<Vec<Hash>> {
    match leaves {
        [] => None,
        [_] => (index == 0).then(Vec::new),
        _ => {
            let (left, right) = leaves.split_at(leaves.len().next_power_of_two() / 2);
            let (mut inner, sibling) = match index.checked_sub(left.len()) {
                None => (path(left, index)?, root(right)),
                Some(index) => (path(right, index)?, root(left)),
            };
            inner.push(sibling);
            Some(inner)
        }
    }
}

/// The root that an inclusion path yields. `None` if the path has another length than such a tree requires.
#[must_use]
pub fn root_from_inclusion(leaf: &Hash, index: u64, size: u64, path: &[Hash]) -> Option<Hash> {
    if index >= size {
        return None;
    }
    let (mut node, mut last, mut hash) = (index, size - 1, *leaf);
    for sibling in path {
        if last == 0 {
            return None;
        }
        if node & 1 == 1 || node == last {
            hash = node_hash(sibling, &hash);
            let shift = if node == 0 { 0 } else { node.trailing_zeros() };
            (node, last) = (node >> shift, last >> shift);
        } else {
            hash = node_hash(&hash, sibling);
        }
        (node, last) = (node >> 1, last >> 1);
    }
    (last == 0).then_some(hash)
}

/// Whether an inclusion path leads from a leaf's hash to a root.
#[must_use]
pub fn is_included(leaf: &Hash, index: u64, size: u64, root: &Hash, path: &[Hash]) -> bool {
    root_from_inclusion(leaf, index, size, path) == Some(*root)
}

/// The roots of the smaller and of the larger tree that a consistency path yields. Its first hash is always explicit
/// here, also where RFC 9162 leaves it out because the smaller tree is complete and the hash is its root: so the path alone
/// shows what the larger tree has in the place of the smaller one. `None` if the path has another length than these sizes require.
#[must_use]
pub fn roots_from_consistency(smaller: u64, larger: u64, path: &[Hash]) -> Option<(Hash, Hash)> {
    let (first, rest) = path.split_first()?;
    if smaller == 0 || smaller >= larger {
        return None;
    }
    let (mut node, mut last) = (smaller - 1, larger - 1);
    let shift = node.trailing_ones();
    (node, last) = (node >> shift, last >> shift);
    let (mut old, mut new) = (*first, *first);
    for sibling in rest {
        if last == 0 {
            return None;
        }
        if node & 1 == 1 || node == last {
            old = node_hash(sibling, &old);
            new = node_hash(sibling, &new);
            let shift = if node == 0 { 0 } else { node.trailing_zeros() };
            (node, last) = (node >> shift, last >> shift);
        } else {
            new = node_hash(&new, sibling);
        }
        (node, last) = (node >> 1, last >> 1);
    }
    (last == 0).then_some((old, new))
}

/// A consistency path of RFC 9162 with its first hash made explicit, for [`roots_from_consistency`].
#[must_use]
pub fn explicit_path(smaller: u64, smaller_root: &Hash, path: &[Hash]) -> Vec<Hash> {
    let first = smaller.is_power_of_two().then_some(*smaller_root);
    first.into_iter().chain(path.iter().copied()).collect()
}

/// Whether a consistency path of RFC 9162 shows that the smaller tree is the beginning of the larger one.
#[must_use]
pub fn is_consistent(smaller: (u64, &Hash), larger: (u64, &Hash), path: &[Hash]) -> bool {
    match smaller.0 {
        0 => path.is_empty() && *smaller.1 == empty_root(),
        size if size == larger.0 => path.is_empty() && smaller.1 == larger.1,
        size => {
            let path = explicit_path(size, smaller.1, path);
            roots_from_consistency(size, larger.0, &path) == Some((*smaller.1, *larger.1))
        }
    }
}
