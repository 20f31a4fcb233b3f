//! Entries of the log: leaves of steps, filling, and public text.

use std::{fmt, str::FromStr};

use crate::{
    encoding::{Flaw, Hash, Malformed, array_from_base64, base64, decimal, from_base64, json_text},
    merkle::leaf_hash,
    package::Tag,
};

/// The leaf of a step, or a random one that cannot be told from it: `0x01 || tag || commitment`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Leaf([u8; Leaf::SIZE]);

impl Leaf {
    /// The length of a leaf in bytes.
    pub const SIZE: usize = 65;

    /// From its two parts.
    #[must_use]
    pub fn new(tag: &Tag, commitment: &Hash) -> Self {
        let mut bytes = [1; Self::SIZE];
        bytes[1..33].copy_from_slice(&tag.0);
        bytes[33..].copy_from_slice(commitment);
        Self(bytes)
    }

    /// Reads exactly the bytes of a leaf.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Malformed> {
        let flaw = Flaw::Length { expected: Self::SIZE, got: bytes.len() };
        let bytes: [u8; Self::SIZE] = bytes.try_into().map_err(|_| Malformed::new("leaf", flaw))?;
        if bytes[0] == 1 { Ok(Self(bytes)) } else { Err(Malformed::other("leaf", "it does not begin with 0x01")) }
    }

    /// Its bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; Self::SIZE] {
        &self.0
    }

    /// Which step of which package it is of.
    #[must_use]
    pub fn tag(&self) -> Tag {
        let mut tag = [0; 32];
        tag.copy_from_slice(&self.0[1..33]);
        Tag(tag)
    }

    /// What it commits to.
    #[must_use]
    pub fn commitment(&self) -> Hash {
        let mut commitment = [0; 32];
        commitment.copy_from_slice(&self.0[33..]);
        commitment
    }

    /// Its hash in the tree.
    #[must_use]
    pub fn hash(&self) -> Hash {
        leaf_hash(&self.0)
    }
}

impl fmt::Display for Leaf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&base64(&self.0))
    }
}

impl fmt::Debug for Leaf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Leaf({})", hex::encode(self.0))
    }
}

impl FromStr for Leaf {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        Self::from_bytes(&array_from_base64::<{ Self::SIZE }>("leaf", text)?)
    }
}

json_text!(Leaf);

/// Public text in the log: `0x02` and lines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TextLeaf {
    /// The first leaf of an origin.
    Origin {
        /// The name of the origin.
        name: String,
        /// The log that it continues, if any.
        kept: Option<Kept>,
    },
    /// The last leaf before a clean stop: nothing that happened before it is missing from the log.
    Stop,
}

/// The part of an old log that a new origin continues.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// The name of the old origin.
    pub origin: String,
    /// How many of its leaves are kept.
    pub size: u64,
    /// The root of the tree of these leaves.
    pub root: Hash,
}

impl TextLeaf {
    /// The bytes of the entry: `0x02 || "stop\n"`; `0x02 || "origin\n" || name || "\n"`, and after it, for an origin that
    /// continues another one, the old name, the kept size and the kept root in base64, each with a newline.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let text = match self {
            Self::Stop => "stop\n".to_owned(),
            Self::Origin { name, kept: None } => format!("origin\n{name}\n"),
            Self::Origin { name, kept: Some(Kept { origin, size, root }) } => {
                format!("origin\n{name}\n{origin}\n{size}\n{}\n", base64(root))
            }
        };
        [&[2], text.as_bytes()].concat()
    }

    /// Reads the bytes of an entry.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Malformed> {
        const WHAT: &str = "public text";
        let text = match bytes.split_first() {
            Some((2, text)) if text.len() <= 1024 => std::str::from_utf8(text),
            Some((2, _)) => return Err(Malformed::new(WHAT, Flaw::TooLong(1024))),
            _ => return Err(Malformed::other(WHAT, "it does not begin with 0x02")),
        };
        let text = text.map_err(|_| Malformed::new(WHAT, Flaw::Utf8))?;
        let lines: Vec<_> = text.split('\n').collect();
        match *lines {
            ["stop", ""] => Ok(Self::Stop),
            ["origin", name, ""] => Ok(Self::Origin { name: name.to_owned(), kept: None }),
            ["origin", name, origin, size, root, ""] => {
                let (size, root) = (decimal("kept size", size)?, array_from_base64("kept root", root)?);
                Ok(Self::Origin { name: name.to_owned(), kept: Some(Kept { origin: origin.to_owned(), size, root }) })
            }
            _ => Err(Malformed::other(WHAT, "it is neither an origin nor a stop")),
        }
    }
}

/// Base64 of the entry's bytes, as in JSON.
impl fmt::Display for TextLeaf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&base64(&self.to_bytes()))
    }
}

impl FromStr for TextLeaf {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        Self::from_bytes(&from_base64("public text", text)?)
    }
}

json_text!(TextLeaf);

/// A batch fills up with random leaves to a multiple of this number.
pub const BATCH_MULTIPLE: usize = 16;

/// A shuffled and filled batch: each leaf with the place that it had before, `None` for filling.
///
/// `random` fills a slice with bytes of a cryptographic generator. Outsiders who could guess them would tell filling and
/// order apart.
pub fn shuffled_batch(leaves: &[Leaf], random: &mut dyn FnMut(&mut [u8])) -> Vec<(Leaf, Option<usize>)> {
    let mut batch: Vec<_> = leaves.iter().enumerate().map(|(index, leaf)| (*leaf, Some(index))).collect();
    while !batch.len().is_multiple_of(BATCH_MULTIPLE) {
        let mut bytes = [1; Leaf::SIZE];
        random(&mut bytes[1..]);
        batch.push((Leaf(bytes), None));
    }
    for last in (1..batch.len()).rev() {
        batch.swap(last, below(last + 1, random));
    }
    batch
}

/// A random number below a bound, each equally likely.
fn below(bound: usize, random: &mut dyn FnMut(&mut [u8])) -> usize {
    let bound = bound as u64;
    loop {
        let mut bytes = [0; 8];
        random(&mut bytes);
        let number = u64::from_le_bytes(bytes);
        if number < u64::MAX - u64::MAX % bound {
            return usize::try_from(number % bound).unwrap_or(0);
        }
    }
}
