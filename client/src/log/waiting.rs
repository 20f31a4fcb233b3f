//! With the setting `strict`, a hand-out is used only once the log has it.

use std::time::Duration;

use keypool_openapi::{Reservation, ReservationId};
use keypool_transparency::verdict::Verdict;
use tokio::time::sleep;

use super::{ServerLog, proofs::of_reservation};
use crate::{error::Result, finding::LogError};

/// How long a strict device waits for the log, and how often it asks. The server appends every half second.
const PATIENCE: Duration = Duration::from_secs(15);
const STEP: Duration = Duration::from_millis(300);

impl ServerLog<'_> {
    /// Waits until the log has these hand-outs as far as they have come, if the settings require it.
    ///
    /// # Errors
    /// [`LogError::NotLogged`] if it does not have them in time, and [`LogError::Misbehaved`] if it has others.
    pub(crate) async fn wait_for(&self, ids: &[ReservationId]) -> Result<()> {
        if !self.is_strict || ids.is_empty() {
            return Ok(());
        }
        let mut left = PATIENCE;
        loop {
            let waiting = self.not_in_log(ids).await?;
            if waiting.is_empty() {
                return Ok(());
            }
            if left.is_zero() {
                return Err(LogError::NotLogged { devices: waiting, seconds: PATIENCE.as_secs() }.into());
            }
            sleep(STEP).await;
            left = left.saturating_sub(STEP);
        }
    }

    /// The devices whose hand-outs the log does not have yet.
    async fn not_in_log(&self, ids: &[ReservationId]) -> Result<Vec<String>> {
        let (known, answers) = self.fetch(ids.iter().copied().map(of_reservation).collect()).await?;
        let (proven, policy) = (self.proven(&answers, &known)?, known.policy()?);
        let mut waiting = Vec::new();
        for id in ids {
            let Some(row) = self.store.hand_out(id)? else { continue };
            let (_, verdict) = self.adders_verdict(&row, &proven, &policy)?;
            match verdict {
                Verdict::Fine => {}
                Verdict::CannotTell(_) => waiting.push(row.hand_out.owner),
                Verdict::Report(problem) => {
                    let report = || format!("{problem}\n{row:#?}\n{answers:#?}\n");
                    return Err(self.raise(problem.to_string(), None, &known, report));
                }
                Verdict::Proven { problem, evidence } => {
                    return Err(self.raise(problem.to_string(), Some(*evidence), &known, String::new));
                }
            }
        }
        Ok(waiting)
    }
}

/// The ids of reservations.
pub(crate) fn ids_of(reservations: &[Reservation]) -> Vec<ReservationId> {
    reservations.iter().map(|one| one.reservation_id).collect()
}
