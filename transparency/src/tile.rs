//! Tiles of hashes and bundles of entries, and their paths (C2SP tlog-tiles).

use std::{fmt, str::FromStr};

use crate::{
    encoding::{Flaw, Hash, Malformed, Reader, json_text},
    merkle::leaf_hash,
};

/// The number of hashes of a full tile, and of entries of a full bundle.
pub const FULL: u64 = 256;

/// The height of a tile.
pub(crate) const HEIGHT: u32 = 8;

/// What a resource of a log holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TileKind {
    /// Hashes of nodes: those of leaves at level 0, those of full tiles one level below above it.
    Hashes(u8),
    /// Entries.
    Entries,
}

/// Names a tile or bundle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TileId {
    /// What it holds.
    pub kind: TileKind,
    /// Which one, from the left.
    pub index: u64,
    /// The number of its hashes or entries, 1 to 256.
    pub width: u16,
}

json_text!(TileId);

impl TileId {
    /// A tile or bundle, as a tree of this size has it; `None` if that tree has no such one.
    #[must_use]
    pub fn in_tree(kind: TileKind, index: u64, size: u64) -> Option<Self> {
        let hashes = match kind {
            TileKind::Entries => size,
            TileKind::Hashes(level) => size.checked_shr(HEIGHT * u32::from(level)).unwrap_or(0),
        };
        let width = hashes.saturating_sub(index.checked_mul(FULL)?).min(FULL);
        let width = u16::try_from(width).ok().filter(|width| *width > 0)?;
        Some(Self { kind, index, width })
    }

    /// Whether it can grow no more.
    #[must_use]
    pub fn is_full(&self) -> bool {
        u64::from(self.width) == FULL
    }
}

/// The path below a log's prefix, such as `tile/0/x001/234.p/5`.
impl fmt::Display for TileId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            TileKind::Hashes(level) => write!(f, "tile/{level}")?,
            TileKind::Entries => f.write_str("tile/entries")?,
        }
        let digits = self.index.to_string();
        let digits = format!("{digits:0>width$}", width = digits.len().next_multiple_of(3));
        let (leading, last) = digits.split_at(digits.len() - 3);
        for group in leading.as_bytes().chunks(3) {
            write!(f, "/x{}", String::from_utf8_lossy(group))?;
        }
        write!(f, "/{last}")?;
        if self.is_full() { Ok(()) } else { write!(f, ".p/{}", self.width) }
    }
}

impl FromStr for TileId {
    type Err = Malformed;

    fn from_str(path: &str) -> Result<Self, Malformed> {
        let wrong = || Malformed::other("path of a tile", "it is not tile/<level or entries>/<index>[.p/<width>]");
        let (kind, index) = path.strip_prefix("tile/").and_then(|rest| rest.split_once('/')).ok_or_else(wrong)?;
        let kind = match kind {
            "entries" => TileKind::Entries,
            level => TileKind::Hashes(level.parse().ok().filter(|level| *level < 64).ok_or_else(wrong)?),
        };
        let (index, width) = match index.split_once(".p/") {
            Some((index, width)) => {
                (index, width.parse().ok().filter(|width| (1..256).contains(width)).ok_or_else(wrong)?)
            }
            None => (index, 256),
        };
        let digits: String = index.split('/').map(|group| group.strip_prefix('x').unwrap_or(group)).collect();
        let tile = Self { kind, index: digits.parse().map_err(|_| wrong())?, width };
        if tile.to_string() == path { Ok(tile) } else { Err(wrong()) }
    }
}

/// The first `width` hashes of a stored tile, which may have grown since.
pub fn tile_hashes(bytes: &[u8], width: u16) -> Result<Vec<Hash>, Malformed> {
    let wanted = bytes.get(..usize::from(width) * 32).ok_or_else(|| Malformed::new("tile", Flaw::Truncated))?;
    Ok(wanted.as_chunks().0.to_vec())
}

/// The first `width` entries of a stored bundle, which may have grown since.
pub fn bundle_entries(bytes: &[u8], width: u16) -> Result<Vec<&[u8]>, Malformed> {
    let mut reader = Reader::new("entry bundle", bytes);
    (0..width).map(|_| reader.v16()).collect()
}

/// The first `width` entries of a bundle that has grown since, as bytes to serve.
pub fn bundle_prefix(bytes: &[u8], width: u16) -> Result<&[u8], Malformed> {
    let length = bundle_entries(bytes, width)?.iter().map(|entry| entry.len() + 2).sum();
    Ok(&bytes[..length])
}

/// The entries of a bundle that has to hold exactly `width` of them.
pub fn exact_bundle(bytes: &[u8], width: u16) -> Result<Vec<&[u8]>, Malformed> {
    let mut reader = Reader::new("entry bundle", bytes);
    let entries = (0..width).map(|_| reader.v16()).collect::<Result<_, _>>()?;
    reader.end()?;
    Ok(entries)
}

/// The hashes of a tile that has to hold exactly `width` of them.
pub fn exact_tile(bytes: &[u8], width: u16) -> Result<Vec<Hash>, Malformed> {
    let expected = usize::from(width) * 32;
    if bytes.len() != expected {
        return Err(Malformed::new("tile", Flaw::Length { expected, got: bytes.len() }));
    }
    tile_hashes(bytes, width)
}

/// The hashes of entries, as the tile beside their bundle has them.
#[must_use]
pub fn entry_hashes(entries: &[&[u8]]) -> Vec<Hash> {
    entries.iter().map(|entry| leaf_hash(entry)).collect()
}
