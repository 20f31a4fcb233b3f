//! Signed notes, their keys and cosignatures (C2SP signed-note and tlog-cosignature).

use std::{fmt, str::FromStr};

use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};

use crate::encoding::{Flaw, Malformed, base64, from_base64, json_text, sha256};

/// The most bytes of a note that are read.
pub const MAX_NOTE: usize = 1 << 20;

/// The most signatures of a note that are read.
const MAX_SIGNATURES: usize = 100;

const ED25519: u8 = 0x01;
const COSIGNATURE: u8 = 0x04;
const ML_DSA_44: u8 = 0x06;

/// How a key signs.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Algorithm {
    /// Signs the text of notes.
    Ed25519(VerifyingKey),
    /// Cosigns checkpoints, with a time.
    Cosignature(VerifyingKey),
    /// Cosigns checkpoints with ML-DSA-44, which is read and never verified.
    MlDsa44(Vec<u8>),
}

/// A public key with its name: a vkey.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifierKey {
    name: String,
    id: [u8; 4],
    algorithm: Algorithm,
}

json_text!(VerifierKey);

fn key_id(name: &str, algorithm: u8, key: &[u8]) -> [u8; 4] {
    let [a, b, c, d, ..] = sha256(&[name.as_bytes(), b"\n", &[algorithm], key]);
    [a, b, c, d]
}

/// Key names are not empty and have neither white space nor `+`.
fn is_key_name(name: &str) -> bool {
    !name.is_empty() && !name.contains(|c: char| c.is_whitespace() || c == '+' || c < ' ')
}

impl VerifierKey {
    fn new(name: &str, algorithm: Algorithm) -> Self {
        let (kind, key) = parts(&algorithm);
        Self { name: name.to_owned(), id: key_id(name, kind, key), algorithm }
    }

    /// The name: a log's is its origin.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The public key without name and kind. A policy has each once.
    #[must_use]
    pub fn public_key(&self) -> &[u8] {
        parts(&self.algorithm).1
    }

    /// Whether it signs texts, as logs do.
    #[must_use]
    pub fn signs_notes(&self) -> bool {
        matches!(self.algorithm, Algorithm::Ed25519(_))
    }

    /// Whether it cosigns checkpoints, as witnesses do.
    #[must_use]
    pub fn cosigns(&self) -> bool {
        !self.signs_notes()
    }
}

fn parts(algorithm: &Algorithm) -> (u8, &[u8]) {
    match algorithm {
        Algorithm::Ed25519(key) => (ED25519, key.as_bytes()),
        Algorithm::Cosignature(key) => (COSIGNATURE, key.as_bytes()),
        Algorithm::MlDsa44(key) => (ML_DSA_44, key),
    }
}

impl fmt::Display for VerifierKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, key) = parts(&self.algorithm);
        write!(f, "{}+{}+{}", self.name, hex::encode(self.id), base64(&[&[kind], key].concat()))
    }
}

impl FromStr for VerifierKey {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        let wrong = |why| Malformed::other("verifier key", why);
        let parts = text.split_once('+').and_then(|(name, rest)| Some((name, rest.split_once('+')?)));
        let (name, (id, key)) = parts.ok_or_else(|| wrong("it is not <name>+<key id>+<key>"))?;
        if !is_key_name(name) {
            return Err(wrong("its name is empty or has white space"));
        }
        let key = from_base64("verifier key", key)?;
        let (kind, key) = key.split_first().ok_or_else(|| wrong("it has no key"))?;
        let ed25519 = || {
            let bytes = key.try_into().map_err(|_| wrong("an Ed25519 key has 32 bytes"))?;
            let key = VerifyingKey::from_bytes(bytes).map_err(|_| wrong("it is no point of Ed25519's curve"))?;
            if key.is_weak() { Err(wrong("it is a point of small order")) } else { Ok(key) }
        };
        let algorithm = match *kind {
            ED25519 => Algorithm::Ed25519(ed25519()?),
            COSIGNATURE => Algorithm::Cosignature(ed25519()?),
            ML_DSA_44 if key.len() == 1312 => Algorithm::MlDsa44(key.to_vec()),
            _ => return Err(wrong("its algorithm is unknown")),
        };
        let read = Self::new(name, algorithm);
        if hex::encode(read.id) == id { Ok(read) } else { Err(wrong("its key id is not the one of its name and key")) }
    }
}

/// A private key with its name.
#[derive(Clone)]
pub struct SignerKey {
    key: SigningKey,
    public: VerifierKey,
}

impl fmt::Debug for SignerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SignerKey({})", self.public)
    }
}

impl SignerKey {
    /// A key that signs notes.
    pub fn new(name: &str, seed: &[u8; 32]) -> Result<Self, Malformed> {
        Self::of(name, seed, Algorithm::Ed25519)
    }

    /// A witness's key, which cosigns checkpoints.
    pub fn cosigner(name: &str, seed: &[u8; 32]) -> Result<Self, Malformed> {
        Self::of(name, seed, Algorithm::Cosignature)
    }

    fn of(name: &str, seed: &[u8; 32], algorithm: fn(VerifyingKey) -> Algorithm) -> Result<Self, Malformed> {
        if !is_key_name(name) {
            return Err(Malformed::other("name of a key", "it is empty or has white space or +"));
        }
        let key = SigningKey::from_bytes(seed);
        let public = VerifierKey::new(name, algorithm(key.verifying_key()));
        Ok(Self { key, public })
    }

    /// The public key.
    #[must_use]
    pub fn verifier(&self) -> &VerifierKey {
        &self.public
    }

