//! The newest checkpoint of the transparency log, and how it continues those that clients have seen.

use std::sync::Arc;

use keypool_openapi::{Base64Bytes, CheckpointRequest, LogHead, LogHeir, LogSize, ProblemType, StatusQuery};
use keypool_transparency::{encoding::Hash, note::Note, origin::Origin, statement::Heir};

use super::Service;
use crate::{
    log::Log,
    problem::Failure,
    store::{Continuation, Standing, TreeState},
};

fn malformed(detail: impl Into<String>) -> Failure {
    Failure::new(ProblemType::MalformedRequest, detail)
}

/// The checkpoint that a caller names, if it names one.
pub(super) fn named(query: StatusQuery) -> Result<Option<LogSize>, Failure> {
    match (query.log_origin, query.log_size) {
        (None, None) => Ok(None),
        (Some(origin), Some(size)) => checked(LogSize { origin, size }).map(Some),
        _ => {
            Err(malformed("`log_origin` and `log_size` belong together: send the name and the size of one checkpoint."))
        }
    }
}

/// Refuses what cannot be a log's name.
pub(super) fn checked(since: LogSize) -> Result<LogSize, Failure> {
    match since.origin.parse::<Origin>() {
        Ok(_) => Ok(since),
        Err(error) => {
            let detail =
                format!("{:?} is no name of a log: {error}. Send the first line of a checkpoint.", since.origin);
            Err(malformed(detail))
        }
    }
}

fn path(hashes: &[Hash]) -> Vec<Base64Bytes> {
    hashes.iter().map(|hash| Base64Bytes(hash.to_vec())).collect()
}

fn heir(heir: &Heir) -> LogHeir {
    LogHeir { entry: Base64Bytes(heir.entry.to_bytes()), path: path(&heir.path) }
}

impl Service {
    /// The checkpoint of a tree, and how it continues the one that the caller has named.
    pub(super) async fn log_head(
        &self,
        (tree, checkpoint): (TreeState, Note),
        since: Option<LogSize>,
    ) -> Result<LogHead, Failure> {
        let Continuation { consistency, heirs } = match (&self.log, since) {
            (Some(log), Some(since)) => {
                let log = Arc::clone(log);
                self.work.run(move |_| log.since(&tree, &since.origin, since.size)).await?
            }
            _ => Continuation::default(),
        };
        Ok(LogHead {
            checkpoint: checkpoint.to_string(),
            consistency: path(&consistency),
            heirs: heirs.iter().map(heir).collect(),
        })
    }

    /// The size of the log now: all its steps are in what is read afterwards. Blocks.
    pub(super) fn log_size(&self) -> Result<Option<LogSize>, Failure> {
        let Some(log) = &self.log else { return Ok(None) };
        let state = log.state()?;
        Ok(Some(LogSize { origin: log.name_of(&state)?, size: state.size }))
    }

    /// Compares a checkpoint that a client has with the log.
    pub async fn compare_checkpoint(&self, request: CheckpointRequest) -> Result<(), Failure> {
        let log = Arc::clone(self.log()?);
        let note: Note = request
            .checkpoint
            .parse()
            .map_err(|error| malformed(format!("`checkpoint` is no signed checkpoint: {error}.")))?;
        self.work.run(move |_| compare(&log, &note)).await
    }
}

fn compare(log: &Log, note: &Note) -> Result<(), Failure> {
    let checkpoint = log.own_checkpoint(note)?.ok_or_else(|| {
        malformed("No key of this server has signed this checkpoint. GET /log names its logs and their keys.")
    })?;
    let (origin, size) = (&checkpoint.origin, checkpoint.size);
    match log.standing(&checkpoint)? {
        Standing::Continued => Ok(()),
        Standing::RolledBack { is_noticed } => {
            if !is_noticed {
                tracing::error!(
                    origin,
                    size,
                    "a client has a signed checkpoint that this database does not have: it was restored from a backup"
                );
            }
            let detail = format!(
                "This server has signed {size} leaves of the log {origin}, and has not so many any more: its database was \
                 restored from a backup. Keep the checkpoint, which proves it."
            );
            Err(Failure::new(ProblemType::LogRolledBack, detail))
        }
        Standing::Forked => {
            tracing::error!(origin, size, "a client has a signed checkpoint that contradicts the transparency log");
            let detail = format!(
                "The first {size} leaves of the log {origin} are others here: two histories were signed under one name. Keep the \
                 checkpoint, which proves it together with GET /log/checkpoint."
            );
            Err(Failure::new(ProblemType::LogForked, detail))
        }
        Standing::Pruned => {
            let detail = format!("The tiles that would show the first {size} leaves of {origin} are pruned.");
            Err(Failure::new(ProblemType::NotFound, detail))
        }
    }
}
