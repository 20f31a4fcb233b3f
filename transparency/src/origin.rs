//! Names and keys of a server's logs, and the notes by which one origin names the key of the next.

use std::{fmt, str::FromStr};

use hkdf::Hkdf;
use sha2::Sha256;

use crate::{
    encoding::{Malformed, json_text},
    note::{NotSigned, Note, SignerKey, VerifierKey},
};

/// The name of one log: `keypool/<16 hex>/<k>-<8 hex>`.
///
/// The first part is random for each server. k counts its origins from 1: a server begins a new one after a restore, with
/// another random last part, so that two copies of one backup never sign under one name.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Origin {
    /// Names the server.
    pub server: [u8; 8],
    /// Counts the server's origins, from 1.
    pub k: u32,
    /// Tells copies apart.
    pub copy: [u8; 4],
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "keypool/{}/{}", hex::encode(self.server), self.directory())
    }
}

impl fmt::Debug for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Origin {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        let read = || {
            let (server, rest) = text.strip_prefix("keypool/")?.split_once('/')?;
            let (k, copy) = rest.split_once('-')?;
            let (mut origin, k) = (Self { server: [0; 8], k: 0, copy: [0; 4] }, k.parse().ok()?);
            hex::decode_to_slice(server, &mut origin.server).ok()?;
            hex::decode_to_slice(copy, &mut origin.copy).ok()?;
            origin.k = k;
            (k > 0 && origin.to_string() == text).then_some(origin)
        };
        read().ok_or_else(|| Malformed::other("origin", "it is not keypool/<16 hex>/<k>-<8 hex>"))
    }
}

json_text!(Origin);

impl Origin {
    /// The last part of the name, which is the directory of its tiles: `<k>-<8 hex>`.
    #[must_use]
    pub fn directory(&self) -> String {
        format!("{}-{}", self.k, hex::encode(self.copy))
    }

    /// The key that signs this log: its seed is `HKDF-SHA256(file key, "keypool/v1 log key\0" || origin)` without a salt.
    pub fn key(&self, file_key: &[u8; 32]) -> Result<SignerKey, Malformed> {
        let name = self.to_string();
        let mut seed = [0; 32];
        let info = [b"keypool/v1 log key\0", name.as_bytes()].concat();
        Hkdf::<Sha256>::new(None, file_key)
            .expand(&info, &mut seed)
            .map_err(|_| Malformed::other("log key", "its seed is too long for HKDF"))?;
        SignerKey::new(&name, &seed)
    }
}

/// The first line of a key note.
const KEY_NOTE: &str = "keypool/key/v1";

/// Signs, with the key of an old origin, the key of the next one.
pub fn key_note(old: &SignerKey, new: &VerifierKey) -> Result<Note, Malformed> {
    old.sign(&format!("{KEY_NOTE}\n{}\n{new}\n", old.verifier().name()))
}

/// Why the key of a new origin is not believed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadKeyNote {
    /// The note cannot be read.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// The old key has not signed it.
    #[error("the key note of {origin}: {why}")]
    NotSigned {
        /// The old origin.
        origin: String,
        /// What is wrong with the signature.
        why: NotSigned,
    },
    /// No trusted key has the old origin's name.
    #[error("no trusted key is of {0}")]
    Unknown(String),
}

/// The origin that a key note is from.
pub fn key_note_origin(note: &Note) -> Result<&str, Malformed> {
    read_key_note(note).map(|(old, _)| old)
}

fn read_key_note(note: &Note) -> Result<(&str, VerifierKey), Malformed> {
    let lines: Vec<_> = note.text().split('\n').collect();
    let [KEY_NOTE, old, new, ""] = *lines else {
        return Err(Malformed::other("key note", "it is not keypool/key/v1, an origin and a verifier key"));
    };
    let key: VerifierKey = new.parse()?;
    if !key.signs_notes() {
        return Err(Malformed::other("key note", "the new key does not sign notes"));
    }
    Ok((old, key))
}

/// The key of the next origin, if the old key has signed the note.
pub fn follow(old: &VerifierKey, note: &Note) -> Result<VerifierKey, BadKeyNote> {
    let (origin, key) = read_key_note(note)?;
    if origin != old.name() {
        return Err(BadKeyNote::Unknown(origin.to_owned()));
    }
    note.verify(old).map_err(|why| BadKeyNote::NotSigned { origin: origin.to_owned(), why })?;
    Ok(key)
}