    /// Signs a text, which ends with a newline.
    pub fn sign(&self, text: &str) -> Result<Note, Malformed> {
        let mut note = Note { text: checked_text(text)?.to_owned(), signatures: Vec::new() };
        self.add_signature(&mut note, &self.key.sign(text.as_bytes()).to_bytes());
        Ok(note)
    }

    /// Adds a witness's cosignature of this time to a checkpoint.
    pub fn cosign(&self, note: &mut Note, time: u64) {
        let signature = self.key.sign(cosigned(time, &note.text).as_bytes()).to_bytes();
        self.add_signature(note, &[&time.to_be_bytes()[..], &signature].concat());
    }

    fn add_signature(&self, note: &mut Note, signature: &[u8]) {
        let Self { public: VerifierKey { name, id, .. }, .. } = self;
        note.signatures.push(NoteSignature { name: name.clone(), id: *id, bytes: signature.to_vec() });
    }
}

/// The message that a cosignature signs.
fn cosigned(time: u64, text: &str) -> String {
    format!("cosignature/v1\ntime {time}\n{text}")
}

/// One signature of a note.
#[derive(Clone, Debug, PartialEq, Eq)]
struct NoteSignature {
    name: String,
    id: [u8; 4],
    bytes: Vec<u8>,
}

/// A text with signatures. Nothing of it may be believed before one is verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    text: String,
    signatures: Vec<NoteSignature>,
}

/// Why a note is not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotSigned {
    /// No signature is of the key.
    #[error("the key has not signed the note")]
    Missing,
    /// A signature with the key's name and id does not verify.
    #[error("a signature with the key's name and id does not verify")]
    Wrong,
}

fn checked_text(text: &str) -> Result<&str, Malformed> {
    match text {
        _ if text.len() > MAX_NOTE => Err(Malformed::new("note", Flaw::TooLong(MAX_NOTE))),
        _ if !text.ends_with('\n') => Err(Malformed::other("note", "its text does not end with a newline")),
        _ if text.contains(|c: char| c < ' ' && c != '\n') => {
            Err(Malformed::other("note", "it has a control character"))
        }
        _ => Ok(text),
    }
}

impl Note {
    /// The text, with its final newline.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Checks that a log's key has signed the text.
    pub fn verify(&self, key: &VerifierKey) -> Result<(), NotSigned> {
        let Algorithm::Ed25519(public) = &key.algorithm else { return Err(NotSigned::Missing) };
        self.each(key, |bytes| is_signed(public, self.text.as_bytes(), bytes).then_some(())).map(|_| ())
    }

    /// Checks that a witness's key has cosigned the checkpoint, and gives the time of the cosignature in Unix seconds:
    /// the earliest if there are several.
    pub fn cosigned_at(&self, key: &VerifierKey) -> Result<u64, NotSigned> {
        let Algorithm::Cosignature(public) = &key.algorithm else { return Err(NotSigned::Missing) };
        let times = self.each(key, |bytes| {
            let (time, signature) = bytes.split_first_chunk()?;
            let time = u64::from_be_bytes(*time);
            let is_valid =
                i64::try_from(time).is_ok() && is_signed(public, cosigned(time, &self.text).as_bytes(), signature);
            is_valid.then_some(time)
        })?;
        times.into_iter().min().ok_or(NotSigned::Missing)
    }

    fn each<T>(&self, key: &VerifierKey, check: impl Fn(&[u8]) -> Option<T>) -> Result<Vec<T>, NotSigned> {
        let own = self.signatures.iter().filter(|signature| signature.name == key.name && signature.id == key.id);
        let checked: Vec<_> =
            own.map(|signature| check(&signature.bytes).ok_or(NotSigned::Wrong)).collect::<Result<_, _>>()?;
        if checked.is_empty() { Err(NotSigned::Missing) } else { Ok(checked) }
    }
}

fn is_signed(key: &VerifyingKey, message: &[u8], signature: &[u8]) -> bool {
    Signature::from_slice(signature).is_ok_and(|signature| key.verify_strict(message, &signature).is_ok())
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.text)?;
        for NoteSignature { name, id, bytes } in &self.signatures {
            writeln!(f, "\u{2014} {name} {}", base64(&[id, &bytes[..]].concat()))?;
        }
        Ok(())
    }
}

impl FromStr for Note {
    type Err = Malformed;

    fn from_str(note: &str) -> Result<Self, Malformed> {
        checked_text(note)?;
        let wrong = |why| Malformed::other("note", why);
        let split = note.rfind("\n\n").ok_or_else(|| wrong("no empty line is between text and signatures"))?;
        let (text, signatures) = (&note[..=split], &note[split + 2..]);
        let lines: Vec<_> = signatures.split_terminator('\n').collect();
        if lines.is_empty() || lines.len() > MAX_SIGNATURES {
            return Err(wrong("it must have 1 to 100 signatures"));
        }
        let signatures = lines.into_iter().map(signature).collect::<Result<_, _>>()?;
        Ok(Self { text: text.to_owned(), signatures })
    }
}

fn signature(line: &str) -> Result<NoteSignature, Malformed> {
    let wrong = || Malformed::other("signature of a note", "it is not \u{2014} <name> <base64>");
    let (name, bytes) = line.strip_prefix("\u{2014} ").and_then(|rest| rest.split_once(' ')).ok_or_else(wrong)?;
    let bytes = from_base64("signature of a note", bytes)?;
    let (id, bytes) = bytes.split_first_chunk().filter(|(_, bytes)| !bytes.is_empty()).ok_or_else(wrong)?;
    if !is_key_name(name) {
        return Err(wrong());
    }
    Ok(NoteSignature { name: name.to_owned(), id: *id, bytes: bytes.to_vec() })
}

json_text!(Note);
