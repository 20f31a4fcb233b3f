//! The transparency log: checkpoints and tiles for everybody, and proofs for adders and owners.

use std::sync::Arc;

use actix_web::web::Bytes;
use keypool_openapi::{LogInfo, LogOrigin, ProblemType, ProofOf, ProofsRequest};
use keypool_transparency::{
    answers::{Answer, Answers},
    receipt::Promise,
    tile::TileId,
};

use super::{Service, log_heads::checked, reservations::lost_reservation};
use crate::{
    caller::Caller,
    log::Log,
    problem::{About, Failure},
    store::{Asked, Continuation, OriginRow, StepFound, Steps},
    sweeper::LOG_RETENTION,
};

fn no_log() -> Failure {
    let detail = "This server has no transparency log: its operator has set no log_key.";
    Failure::new(ProblemType::NotFound, detail)
}

impl Service {
    pub(super) fn log(&self) -> Result<&Arc<Log>, Failure> {
        self.log.as_ref().ok_or_else(no_log)
    }

    /// Reads the log. Strangers may do so, so few reads run at the same time, and the others wait for their turn.
    async fn read_log<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Log) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Failure> {
        let log = Arc::clone(self.log()?);
        let _turn = log.turn().await;
        let reader = Arc::clone(&log);
        self.work.run(move |_| read(&reader)).await
    }

    /// The logs of this server.
    pub async fn log_info(&self) -> Result<LogInfo, Failure> {
        self.read_log(|log| {
            let mut origins = log.origins()?.iter().map(origin).collect::<Vec<_>>().into_iter();
            let newest = origins.next().ok_or_else(no_log)?;
            Ok(LogInfo { origin: newest, before: origins.collect(), retention: LOG_RETENTION.as_secs().unsigned_abs() })
        })
        .await
    }

    /// The signed checkpoint of a log by the last part of its name. Only the newest log still has one.
    pub async fn log_checkpoint(&self, directory: String) -> Result<String, Failure> {
        self.read_log(move |log| {
            let k = known(log, &directory)?;
            Ok(log.checkpoint(k)?.ok_or_else(|| no_checkpoint(&directory))?.to_string())
        })
        .await
    }

    /// The last part of the name of the newest log.
    pub async fn log_directory(&self) -> Result<String, Failure> {
        self.read_log(|log| Ok(log.origins()?.into_iter().next().ok_or_else(no_log)?.origin.directory())).await
    }

    /// A tile or bundle.
    pub async fn log_tile(&self, directory: String, tile: TileId) -> Result<Bytes, Failure> {
        if let Some(bytes) = self.log()?.remembered(&directory, &tile) {
            return Ok(bytes);
        }
        self.read_log(move |log| {
            let k = known(log, &directory)?;
            log.tile((k, &directory), &tile)?.ok_or_else(|| {
                let detail = format!("The log {directory} has no {tile}: it is not so large, or the tile is pruned.");
                Failure::new(ProblemType::NotFound, detail)
            })
        })
        .await
    }

    /// Proofs of the caller's reservations and of its own KeyPackages.
    pub async fn log_proofs(&self, caller: Caller, request: ProofsRequest) -> Result<Answers, Failure> {
        let log = Arc::clone(self.log()?);
        if request.of.is_empty() {
            let detail = "`of` is empty. Name 1 to 1,000 reservations or KeyPackages.";
            return Err(Failure::new(ProblemType::MalformedRequest, detail));
        }
        let asked = request.of.into_iter().map(asked).collect::<Result<Vec<_>, _>>()?;
        let since = request.since.map(checked).transpose()?;
        // Each costs the database a few look-ups.
        self.limits.request(&caller.device.user, asked.len() / 32)?;
        let (store, wants_receipt) = (self.store.clone(), request.receipt);
        // Each takes some megabytes.
        let _turn = log.proof_turn().await;
        let log = Arc::clone(&log);
        self.work
            .run(move |now| {
                let by = caller.device.id;
                let found = store.log_steps(by, &asked, log.owners())?.ok_or_else(no_log)?;
                let Steps { state, steps, is_cut } = found.map_err(|(id, error)| Failure {
                    about: About::Reservation(id),
                    ..lost_reservation(error, &id)
                })?;
                if is_cut {
                    return Err(Failure::new(
                        ProblemType::MalformedRequest,
                        "These reservations and KeyPackages have more than 4,096 steps. Ask for some of them at a time.",
                    ));
                }
                let promises: Vec<_> = steps.iter().filter_map(promise).collect();
                let receipt = if wants_receipt && !promises.is_empty() {
                    let to = caller.device.named().to_string();
                    log.sign_receipts(&state, vec![(to, promises)], now)?.pop()
                } else {
                    None
                };
                let proofs = steps.into_iter().map(|step| Answer { tag: step.tag, found: step.found }).collect();
                let since = since.map(|since| log.since(&state, &since.origin, since.size)).transpose()?;
                let Continuation { consistency, heirs } = since.unwrap_or_default();
                Ok::<_, Failure>(Answers { checkpoint: log.sign(&state)?, proofs, receipt, consistency, heirs })
            })
            .await
    }
}

fn promise(step: &StepFound) -> Option<Promise> {
    match step.promised {
        Some(leaf) => Some(Promise::Leaf(leaf)),
        None => step.may_deny.then_some(Promise::None(step.tag)),
    }
}

fn asked(of: ProofOf) -> Result<Asked, Failure> {
    match (of.reservation_id, of.keypackage_ref) {
        (Some(id), None) => Ok(Asked::Reservation(id)),
        (None, Some(keypackage_ref)) => Ok(Asked::Package(keypackage_ref)),
        _ => Err(Failure::new(
            ProblemType::MalformedRequest,
            "An item of `of` must have either `reservation_id` or `keypackage_ref`.",
        )),
    }
}

/// The number of a log by the last part of its name.
fn known(log: &Log, directory: &str) -> Result<i32, Failure> {
    let found = log.origins()?.into_iter().find(|row| row.origin.directory() == directory);
    found.map(|row| row.k).ok_or_else(|| {
        let detail = format!("This server has no log {directory}. GET /log names those that it has.");
        Failure::new(ProblemType::NotFound, detail)
    })
}

fn no_checkpoint(directory: &str) -> Failure {
    let detail = format!(
        "The log {directory} ended when the database was restored, and gets no checkpoint any more. GET /log names the log that \
         continues it."
    );
    Failure::new(ProblemType::NotFound, detail)
}

fn origin(row: &OriginRow) -> LogOrigin {
    LogOrigin {
        origin: row.origin.to_string(),
        path: format!("log/{}", row.origin.directory()),
        key: row.key.clone().unwrap_or_default(),
        first_entry: row.first_entry,
        key_note: row.key_note.clone(),
    }
}
