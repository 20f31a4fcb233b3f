//! Inclusion proofs as text that stands alone (C2SP tlog-proof).

use std::{fmt, str::FromStr};

use crate::{
    checkpoint::Checkpoint,
    encoding::{Flaw, Hash, MAX_PATH, Malformed, array_from_base64, base64, decimal, from_base64},
    merkle::is_included,
    note::{MAX_NOTE, Note},
    policy::{NotAccepted, Policy},
};

const HEADER: &str = "c2sp.org/tlog-proof@v1";

/// Shows that an entry is in a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlogProof {
    /// What the application adds. Nothing vouches for it.
    pub extra: Option<Vec<u8>>,
    /// The index of the entry.
    pub index: u64,
    /// Its inclusion path.
    pub path: Vec<Hash>,
    /// The checkpoint, with cosignatures if there are any.
    pub checkpoint: Note,
}

/// Why a proof is not believed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadProof {
    /// The policy does not accept the checkpoint.
    #[error(transparent)]
    Checkpoint(#[from] NotAccepted),
    /// The path does not lead to the checkpoint.
    #[error("the inclusion path does not lead to the checkpoint")]
    NotIncluded,
}

impl TlogProof {
    /// Checks that a log of the policy has the entry.
    pub fn verify(&self, entry_hash: &Hash, policy: &Policy) -> Result<Checkpoint, BadProof> {
        let checkpoint = policy.accept(&self.checkpoint)?;
        let Checkpoint { size, root, .. } = &checkpoint;
        if is_included(entry_hash, self.index, *size, root, &self.path) {
            Ok(checkpoint)
        } else {
            Err(BadProof::NotIncluded)
        }
    }
}

impl fmt::Display for TlogProof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{HEADER}")?;
        if let Some(extra) = &self.extra {
            writeln!(f, "extra {}", base64(extra))?;
        }
        writeln!(f, "index {}", self.index)?;
        for hash in &self.path {
            writeln!(f, "{}", base64(hash))?;
        }
        write!(f, "\n{}", self.checkpoint)
    }
}

impl FromStr for TlogProof {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        let wrong = |why| Malformed::other("tlog-proof", why);
        if text.len() > 2 * MAX_NOTE {
            return Err(Malformed::new("tlog-proof", Flaw::TooLong(2 * MAX_NOTE)));
        }
        let (head, checkpoint) = text.split_once("\n\n").ok_or_else(|| wrong("it has no empty line"))?;
        let mut lines = head.split('\n').peekable();
        if lines.next() != Some(HEADER) {
            return Err(wrong("it does not begin with c2sp.org/tlog-proof@v1"));
        }
        let extra = lines.next_if(|line| line.starts_with("extra ")).and_then(|line| line.strip_prefix("extra "));
        let extra = extra.map(|extra| from_base64("extra of a tlog-proof", extra)).transpose()?;
        let index =
            lines.next().and_then(|line| line.strip_prefix("index ")).ok_or_else(|| wrong("it has no index"))?;
        let index = decimal("index of a tlog-proof", index)?;
        let path = lines.map(|line| array_from_base64("path of a tlog-proof", line)).collect::<Result<Vec<_>, _>>()?;
        if path.len() > MAX_PATH {
            return Err(wrong("its path has more than 64 hashes"));
        }
        Ok(Self { extra, index, path, checkpoint: checkpoint.parse()? })
    }
}
