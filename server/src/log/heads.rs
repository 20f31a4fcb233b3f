//! The newest checkpoint, and how the log continues those that clients have seen.

use keypool_transparency::{
    checkpoint::Checkpoint,
    note::{Note, VerifierKey},
    origin::Origin,
};

use super::core::Log;
use crate::store::{Continuation, Standing, StoreError, TreeState};

impl Log {
    /// A recent tree with its checkpoint, which is signed if nobody has asked since the tree has grown.
    pub(crate) fn head(&self) -> Result<(TreeState, Note), StoreError> {
        let state = self.recent()?;
        Ok((state, self.sign(&state)?))
    }

    /// The name of the log that a tree is of.
    pub(crate) fn name_of(&self, state: &TreeState) -> Result<String, StoreError> {
        Ok(self.signer(state.k)?.verifier().name().to_owned())
    }

    /// How a tree continues the beginning of a log.
    pub(crate) fn since(&self, state: &TreeState, origin: &str, size: u64) -> Result<Continuation, StoreError> {
        if self.name_of(state)? != origin {
            return self.store.log_since(state, origin, size);
        }
        Ok(Continuation { consistency: self.store.log_consistency(state, size)?, heirs: Vec::new() })
    }

    /// Reads a checkpoint that one of this server's keys has signed; `None` if none has. The database may have lost the log that it
    /// is of, so the key file alone decides then.
    pub(crate) fn own_checkpoint(&self, note: &Note) -> Result<Option<Checkpoint>, StoreError> {
        let Ok(Checkpoint { origin: name, .. }) = Checkpoint::unverified(note) else { return Ok(None) };
        let Ok(origin) = name.parse::<Origin>() else { return Ok(None) };
        let row = self.origins()?.into_iter().find(|row| row.origin == origin);
        let key: VerifierKey = match row.and_then(|row| row.key) {
            Some(key) => key.parse().map_err(StoreError::fatal)?,
            None => self.key.signer(&origin)?.verifier().clone(),
        };
        Ok(Checkpoint::verified(note, &key).ok())
    }

    /// How the logs of the database stand to a checkpoint that one of its keys has signed.
    pub(crate) fn standing(&self, checkpoint: &Checkpoint) -> Result<Standing, StoreError> {
        let standing = self.store.log_standing(checkpoint)?;
        standing.ok_or_else(|| StoreError::fatal(anyhow::anyhow!("the log's state is missing")))
    }
}
