//! Receipts: what a log promises to one caller, signed alone or in a batch under one signature.

use std::fmt::{self, Write};

use crate::{
    checkpoint::{BadNote, verify_origin},
    encoding::{Flaw, Hash, Malformed, array_from_base64, base64, decimal},
    leaf::Leaf,
    merkle::{leaf_hash, path, root, root_from_inclusion},
    note::{MAX_NOTE, Note, SignerKey, VerifierKey},
    package::Tag,
};

const RECEIPT: &str = "keypool/receipt/v1";
const BATCH: &str = "keypool/receipts/v1";

/// What a log promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Promise {
    /// The leaf is or will be in the log.
    Leaf(Leaf),
    /// No leaf below the receipt's size has this tag.
    None(Tag),
}

/// The text of a receipt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// The name of the log.
    pub origin: String,
    /// The size of the tree when it was made. A server reads it before the rows that it answers about.
    pub size: u64,
    /// When it was made, in Unix seconds.
    pub time: u64,
    /// The caller, `user/device`.
    pub to: String,
    /// What is promised.
    pub promises: Vec<Promise>,
}

impl fmt::Display for Receipt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { origin, size, time, to, promises } = self;
        write!(f, "{RECEIPT}\n{origin}\n{size}\n{time}\nto {to}\n")?;
        for promise in promises {
            match promise {
                Promise::Leaf(leaf) => writeln!(f, "leaf {leaf}")?,
                Promise::None(tag) => writeln!(f, "none {tag}")?,
            }
        }
        Ok(())
    }
}

fn wrong(why: &'static str) -> Malformed {
    Malformed::other("receipt", why)
}

impl Receipt {
    fn parse(text: &str) -> Result<Self, Malformed> {
        let mut lines = text.strip_suffix('\n').ok_or_else(|| wrong("it does not end with a newline"))?.split('\n');
        let mut next = || lines.next().ok_or_else(|| wrong("it has fewer than five lines"));
        if next()? != RECEIPT {
            return Err(wrong("it does not begin with keypool/receipt/v1"));
        }
        let origin = next()?.to_owned();
        let (size, time) = (decimal("size in a receipt", next()?)?, decimal("time of a receipt", next()?)?);
        let to = next()?.strip_prefix("to ").ok_or_else(|| wrong("its fifth line does not begin with \"to \""))?;
        let promises = lines.map(promise).collect::<Result<_, _>>()?;
        Ok(Self { origin, size, time, to: to.to_owned(), promises })
    }

    /// Signs this receipt alone.
    pub fn sign(&self, key: &SignerKey) -> Result<String, Malformed> {
        Self::sign_batch(std::slice::from_ref(self), key).map(|texts| texts.into_iter().collect())
    }

    /// Signs receipts of one log with one signature, and gives each as text. One alone is a plain note. Of several, the
    /// note signs the root of the tree over them, and each carries its path.
    pub fn sign_batch(receipts: &[Self], key: &SignerKey) -> Result<Vec<String>, Malformed> {
        let origin = key.verifier().name();
        if receipts.iter().any(|receipt| receipt.origin != origin) {
            return Err(wrong("the key is of another log"));
        }
        let texts: Vec<_> = receipts.iter().map(Self::checked_text).collect::<Result<_, _>>()?;
        match &texts[..] {
            [] => return Ok(Vec::new()),
            [text] => return Ok(vec![key.sign(text)?.to_string()]),
            _ => {}
        }
        let hashes: Vec<_> = texts.iter().map(|text| leaf_hash(text.as_bytes())).collect();
        let (count, root) = (hashes.len(), base64(&root(&hashes)));
        let note = key.sign(&format!("{BATCH}\n{origin}\n{count}\n{root}\n"))?;
        let one = |(index, text): (usize, &String)| {
            let mut signed = format!("{text}\nindex {index}\n");
            for hash in path(&hashes, index).unwrap_or_default() {
                let _ = writeln!(signed, "{}", base64(&hash));
            }
            let _ = write!(signed, "\n{note}");
            signed
        };
        Ok(texts.iter().enumerate().map(one).collect())
    }

    fn checked_text(&self) -> Result<String, Malformed> {
        let text = self.to_string();
        let is_same = Self::parse(&text).is_ok_and(|parsed| parsed == *self);
        if is_same { Ok(text) } else { Err(wrong("a name in it has a newline")) }
    }

    /// Reads a receipt that the log's key has signed, alone or in a batch.
    pub fn verified(signed: &str, key: &VerifierKey) -> Result<Self, BadNote> {
        let (text, note) = Self::split(signed)?;
        let receipt = Self::parse(&text)?;
        verify_origin(&note, key, receipt, |receipt| &receipt.origin)
    }

    /// Reads a receipt without verifying its signature.
    pub fn unverified(signed: &str) -> Result<Self, Malformed> {
        let (text, _) = Self::split(signed)?;
        Self::parse(&text)
    }

    /// The text of a receipt, and the note whose signature covers it.
    fn split(signed: &str) -> Result<(String, Note), Malformed> {
        if signed.len() > 2 * MAX_NOTE {
            return Err(Malformed::new("receipt", Flaw::TooLong(2 * MAX_NOTE)));
        }
        let end = signed.find("\n\n").ok_or_else(|| wrong("no empty line follows its text"))?;
        let (text, rest) = (&signed[..=end], &signed[end + 2..]);
        let Some(rest) = rest.strip_prefix("index ") else {
            let note: Note = signed.parse()?;
            return if note.text() == text {
                Ok((text.to_owned(), note))
            } else {
                Err(wrong("its text has an empty line"))
            };
        };
        let (path, note) = rest.split_once("\n\n").ok_or_else(|| wrong("no empty line follows its path"))?;
        let mut lines = path.split('\n');
        let index = decimal("index of a receipt", lines.next().unwrap_or_default())?;
        let path: Vec<Hash> =
            lines.map(|line| array_from_base64("path of a receipt", line)).collect::<Result<_, _>>()?;
        let note: Note = note.parse()?;
        let origin = Self::parse(text)?.origin;
        let lines: Vec<_> = note.text().split('\n').collect();
        let [BATCH, of, count, root, ""] = *lines else {
            return Err(wrong("its note is not keypool/receipts/v1, an origin, a number and a root"));
        };
        let (count, root) = (decimal("number of receipts", count)?, array_from_base64("root of receipts", root)?);
        if of != origin || root_from_inclusion(&leaf_hash(text.as_bytes()), index, count, &path) != Some(root) {
            return Err(wrong("its path does not lead to the signed root"));
        }
        Ok((text.to_owned(), note))
    }

    /// Whether it promises this leaf.
    #[must_use]
    pub fn has_leaf(&self, leaf: &Leaf) -> bool {
        self.promises.contains(&Promise::Leaf(*leaf))
    }

    /// The leaves that it promises.
    pub fn leaves(&self) -> impl Iterator<Item = &Leaf> {
        self.promises.iter().filter_map(|promise| match promise {
            Promise::Leaf(leaf) => Some(leaf),
            Promise::None(_) => None,
        })
    }
}

fn promise(line: &str) -> Result<Promise, Malformed> {
    match line.split_once(' ') {
        Some(("leaf", leaf)) => leaf.parse().map(Promise::Leaf),
        Some(("none", tag)) => tag.parse().map(Promise::None),
        _ => Err(wrong("a line begins with neither \"leaf \" nor \"none \"")),
    }
}
